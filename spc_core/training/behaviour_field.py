# SPDX-License-Identifier: Apache-2.0
"""The environments that a family's behaviour is learnt in, side by side, and every transition so far."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spc_core.method.normalize import Moments
from spc_core.tasks import SPLITS, Task, make_env, mean_task, tasks
from spc_core.tasks.locomotion import LocomotionEnv
from spc_core.tasks.snapshots import Snapshots, within_limits
from spc_core.tasks.task_env import TaskEnv
from spc_core.training.soft_actor_critic import SoftActorCritic, SoftConfig

EVERY = 4  # of how many tasks one is played to see how good the agent is


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


class Replay:
    """Transitions, of which updates draw."""

    def __init__(self, room: int, observed: int, actions: int) -> None:
        self.rows = 0
        self.arrays = {  # (N, ...) float32, of which `rows` are filled
            "before": np.empty((room, observed), np.float32),
            "action": np.empty((room, actions), np.float32),
            "after": np.empty((room, observed), np.float32),
            "others": np.empty((room, 3), np.float32),  # reward, whether it ended there, number of the task
        }

    def add(self, **values: Any) -> None:
        """One transition."""
        for name, array in self.arrays.items():
            array[self.rows] = values[name]
        self.rows += 1

    def state(self) -> dict[str, Tensor]:
        """What is filled."""
        return {name: torch.from_numpy(array[: self.rows]) for name, array in self.arrays.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rows = len(state["others"])
        for name, array in self.arrays.items():
            array[: self.rows] = state[name].numpy()


class Field:
    """Environments side by side, each in a task drawn anew for every episode, of all splits."""

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
        env = self.envs[0]
        self.relabels = config.relabelled if _differs_in_reward_alone(env) else 0
        self.steps = 0
        self.sizes = len(env.observation_names), len(env.action_names)
        self.replay = Replay((config.steps + config.environments) * (1 + self.relabels), *self.sizes)
        self._observations: list[np.ndarray] = []  # until the first step

    def state(self) -> dict[str, Any]:
        """What continues elsewhere: everything but the episodes under way, which are given up."""
        return {"steps": self.steps, "rng": json.dumps(self.rng.bit_generator.state), "replay": self.replay.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.steps, self.rng.bit_generator.state = state["steps"], json.loads(state["rng"])
        self.replay.load(state["replay"])

    def step(self, learner: SoftActorCritic | None) -> None:
        """One step of every environment, with random actions before there is a learner."""
        if not self._observations:
            self._observations = [self._begin(index) for index in range(len(self.envs))]
        if learner is None:
            actions = self.rng.uniform(-1, 1, (len(self.envs), self.sizes[1]))
        else:
            told = np.array(self._hears, np.float32)[:, None]
            actions = learner.act(np.array(self._observations, np.float32), self._told[self._plays] * told, told)
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            before, start, own = self._observations[index], env.data.qpos.copy(), env.task
            sent = within_limits(action, env.action_low, env.action_high)
            after, reward, terminated, truncated, _ = env.step(sent)
            step = {"before": before, "action": action, "after": after}
            self.replay.add(**step, others=(float(reward), terminated, self._plays[index]))
            for _ in range(self.relabels):
                other = int(self.rng.integers(len(self.tasks)))
                env.task = self.tasks[other]
                reward = env.reward(start, sent)  # type: ignore[attr-defined]
                self.replay.add(**step, others=(reward, terminated, other))
            env.task = own
            self._observations[index] = self._begin(index) if terminated or truncated else after
        self.steps += len(self.envs)

    def _begin(self, index: int) -> np.ndarray:
        """Start an episode of a drawn task in one environment."""
        self._hears[index] = bool(self.rng.uniform() >= self.config.untold)
        self._plays[index] = int(self.rng.integers(len(self.tasks)))
        task = self.tasks[self._plays[index]]
        return self.envs[index].reset(seed=int(self.rng.integers(2**31)), options={"task": task})[0]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread (O,) of what was seen so far."""
        moments = Moments()
        moments.add(self.replay.arrays["before"][: self.replay.rows])
        return moments.mean.astype(np.float32), np.maximum(moments.std, 0.1).astype(np.float32)

    def sample(self, count: int) -> tuple[Tensor, ...]:
        """s, a, s' and, each (B, 1) or (B, P), reward, whether it ended there, and what the agent is told."""
        rows, arrays = self.rng.integers(self.replay.rows, size=count), self.replay.arrays
        reward, ended, task = arrays["others"][rows].T
        told = (self.rng.uniform(size=count) >= self.config.untold).astype(np.float32)[:, None]
        parts = (
            *(arrays[name][rows] for name in ("before", "action", "after")),
            *(reward[:, None], ended[:, None]),
            *(self._told[task.astype(np.int64)] * told, told),
        )
        return tuple(torch.from_numpy(np.asarray(part, np.float32)) for part in parts)

    def mean_return(self, driver: Snapshots, index: int, beliefs: str) -> float:
        """Of one deterministic episode of every fourth task, each told to state `index` ("told"), or nothing ("blind"),
        or the mean task ("mean")."""
        env, chosen = make_env(self.family), self.tasks[::EVERY]
        middle = mean_task(self.family)
        believed = {"told": chosen, "blind": [None] * len(chosen), "mean": [middle] * len(chosen)}[beliefs]
        played = zip(chosen, believed, strict=True)
        return float(np.mean([_play(env, driver, index, task, belief) for task, belief in played]))

    def snapshots(self, states: Sequence[Mapping[str, Tensor]], returns: Sequence[float]) -> Snapshots:
        """Actors' states as networks on plain observations, in the order given."""
        folded = [_folded(state, self.sizes[0]) for state in states]
        layers = tuple(
            (np.stack([layer[n][0] for layer in folded]), np.stack([layer[n][1] for layer in folded]))
            for n in range(len(folded[0]))
        )
        names = self.envs[0].observation_names
        return Snapshots(self.envs[0].family, names, self.params, self.mean, self.std, layers, tuple(returns))


def _play(env: TaskEnv, driver: Snapshots, index: int, task: Task, belief: Task | None) -> float:
    """The return of one deterministic episode of a task, told `belief`."""
    observation, _ = env.reset(seed=task.index, options={"task": task})
    total, over = 0.0, False
    while not over:
        action = within_limits(driver.act(index, observation, belief), env.action_low, env.action_high)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


def _differs_in_reward_alone(env: TaskEnv) -> bool:
    """Whether a step's reward for another task can be computed from the same step."""
    return isinstance(env, LocomotionEnv) and type(env).apply_params is LocomotionEnv.apply_params


def _folded(state: Mapping[str, Tensor], observed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (inputs, outputs) and biases of an actor's layers; the first takes observations as they are."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    layers = [(arrays[f"network.{n}.weight"].T, arrays[f"network.{n}.bias"]) for n in (0, 2, 4)]
    weight, bias = layers[0]
    weight = weight.copy()
    weight[:observed] /= arrays["std"][:, None]
    layers[0] = weight, bias - arrays["mean"] @ weight[:observed]
    return layers
