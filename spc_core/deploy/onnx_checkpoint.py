# SPDX-License-Identifier: Apache-2.0
"""Exports a checkpoint to ONNX, and loads the export to act without torch. docs/runtime.md describes the format."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import yaml

from spc_core.alignment.streaming import Transition
from spc_core.contract.contract import Contract, ContractError, load_contract
from spc_core.deploy.checkpoint_files import ONNX_CARD, CheckpointError
from spc_core.deploy.task_belief import NO_BELIEF, TaskBelief
from spc_core.deploy.vote_model import VoteModel
from spc_core.method.config import ConfigError, PlannerConfig, TrainConfig, build, to_dict
from spc_core.system.atomic_files import AtomicFolder

if TYPE_CHECKING:  # it needs torch, which a robot may lack
    from spc_core.deploy.checkpoint import Checkpoint

FORMAT = 1
POLICY, ENCODER = "policy.onnx", "context_encoder.onnx"


class OnnxNetworks:
    """Actor and context encoder in onnxruntime sessions; see Networks."""

    def __init__(self, policy: Any, encoder: Any, task_means: np.ndarray) -> None:
        """`policy` and `encoder` are sessions; `encoder` is None if z is always zero."""
        self._policy, self._encoder = policy, encoder
        self.task_means, self.context_dim = task_means, task_means.shape[1]
        self.has_encoder = encoder is not None

    def act(self, observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        """(O,) in the contract's units and (Z,) to the action (A,) in the contract's units, float64."""
        feed = {"observation": np.asarray(observation, np.float64)[None],
                "context": np.asarray(context, np.float32)[None]}  # fmt: skip
        return self._policy.run(None, feed)[0][0]

    def embed(self, transition: Transition) -> np.ndarray:
        """A transition in the contract's units to its embedding, float32: see Networks."""
        feed = {
            "observation": np.asarray(transition.observation, np.float64)[None],
            "action": np.asarray(transition.action, np.float64)[None],
            "reward": np.array([[transition.reward]], np.float64),
            "next_observation": np.asarray(transition.next_observation, np.float64)[None],
        }
        outputs = [rows[0] for rows in self._encoder.run(None, feed)]  # votes, and weights if they have any
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


@dataclasses.dataclass(frozen=True)
class OnnxCheckpoint:
    """An exported policy; see Deployable."""

    sessions: OnnxNetworks
    config: TrainConfig
    contract: Contract
    metrics: dict[str, Any]  # of the checkpoint that was exported
    vote_model: VoteModel | None = None
    no_vote_model: str = ""
    task_belief: TaskBelief | None = None
    no_task_belief: str = ""

    def networks(self) -> OnnxNetworks:
        return self.sessions

    def planner(self, config: PlannerConfig) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError("planning needs the world model, which an export lacks; use the checkpoint instead")


def load_onnx(folder: str | Path, device: str = "cpu", threads: int = 1) -> OnnxCheckpoint:
    """Load an exported folder. Raises CheckpointError, also if onnxruntime is missing."""
    folder = Path(folder)
    if device not in ("cpu", "auto"):
        raise CheckpointError(f"{folder}: device is '{device}'; an export runs on the CPU only, use device cpu")
    try:
        card = json.loads((folder / ONNX_CARD).read_text())
        if card["format"] > FORMAT:
            raise CheckpointError(
                f"{folder}: has format {card['format']}, this program reads up to {FORMAT}; update the program"
            )
        config = build(TrainConfig, yaml.safe_load((folder / "config.yaml").read_text()), str(folder / "config.yaml"))
        contract = load_contract(folder / "contract.yaml")
        task_means = np.array(card["task_means"], np.float32)
        files = [POLICY, *([ENCODER] if card["has_encoder"] else [])]
        votes = None if card.get("votes") is None else VoteModel.from_dict(card["votes"])
        belief = None if card.get("belief") is None else TaskBelief.from_dict(card["belief"])
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{folder}: corrupt: {ONNX_CARD} lacks {error}; export it again") from None
    except (OSError, ValueError, yaml.YAMLError, ContractError, ConfigError) as error:
        raise CheckpointError(f"{folder}: corrupt: {error}; export it again") from None
    sessions = [_session(folder / name, threads) for name in files]
    widths = {i.name: i.shape[1] for i in sessions[0].get_inputs()}
    if widths != {"observation": contract.observation_dim, "context": task_means.shape[1]}:
        raise CheckpointError(
            f"{folder}: {POLICY} takes {widths}, contract.yaml has {contract.observation_dim} observations and "
            f"{ONNX_CARD} a task vector of {task_means.shape[1]}; copy the complete folder again, not single files"
        )
    networks = OnnxNetworks(sessions[0], sessions[1] if card["has_encoder"] else None, task_means)
    why_not = "" if votes else card.get("no_votes", "exported before there were vote models; export it again")
    return OnnxCheckpoint(
        networks,
        config,
        contract,
        card["metrics"],
        votes,
        why_not,
        belief,
        "" if belief else card.get("no_belief", NO_BELIEF),
    )


def _session(file: Path, threads: int) -> Any:
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
        raise CheckpointError(f"{file}: missing; copy the complete folder again")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an error class for each kind of damage, which derive from Exception
        raise CheckpointError(f"{file}: corrupt ({error}); export it again") from None


def export_onnx(checkpoint: Checkpoint, out: Path, overwrite: bool = False, model_id: int = 0) -> Path:
    """Write policy.onnx, context_encoder.onnx, config.yaml, contract.yaml and export.json, all of them or none.

    `model_id` is the checkpoint's, by which nodes match contexts with policies.
    Raises ConfigError if onnx is missing or the method needs the true task parameters, and FileExistsError.
    """
    if checkpoint.config.method.context == "oracle":
        raise ConfigError(
            f"method '{checkpoint.config.method.name}' needs the true task parameters, which no robot knows"
        )
    from spc_core.deploy.networks.onnx_graphs import OPSET, encoder_graph, policy_graph
    from spc_core.deploy.networks.row_plan import row_plan

    contract, plan = checkpoint.contract, row_plan(checkpoint.agent, checkpoint.stats)
    graphs = {POLICY: policy_graph(plan)}
    if plan.context_encoder is not None:
        graphs[ENCODER] = encoder_graph(plan)
    card = {
        "format": FORMAT,
        "model_id": model_id,
        "opset": OPSET,
        "observation": list(contract.observation_names),
        "action": list(contract.action.fields),
        "context_dim": plan.task_means.shape[1],
        "has_encoder": plan.context_encoder is not None,
        "contract_sha256": hashlib.sha256(contract.text.encode()).hexdigest(),
        "task_means": plan.task_means.tolist(),
        "metrics": checkpoint.metrics,
        "votes": None if checkpoint.vote_model is None else checkpoint.vote_model.to_dict(),
        "no_votes": checkpoint.no_vote_model,
        "no_belief": checkpoint.no_task_belief,
        "belief": None if checkpoint.task_belief is None else checkpoint.task_belief.to_dict(),
    }
    folder = AtomicFolder(out, overwrite, ONNX_CARD, "an export to ONNX")
    try:
        for name, model in graphs.items():
            (folder.path / name).write_bytes(model.SerializeToString())
        (folder.path / "config.yaml").write_text(yaml.safe_dump(to_dict(checkpoint.config), sort_keys=False))
        (folder.path / "contract.yaml").write_text(contract.text)
        (folder.path / ONNX_CARD).write_text(json.dumps(card, indent=1) + "\n")
        return folder.commit()
    finally:
        folder.abort()
