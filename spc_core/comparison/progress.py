# SPDX-License-Identifier: Apache-2.0
"""The progress of a comparison on the terminal, and how long the rest will take."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from spc_core.comparison.plan import FIXED_PROTOCOL, Method, Run, Work

FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"


@dataclasses.dataclass
class _Seen:
    """What was seen of a process: (seconds, updates done) when it started, when these first rose, and at last."""

    began: tuple[float, int]
    first: tuple[float, int] | None = None
    last: tuple[float, int] = (0.0, 0)


class Estimate:
    """How long the rest takes, by what processes of this call took to start, for an update, and to evaluate."""

    def __init__(self, jobs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs, self._clock = jobs, clock
        self._running: dict[Work, _Seen] = {}
        self._spent: dict[Method, list[tuple[float, int]]] = {}  # seconds and updates of ended trainings
        self._starts: list[float] = []  # seconds to the first update, compiling included
        self._ends: list[float] = []  # seconds after the last update, for each run
        self._evaluations: list[float] = []  # seconds for each protocol

    def see(self, work: Work, updates: int) -> None:
        """Note how many updates of a running process are done."""
        now = self._clock()
        seen = self._running.setdefault(work, _Seen((now, updates), None, (now, updates)))
        if updates > seen.last[1]:
            seen.last = (now, updates)
            seen.first = seen.first or seen.last

    def end(self, work: Work) -> float:
        """Note that a process has ended; returns the seconds that it ran."""
        seen = self._running.pop(work)
        spent = self._clock() - seen.began[0]
        if work.stage == "evaluate":
            self._evaluations.append(spent / _protocols(work.runs[0]))
        elif seen.first is not None:
            self._spent.setdefault(work.runs[0].method, []).append(_slope(seen))
            self._starts.append(self._start(seen, work))
            self._ends.append((self._clock() - seen.last[0]) / len(work.runs))
        return spent

    def text(self, waiting: Sequence[Work]) -> str:
        """What is left, for a person."""
        left = self.left_s(waiting)
        if left is None:
            return "time left not known yet"
        seconds, complete = left
        minutes = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f"about {minutes} left" + ("" if complete else ", and the evaluations")

    def left_s(self, waiting: Sequence[Work]) -> tuple[float, bool] | None:
        """Seconds left, and whether evaluations are in them; None before the first updates or evaluation."""
        works, known = [*self._running, *waiting], bool(self._evaluations)
        to_train = any(work.stage == "train" for work in works)
        if (to_train and self._rate(None) is None) or not (to_train or known):
            return None
        left = [(self._training_s(work), self._evaluation_s(work)) for work in works]
        total = sum(training + evaluation for training, evaluation in left)
        longest = max(
            (training + evaluation / len(work.runs) for work, (training, evaluation) in zip(works, left, strict=True)),
            default=0.0,
        )  # a work's evaluations run side by side
        return max(total / self._jobs, longest), known

    def _training_s(self, work: Work) -> float:
        """Process seconds that the training of a work has left."""
        if work.stage == "evaluate":
            return 0.0
        seen, now = self._running.get(work), self._clock()
        total = sum(run.method.config.updates for run in work.runs)
        done = seen.last[1] if seen else sum(run.updates_done() for run in work.runs)
        updates_s = (total - done) * (self._rate(work.runs[0].method) or 0.0)
        if seen and seen.first:
            left = updates_s - (now - seen.last[0])
        else:
            left = updates_s + self._usual_start() - (now - seen.began[0] if seen else 0.0)
        return max(left, 0.0) + len(work.runs) * (statistics.fmean(self._ends) if self._ends else 0.0)

    def _evaluation_s(self, work: Work) -> float:
        """Process seconds that the evaluations of a work, or those after its training, have left."""
        each = statistics.fmean(self._evaluations) if self._evaluations else 0.0
        left = sum(each * _protocols(run) for run in work.runs)
        if work.stage == "evaluate" and work in self._running:
            left -= self._clock() - self._running[work].began[0]
        return max(left, 0.0)

    def _usual_start(self) -> float:
        running = [self._start(seen, work) for work, seen in self._running.items() if seen.first]
        starts = [*self._starts, *running]
        return statistics.fmean(starts) if starts else 0.0

    def _start(self, seen: _Seen, work: Work) -> float:
        """Seconds from the start of a process to its first update."""
        assert seen.first is not None
        updates = seen.first[1] - seen.began[1]
        return max(seen.first[0] - seen.began[0] - updates * (self._rate(work.runs[0].method) or 0.0), 0.0)

    def _rate(self, method: Method | None) -> float | None:
        """Seconds of an update of one run of a method, or of any where none of that method is known."""
        spent = [pair for own, pairs in self._spent.items() if method in (None, own) for pair in pairs]
        spent += [
            _slope(seen) for work, seen in self._running.items() if seen.first and method in (None, work.runs[0].method)
        ]
        seconds, updates = (sum(values) for values in zip(*spent, strict=True)) if spent else (0.0, 0)
        if updates:
            return seconds / updates
        return None if method is None else self._rate(None)


def _slope(seen: _Seen) -> tuple[float, int]:
    """Seconds and updates between the first and the last that were seen."""
    assert seen.first is not None
    return seen.last[0] - seen.first[0], seen.last[1] - seen.first[1]


def _protocols(run: Run) -> int:
    return len((FIXED_PROTOCOL,) if run.method.fixed_context else run.plan.protocols)


class ProgressBars:
    """A bar for the updates of all runs, and below it a line for each process."""

    def __init__(self, runs: Sequence[Run], lines: int, jobs: int) -> None:
        self._runs, self._done = runs, {run: run.updates_done() for run in runs}
        self.estimate = Estimate(jobs)
        done = sum(self._done.values())
        total = sum(run.method.config.updates for run in runs)
        self._live = sys.stderr.isatty()  # a log file needs neither a live bar nor lines
        self._bar = tqdm(
            total=total, initial=done, desc="compare", unit="update", unit_scale=True, miniters=0, bar_format=FORMAT,
            smoothing=0,  # the mean speed, since each seed runs all methods again
            mininterval=0.1 if self._live else 20,
        )  # fmt: skip
        shown = range(1, lines + 1) if self._live else ()
        self._lines = [tqdm(total=0, position=row, bar_format="  {desc}", leave=False) for row in shown]

    def show(self, running: Sequence[Work], waiting: Sequence[Work]) -> None:
        """Show what is done, what runs and what is left."""
        texts = []
        for work in running:
            self._done |= {run: run.updates_done() for run in work.runs}
            done, total = sum(self._done[run] for run in work.runs), len(work.runs) * work.runs[0].method.config.updates
            self.estimate.see(work, done)
            texts.append(f"{work}: {work.stage} {done:,} of {total:,} updates")
        finished = sum(run.finished() for run in self._runs)
        left = f", {self.estimate.text(waiting)}" if running else ""
        self._bar.set_postfix_str(f"{finished} of {len(self._runs)} runs finished{left}", refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)
        for line, text in zip(self._lines, [*texts, *[""] * len(self._lines)], strict=False):
            line.set_description_str(text)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        for bar in [*reversed(self._lines), self._bar]:
            bar.close()
