# SPDX-License-Identifier: Apache-2.0
"""MLPs in plain NumPy, for one row at a time or for many that equal it to the bit; needs no torch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

ONE_THREAD = 9215  # weights in a product; OpenBLAS takes more threads from 9216 on
FEW = 4  # products of up to this many parts run part by part, which is faster
LARGEST = 43.0  # largest x for which exp(x)^2 fits in float32


@dataclasses.dataclass(frozen=True)
class Linear:
    """weight (O, I) and bias (O,)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class Block(Linear):
    """A linear layer, then LayerNorm with gain and offset (O,), then Mish."""

    gain: np.ndarray
    offset: np.ndarray
    eps: float


@dataclasses.dataclass(frozen=True)
class Mlp:
    """layers.mlp: blocks and a last linear layer."""

    blocks: tuple[Block, ...]
    last: Linear


class Rows:
    """An MLP for one row at a time: write the row into `inputs`, (I,), then `run`.

    The bias is one more weight, of an input that is always one. The mean that a layer norm subtracts from its input
    is subtracted from the weights once: then each row has mean zero.
    """

    def __init__(self, mlp: Mlp, scale: np.ndarray | None = None) -> None:
        """The first inputs are multiplied by `scale` (N,) before anything else, if given."""
        layers = (*mlp.blocks, mlp.last)
        weights = [np.concatenate([a.weight, a.bias[:, None]], 1, dtype=np.float64) for a in layers]  # (O, I + 1)
        products = [*(Product(weight - weight.mean(0)) for weight in weights[:-1]), Product(weights[-1])]
        if scale is not None:
            products[0].weight[:, : len(scale)] *= scale
        buffers = [np.ones(weight.shape[1], np.float32) for weight in weights]  # the last number stays one
        steps = zip(mlp.blocks, products[:-1], buffers[:-1], buffers[1:], strict=True)
        self.blocks = [RowsBlock(block, product, row, after[:-1]) for block, product, row, after in steps]
        self.last, self._last_inputs = products[-1], buffers[-1]
        self.inputs = buffers[0][:-1]

    def run(self) -> np.ndarray:
        """The last layer's (O,) float32, in the same buffer each time."""
        for block in self.blocks:
            block.run()
        return self.last(self._last_inputs)


class RowsBlock:
    """Linear, LayerNorm, Mish: from one buffer to another."""

    def __init__(self, block: Block, product: Product, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """`product` gives rows of mean zero."""
        self.product, self._inputs, self._outputs = product, inputs, outputs
        self.gain, self.offset, self.eps, self.size = block.gain, block.offset, block.eps, len(block.bias)
        self._gate = np.empty(self.size, np.float32)
        largest = abs(self.gain) * math.sqrt(self.size) + abs(self.offset)  # outputs of the norm
        self.steep = float(largest.max()) > LARGEST

    def run(self) -> None:
        y, gate = self.product(self._inputs), self._gate
        y *= 1 / math.sqrt(float(y.dot(y)) / self.size + self.eps)
        y *= self.gain
        y += self.offset
        # Mish: x n / (n + 2) with n = e^x (e^x + 2)
        np.exp(np.minimum(y, LARGEST, out=gate) if self.steep else y, out=gate)
        np.add(gate, 2, out=self._outputs)
        gate *= self._outputs
        np.add(gate, 2, out=self._outputs)
        gate /= self._outputs
        np.multiply(y, gate, out=self._outputs)


class Product:
    """A matrix (O, I) for products with one vector."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = np.ascontiguousarray(weight, np.float32)
        outputs, inputs = weight.shape
        self._result = np.empty(outputs, np.float32)
        # parts too small for a second thread of OpenBLAS, which saves 10 us but may take 20 ms on a busy machine
        rows = max(n for n in range(1, outputs + 1) if outputs % n == 0 and (n == 1 or n * inputs <= ONE_THREAD))
        self.parts = self.weight.reshape(-1, rows, inputs)  # the same memory
        self._results = self._result.reshape(self.parts.shape[:2])
        few = len(self.parts) <= FEW
        self._pairs = list(zip(self.parts, self._results, strict=True)) if few else []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(I,) to (O,) float32, in the same buffer each time."""
        for part, result in self._pairs:
            part.dot(x, result)
        if not self._pairs:
            np.matmul(self.parts, x, out=self._results)
        return self._result


def rows_of_ones(rows: Rows, count: int) -> np.ndarray:
    """(N, I + 1) for the inputs of an MLP; the last one is one."""
    return np.ones((count, len(rows.inputs) + 1), np.float32)


def run_rows(rows: Rows, x: np.ndarray) -> np.ndarray:
    """(N, I + 1) to the last layer's (N, O) float32."""
    for block in rows.blocks:
        x = _block(block, x)
    return _product(rows.last, x)


def _block(block: RowsBlock, x: np.ndarray) -> np.ndarray:
    """(N, I + 1) to (N, O + 1), in the steps of RowsBlock.run."""
    y = _product(block.product, x)
    squares = np.matmul(y[:, None], y[:, :, None])[:, :, 0].astype(np.float64)
    y *= (1 / np.sqrt(squares / block.size + block.eps)).astype(np.float32)
    y *= block.gain
    y += block.offset
    gate = np.exp(np.minimum(y, LARGEST) if block.steep else y)
    outputs = np.ones((len(y), block.size + 1), np.float32)
    inner = gate + 2
    gate *= inner
    np.add(gate, 2, out=inner)
    gate /= inner
    np.multiply(y, gate, out=outputs[:, :-1])
    return outputs


def _product(product: Product, x: np.ndarray) -> np.ndarray:
    """(N, I + 1) to (N, O): each part of the matrix with all rows in turn, while it is in the processor's cache."""
    if len(product.parts) == 1:
        return np.matmul(product.parts[0], x[:, :, None])[:, :, 0]
    return np.matmul(product.parts[:, None], x[:, :, None])[..., 0].swapaxes(0, 1).reshape(len(x), -1)
