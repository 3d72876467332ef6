# SPDX-License-Identifier: Apache-2.0
"""The state of a training run: how it is built, saved, resumed, and diagnosed after a failure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from spc_core.contract.contract import parse_contract
from spc_core.data.dataset import DatasetError
from spc_core.data.held_out import HeldOut, trained_on
from spc_core.data.outliers import describe
from spc_core.data.packed import PackedDataset
from spc_core.data.sampler import Sampler
from spc_core.deploy.checkpoint import Checkpoint, save_checkpoint
from spc_core.method.agent import Agent
from spc_core.method.config import ConfigError, TrainConfig, build, to_dict
from spc_core.method.fused import FusedLearner
from spc_core.method.latents import Raw
from spc_core.method.normalize import Stats
from spc_core.method.one_step import OneStep
from spc_core.training.continuing import Beginning, take_weights
from spc_core.training.distributed import Group
from spc_core.training.run_log import BadLoss, LossWatch
from spc_core.training.threads import usual_threads

FORMAT = 2
FREE = ("device", "threads", "compile", "evaluate_every")  # settings that do not affect the weights, so they may change
FLAGS_EVERY = 10  # updates between two checks whether another process was stopped, on GPUs


class TrainingError(RuntimeError):
    """Training cannot continue; the message says where it stopped and why."""


@dataclasses.dataclass
class Progress:
    """Progress of a run; written to resume.pt."""

    update: int = 0
    seconds: float = 0.0


class TrainingRun:
    """Learner, sampler, progress, and the losses since the last log line: everything that resume.pt restores."""

    def __init__(
        self, data: PackedDataset, stats: Stats, out: Path, config: TrainConfig, group: Group,
        beginning: Beginning | None = None, held_out: HeldOut | None = None,
    ) -> None:  # fmt: skip
        """`beginning`: the earlier run that this one goes on from, whose normalisation `stats` are.

        `held_out`: recordings that it is assessed by, which its checkpoints name.
        """
        self.data, self.out, self.config, self.group, self.device = data, out, config, group, group.device
        self.checkpoint_folder, self._resume_file = out / "checkpoint", out / "resume.pt"
        torch.manual_seed(config.seed)
        self.stats = stats
        contract = data.contract
        params = [task.params for task in data.tasks]
        self.agent = Agent(contract.observation_dim, contract.action_dim, params, config).to(self.device)
        model, change = self.agent.world_model, torch.from_numpy(stats.change_std / stats.observation_std)
        for part in (model.latent, model.one_step):
            if isinstance(part, Raw | OneStep):
                part.scale.copy_(change)
        if beginning is not None:
            take_weights(self.agent, beginning, data)
        self.origin = {} if beginning is None else beginning.origin
        self._trained_before = () if beginning is None else trained_on(beginning.checkpoint.metrics)
        self.held_out = held_out
        self.generator = torch.Generator(self.device)
        self.learner = FusedLearner(
            self.agent, self.generator, terminal_value=stats.terminal_value(config.loss.discount)
        )
        self._modules = {"agent": self.agent} | ({"club": self.learner.club} if self.learner.club else {})
        for module in self._modules.values():
            group.broadcast(module.state_dict().values())
        self.learner.reduce = group.average_gradients
        self.sampler = Sampler(data, stats, config, config.seed, group.rank, group.world)
        if group.rank:
            torch.manual_seed(config.seed + group.rank)  # own noise, after the same initial weights
        if self.device.type == "cuda":
            self.generator.manual_seed(config.seed + group.rank)
        else:
            self.generator.set_state(torch.get_rng_state())
        self.threads = config.threads or usual_threads(config, self.device.type)
        self.progress = Progress()
        self.watch = LossWatch()
        self.last_means: dict[str, float] = {}  # losses of the last log line, for a checkpoint's metrics
        self._checked = (0, self.sampler.rng.bit_generator.state)  # update and sampler when losses were last checked

    @property
    def done(self) -> bool:
        return self.progress.update == self.config.updates

    def check(self, stopped: bool, due: bool) -> bool:
        """Whether any process was `stopped`. Raises TrainingError if a loss of any process is not finite.

        On a GPU, losses are checked only when `due`, since a check waits for the GPU.
        """
        checks = due or self.device.type == "cpu"
        if not (checks or self.group.world == 1 or self.progress.update % FLAGS_EVERY == 0):
            return False
        bad = self.watch.first_bad() if checks else None
        stop, failed = self.group.any(stopped, bad is not None)
        if failed:
            raise TrainingError(f"{self.out}: {self._diagnosis(bad)}")
        if checks:
            self._checked = (self.progress.update, self.sampler.rng.bit_generator.state)
        return stop

    def _diagnosis(self, bad: BadLoss | None) -> str:
        """The bad loss, its update and its batch, which is drawn again, since a GPU reports it late."""
        if bad is None:
            return f"a loss of another process is not finite at update {self.progress.update}; see its message"
        update, self.sampler.rng.bit_generator.state = self._checked
        for _ in range(bad.update - update):
            self.sampler.batch()
        batch = self.sampler.batch()
        kept = self._resume_file
        state = f"The last good state is kept in {kept}" if kept.is_file() else "No state was saved before that"
        return (
            f"the {bad.name} loss became {bad.value} at update {bad.update + 1}; lower the learning rates or look for "
            f"outliers in the data: {describe(batch, [task.task_id for task in self.data.tasks])}\n{state}"
        )

    def snapshot(self, folder: Path) -> None:
        """Write the present agent as a checkpoint."""
        metrics = {
            "update": self.progress.update,
            "seconds": round(self.progress.seconds, 1),
            "seed": self.config.seed,
            "losses": self.last_means,
            "dataset_sha256": self.data.sha256,
            "contract_sha256": self.data.contract.sha256,
            "command_delay": self.data.command_delay,
            "command_lag": self.data.command_lag,
            "from": self.origin,
            "trained_before": list(self._trained_before),
            "held_out": None if self.held_out is None else self.held_out.as_dict(),
            "tasks": [{"task_id": task.task_id, "params": dict(task.params)} for task in self.data.tasks],
        }
        contract = self.data.contract
        save_checkpoint(folder, Checkpoint(self.agent, self.config, contract, self.stats, metrics, self.device))

    def save(self) -> None:
        """Write the checkpoint, then resume.pt: the complete file or nothing.

        Raises TrainingError, and writes nothing, if a weight is not finite.
        """
        bad = [name for name, weight in self.agent.state_dict().items() if not bool(torch.isfinite(weight).all())]
        if self.group.any(bool(bad))[0]:
            raise TrainingError(
                f"{self.out}: weight {(bad or ['of another process'])[0]} is not finite after update "
                f"{self.progress.update}; lower the learning rates or look for outliers in the data. "
                "The last good state is kept; nothing was overwritten."
            )
        cuda = self.device.type == "cuda"
        state = {
            "format": FORMAT,
            "config": json.dumps(to_dict(self.config)),  # these four identify the run
            "contract": self.data.contract.text,
            "dataset": self.data.sha256,
            "held_out": json.dumps(self.data.held_out),
            "from": self.origin,
            "modules": _copied({name: module.state_dict() for name, module in self._modules.items()}),
            "optimizers": _copied({name: o.state_dict() for name, o in self.learner.optimizers.items()}),
            "torch_rng": self.group.gather(torch.get_rng_state() if cuda else self.generator.get_state()),
            "cuda_rng": self.group.gather(self.generator.get_state()) if cuda else [],
            "sampler_rng": json.dumps(self.sampler.rng.bit_generator.state),
            "threads": self.threads,
            "progress": dataclasses.asdict(self.progress),
            "losses": self.watch.state(),
        }
        if self.group.is_leader:
            self.snapshot(self.checkpoint_folder)
            partial = self._resume_file.with_name(f".{self._resume_file.name}.partial")
            torch.save(state, partial)
            partial.replace(self._resume_file)

    def resume(self) -> None:
        """Resume an earlier run of the same settings and data in the same folder, if there is one."""
        rank = self.group.rank
        if not self._resume_file.is_file():
            return
        state = read_state(self._resume_file, self.device, self.config, self.data)
        if (origin := state.get("from", {})) != self.origin:
            raise ConfigError(
                f"{self.out}: holds a run from {_model(origin)}, and this one is from {_model(self.origin)}; "
                "give the same --from, choose another --out, or --overwrite"
            )
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.learner.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        states = state["cuda_rng" if self.device.type == "cuda" else "torch_rng"]
        if rank < len(states):  # else there are more processes than before, and the noise of this one restarts
            self.generator.set_state(states[rank].cpu())
        self.sampler.rng.bit_generator.state = json.loads(state["sampler_rng"])
        if not self.config.threads:
            self.threads = state.get("threads", self.threads)  # files of before do not say it
        self.progress = Progress(**state["progress"])
        self.watch.load(state["losses"])
        self._checked = (self.progress.update, self.sampler.rng.bit_generator.state)


def _model(origin: dict[str, Any]) -> str:
    return f"model {origin['model']} after {origin['update']:,} updates" if origin else "scratch"


def _copied(state: Any) -> Any:
    """Tensors of their own: a stack's seeds share theirs, and each file would hold those of all."""
    return tree_map(lambda value: value.clone() if isinstance(value, torch.Tensor) else value, state)


