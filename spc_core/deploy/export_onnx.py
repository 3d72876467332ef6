# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint as ONNX graphs that take and give the contract's units; docs/runtime.md tells the format.

The graphs are built from the weights, operator by operator: there is nothing to trace in a chain of layers, and the
names, the opset and the order of operations stay ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

from spc_core.deploy.checkpoint import Checkpoint
from spc_core.deploy.checkpoint_files import ONNX_CARD
from spc_core.deploy.onnx_networks import ENCODER, FORMAT, POLICY
from spc_core.method.config import ConfigError, to_dict
from spc_core.method.latents import Codes, Continuous, SimNorm
from spc_core.method.layers import Mish
from spc_core.system.atomic_files import WholeFolder

OPSET = 18  # the first with Mish; onnxruntime 1.14 and later
IR_VERSION = 8  # what onnxruntime 1.14 reads


def export_onnx(checkpoint: Checkpoint, out: Path, overwrite: bool = False, its_id: int = 0) -> Path:
    """Write policy.onnx, context_encoder.onnx, config.yaml, contract.yaml and export.json, whole or not at all.

    `its_id` is the checkpoint's model_id, by which nodes tell whose context it is.

    Raises ConfigError where onnx is missing or the method needs what a robot does not have, FileExistsError.
    """
    if checkpoint.config.method.context == "oracle":
        raise ConfigError(f"method '{checkpoint.config.method.name}' must be told the true task; no robot can run it")
    agent, contract = checkpoint.agent, checkpoint.contract
    graphs = {POLICY: policy_graph(checkpoint)}
    if agent.context_encoder is not None:
        graphs[ENCODER] = encoder_graph(checkpoint)
    card = {
        "format": FORMAT,
        "model_id": its_id,
        "opset": OPSET,
        "observation": list(contract.observation_names),
        "action": list(contract.action.fields),
        "context_dim": agent.context_dim,
        "has_encoder": agent.context_encoder is not None,
        "contract_sha256": hashlib.sha256(contract.text.encode()).hexdigest(),
        "task_means": agent.task_means.cpu().numpy().tolist(),
        "metrics": checkpoint.metrics,
    }
    folder = WholeFolder(out, overwrite, ONNX_CARD, "an export to ONNX")
    try:
        for name, model in graphs.items():
            (folder.path / name).write_bytes(model.SerializeToString())
        (folder.path / "config.yaml").write_text(yaml.safe_dump(to_dict(checkpoint.config), sort_keys=False))
        (folder.path / "contract.yaml").write_text(contract.text)
        (folder.path / ONNX_CARD).write_text(json.dumps(card, indent=1) + "\n")
        return folder.commit()
    finally:
        folder.abort()


def policy_graph(checkpoint: Checkpoint) -> Any:
    """observation (N, O) double, context (N, Z) float -> action (N, A) double, all in the contract's units."""
    agent, stats = checkpoint.agent, checkpoint.stats
    graph = _Graph()
    row = graph.unit_scale("observation", stats.observation_mean, stats.observation_std)
    latent = graph.latent(graph.mlp(row, agent.world_model.encoder), agent.world_model.latent)
    joined = graph.add("Concat", [latent, "context"], axis=1)
    unit = graph.add("Tanh", [graph.mlp(joined, agent.actor.network, agent.action_dim)])
    share = graph.add("Add", [graph.add("Cast", [unit], to=graph.DOUBLE), graph.constant(1.0)])
    span = np.float64(stats.action_high - stats.action_low) / 2
    units = graph.add("Add", [graph.add("Mul", [share, graph.constant(span)]), graph.constant(stats.action_low, "d")])
    above = graph.add("Max", [units, graph.constant(stats.action_low, "d")])
    graph.add("Min", [above, graph.constant(stats.action_high, "d")], output="action")
    inputs = [("observation", "d", agent.observation_dim), ("context", "f", agent.context_dim)]
    return graph.model("policy", inputs, [("action", "d", agent.action_dim)])


