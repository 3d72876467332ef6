# SPDX-License-Identifier: Apache-2.0
"""Relabelling of an existing dataset with another reward: a new contract, the same observations and actions, no bags.

    OUT/relabel.json     the source dataset, and the fields in which the contracts differ
    OUT/conversion.json  copied, since it reports how the bags were read

The new contract may differ in its name, its reward, its task, episode and safety sections, what streams do on_loss, and
the action's safe value, max_rate and limits. Episodes, their tasks and their ends stay as they were cut.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spc_core.contract.contract import Contract
from spc_core.contract.rewards import RewardFunction
from spc_core.data.dataset import DatasetError, DatasetWriter
from spc_core.data.earnings import Earnings, earnings, step_rewards
from spc_core.data.reader import dataset_contract, stored_tasks
from spc_core.system.wording import plural

FREE = re.compile(r"name|reward|task|episode|safety|action(\[\d+\])?\.(safe|max_rate|low|high)")


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """Result of a relabelling; means are over transitions."""

    out: Path
    episodes: int
    transitions: int
    mean_before: float
    mean_after: float
    differences: tuple[str, ...]  # of the contracts: before here, after there

    def summary(self) -> str:
        lines = [
            f"{self.out}: {plural(self.episodes, 'episode')}, {plural(self.transitions, 'transition')}; "
            f"mean reward {self.mean_after:.4g}, was {self.mean_before:.4g}",
            *(f"  {line}" for line in self.differences),
        ]
        return "\n".join(lines)


def relabel(
    dataset: str | Path,
    contract: Contract,
    out: str | Path,
    overwrite: bool = False,
    progress: Callable[[int, int, str], object] = lambda done, total, text: None,
) -> Relabelled:
    """Write `dataset` to `out` with the rewards of `contract`; everything else of the episodes stays.

    `progress` is called with episodes done, episodes in all, and a task id. Raises DatasetError where the contract
    defines observations, actions or time differently, or leaves the reward to a topic.
    """
    root = Path(dataset)
    stores = stored_tasks(root)
    before = dataset_contract(root, stores)
    function = new_reward(root, before, contract)
    differences = tuple(before.differences(contract))
    total = sum(store.episode_count for store in stores)
    done, transitions, sums = 0, 0, np.zeros(2)
    with DatasetWriter(out, contract, overwrite) as writer:
        for store in stores:
            last = None
            for number, episode in enumerate(store.episodes()):
                where = f"{root}: task '{store.entry.task_id}', episode {number} ({episode.source})"
                _check_limits(where, episode.actions, before, contract)
                rewards = step_rewards(function, episode, last, where)
                last = episode
                writer.add_episode(
                    store.entry.task_id, store.entry.params, dataclasses.replace(episode, rewards=rewards)
                )
                sums += episode.rewards.sum(), rewards.sum()
                done, transitions = done + 1, transitions + len(episode)
                progress(done, total, store.entry.task_id)
            writer.flush()
        _write_origin(writer, root, before, contract, differences)
    means = sums / transitions
    return Relabelled(Path(out), done, transitions, float(means[0]), float(means[1]), differences)


def preview(
    dataset: str | Path,
    contract: Contract,
    progress: Callable[[int, int, str], object] = lambda done, total, text: None,
) -> Earnings:
    """What the terms of the contract's reward earn in `dataset`. Raises DatasetError as `relabel` does."""
    root = Path(dataset)
    stores = stored_tasks(root)
    function = new_reward(root, dataset_contract(root, stores), contract)
    return earnings(root, stores, contract, function, progress)


def new_reward(root: Path, before: Contract, after: Contract) -> RewardFunction:
    """The new contract's reward function. Raises DatasetError where the contract does not fit the stored data."""
    function = after.reward_function()
    if function is None:
        raise DatasetError(
            f"{root}: the new contract's reward is the topic '{after.reward.topic}', whose messages are in the bags "
            "only; give it terms, an expression or a function, or convert the bags again with `spc convert --contract`"
        )
    if _fixed(before) != _fixed(after):
        lines = [line for line in before.differences(after) if not FREE.match(line)]
        raise DatasetError(
            f"{root}: the new contract defines observations, actions or time differently; convert the bags again "
            "with `spc convert --contract`. In the order dataset, new contract:\n  " + "\n  ".join(lines)
        )
    return function


def _fixed(contract: Contract) -> tuple[object, ...]:
    """The parts that must not change: those that define the numbers in o and a, and their times."""
    actions = []
    for part in contract.action.parts:
        free = (0.0,) * len(part.fields)
        actions.append(dataclasses.replace(part, low=free, high=free, safe=free, max_rate=free))
    return contract.rate_hz, contract.clock, contract.observation, tuple(actions)


def _check_limits(where: str, actions: np.ndarray, before: Contract, after: Contract) -> None:
    """Stored actions must lie within limits that are new."""
    if (before.action.low, before.action.high) == (after.action.low, after.action.high):
        return
    low, high = np.array(after.action.low), np.array(after.action.high)
    bad = np.argwhere((actions < low) | (actions > high))
    if len(bad):
        step, field = bad[0]
        raise DatasetError(
            f"{where}: action {after.action.fields[field]} is {actions[step, field]:g} at step {step}, outside the new "
            f"limits [{low[field]:g}, {high[field]:g}]; widen the contract's action.low and action.high"
        )


def _write_origin(
    writer: DatasetWriter, root: Path, before: Contract, after: Contract, differences: tuple[str, ...]
) -> None:
    """relabel.json, which holds the one of the dataset before, and conversion.json as it was."""
    earlier = root / "relabel.json"
    origin = {
        "dataset": root.name,
        "contract_before": {"name": before.name, "sha256": before.sha256},
        "contract": {"name": after.name, "sha256": after.sha256},
        "differences": differences,
        "before": json.loads(earlier.read_text(encoding="utf-8")) if earlier.is_file() else None,
    }
    writer.write_text("relabel.json", json.dumps(origin, indent=1) + "\n")
    if (root / "conversion.json").is_file():
        writer.write_text("conversion.json", (root / "conversion.json").read_text(encoding="utf-8"))
