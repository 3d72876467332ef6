# SPDX-License-Identifier: Apache-2.0
"""Learns who drives a family's recordings: one agent that is told its task, by trial and error.

In a share of its episodes and samples it is told nothing, so that it is also an agent that knows the family alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spc_core.method.config import ConfigError
from spc_core.method.normalize import Moments
from spc_core.tasks import SPLITS, Task, TaskEnv, make_env, mean_task, tasks
from spc_core.tasks.locomotion import LocomotionEnv
from spc_core.tasks.snapshots import Snapshots, within_limits
from spc_core.training.run_state import TrainingError
from spc_core.training.soft_actor_critic import SoftActorCritic, SoftConfig
from spc_core.training.threads import torch_threads


@dataclasses.dataclass(frozen=True)
class BehaviourConfig(SoftConfig):
    """How a family's behaviour is learnt."""

    steps: int = 100_000  # steps of all environments together
    environments: int = 16  # simulated side by side
    updates_per_step: float = 0.25  # of the critics
    batch: int = 256  # transitions of an update
    reward_scale: float = 1.0  # rewards are multiplied by this
    untold: float = 0.15  # share of episodes and samples in which the agent is told nothing
    relabelled: int = 2  # further tasks for which a step's reward is computed, where tasks differ in reward alone
    warm_up: int = 4_000  # steps with random actions, before the first update
    snapshots: int = 6  # states that are kept, evenly in return
    look_every: int = 5_000  # steps between two looks at how good it is
    seed: int = 0  # seed of initial weights, episodes and samples
    threads: int = 1  # CPU threads of the networks


# What is not the default. Learning to run fast makes hoppers and walkers fall, so they stop early.
SETTINGS = {
    "hopper_mass": {"steps": 60_000, "learning_rate": 5e-4, "reward_scale": 0.1, "updates_per_step": 0.4},
    "hopper_friction": {"steps": 60_000, "learning_rate": 5e-4, "reward_scale": 0.1, "updates_per_step": 0.4},
    "walker_mass": {"steps": 60_000, "learning_rate": 5e-4, "reward_scale": 0.1, "updates_per_step": 0.4},
    "walker_friction": {"steps": 60_000, "learning_rate": 5e-4, "reward_scale": 0.1, "updates_per_step": 0.4},
    "ant_dir": {"steps": 400_000},
    "ant_goal": {"steps": 400_000},
}


def behaviour_config(family: str, given: Mapping[str, Any]) -> BehaviourConfig:
    """The family's settings, with those `given`."""
    return BehaviourConfig(**{**SETTINGS.get(family, {}), **given})


@dataclasses.dataclass(frozen=True)
class Look:
    """Mean returns over a few tasks at one time of learning, deterministic."""

    steps: int
    told: float  # its task
    blind: float  # told nothing
    mean: float  # told the mean task
    seconds: float  # since learning began


def learn_behaviour(
    family: str, config: BehaviourConfig, progress: Callable[[int, int, str], None] | None = None
) -> tuple[Snapshots, list[Look]]:
    """Learn from scratch; returns the states that were kept, and how good each look found it.

    Raises ConfigError for too few steps, and TrainingError where a return is not finite.
    """
    if config.steps <= config.warm_up:
        raise ConfigError(f"--steps is {config.steps}; use more than {config.warm_up}, which are random, to learn from")
    torch.manual_seed(config.seed)
    with torch_threads(config.threads):
        return _learn(_Field(family, config), config, progress)