def encoder_graph(checkpoint: Checkpoint) -> Any:
    """observation, action, reward, next_observation (N, ...) double -> vote (N, Z) float; z is the mean of votes."""
    agent, stats = checkpoint.agent, checkpoint.stats
    assert agent.context_encoder is not None
    graph = _Graph()
    low, span = np.float64(stats.action_low), np.float64(stats.action_high - stats.action_low)
    shifted = graph.add("Div", [graph.add("Sub", ["action", graph.constant(low)]), graph.constant(span)])
    scaled = graph.add("Sub", [graph.add("Mul", [shifted, graph.constant(2.0)]), graph.constant(1.0)])
    bounded = graph.add("Min", [graph.add("Max", [scaled, graph.constant(-1.0)]), graph.constant(1.0)])
    change = graph.add("Sub", ["next_observation", "observation"])
    parts = [
        graph.unit_scale("observation", stats.observation_mean, stats.observation_std),
        graph.add("Cast", [bounded], to=graph.FLOAT),
        graph.unit_scale("reward", np.array(stats.reward_mean), np.array(stats.reward_std)),
        graph.unit_scale(change, np.zeros_like(stats.change_std), stats.change_std),
    ]
    row = graph.add("Concat", parts, axis=1)
    graph.add("Tanh", [graph.mlp(row, agent.context_encoder.network)], output="vote")
    width, actions = agent.observation_dim, agent.action_dim
    inputs = [
        ("observation", "d", width),
        ("action", "d", actions),
        ("reward", "d", 1),
        ("next_observation", "d", width),
    ]
    return graph.model("context_encoder", inputs, [("vote", "f", agent.context_dim)])


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

    def constant(self, values: Any, kind: str = "d") -> str:
        name = f"constant_{len(self._constants)}"
        array = np.ascontiguousarray(np.asarray(values, kind))
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def unit_scale(self, name: str, mean: np.ndarray, std: np.ndarray) -> str:
        """A double input in the contract's units to unit scale, float; subtracted in double, as Stats does."""
        scaled = self.add("Div", [self.add("Sub", [name, self.constant(mean)]), self.constant(std)])
        return self.add("Cast", [scaled], to=self.FLOAT)

    def mlp(self, x: str, network: nn.Module, outputs: int | None = None) -> str:
        """layers.mlp; only the first `outputs` of the last layer where given."""
        if isinstance(network, nn.Identity):
            return x
        assert isinstance(network, nn.Sequential)
        for layer in network:
            if isinstance(layer, nn.Linear):
                count = outputs if layer is network[-1] else None
                weights = [self._weights(layer.weight[:count]), self._weights(layer.bias[:count])]
                x = self.add("Gemm", [x, *weights], transB=1)
            elif isinstance(layer, nn.LayerNorm):
                weights = [self._weights(layer.weight), self._weights(layer.bias)]
                x = self.add("LayerNormalization", [x, *weights], epsilon=layer.eps)
            else:
                assert isinstance(layer, Mish)
                x = self.add("Mish", [x])
        return x

    def latent(self, features: str, latent: nn.Module) -> str:
        """latent.encode of features (N, F)."""
        if isinstance(latent, Codes):
            steps = latent.fsq.steps.float().repeat(latent.groups).cpu().numpy()
            bounded = self.add("Mul", [self.add("Tanh", [features]), self.constant(steps * np.float32(1 + 1e-3), "f")])
            return self.add("Div", [self.add("Round", [bounded]), self.constant(steps, "f")])
        if isinstance(latent, SimNorm):
            groups = self.add("Reshape", [features, self.constant([0, latent.dim // latent.size, latent.size], "q")])
            return self.add("Reshape", [self.add("Softmax", [groups], axis=-1), self.constant([0, latent.dim], "q")])
        assert isinstance(latent, Continuous)
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

    def _weights(self, values: Any) -> str:
        return self.constant(values.detach().cpu().numpy(), "f")
