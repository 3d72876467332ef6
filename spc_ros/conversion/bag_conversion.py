# SPDX-License-Identifier: Apache-2.0
"""One bag to episodes: the same function on one machine or on many."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from spc_core.alignment.batch.aligner import Ticks
from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.faults import Fault
from spc_core.alignment.segments import EpisodeSpan, Segment, Segmentation, episode_span, marker_spans, split_ticks
from spc_core.command_delay.survey import DelaySurvey
from spc_core.contract.contract import Contract, ContractError, parse_contract
from spc_core.data.dataset import DatasetError, Episode, check_episode
from spc_ros.bags.files import BagError, bag_sha256
from spc_ros.bags.reader import EPISODE_TOPIC, BagReader, parse_episode
from spc_ros.conversion.aligned_bag import STRING, AlignedBag, Marks, align_bag
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.conversion.manifest import NOTHING, About, said_by_bag
from spc_ros.conversion.parts import TaskEpisode, save_part
from spc_ros.conversion.topic_report import TopicReport, report_topic
from spc_ros.messages.fields import MessageError


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
    contract = job.contract
    with ThreadPoolExecutor(1) as pool, BagReader(path, job.definitions) as bag:
        sha256 = pool.submit(bag_sha256, path)  # beside the reading, which leaves it the processor now and then
        notes = _compare_contract(bag, job)
        log = align_bag(bag, contract, _marked(bag, contract), lambda: progress(bag.bytes_read), survey)
        infos = _infos(log, str(path))
        about = _about(bag, job, log, infos)
        custom, notes, size_bytes = bag.info.custom_data, (*notes, *bag.losses), bag.size_bytes
    spans = _spans(log, infos, contract)
    segmentation = split_ticks(log.ticks, spans, contract)
    if not segmentation.segments:
        lost = segmentation.dropped
        why = max(lost, key=lambda reason: lost[reason], default="there is no tick in the episode")
        raise BagError(f"{path}: holds no transition; {why}")
    behaviour = custom.get("spc.behaviour", "")
    episodes = []
    for segment in segmentation.segments:
        episode = _episode(segment, log.ticks, path.name, sha256.result(), behaviour, about)
        check_episode(episode, contract, str(path))
        episodes.append(TaskEpisode(*_task(spans[segment.span], about, bag, contract), episode))
    report = BagReport(
        path=str(path),
        tasks=tuple(sorted({entry.task_id for entry in episodes})),
        transitions=sum(len(entry.episode) for entry in episodes),
        episodes=len(episodes),
        size_bytes=size_bytes,
        cuts=_cut_seconds(segmentation, log.ticks),
        dropped_ticks=segmentation.dropped,
        dropped_samples=dict(log.counts),
        topics=_topic_reports(log, episodes, contract, infos),
        notes=notes,
    )
    return report, episodes


def _compare_contract(bag: BagReader, job: Job) -> tuple[str, ...]:
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


def _marked(bag: BagReader, contract: Contract) -> dict[str, tuple[str, str, str]]:
    """Topics that mark episodes and tasks: name to (the bag's topic, type, field)."""
    marked = {}
    for name in bag.episode_topics():
        marked[EPISODE_TOPIC] = (name, STRING, "data")
    segments = contract.segments
    if segments.by == "topic" and segments.topic != EPISODE_TOPIC:
        marked[segments.topic] = (bag.find_topic(segments.topic, segments.type), segments.type, segments.field)
    if contract.task_topic:
        marked[contract.task_topic] = (bag.find_topic(contract.task_topic, STRING), STRING, "data")
    return marked


def _infos(log: AlignedBag, where: str) -> list[EpisodeInfo]:
    """All that the topic `episode` said, in its order. Raises BagError on foreign text."""
    texts = log.marks[EPISODE_TOPIC].values if EPISODE_TOPIC in log.marks else ()
    found = [parse_episode([str(text)], where) for text in texts]
    return [info for info in found if info is not None]


def _spans(log: AlignedBag, infos: list[EpisodeInfo], contract: Contract) -> list[EpisodeSpan]:
    """The episodes of the bag; without any word of them all time is one."""
    segments = contract.segments
    if segments.by == "topic" and segments.topic != EPISODE_TOPIC:
        marks = log.marks[segments.topic]
        return marker_spans(marks.t_ns, marks.values) or [EpisodeSpan(math.inf, -math.inf)]
    if segments.by == "topic":
        return [episode_span(info, contract.period_ns) for info in _last_words(infos)]
    if not infos:
        return [EpisodeSpan()]
    span = episode_span(infos[-1], contract.period_ns)
    if contract.observation[0].clock == "header":
        return [span]
    received_ns = log.marks[EPISODE_TOPIC].receive_ns[-1] + contract.period_ns // 2  # its times are of another clock
    end_ns = received_ns if infos[-1].state == "ended" else math.inf
    return [dataclasses.replace(span, begin_ns=-math.inf, end_ns=end_ns)]


def _last_words(infos: list[EpisodeInfo]) -> list[EpisodeInfo]:
    """The last that was said of each episode; one that another one follows without an end is given up."""
    last: list[EpisodeInfo] = []
    for info in infos:
        if last and (info.episode, info.start_ns) == (last[-1].episode, last[-1].start_ns):
            last[-1] = info
            continue
        if last and last[-1].state == "running":
            reason = "another one began"
            last[-1] = dataclasses.replace(last[-1], state="ended", end_ns=info.start_ns, reason=reason)
        last.append(info)
    return last


def _about(bag: BagReader, job: Job, log: AlignedBag, infos: list[EpisodeInfo]) -> About:
    """What is known of the whole bag: the manifest goes before the bag, the bag before its folder and --task."""
    try:
        about = said_by_bag(bag.info.custom_data, job.contract.task_key, str(bag.path))
    except ValueError as error:
        raise BagError(str(error)) from None
    topic = job.contract.task_topic
    marks = log.marks[topic] if topic else Marks((), (), ())
    if len(set(marks.values)) > 1:
        raise BagError(
            f"{bag.path}: topic '{topic}' names several tasks, {', '.join(sorted(map(str, set(marks.values))))}; "
            f"record one task per bag, or tell of each episode on the topic '{EPISODE_TOPIC}' with segment: topic"
        )
    about = about.over(About(str(marks.values[-1])) if marks.values else NOTHING)
    if infos:
        about = about.over(About(infos[-1].task_id, infos[-1].params))
    folder = bag.path.resolve().parent.name if job.task_from == "folder" else ""
    return job.manifest.get(bag.path, NOTHING).over(about).over(About(folder)).over(About(job.task))


def _task(span: EpisodeSpan, about: About, bag: BagReader, contract: Contract) -> tuple[str, Mapping[str, float]]:
    """Task id and parameters of an episode; where the topic parts episodes, it also names their tasks."""
    if contract.segments.by == "topic" and span.task_id:
        return span.task_id, span.params
    if not about.task_id:
        raise BagError(
            f"{bag.path}: names no task, neither as '{contract.task_key}' in custom_data nor on the topic "
            f"'{EPISODE_TOPIC}'; give one for all such bags with --task, by folder with --task-from folder, or with "
            f"--manifest"
        )
    return about.task_id, about.params or {}


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


def _cut_seconds(segmentation: Segmentation, ticks: Ticks) -> tuple[tuple[float, Fault], ...]:
    first_ns = int(ticks.t_ns[0])
    return tuple(((t_ns - first_ns) / 1e9, fault) for t_ns, fault in segmentation.cuts)


def _topic_reports(
    log: AlignedBag, episodes: list[TaskEpisode], contract: Contract, infos: list[EpisodeInfo]
) -> dict[str, TopicReport]:
    ticks_ns = np.concatenate([entry.episode.times_ns for entry in episodes])
    observed = {stream.topic for stream in contract.observation}
    published: dict[str, int] = {}
    for info in _last_words(infos) if contract.segments.by == "topic" else infos[-1:]:
        for name, count in info.published.items():
            published[name.lstrip("/")] = published.get(name.lstrip("/"), 0) + count
    return {
        topic: report_topic(
            seen.type,
            seen.t_ns,
            ticks_ns if topic in observed else np.empty(0, np.int64),
            seen.delay_ns,
            seen.nan_count,
            seen.unset_stamps,
            published.get(topic.lstrip("/"), 0),
        )
        for topic, seen in log.topics.items()
    }