def _learn(
    field: _Field, config: BehaviourConfig, progress: Callable[[int, int, str], None] | None
) -> tuple[Snapshots, list[Look]]:
    learner, began = None, time.monotonic()
    looks: list[Look] = []
    states: list[dict[str, Tensor]] = []
    owed = 0.0
    while field.steps < config.steps:
        if learner is None and field.steps >= config.warm_up:
            learner = SoftActorCritic(*field.moments(), len(field.params), field.sizes[1], config)
        field.step(learner)
        if learner is None:
            continue
        owed += config.updates_per_step * config.environments
        while owed >= 1:
            learner.update(field.sample())
            owed -= 1
        if not looks or field.steps - looks[-1].steps >= config.look_every or field.steps >= config.steps:
            seen = field.look(learner, time.monotonic() - began)
            if not np.isfinite(seen.told):
                raise TrainingError(f"{field.family}: the agent's return is {seen.told}; lower --learning-rate")
            looks.append(seen)
            states.append({name: tensor.clone() for name, tensor in learner.actor.state_dict().items()})
            if progress is not None:
                progress(field.steps, config.steps, f"return {seen.told:.0f} told, {seen.blind:.0f} blind")
    chosen = spread_evenly([seen.told for seen in looks], config.snapshots)
    return field.snapshots([states[i] for i in chosen], [looks[i].told for i in chosen]), looks


def looks_table(looks: Sequence[Look], agent: Snapshots) -> str:
    """What each look saw, as text; a * marks those that are kept."""
    lines = [f"  {'steps':>9} {'told':>9} {'not told':>9} {'mean task':>9} {'minutes':>8}"]
    for seen in looks:
        mark = "*" if seen.told in agent.returns else " "
        lines.append(
            f"{mark} {seen.steps:9,} {seen.told:9.1f} {seen.blind:9.1f} {seen.mean:9.1f} {seen.seconds / 60:8.1f}"
        )
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


