# SPDX-License-Identifier: Apache-2.0
"""Recorded transitions of a task, for a context that is ready before the robot moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.contract.contract import Contract
from spc_core.contract.rewards import RewardFunction
from spc_core.data.dataset import DatasetError, Episode
from spc_core.data.reader import stored_tasks

OFFLINE_TRANSITIONS = 600  # in an offline context


def dataset_transitions(root: str | Path, task_id: str, contract: Contract | None = None) -> Iterator[Transition]:
    """All transitions of a task in a dataset, episode by episode.

    Raises DatasetError if there are none, or if the dataset has another contract.
    """
    stores = stored_tasks(Path(root))
    store = next((store for store in stores if store.entry.task_id == task_id and store.step_count), None)
    if store is None:
        known = ", ".join(store.entry.task_id for store in stores)
        raise DatasetError(f"{root}: has no recordings of task {task_id!r}; it has {known}")
    if contract is not None and (lines := contract.differences(store.contract)):
        raise DatasetError(
            f"{root}: was converted by another contract than the checkpoint's; convert its bags again:\n"
            + "\n".join(f"  {line}" for line in lines)
        )
    for episode in store.episodes():
        yield from episode_transitions(episode)


def episode_transitions(episode: Episode) -> Iterator[Transition]:
    """The transitions of an episode."""
    seen = episode.observations
    for t in range(len(episode)):
        yield Transition(int(episode.times_ns[t]), seen[t], episode.actions[t], float(episode.rewards[t]), seen[t + 1])


def spread(
    transitions: Iterable[Transition], reward: RewardFunction | None, count: int = OFFLINE_TRANSITIONS
) -> list[Transition]:
    """`count` evenly spaced transitions, with the contract's reward function if it has one."""
    seen = list(transitions)
    chosen = np.unique(np.linspace(0, len(seen) - 1, count).round().astype(int)).tolist() if seen else []
    if reward is None:
        return [seen[i] for i in chosen]
    rewarded = []
    for i in chosen:
        t, previous = seen[i], _action_before(seen, i)
        paid = reward.paid(t.observation, t.action, t.next_observation, previous)
        rewarded.append(dataclasses.replace(t, reward=paid))
    return rewarded


def _action_before(seen: list[Transition], i: int) -> np.ndarray | None:
    """The action of the transition that ended where number `i` began, if it is there."""
    if i == 0 or seen[i - 1].t_ns >= seen[i].t_ns:
        return None
    before = seen[i - 1]
    return before.action if np.array_equal(before.next_observation, seen[i].observation) else None