def read_state(file: Path, device: torch.device, config: TrainConfig, data: PackedDataset) -> dict[str, Any]:
    """The state of an earlier run of the same settings and dataset.

    Raises TrainingError (damaged, other format), ConfigError (other settings) or DatasetError (other data).
    """
    try:
        state = torch.load(file, weights_only=True, map_location=device)
    except Exception as error:  # a damaged archive raises anything
        raise TrainingError(f"{file}: corrupt ({error}); start again with --overwrite") from error
    found = state.get("format", 1)
    if found != FORMAT:
        fix = "update the program" if found > FORMAT else "start again with --overwrite"
        raise TrainingError(f"{file}: has format {found}, this program reads {FORMAT}; {fix}")
    out = file.parent
    saved, wanted = to_dict(build(TrainConfig, json.loads(state["config"]), str(file))), to_dict(config)
    changed = [key for key in wanted if key not in FREE and wanted[key] != saved.get(key)]
    if changed:
        lines = "; ".join(f"{key} was {saved.get(key)}, is {wanted[key]}" for key in changed)
        raise ConfigError(f"{out}: holds a run with other settings ({lines}); choose another --out or --overwrite")
    fields = data.contract.differences(parse_contract(state["contract"], str(file)))
    if fields:
        raise DatasetError(
            f"{out}: holds a run with a different contract than {data.root}; choose another --out or --overwrite. In "
            "the dataset (here) and the run (there):\n  " + "\n  ".join(fields)
        )
    if state["dataset"] != data.sha256:
        raise DatasetError(f"{out}: holds a run on a different dataset; choose another --out or --overwrite")
    held_out = tuple(json.loads(state.get("held_out", "[]")))  # files of before do not say it
    if held_out != data.held_out:
        was, now = (", ".join(names) or "no task" for names in (held_out, data.held_out))
        raise ConfigError(
            f"{out}: holds a run that held out {was}, and this one holds out {now}; give the same --hold-out, choose "
            "another --out, or --overwrite"
        )
    return state
