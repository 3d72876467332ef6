# SPDX-License-Identifier: Apache-2.0
"""Learns who drives a family's recordings: one agent that is told its task, by trial and error.

In a share of its episodes and samples it is told nothing, so that it is also an agent that knows the family alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spc_core.method.config import ConfigError
from spc_core.tasks.snapshots import Snapshots
from spc_core.training.behaviour_field import BehaviourConfig, Field
from spc_core.training.behaviour_state import check_state, family_of, read_state, write_state
from spc_core.training.run_state import TrainingError
from spc_core.training.soft_actor_critic import SoftActorCritic
from spc_core.training.threads import torch_threads

SAVE_EVERY_S = 120.0  # of learning, between two states on disk
SHOW_EVERY = 480  # steps between two calls of progress


# What is not the default. Learning to run fast makes hoppers and walkers fall, so they stop early.
HOPPER = {"steps": 30_000, "learning_rate": 5e-4, "reward_scale": 0.1, "updates_per_step": 0.4, "look_every": 2_500}
WALKER = {"steps": 30_000, "look_every": 2_500}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **{f"hopper_{what}": HOPPER for what in ("mass", "friction")},
    **{f"walker_{what}": WALKER for what in ("mass", "friction")},
}


def behaviour_config(family: str, given: Mapping[str, Any]) -> BehaviourConfig:
    """The family's settings, with those `given`."""
    return BehaviourConfig(**{**SETTINGS.get(family, {}), **given})


@dataclasses.dataclass(frozen=True)
class Look:
    """Mean returns over a few tasks at one time of learning, deterministic."""

    steps: int
    told: float  # its task
    seconds: float  # of learning until then
    blind: float = float("nan")  # told nothing; of states that are kept
    mean: float = float("nan")  # told the mean task; of states that are kept


def learn_behaviour(
    family: str,
    config: BehaviourConfig,
    progress: Callable[[int, int, str], None] | None = None,
    state: Path | None = None,
    stopped: Sequence[int] = (),
) -> tuple[Snapshots, list[Look]]:
    """Learn; returns the states of the agent that were kept, and how good each look found it.

    With a file `state`, which is written every two minutes and for the caller to delete at the end, learning goes on
    where an interrupted one stopped, with new episodes. Raises KeyboardInterrupt, after writing it, once something is
    in `stopped`; ConfigError for too few steps or a state of something else, and TrainingError where a return is not
    finite or the state is damaged.
    """
    if config.steps <= config.warm_up:
        raise ConfigError(f"--steps is {config.steps}; use more than {config.warm_up}, which are random, to learn from")
    torch.manual_seed(config.seed)
    with torch_threads(config.threads):
        learning = _Learning(family, config, state)
        learning.run(progress or (lambda done, total, text: None), stopped)
        return learning.result()


