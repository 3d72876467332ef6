# SPDX-License-Identifier: Apache-2.0
"""Converts bags to a dataset. No ROS, no torch.

The result of each bag is kept in a hidden folder next to the dataset until the dataset is complete, so that the same
command resumes an interrupted conversion, with the same result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from spc_core.command_delay.correlogram import Correlogram
from spc_core.command_delay.estimate import merge_blocks, pooled_delay
from spc_core.command_delay.survey import DelaySurvey, from_arrays, to_arrays
from spc_core.contract.contract import Contract, ContractError, load_contract
from spc_core.data.dataset import DatasetError, DatasetWriter, Episode
from spc_core.doctor.topic_report import merge_reports
from spc_core.system.allocator import keep_freed_memory
from spc_ros.bags.files import BagError, find_bags, stored_bytes, stored_in
from spc_ros.bags.reader import contract_in
from spc_ros.conversion.bag_conversion import Job, TaskEpisode, convert_bag
from spc_ros.conversion.conversion_report import BagReport, ConversionReport
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.conversion.engines import here, in_processes, on_ray, process_count
from spc_ros.conversion.manifest import read_manifest
from spc_ros.messages.fields import MessageError
from spc_ros.messages.message_types import read_definitions

VERSION = 3  # of the format of parts; parts of other versions are replaced
ENGINES = ("processes", "ray")
SURVEYED = 60  # bags in which the delay from command to state is measured; drawn, as kinds of behaviour alternate
ARRAYS = ("observations", "actions", "rewards", "times_ns")


class ConversionError(ValueError):
    """Bags that cannot be converted; the message lists each of them with its reason, and `bags` only these."""

    def __init__(self, text: str, bags: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.bags = tuple(bags)


def convert(options: ConvertOptions, contract: Contract | None = None, progress: bool = True) -> ConversionReport:
    """Convert bags into a dataset; `contract` replaces the file that the options name.

    Bad bags raise ConversionError and nothing is written, unless `skip_bad`. Raises BagError, MessageError,
    ContractError, DatasetError, ManifestError and EngineError too.
    """
    begin_s = time.monotonic()
    if contract is None and options.contract is not None:
        contract = load_contract(options.contract)
    paths = find_bags(options.bags)
    types = read_definitions(options.types)
    manifest = read_manifest(options.manifest, paths) if options.manifest else {}
    surveyed = frozenset(paths[i] for i in np.random.default_rng(0).permutation(len(paths))[:SURVEYED])
    job = Job(contract or _contract_in(paths), contract is not None, options.task or "", options.task_from, manifest,
              types, surveyed)  # fmt: skip
    reports: list[BagReport] = []
    delays: dict[int, list[Correlogram]] = {}
    with DatasetWriter(options.out, job.contract, options.overwrite) as writer:
        parts = _Parts(options.out, job)
        for report, episodes, delay in _results(paths, job, parts, options, progress):
            merge_blocks(delays, delay)
            while episodes:  # free each one before the next part is read
                entry = episodes.pop(0)
                writer.add_episode(entry.task_id, entry.params, entry.episode)
                del entry
            reports.append(report)
        _refuse_bad(reports, options.skip_bad, parts)
        topics = merge_reports([bag.topics for bag in reports])
        report = ConversionReport(options.out, job.contract, tuple(reports), topics, time.monotonic() - begin_s,
                                  pooled_delay(delays))  # fmt: skip
        writer.write_text("conversion.json", json.dumps(report.as_dict(), indent=1))
    parts.remove()
    return dataclasses.replace(report, seconds=time.monotonic() - begin_s)


def _refuse_bad(reports: list[BagReport], skip_bad: bool, parts: _Parts) -> None:
    failed = [bag.error for bag in reports if bag.error]
    if not failed or (skip_bad and len(failed) < len(reports)):
        return
    head, lines = f"{len(failed)} of {len(reports)} bags cannot be converted", "\n  ".join(failed)
    if len(failed) == len(reports):
        parts.remove()
        raise ConversionError(f"{head}; nothing is left:\n  {lines}", failed)
    advice = "correct them or leave them out (--skip-bad)"
    raise ConversionError(f"{head}; {advice}:\n  {lines}\nthe others are done and wait in {parts.folder}", failed)


def _contract_in(paths: list[Path]) -> Contract:
    contract, unreadable = contract_in(paths)
    if contract is not None:
        return contract
    if len(unreadable) == len(paths):
        raise ConversionError("no bag can be read:\n  " + "\n  ".join(unreadable))
    who = f"none of the {len(paths)} bags carries a" if len(paths) > 1 else f"{paths[0]} carries no"
    raise ConversionError(
        f"{who} contract; give one with --contract, or have one proposed with `spc contract init {paths[0]}`"
    )


class Converted(NamedTuple):
    """What a bag became."""

    report: BagReport
    episodes: list[TaskEpisode]
    delay: Mapping[int, Sequence[Correlogram]]  # of command and state, by observation stream


class _Parts:
    """The hidden folder next to a dataset with the results of converted bags."""

    def __init__(self, out: Path, job: Job) -> None:
        self.folder = out.with_name(f".{out.name}.parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = (VERSION, job.contract.text, job.own_contract, job.task, job.task_from, *job.definitions.items())
        self._settings, self._manifest = repr(settings), job.manifest

    def file(self, bag: Path) -> Path:
        """The file of a bag's result; another one when bag, contract or options change."""
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in stored_in(bag)]
        key = repr((str(bag), str(bag.resolve()), files, self._manifest.get(bag), self._settings))
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _results(paths: list[Path], job: Job, parts: _Parts, options: ConvertOptions, show: bool) -> Iterator[Converted]:
    """The result of each bag in the order of `paths`, whatever the engine; earlier results are reused."""
    files = {path: parts.file(path) for path in paths}
    sizes = {path: stored_bytes(path) for path in paths}
    missing = {path: file for path, file in files.items() if not file.is_file()}
    with tqdm(desc="convert", total=sum(sizes.values()), unit="B", unit_scale=True, disable=not show) as bar:
        bar.update(sum(size for path, size in sizes.items() if path not in missing))
        work = sum(sizes[path] for path in missing)
        made = _make(list(missing.items()), work, job, bar.update, options)
        for number, path in enumerate(paths, 1):
            found = next(made) if path in missing else None
            bar.set_postfix_str(f"{number} of {len(paths)} bags", refresh=False)
            result = found if isinstance(found, Converted) else load_part(files[path])
            del found
            if result.report.error:
                files[path].unlink()  # try again next time: the cause may lie outside the bag
            yield result
            del result
        next(made, None)  # let the engine shut down
        bar.update(bar.total - bar.n)


