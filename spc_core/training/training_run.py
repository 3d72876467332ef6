# SPDX-License-Identifier: Apache-2.0
"""One training run: the loop over updates, and all that is looked at, logged, saved and resumed on the way."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from spc_core.data.outliers import describe
from spc_core.data.packed import PackedDataset
from spc_core.data.sampler import Sampler
from spc_core.deploy.checkpoint import Checkpoint, save_checkpoint
from spc_core.method.agent import Agent, Batch
from spc_core.method.config import TrainConfig
from spc_core.method.fused import FusedLearner
from spc_core.method.latents import Raw
from spc_core.method.normalize import Stats
from spc_core.training.distributed import Group
from spc_core.training.loss_watch import BadLoss, LossWatch
from spc_core.training.resume import TrainingError, read_state, write_state
from spc_core.training.run_log import RunLog
from spc_core.training.validation import Validator, simulated_family

FLAGS_EVERY = 10  # updates between two looks at whether another process was told to stop, on GPUs


@dataclasses.dataclass
class Progress:
    """Where a run stands; written to resume.pt."""

    update: int = 0
    seconds: float = 0.0


class TrainingRun:
    """One training run: its state, and how it is written down."""

    def __init__(self, data: PackedDataset, stats: Stats, out: Path, config: TrainConfig, group: Group) -> None:
        self.data, self.out, self.config, self.group, self.device = data, out, config, group, group.device
        self.checkpoint_folder = out / "checkpoint"
        torch.manual_seed(config.seed)
        self.stats = stats
        contract = data.contract
        params = [task.params for task in data.tasks]
        self.agent = Agent(contract.observation_dim, contract.action_dim, params, config).to(self.device)
        if isinstance(latent := self.agent.world_model.latent, Raw):
            latent.scale.copy_(torch.from_numpy(stats.change_std / stats.observation_std))
        self.learner = FusedLearner(self.agent)
        self.modules = {"agent": self.agent} | ({"club": self.learner.club} if self.learner.club else {})
        for module in self.modules.values():
            group.broadcast(module.state_dict().values())
        self.learner.reduce = group.average_gradients
        self.sampler = Sampler(data, self.stats, config, config.seed, group.rank, group.world)
        if group.rank:
            torch.manual_seed(config.seed + group.rank)  # noise of its own, after the same first weights
        self.progress = Progress()
        self.watch = LossWatch()
        self.log: RunLog | None = None  # while training, in the leading process
        self.validator: Validator | None = None
        self._looked = (0, self.sampler.rng.bit_generator.state)  # update and sampler at the last look at losses

    def __enter__(self) -> TrainingRun:
        self._open = ExitStack()
        if self.group.leads and (self.config.evaluate_every or self.progress.update < self.config.updates):
            self.log = self._open.enter_context(RunLog(self.out, self.progress.update))
        if self.group.leads and self.config.evaluate_every:
            family = simulated_family(self.data.contract.name)
            self.validator = self._open.enter_context(Validator(self.out, family, self._log_scores))
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    def _log_scores(self, update: int, scores: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write_scores(update, scores)

    def loop(self, stopped: list[int]) -> None:
        """Update until done or told to stop; saves at intervals and at the end."""
        config, progress, group = self.config, self.progress, self.group
        if progress.update == config.updates:
            if group.leads:
                print(f"{self.out}: already trained for {config.updates} updates")
            return
        began = time.monotonic() - progress.seconds
        stop = False
        with tqdm(
            total=config.updates, initial=progress.update, desc=f"train {self.out.name}", unit="update",
            disable=not group.leads,
        ) as bar:  # fmt: skip
            while progress.update < config.updates and not stop:
                self._update()
                progress.seconds = time.monotonic() - began
                bar.update()
                logs = progress.update % config.log_every == 0 or progress.update == config.updates
                saves = progress.update % config.checkpoint_every == 0
                stop = self._look(stopped, logs or saves)
                if logs:
                    means = self._write_log()
                    bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.items()}, refresh=False)
                if saves:
                    self.save()
                self._validate()
            self.save()
        if stop and progress.update < config.updates:
            raise KeyboardInterrupt(
                f"stopped at update {progress.update} of {config.updates}; the same command goes on"
            )

    def finish(self, stopped: list[int]) -> None:
        """Have the final weights scored, where the run is validated."""
        if self.validator is not None and not self.validator.finish(self.config.updates, self._snapshot, stopped):
            raise KeyboardInterrupt(
                "trained, but stopped before the final weights were evaluated; the same command does"
            )

    def _update(self) -> None:
        batch = to_device(self.sampler.batch(), self.device)
        self.watch.add(self.progress.update, self.learner.update(batch, self.progress.update))
        self.progress.update += 1

    def _look(self, stopped: list[int], due: bool) -> bool:
        """Whether a process was told to stop. Raises TrainingError for a loss that is not finite in any of them.

        On a GPU, losses are looked at only where that is `due`, since it makes this program wait for the GPU.
        """
        looks = due or self.device.type == "cpu"
        if not (looks or self.group.world == 1 or self.progress.update % FLAGS_EVERY == 0):
            return False
        bad = self.watch.first_bad() if looks else None
        stop, failed = self.group.any(bool(stopped), bad is not None)
        if failed:
            raise TrainingError(f"{self.out}: {self._diagnosis(bad)}")
        if looks:
            self._looked = (self.progress.update, self.sampler.rng.bit_generator.state)
        return stop

    def _diagnosis(self, bad: BadLoss | None) -> str:
        """What went wrong when; the batch is drawn again, since on a GPU it is long gone."""
        if bad is None:
            return f"a loss of another process is not finite at update {self.progress.update}; its message says more"
        update, self.sampler.rng.bit_generator.state = self._looked
        for _ in range(bad.update - update):
            self.sampler.batch()
        batch = self.sampler.batch()
        kept = self.out / "resume.pt"
        return (
            f"the {bad.name} loss became {bad.value} at update {bad.update + 1}; lower the learning rates or look for "
            f"outliers in the data: {describe(batch, [task.task_id for task in self.data.tasks])}\n"
            + (f"The last good state is kept in {kept}" if kept.is_file() else "No state was saved before that")
        )

    def _write_log(self) -> dict[str, float]:
        means = self.group.means(self.watch.means())
        self.watch.clear()
        if self.log is not None:
            self.log.write(self.progress.update, self.progress.seconds, means)
        return means

    def _validate(self) -> None:
        if self.validator is None:
            return
        self.validator.poll()
        update = self.progress.update
        if update % self.config.evaluate_every == 0 and update < self.config.updates:
            self.validator.offer(update, self._snapshot)

    def _snapshot(self, folder: Path) -> None:
        """Write the agent as it is now as a checkpoint."""
        metrics = {
            "update": self.progress.update,
            "seconds": round(self.progress.seconds, 1),
            "seed": self.config.seed,
            "losses": {} if self.log is None else self.log.last,
            "dataset_sha256": self.data.sha256,
            "contract_sha256": self.data.contract.sha256,
            "command_delay": self.data.command_delay,
            "tasks": [{"task_id": task.task_id, "params": dict(task.params)} for task in self.data.tasks],
        }
        contract = self.data.contract
        save_checkpoint(folder, Checkpoint(self.agent, self.config, contract, self.stats, metrics, self.device))

    def save(self) -> None:
        """Write the checkpoint, then what a later process needs to go on as if nothing had happened.

        Raises TrainingError, and writes nothing, when a weight is not finite.
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
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: o.state_dict() for name, o in self.learner.optimizers.items()},
            "torch_rng": self.group.gather(torch.get_rng_state()),
            "cuda_rng": self.group.gather(torch.cuda.get_rng_state(self.device)) if cuda else [],
            "sampler_rng": json.dumps(self.sampler.rng.bit_generator.state),
            "progress": dataclasses.asdict(self.progress),
            "losses": self.watch.state(),
        }
        if self.group.leads:
            self._snapshot(self.checkpoint_folder)
            write_state(self.out / "resume.pt", state, self.config, self.data)

    def resume(self) -> None:
        """Take up an earlier run in the same folder, if there is one and it is the same run."""
        file, rank = self.out / "resume.pt", self.group.rank
        if not file.is_file():
            return
        state = read_state(file, self.device, self.config, self.data)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.learner.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if rank < len(state["torch_rng"]):  # else one of more processes than before: its noise begins anew
            torch.set_rng_state(state["torch_rng"][rank].cpu())
        if self.device.type == "cuda" and rank < len(state["cuda_rng"]):
            torch.cuda.set_rng_state(state["cuda_rng"][rank].cpu(), self.device)
        self.sampler.rng.bit_generator.state = json.loads(state["sampler_rng"])
        self.progress = Progress(**state["progress"])
        self.watch.load(state["losses"])
        self._looked = (self.progress.update, self.sampler.rng.bit_generator.state)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device; the same object when it is there already."""
    if device.type == "cpu":
        return batch
    moved = {f.name: getattr(batch, f.name).to(device, non_blocking=True) for f in dataclasses.fields(batch)}
    return Batch(**moved)
