# SPDX-License-Identifier: Apache-2.0
"""Acting and adapting by onnxruntime, on the graphs that onnx_graphs builds. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.checkpoint_files import CheckpointError


class OnnxNetworks:
    """Actor and context encoder in onnxruntime sessions; see Networks."""

    def __init__(self, policy: Any, encoder: Any, context_dim: int, task_means: np.ndarray) -> None:
        """`policy` and `encoder` are sessions; `encoder` is None where z is always zero."""
        self._policy, self._encoder = policy, encoder
        self.context_dim, self.task_means, self.has_encoder = context_dim, task_means, encoder is not None

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the action (A,) in the contract's units, float64."""
        feed = {"observation": np.asarray(observation, np.float64)[None],
                "context": np.asarray(context, np.float32)[None]}  # fmt: skip
        return self._policy.run(None, feed)[0][0]

    def embed(self, transition: Transition) -> np.ndarray:
        """A transition in the contract's units to its embedding (Z,) float32; z is the mean of embeddings."""
        feed = {
            "observation": np.asarray(transition.observation, np.float64)[None],
            "action": np.asarray(transition.action, np.float64)[None],
            "reward": np.array([[transition.reward]], np.float64),
            "next_observation": np.asarray(transition.next_observation, np.float64)[None],
        }
        return self._encoder.run(None, feed)[0][0]


def open_session(file: Path, threads: int) -> Any:
    """An onnxruntime session with `threads` threads that never spin."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise CheckpointError(
            f"{file.parent}: an export needs onnxruntime, which is not installed here; pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; copy the whole folder again")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an error class for each kind of damage, which derive from Exception
        raise CheckpointError(f"{file}: corrupt ({error}); export it again") from None