class _Field:
    """The environments, all tasks of the family, and every transition so far."""

    def __init__(self, family: str, config: BehaviourConfig) -> None:
        self.family, self.config = family, config
        self.rng = np.random.default_rng(config.seed)
        self.tasks = [task for split in SPLITS for task in tasks(family, split)]
        self.params = tuple(self.tasks[0].params)
        values = np.array([[task.params[name] for name in self.params] for task in self.tasks])
        self.mean, self.std = values.mean(0), np.maximum(values.std(0), 1e-6)
        self._told = ((values - self.mean) / self.std).astype(np.float32)  # (K, P)
        self.envs = [make_env(family) for _ in range(config.environments)]
        self._plays = [0] * config.environments  # which task
        self._hears = [True] * config.environments  # whether each is told its task in this episode
        self._observations = [self._begin(index) for index in range(len(self.envs))]
        self.relabels = config.relabelled if _differs_in_reward_alone(self.envs[0]) else 0
        self.steps = self.rows = 0
        env = self.envs[0]
        self.sizes = len(env.observation_names), len(env.action_names)
        room = (config.steps + config.environments) * (1 + self.relabels)
        o, a = self.sizes
        self._seen, self._next = np.empty((room, o), np.float32), np.empty((room, o), np.float32)
        self._acted, self._others = np.empty((room, a), np.float32), np.empty((room, 3), np.float32)  # r, ended, task

    def _begin(self, index: int) -> np.ndarray:
        """Start an episode of a drawn task in one environment."""
        env = self.envs[index]
        self._hears[index] = bool(self.rng.uniform() >= self.config.untold)
        self._plays[index] = int(self.rng.integers(len(self.tasks)))
        task = self.tasks[self._plays[index]]
        return env.reset(seed=int(self.rng.integers(2**31)), options={"task": task})[0]

    def step(self, learner: SoftActorCritic | None) -> None:
        """One step of every environment, with random actions before there is a learner."""
        if learner is None:
            actions = self.rng.uniform(-1, 1, (len(self.envs), self.sizes[1]))
        else:
            told = np.array(self._hears, np.float32)[:, None]
            actions = learner.act(np.array(self._observations, np.float32), self._told[self._plays] * told, told)
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            before, start, own = self._observations[index], env.data.qpos.copy(), env.task
            sent = within_limits(action, env.action_low, env.action_high)
            observation, reward, terminated, truncated, _ = env.step(sent)
            self._keep(before, action, observation, float(reward), terminated, self._plays[index])
            for _ in range(self.relabels):
                other = int(self.rng.integers(len(self.tasks)))
                env.task = self.tasks[other]
                self._keep(before, action, observation, float(env.reward(start, sent)), terminated, other)  # type: ignore[attr-defined]
            env.task = own
            self._observations[index] = self._begin(index) if terminated or truncated else observation
        self.steps += len(self.envs)

    def _keep(
        self, before: np.ndarray, action: np.ndarray, after: np.ndarray, reward: float, ended: bool, task: int
    ) -> None:
        row = self.rows
        self._seen[row], self._acted[row], self._next[row] = before, action, after
        self._others[row] = reward, ended, task
        self.rows += 1

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread (O,) of what was seen so far."""
        moments = Moments()
        moments.add(self._seen[: self.rows])
        return moments.mean.astype(np.float32), np.maximum(moments.std, 0.1).astype(np.float32)

    def sample(self) -> tuple[Tensor, ...]:
        """s, a, s' and, each (B, 1) or (B, P), reward, whether it ended there, and what the agent is told."""
        rows = self.rng.integers(self.rows, size=self.config.batch)
        reward, ended, task = self._others[rows].T
        told = (self.rng.uniform(size=len(rows)) >= self.config.untold).astype(np.float32)[:, None]
        arrays = (
            *(self._seen[rows], self._acted[rows], self._next[rows]),
            *(reward[:, None] * self.config.reward_scale, ended[:, None]),
            *(self._told[task.astype(np.int64)] * told, told),
        )
        return tuple(torch.from_numpy(np.asarray(array, np.float32)) for array in arrays)

    def look(self, learner: SoftActorCritic, seconds: float) -> Look:
        """Play one episode of every fourth task, told it, told nothing, and told the mean task."""
        state = {name: tensor.clone() for name, tensor in learner.actor.state_dict().items()}
        driver = self.snapshots([state], [0.0])
        env, chosen = make_env(self.family), self.tasks[::4]
        middle = mean_task(self.family)
        told, blind, mean = (
            float(np.mean([_play(env, driver, task, belief) for task, belief in zip(chosen, beliefs, strict=True)]))
            for beliefs in (chosen, [None] * len(chosen), [middle] * len(chosen))
        )
        return Look(self.steps, told, blind, mean, seconds)

    def snapshots(self, states: Sequence[dict[str, Tensor]], returns: Sequence[float]) -> Snapshots:
        """Actors' states as networks on plain observations, in the order given."""
        folded = [_folded(state, self.sizes[0]) for state in states]
        layers = tuple(
            (np.stack([layer[n][0] for layer in folded]), np.stack([layer[n][1] for layer in folded]))
            for n in range(len(folded[0]))
        )
        names = self.envs[0].observation_names
        return Snapshots(self.envs[0].family, names, self.params, self.mean, self.std, layers, tuple(returns))


def _play(env: TaskEnv, driver: Snapshots, task: Task, belief: Task | None) -> float:
    """The return of one deterministic episode of a task, told `belief`."""
    observation, _ = env.reset(seed=task.index, options={"task": task})
    total, over = 0.0, False
    while not over:
        action = within_limits(driver.act(0, observation, belief), env.action_low, env.action_high)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


def _differs_in_reward_alone(env: TaskEnv) -> bool:
    """Whether a step's reward for another task can be computed from the same step."""
    return isinstance(env, LocomotionEnv) and type(env).apply_params is LocomotionEnv.apply_params


def _folded(state: dict[str, Tensor], observed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (inputs, outputs) and biases of an actor's layers; the first takes observations as they are."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    layers = [(arrays[f"network.{n}.weight"].T, arrays[f"network.{n}.bias"]) for n in (0, 2, 4)]
    weight, bias = layers[0]
    weight = weight.copy()
    weight[:observed] /= arrays["std"][:, None]
    layers[0] = weight, bias - arrays["mean"] @ weight[:observed]
    return layers