def _make(
    missing: list[tuple[Path, Path]],
    size_bytes: int,
    job: Job,
    progress: Callable[[int], Any],
    options: ConvertOptions,
) -> Iterator[Converted | None]:
    """The result of each bag; None where another process made it, so that it is only in its file."""
    if options.engine not in ENGINES:
        raise ConversionError(f"the engine is '{options.engine}'; use one of: {', '.join(ENGINES)}")
    if options.engine == "ray":
        return on_ray(missing, _convert_elsewhere, job, progress)
    count = process_count(len(missing), options.workers, size_bytes)
    if count > 1:
        return in_processes(missing, _convert_elsewhere, job, progress, count)
    return here(missing, convert_to_part, job, progress)


def _convert_elsewhere(task: tuple[Path, Path], job: Job, progress: Callable[[int], None]) -> None:
    convert_to_part(task, job, progress)


def convert_to_part(task: tuple[Path, Path], job: Job, progress: Callable[[int], None] = lambda _: None) -> Converted:
    """Convert a bag and save the result, a report with an error for a bag that cannot be converted.

    task: (bag, file of the result). `progress` receives the bytes read so far.
    """
    keep_freed_memory()  # a block is as long as the one before
    path, part = task
    survey = DelaySurvey(job.contract) if path in job.surveyed else None
    try:
        report, episodes = convert_bag(path, job, progress, survey)
    except BagError as error:
        report, episodes = BagReport(str(path), error=str(error)), []
    except (MessageError, ContractError, DatasetError) as error:
        report, episodes = BagReport(str(path), error=f"{path}: {error}"), []
    delay = {} if report.error or survey is None else survey.blocks()
    save_part(part, report, episodes, delay)
    return Converted(report, episodes, delay)


def save_part(
    file: Path, report: BagReport, episodes: list[TaskEpisode], delay: Mapping[int, Sequence[Correlogram]] | None = None
) -> None:
    """Write a bag's result atomically: under a hidden name, then renamed."""
    details = [
        {
            "task_id": entry.task_id,
            "params": dict(entry.params),
            "steps": len(entry.episode),
            **{key: value for key, value in vars(entry.episode).items() if key not in ARRAYS},
        }
        for entry in episodes
    ]
    arrays: dict[str, Any]
    delay_details, arrays = to_arrays(delay or {})
    about = json.dumps({"report": report.as_dict(), "episodes": details, "delay": delay_details})
    arrays["about"] = np.frombuffer(about.encode(), np.uint8)
    for name in ARRAYS if episodes else ():
        rows = [getattr(entry.episode, name) for entry in episodes]
        arrays[name] = rows[0] if len(rows) == 1 else np.concatenate(rows)  # a long bag's arrays are not copied
    hidden = file.with_name(f".{file.name}.{os.getpid()}")
    with hidden.open("wb") as stream:
        np.savez(stream, **arrays)
    hidden.replace(file)


def load_part(file: Path) -> Converted:
    """What was saved."""
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        delay = from_arrays(about["delay"], arrays)
        joined = {name: arrays[name] for name in ARRAYS} if about["episodes"] else {}
    episodes = []
    begin = 0
    for number, details in enumerate(about["episodes"]):
        task_id, params, steps = details.pop("task_id"), details.pop("params"), details.pop("steps")
        states = slice(begin + number, begin + number + steps + 1)  # an episode has one state more than steps
        acts = slice(begin, begin + steps)
        episode = Episode(joined["observations"][states], joined["actions"][acts], joined["rewards"][acts],
                          joined["times_ns"][states], **details)  # fmt: skip
        episodes.append(TaskEpisode(task_id, params, episode))
        begin += steps
    return Converted(BagReport.from_dict(about["report"]), episodes, delay)
