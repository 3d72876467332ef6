# SPDX-License-Identifier: Apache-2.0
"""What came out of one bag, kept on disk until the dataset is whole: an interrupted conversion goes on from here."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.command_delay.correlogram import Correlogram
from spc_core.command_delay.survey import from_arrays, to_arrays
from spc_core.data.dataset import Episode
from spc_ros.conversion.conversion_report import BagReport

ARRAYS = ("observations", "actions", "rewards", "times_ns")


@dataclasses.dataclass(frozen=True)
class TaskEpisode:
    """An episode and the task that it is of."""

    task_id: str
    params: Mapping[str, float]
    episode: Episode


def save_part(
    file: Path, report: BagReport, episodes: list[TaskEpisode], delay: Mapping[int, Sequence[Correlogram]] | None = None
) -> None:
    """Write a part under a hidden name, then rename it: half a part is none."""
    said = [
        {
            "task_id": entry.task_id,
            "params": dict(entry.params),
            "steps": len(entry.episode),
            **{key: value for key, value in vars(entry.episode).items() if key not in ARRAYS},
        }
        for entry in episodes
    ]
    arrays: dict[str, Any]
    told, arrays = to_arrays(delay or {})
    about = json.dumps({"report": report.as_dict(), "episodes": said, "delay": told})
    arrays["about"] = np.frombuffer(about.encode(), np.uint8)
    for name in ARRAYS if episodes else ():
        rows = [getattr(entry.episode, name) for entry in episodes]
        arrays[name] = rows[0] if len(rows) == 1 else np.concatenate(rows)  # a long bag's arrays once, not twice
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with beside.open("wb") as stream:
        np.savez(stream, **arrays)
    beside.replace(file)


def load_delay(file: Path) -> dict[int, list[Correlogram]]:
    """What the part tells of the delay from command to state, by observation stream."""
    with np.load(file, allow_pickle=False) as arrays:
        return from_arrays(json.loads(arrays["about"].tobytes())["delay"], arrays)


def load_part(file: Path) -> tuple[BagReport, list[TaskEpisode]]:
    """Read a part back."""
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        whole = {name: arrays[name] for name in ARRAYS} if about["episodes"] else {}
    episodes = []
    begin = 0
    for number, said in enumerate(about["episodes"]):
        task_id, params, steps = said.pop("task_id"), said.pop("params"), said.pop("steps")
        states = slice(begin + number, begin + number + steps + 1)  # an episode has one state more than steps
        acts = slice(begin, begin + steps)
        episode = Episode(whole["observations"][states], whole["actions"][acts], whole["rewards"][acts],
                          whole["times_ns"][states], **said)  # fmt: skip
        episodes.append(TaskEpisode(task_id, params, episode))
        begin += steps
    return BagReport.from_dict(about["report"]), episodes
