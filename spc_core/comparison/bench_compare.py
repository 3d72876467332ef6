# SPDX-License-Identifier: Apache-2.0
"""Benchmark of a comparison: seeds stacked and robots side by side, against one run after the other, uncompiled.

Both run the processes that `spc compare` runs, with fewer updates. What compiling, starting and evaluating take does
not depend on their number, so the time of all updates follows from the parts.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spc_core.comparison.plan import Plan, Run, make_plan
from spc_core.comparison.run import Spent, compare
from spc_core.method.config import ConfigError, load_config, to_dict
from spc_core.method.stacked import stacks
from spc_core.trials.direct_collection import collect_directly

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's variable for the folder of compiled code
SLICES = 10  # log lines of a training, from which the time of an update follows
REFERENCE, FIRST, AGAIN = "one by one", "stacked, first time", "stacked, again"
EPISODES = 6  # of each task of the simulated dataset


@dataclasses.dataclass(frozen=True)
class Passed:
    """One comparison: seconds on the clock, and of its processes by part."""

    wall_s: float
    start_s: float  # of trainings: imports, dataset, checkpoints
    compile_s: float  # first updates, by which they take longer than others
    update_s: float
    evaluate_s: float
    page_s: float  # of the comparison itself, between processes
    votes_s: float = 0.0  # learning the votes by which changes are noticed, at the end of a training

    @property
    def process_s(self) -> float:
        """All seconds of processes."""
        return sum(dataclasses.astuple(self)[1:])

    def whole(self, factor: float, votes_s: float) -> Passed:
        """The same comparison with `factor` times the updates, and votes."""
        more = dataclasses.replace(self, update_s=factor * self.update_s, votes_s=votes_s)
        return dataclasses.replace(more, wall_s=self.wall_s * more.process_s / self.process_s)


@dataclasses.dataclass(frozen=True)
class CompareBench:
    """The report of `spc bench compare`."""

    size: str
    methods: tuple[str, ...]
    seeds: int
    jobs: int
    updates: int  # of each run here
    all_updates: int  # of the size
    measured: dict[str, Passed]
    whole: dict[str, Passed]  # the same with all updates, worked out

    def ratio(self, name: str, whole: bool = True) -> float:
        """Share of the time one by one."""
        passes = self.whole if whole else self.measured
        return passes[name].wall_s / passes[REFERENCE].wall_s

    def numbers(self) -> dict[str, Any]:
        """For a JSON file."""
        return dataclasses.asdict(self) | {"ratios": {name: self.ratio(name) for name in (FIRST, AGAIN)}}

    def text(self) -> str:
        """The report for a terminal."""
        lines = [f"{len(self.methods)} methods ({', '.join(self.methods)}) x {self.seeds} seeds, {self.size} size, "
                 f"{self.jobs} processes at a time"]  # fmt: skip
        for updates, passes in ((self.updates, self.measured), (self.all_updates, self.whole)):
            how = "measured" if passes is self.measured else "worked out from these parts"
            lines += ["", f"{f'{updates:,} updates a run, {how}':44}" + "".join(f"{name:>21}" for name in passes)]
            for part, label in PARTS.items():
                row = [getattr(passed, part) for passed in passes.values()]
                if any(row):
                    lines.append(f"  {label:42}" + "".join(f"{seconds:19.1f} s" for seconds in row))
            ratios = [self.ratio(name, passes is self.whole) for name in passes]
            lines.append(f"  {'share of the clock one by one':42}" + "".join(f"{ratio:21.2f}" for ratio in ratios))
        again = self.whole[AGAIN]
        largest = max(list(PARTS)[1:], key=lambda part: getattr(again, part))
        share = getattr(again, largest) / again.process_s
        lines += ["", f"bound by: {PARTS[largest]}, {share:.0%} of what is left"]
        return "\n".join(lines)


PARTS = {
    "wall_s": "on the clock",
    "start_s": "processes: start, dataset, checkpoints",
    "compile_s": "processes: compiling, first updates",
    "update_s": "processes: updates",
    "votes_s": "processes: votes for changes",
    "evaluate_s": "processes: evaluations",
    "page_s": "experts, table and page",
}


def bench_compare(
    folder: Path, dataset: Path | None, size: str, methods: Sequence[str], seeds: int, updates: int, jobs: int,
    command: Sequence[str], report: Callable[[Plan], Callable[[], None]],
    votes: tuple[int, Callable[[Run, int], None]], progress: Callable[[str], None], **trial: Any,
) -> CompareBench:  # fmt: skip
    """Run a comparison three times in `folder`: stacked with an empty cache of compiled code, one by one, stacked.

    `report` makes the function that writes a plan's page. `votes`: of how many updates on a training learns votes at
    its end, and how it does for a run of so many. `trial`: options of make_plan. Raises ConfigError.
    """
    configs = [load_config(size, method) for method in methods]
    all_updates = configs[0].updates
    most = min(votes[0], all_updates) - 1
    if not 2 * SLICES <= updates <= most:
        raise ConfigError(f"--updates has {updates}; use {2 * SLICES} to {most}, from which the rest is worked out")
    stacked = all(stacks(config, seeds, "cpu") for config in configs)
    if dataset is None:
        progress("simulating a dataset")
        dataset = collect_directly("arm_reach", folder / "dataset", EPISODES)
    measured: dict[str, Passed] = {}
    for name in (FIRST, REFERENCE, AGAIN):
        progress(name)
        preset = folder / f"{name}.yaml"
        settings = {"updates": updates, "log_every": updates // SLICES, "checkpoint_every": updates,
                    "compile": "on" if stacked and name != REFERENCE else "off"}  # fmt: skip
        preset.write_text(json.dumps(to_dict(load_config(size, **settings))))  # JSON is YAML
        plan = make_plan(dataset, folder / name, methods, range(seeds), str(preset), **trial)
        plan = dataclasses.replace(plan, one_by_one=name == REFERENCE)
        with _cache(folder / "compiled"):
            measured[name] = _passed(plan, jobs, command, report)
    progress("votes")
    votes_s = seeds * sum(_votes_s(run, all_updates, votes[1]) for run in plan.runs()[: len(methods)])
    measured = {name: measured[name] for name in (REFERENCE, FIRST, AGAIN)}
    whole = {name: passed.whole(all_updates / updates, votes_s) for name, passed in measured.items()}
    names = tuple(method.name for method in plan.methods)
    return CompareBench(size, names, seeds, jobs, updates, all_updates, measured, whole)


def _passed(
    plan: Plan, jobs: int, command: Sequence[str], report: Callable[[Plan], Callable[[], None]]
) -> Passed:  # fmt: skip
    """Run a comparison and take its time apart."""
    began = time.perf_counter()
    write = report(plan)
    pages = [time.perf_counter() - began]

    def on_finished() -> None:
        then = time.perf_counter()
        write()
        pages.append(time.perf_counter() - then)

    spent = compare(plan, jobs, command, on_finished)
    wall_s = time.perf_counter() - began
    trainings = [item for item in spent if item.work.stage == "train"]
    loops, updates = (sum(values) for values in zip(*(_loop(item) for item in trainings), strict=True))
    return Passed(
        wall_s=wall_s, start_s=sum(item.seconds for item in trainings) - loops, compile_s=max(loops - updates, 0.0),
        update_s=updates, evaluate_s=sum(item.seconds for item in spent if item.work.stage == "evaluate"),
        page_s=sum(pages),
    )  # fmt: skip


def _loop(spent: Spent) -> tuple[float, float]:
    """Seconds of a training's loop, and those of its updates at the pace of all but the first log line."""
    loop_s = update_s = 0.0
    for run in spent.work.runs:
        rows = list(csv.reader((run.folder / "log.csv").read_text().splitlines()))[1:]
        (first, first_s), (last, last_s) = ((int(row[0]), float(row[1])) for row in (rows[0], rows[-1]))
        loop_s += last_s
        update_s += (last_s - first_s) / (last - first) * last
    return loop_s, update_s


def _votes_s(run: Run, updates: int, learn: Callable[[Run, int], None]) -> float:
    """Seconds in which a run's votes are learnt; none are where the context is not."""
    if run.method.fixed_context:
        return 0.0
    began = time.perf_counter()
    learn(run, updates)
    return time.perf_counter() - began


@contextlib.contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Compiled code is kept in `folder` meanwhile."""
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE]
        else:
            os.environ[CACHE] = before
