# SPDX-License-Identifier: Apache-2.0
"""A RowPlan as ONNX graphs that take and give the contract's units; docs/runtime.md describes the format.

Built operator by operator rather than traced, so that names, opset and order of operations are fixed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spc_core.deploy.networks.mlp import Linear, Mlp
from spc_core.deploy.networks.row_plan import Rounding, RowPlan, Simplexes
from spc_core.method.config import ConfigError
from spc_core.method.world_model import ONE

OPSET = 18  # the first with Mish; onnxruntime 1.14 and later
IR_VERSION = 8  # the newest that onnxruntime 1.14 reads


def policy_graph(plan: RowPlan) -> Any:
    """observation (N, O) double, context (N, Z) float -> action (N, A) double, all in the contract's units."""
    graph, stats = _Graph(), plan.stats
    row = graph.unit_scale("observation", stats.observation_mean, stats.observation_std)
    latent = graph.latent(row if plan.encoder is None else graph.mlp(row, plan.encoder), plan)
    seen = [latent, row] if plan.sees_both else [latent]
    joined = graph.add("Concat", [*seen, "context"], axis=1)
    unit = graph.add("Tanh", [graph.mlp(joined, plan.actor)])
    share = graph.add("Add", [graph.add("Cast", [unit], to=graph.DOUBLE), graph.constant(1.0)])
    half_span = graph.constant(np.float64(stats.action_span) / 2)
    units = graph.add("Add", [graph.add("Mul", [share, half_span]), graph.constant(stats.action_low)])
    above = graph.add("Max", [units, graph.constant(stats.action_low)])
    graph.add("Min", [above, graph.constant(stats.action_high)], output="action")
    inputs = [("observation", "d", len(stats.observation_mean)), ("context", "f", plan.task_means.shape[1])]
    return graph.model("policy", inputs, [("action", "d", len(stats.action_low))])


def encoder_graph(plan: RowPlan) -> Any:
    """observation, action, reward, next_observation (N, ...) double -> vote (N, Z) float; z is the mean of votes.

    With weights of votes: -> vote, weight (N, Z) float; z is the weighted mean.
    """
    graph, stats = _Graph(), plan.stats
    assert plan.context_encoder is not None
    low, span = graph.constant(stats.action_low), graph.constant(stats.action_span)
    shifted = graph.add("Div", [graph.add("Sub", ["action", low]), span])
    scaled = graph.add("Sub", [graph.add("Mul", [shifted, graph.constant(2.0)]), graph.constant(1.0)])
    bounded = graph.add("Min", [graph.add("Max", [scaled, graph.constant(-1.0)]), graph.constant(1.0)])
    change = graph.add("Sub", ["next_observation", "observation"])
    parts = [
        graph.unit_scale("observation", stats.observation_mean, stats.observation_std),
        graph.add("Cast", [bounded], to=graph.FLOAT),
        graph.unit_scale("reward", stats.reward_mean, stats.reward_std),
        graph.unit_scale(change, np.zeros_like(stats.change_std), stats.change_std),
    ]
    row = graph.add("Concat", parts, axis=1)
    outputs, size = graph.mlp(row, plan.context_encoder), plan.task_means.shape[1]
    ends = [("vote", "f", size)]
    if plan.precision:
        sizes = graph.constant([size, size], "q")
        outputs, raw = graph.split(outputs, sizes)
        graph.add("Softplus", [graph.add("Add", [raw, graph.constant(ONE, "f")])], output="weight")
        ends.append(("weight", "f", size))
    graph.add("Tanh", [outputs], output="vote")
    fields = len(stats.observation_mean)
    inputs = [
        ("observation", "d", fields),
        ("action", "d", len(stats.action_low)),
        ("reward", "d", 1),
        ("next_observation", "d", fields),
    ]
    return graph.model("context_encoder", inputs, ends)


class _Graph:
    """Nodes and constants of a graph that grows from its inputs; each method returns the name of its result."""

    def __init__(self) -> None:
        try:
            import onnx  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("exporting needs onnx, which is not installed; pip install 'spc_ros[onnx]'") from None
        self._onnx = onnx
        self.FLOAT, self.DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def split(self, x: str, sizes: str) -> tuple[str, str]:
        """Two parts (N, ...) of a result (N, ...)."""
        parts = f"first_{len(self._nodes)}", f"second_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node("Split", [x, sizes], list(parts), axis=1))
        return parts

    def constant(self, values: Any, kind: str = "d") -> str:
        name = f"constant_{len(self._constants)}"
        array = np.ascontiguousarray(np.asarray(values, kind))
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def unit_scale(self, name: str, mean: Any, std: Any) -> str:
        """A double input in the contract's units to unit scale, float; subtracted in double, as Stats does."""
        scaled = self.add("Div", [self.add("Sub", [name, self.constant(mean)]), self.constant(std)])
        return self.add("Cast", [scaled], to=self.FLOAT)

    def mlp(self, x: str, mlp: Mlp) -> str:
        for block in mlp.blocks:
            x = self._linear(x, block)
            norm = [self.constant(block.gain, "f"), self.constant(block.offset, "f")]
            x = self.add("Mish", [self.add("LayerNormalization", [x, *norm], epsilon=block.eps)])
        return self._linear(x, mlp.last)

    def latent(self, features: str, plan: RowPlan) -> str:
        """The latent (N, L) of features (N, L)."""
        latent, dim = plan.latent, plan.latent_dim
        if isinstance(latent, Rounding):
            bounded = self.add("Mul", [self.add("Tanh", [features]), self.constant(latent.bounds, "f")])
            return self.add("Div", [self.add("Round", [bounded]), self.constant(latent.steps, "f")])
        if isinstance(latent, Simplexes):
            groups = self.add("Reshape", [features, self.constant([0, dim // latent.size, latent.size], "q")])
            return self.add("Reshape", [self.add("Softmax", [groups], axis=-1), self.constant([0, dim], "q")])
        return features

    def model(self, name: str, inputs: Sequence[tuple], outputs: Sequence[tuple]) -> Any:
        """The checked model; inputs and outputs are (name, d or f, width)."""
        helper = self._onnx.helper
        kinds = {"d": self.DOUBLE, "f": self.FLOAT}
        ends = [
            [helper.make_tensor_value_info(end, kinds[kind], ["N", width]) for end, kind, width in side]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, name, ends[0], ends[1], self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="spc_ros")
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _linear(self, x: str, layer: Linear) -> str:
        return self.add("Gemm", [x, self.constant(layer.weight, "f"), self.constant(layer.bias, "f")], transB=1)
