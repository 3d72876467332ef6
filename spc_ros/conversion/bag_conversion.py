# SPDX-License-Identifier: Apache-2.0
"""One bag to episodes, and what came of it on disk: the same functions on one machine or on many."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.alignment.batch.aligner import Ticks
from spc_core.alignment.segments import Segment, split_ticks
from spc_core.command_delay.correlogram import Correlogram
from spc_core.command_delay.survey import DelaySurvey, from_arrays, to_arrays
from spc_core.contract.contract import Contract, ContractError, parse_contract
from spc_core.data.dataset import DatasetError, Episode, check_episode
from spc_ros.bags.files import BagError, bag_sha256
from spc_ros.bags.reader import EPISODE_TOPIC, BagReader
from spc_ros.conversion.aligned_bag import AlignedBag, align_bag
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.conversion.episode_marks import (
    Marks,
    about_bag,
    episode_infos,
    episode_spans,
    published_counts,
    task_of,
)
from spc_ros.conversion.manifest import NOTHING, About
from spc_ros.messages.fields import MessageError

ARRAYS = ("observations", "actions", "rewards", "times_ns")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to convert bags."""

    contract: Contract
    own_contract: bool  # given by the user, so that it may differ from the bags'
    task: str = ""  # task id of bags that name none
    task_from: str = ""  # 'folder': the folder that a bag lies in names its task
    manifest: Mapping[Path, About] = dataclasses.field(default_factory=dict)
    definitions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # message types by name, as .msg text
    surveyed: Set[Path] = frozenset()  # bags in which the delay from command to state is looked for


@dataclasses.dataclass(frozen=True)
class TaskEpisode:
    """An episode and the task that it is of."""

    task_id: str
    params: Mapping[str, float]
    episode: Episode


def convert_to_part(path: Path, job: Job, part: Path, progress: Callable[[int], None] = lambda _: None) -> None:
    """Convert a bag and save what came of it; a bag that cannot be converted gives a report with its error."""
    survey = DelaySurvey(job.contract) if path in job.surveyed else None
    try:
        report, episodes = convert_bag(path, job, progress, survey)
    except BagError as error:
        report, episodes = BagReport(str(path), error=str(error)), []
    except (MessageError, ContractError, DatasetError) as error:
        report, episodes = BagReport(str(path), error=f"{path}: {error}"), []
    save_part(part, report, episodes, {} if report.error or survey is None else survey.blocks())


def convert_bag(
    path: Path, job: Job, progress: Callable[[int], None] = lambda _: None, survey: DelaySurvey | None = None
) -> tuple[BagReport, list[TaskEpisode]]:
    """One bag's report and episodes. `progress` is told the bytes read so far, `survey` gets the samples.

    Raises BagError and MessageError.
    """
    with ThreadPoolExecutor(1) as pool, BagReader(path, job.definitions) as bag:
        sha256 = pool.submit(bag_sha256, path)  # beside the reading, which leaves it the processor now and then
        notes = compare_contract(bag, job)
        log = align_bag(bag, job.contract, lambda: progress(bag.bytes_read), survey)
        return cut_episodes(bag, log, job, notes, sha256.result())


def cut_episodes(
    bag: BagReader, log: AlignedBag, job: Job, notes: Sequence[str], sha256: str
) -> tuple[BagReport, list[TaskEpisode]]:
    """A bag's report and episodes from its ticks. Raises BagError and DatasetError."""
    contract, path = job.contract, bag.path
    infos = episode_infos(log.marks.get(EPISODE_TOPIC, Marks()).values, str(path))
    about = about_bag(bag, contract, log.marks, infos, job.manifest.get(path, NOTHING))
    folder = path.resolve().parent.name if job.task_from == "folder" else ""
    about = about.over(About(folder)).over(About(job.task))
    spans = episode_spans(log.marks, infos, contract)
    segmentation = split_ticks(log.ticks, spans, contract)
    if not segmentation.segments:
        lost = segmentation.dropped
        why = max(lost, key=lambda reason: lost[reason], default="there is no tick in the episode")
        raise BagError(f"{path}: holds no transition; {why}")
    behaviour = bag.info.custom_data.get("spc.behaviour", "")
    episodes = []
    for segment in segmentation.segments:
        episode = _episode(segment, log.ticks, path.name, sha256, behaviour, about)
        check_episode(episode, contract, str(path))
        episodes.append(TaskEpisode(*task_of(spans[segment.span], about, bag, contract), episode))
    ticks_ns = np.concatenate([entry.episode.times_ns for entry in episodes])
    observed = {stream.topic for stream in contract.observation}
    published = published_counts(infos, contract)
    first_ns = int(log.ticks.t_ns[0])
    report = BagReport(
        path=str(path),
        tasks=tuple(sorted({entry.task_id for entry in episodes})),
        transitions=sum(len(entry.episode) for entry in episodes),
        episodes=len(episodes),
        size_bytes=bag.size_bytes,
        cuts=tuple(((t_ns - first_ns) / 1e9, reason) for t_ns, reason in segmentation.cuts),
        dropped_ticks=segmentation.dropped,
        dropped_samples=dict(log.counts),
        topics={
            topic: times.report(ticks_ns if topic in observed else ticks_ns[:0], published.get(topic.lstrip("/"), 0))
            for topic, times in log.topics.items()
        },
        notes=(*notes, *bag.losses),
    )
    return report, episodes


def compare_contract(bag: BagReader, job: Job) -> tuple[str, ...]:
    """A note when the bag was recorded under another contract; an error where the user did not choose one."""
    text = bag.info.custom_data.get("spc.contract")
    if not text or text == job.contract.text:
        return ()
    differences = job.contract.differences(parse_contract(text, f"{bag.path} custom_data spc.contract"))
    if not differences:
        return ()
    if job.own_contract:
        return (f"recorded under another contract ({'; '.join(differences)})",)
    raise BagError(
        f"{bag.path}: recorded under another contract than the first bag, whose is meant by 'here' "
        f"({'; '.join(differences)}); convert them apart, or choose with --contract"
    )


def _episode(segment: Segment, ticks: Ticks, source: str, sha256: str, behaviour: str, about: About) -> Episode:
    states, acts = slice(segment.first, segment.last + 1), slice(segment.first + 1, segment.last + 1)
    return Episode(
        observations=ticks.observations[states],
        actions=ticks.actions[acts],
        rewards=ticks.rewards[acts],
        times_ns=ticks.t_ns[states],
        terminated=segment.terminated,
        truncated=segment.truncated,
        cut=None if segment.cut is None else str(segment.cut),
        source=source,
        source_sha256=sha256,
        behaviour=behaviour,
        labels=dict(about.labels),
    )


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
