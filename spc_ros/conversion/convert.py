# SPDX-License-Identifier: Apache-2.0
"""Bags to a dataset: convert each bag, keep what came of it, then write the dataset. No ROS, no torch.

What came of each bag waits in a hidden folder beside the dataset until the dataset is whole, so that the same command
goes on where it was interrupted; the dataset is the same as without the interruption.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spc_core.command_delay.correlogram import Correlogram
from spc_core.command_delay.estimate import merge_blocks, pooled_delay
from spc_core.contract.contract import Contract, load_contract
from spc_core.data.dataset import DatasetWriter
from spc_core.doctor.topic_stats import merge_reports
from spc_ros.bags.files import find_bags, stored_bytes, stored_in
from spc_ros.bags.reader import contract_in
from spc_ros.conversion.bag_conversion import Job, TaskEpisode, load_delay, load_part
from spc_ros.conversion.conversion_report import BagReport, ConversionReport
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.conversion.engines import convert_task, on_ray, run
from spc_ros.conversion.manifest import read_manifest
from spc_ros.messages.message_types import read_definitions

VERSION = 2  # of what a part holds; parts of other versions are made again
ENGINES = ("processes", "ray")
SURVEYED = 60  # bags in which the delay from command to state is looked for; drawn, since kinds of behaviour take turns


class ConversionError(ValueError):
    """Bags that cannot be converted; the message lists each of them with its reason."""


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
    said = read_manifest(options.manifest, paths) if options.manifest else {}
    looked_at = frozenset(paths[i] for i in np.random.default_rng(0).permutation(len(paths))[:SURVEYED])
    job = Job(contract or _contract_in(paths), contract is not None, options.task or "", options.task_from, said, types,
              looked_at)  # fmt: skip
    reports: list[BagReport] = []
    told: dict[int, list[Correlogram]] = {}
    with DatasetWriter(options.out, job.contract, options.overwrite) as writer:
        parts = _Parts(options.out, job)
        for report, episodes, delay in _results(paths, job, parts, options, progress):
            merge_blocks(told, delay)
            while episodes:  # let go of each before the next part is read
                entry = episodes.pop(0)
                writer.add_episode(entry.task_id, entry.params, entry.episode)
                del entry
            reports.append(report)
        _refuse_bad(reports, options.skip_bad, parts)
        topics = merge_reports([bag.topics for bag in reports])
        report = ConversionReport(options.out, job.contract, tuple(reports), topics, time.monotonic() - begin_s,
                                  pooled_delay(told))  # fmt: skip
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
        raise ConversionError(f"{head}; nothing is left:\n  {lines}")
    advice = "correct them or leave them out (--skip-bad)"
    raise ConversionError(f"{head}; {advice}:\n  {lines}\nthe others are done and wait in {parts.folder}")


def _contract_in(paths: list[Path]) -> Contract:
    contract, unreadable = contract_in(paths)
    if contract is not None:
        return contract
    if len(unreadable) == len(paths):
        raise ConversionError("no bag can be read:\n  " + "\n  ".join(unreadable))
    raise ConversionError(
        f"none of the {len(paths)} bags carries a contract; give one with --contract, "
        f"or have one proposed with `spc contract init {paths[0]}`"
    )


class _Parts:
    """The hidden folder beside a dataset in which what came of each bag waits."""

    def __init__(self, out: Path, job: Job) -> None:
        self.folder = out.with_name(f".{out.name}.parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        settled = (VERSION, job.contract.text, job.own_contract, job.task, job.task_from, *job.definitions.items())
        self._settled, self._manifest = repr(settled), job.manifest

    def file(self, bag: Path) -> Path:
        """Where a bag's part is; another file when bag, contract or options change."""
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in stored_in(bag)]
        said = repr((str(bag), str(bag.resolve()), files, self._manifest.get(bag), self._settled))
        return self.folder / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.npz"

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _results(
    paths: list[Path], job: Job, parts: _Parts, options: ConvertOptions, show: bool
) -> Iterator[tuple[BagReport, list[TaskEpisode], dict[int, list[Correlogram]]]]:
    """What came of each bag in the order of `paths`, whatever the engine, and from before where it is there."""
    files = {path: parts.file(path) for path in paths}
    sizes = {path: stored_bytes(path) for path in paths}
    missing = {path: file for path, file in files.items() if not file.is_file()}
    with tqdm(desc="convert", total=sum(sizes.values()), unit="B", unit_scale=True, disable=not show) as bar:
        bar.update(sum(size for path, size in sizes.items() if path not in missing))
        work = sum(sizes[path] for path in missing)
        made = _make(list(missing.items()), work, job, bar.update, options)
        for place, path in enumerate(paths):
            if path in missing:
                next(made)
            bar.set_postfix_str(f"{place + 1} of {len(paths)} bags", refresh=False)
            report, episodes = load_part(files[path])
            delay = load_delay(files[path])
            if report.error:
                files[path].unlink()  # tried again next time: what was wrong need not be in the bag
            yield report, episodes, delay
            del episodes
        next(made, None)  # lets the engine close
        bar.update(bar.total - bar.n)


def _make(
    missing: list[tuple[Path, Path]],
    size_bytes: int,
    job: Job,
    progress: Callable[[int], Any],
    options: ConvertOptions,
) -> Iterator[None]:
    if options.engine not in ENGINES:
        raise ConversionError(f"the engine is '{options.engine}'; use one of: {', '.join(ENGINES)}")
    if options.engine == "ray":
        return on_ray(missing, job, progress)
    return run(missing, convert_task, job, progress, options.workers, size_bytes)