class _Learning:
    """A family's agent while it learns."""

    def __init__(self, family: str, config: BehaviourConfig, file: Path | None) -> None:
        self.config, self.file = config, file
        self.field = Field(family, config)
        self.learner: SoftActorCritic | None = None  # until there is something to learn from
        self.looks: list[Look] = []
        self.states: list[dict[str, Tensor]] = []  # of the actor, at each look
        self._owed = 0.0  # updates
        self._before_s, self._began = 0.0, time.monotonic()  # of earlier runs, and of this one
        self._identity = {"family": family_of(family), "settings": dataclasses.asdict(config)}
        if file is not None and file.is_file():
            self._load(file)

    @property
    def seconds(self) -> float:
        return self._before_s + time.monotonic() - self._began

    def run(self, progress: Callable[[int, int, str], None], stopped: Sequence[int]) -> None:
        """To the end, or until `stopped`."""
        config, field = self.config, self.field
        saved_s = self.seconds
        while field.steps < config.steps:
            self._step()
            done = field.steps >= config.steps
            if self.learner is not None and (done or not self.looks or self._steps_since() >= config.look_every):
                self._look()
            if done or field.steps % SHOW_EVERY < config.environments:
                progress(field.steps, config.steps, f"return {self.looks[-1].told:.0f}" if self.looks else "random")
            stop = bool(stopped) and not done
            if stop or self.seconds - saved_s > SAVE_EVERY_S:
                saved_s = self.seconds
                self._save()
            if stop:
                goes_on = "" if self.file is None else "; the same command resumes"
                raise KeyboardInterrupt(f"stopped at step {field.steps} of {config.steps}{goes_on}")

    def result(self) -> tuple[Snapshots, list[Look]]:
        """The kept states, and all looks, those of kept states complete."""
        chosen = spread_evenly([seen.told for seen in self.looks], self.config.snapshots)
        agent = self.field.snapshots([self.states[i] for i in chosen], [self.looks[i].told for i in chosen])
        for index, i in enumerate(chosen):
            blind, mean = (self.field.mean_return(agent, index, belief) for belief in ("blind", "mean"))
            self.looks[i] = dataclasses.replace(self.looks[i], blind=blind, mean=mean)
        return agent, self.looks

    def _step(self) -> None:
        """One step of every environment, and the updates that it pays for."""
        config, field = self.config, self.field
        if self.learner is None and field.steps >= config.warm_up:
            self.learner = self._new_learner(*field.moments())
        field.step(self.learner)
        if self.learner is None:
            return
        self._owed += config.updates_per_step * config.environments
        while self._owed >= 1:
            before, action, after, reward, *rest = field.sample(config.batch)
            self.learner.update((before, action, after, config.reward_scale * reward, *rest))
            self._owed -= 1

    def _new_learner(self, mean: np.ndarray, std: np.ndarray) -> SoftActorCritic:
        return SoftActorCritic(mean, std, len(self.field.params), self.field.sizes[1], self.config)

    def _steps_since(self) -> int:
        return self.field.steps - self.looks[-1].steps

    def _look(self) -> None:
        assert self.learner is not None
        state = {name: tensor.clone() for name, tensor in self.learner.actor.state_dict().items()}
        told = self.field.mean_return(self.field.snapshots([state], [0.0]), 0, "told")
        if not np.isfinite(told):
            raise TrainingError(f"{self.field.family}: the agent's return is {told}; lower --learning-rate")
        self.looks.append(Look(self.field.steps, told, self.seconds))
        self.states.append(state)

    def _save(self) -> None:
        if self.file is None:
            return
        write_state(self.file, self._identity, {
            "field": self.field.state(),
            "learner": None if self.learner is None else self.learner.state(),
            "looks": [[seen.steps, seen.told, seen.seconds] for seen in self.looks],
            "states": self.states,
            "owed": self._owed,
            "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(),
        })  # fmt: skip

    def _load(self, file: Path) -> None:
        state = read_state(file)
        check_state(file, state, self._identity)
        self.field.load(state["field"])
        if state["learner"] is not None:
            actor = state["learner"]["actor"]
            self.learner = self._new_learner(actor["mean"].numpy(), actor["std"].numpy())
            self.learner.load(state["learner"])
        self.looks = [Look(*numbers) for numbers in state["looks"]]
        self.states, self._owed, self._before_s = state["states"], state["owed"], state["seconds"]
        torch.set_rng_state(state["torch_rng"])


def looks_table(looks: Sequence[Look], agent: Snapshots) -> str:
    """What each look saw, as text; a * marks those that are kept."""
    lines = [f"  {'steps':>9} {'told':>9} {'not told':>9} {'mean task':>9} {'minutes':>8}"]
    for seen in looks:
        kept = np.isfinite(seen.blind)
        others = f"{seen.blind:9.1f} {seen.mean:9.1f}" if kept else " " * 19
        lines.append(f"{'*' if kept else ' '} {seen.steps:9,} {seen.told:9.1f} {others} {seen.seconds / 60:8.1f}")
    return "\n".join(lines)


def spread_evenly(returns: Sequence[float], count: int) -> list[int]:
    """Which of the states to keep: the worst, the best, and those nearest to even steps between; ascending returns."""
    order = np.argsort(returns, kind="stable")
    wanted = np.linspace(returns[order[0]], returns[order[-1]], min(count, len(returns)))
    kept: list[int] = []
    for value in wanted:
        free = [int(i) for i in order if int(i) not in kept]
        kept.append(min(free, key=lambda i: abs(returns[i] - value)))
    return sorted(kept, key=lambda i: returns[i])
