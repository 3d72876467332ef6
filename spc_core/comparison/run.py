# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates each method with each seed, in child processes that can be stopped and resumed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from spc_core.comparison.plan import LOCK_FILE, Plan, Run, Work, store_plan, works
from spc_core.method.config import ConfigError
from spc_core.system.signals import stop_on_signals

POLL_S = 0.2  # between two polls of the children
TAIL_LINES = 8
STOP_STAGES = ((signal.SIGTERM, 60.0), (signal.SIGKILL, 5.0))  # signal, then seconds; a training saves on the first


class CompareError(RuntimeError):
    """An incomplete comparison; the message names the failed runs and the reasons."""


def compare(plan: Plan, jobs: int, command: Sequence[str], on_finished: Callable[[], None]) -> None:
    """Finish all runs, `jobs` at a time; `command` is the command line to which a stage's arguments are appended.

    `on_finished` is called after each run and at the end. SIGINT, SIGTERM and SIGHUP stop all children and
    raise KeyboardInterrupt. Raises ConfigError for a folder with another plan, and CompareError at the end if
    runs have failed.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    with _lock(plan.out) as lock, stop_on_signals() as stopped:
        store_plan(plan)
        with _Comparison(plan, jobs, command, lock) as work:
            work.run(stopped, on_finished)
        on_finished()
    if stopped:
        raise KeyboardInterrupt("all children are stopped; run the same command to resume")
    if work.failures:
        failed = sum(not run.finished() for run in plan.runs())
        raise CompareError("\n".join([f"{failed} of {len(plan.runs())} runs failed", *work.failures]))


class _Comparison:
    """The running children and the display of their progress."""

    def __init__(self, plan: Plan, jobs: int, command: Sequence[str], lock: IO[str]) -> None:
        self.runs, self.jobs, self.command, self.lock = plan.runs(), jobs, list(command), lock
        self.waiting = deque(works(self.runs, jobs))
        self.children: list[_Child] = []
        self.failures: list[str] = []
        self.bars = _ProgressBars(self.runs, min(jobs, len(self.waiting)))

    def run(self, stopped: list[int], on_finished: Callable[[], None]) -> None:
        """Run until everything is finished or a signal arrives."""
        while (self.waiting or self.children) and not stopped:
            while self.waiting and len(self.children) < self.jobs:
                self._start(self.waiting.popleft())
            self.bars.show(self.children, self._finished())
            time.sleep(POLL_S)
            for child in [child for child in self.children if child.process.poll() is not None]:
                self.children.remove(child)
                if not stopped:
                    self._ended(child, on_finished)
        self.bars.show(self.children, self._finished())

    def _finished(self) -> int:
        return sum(run.finished() for run in self.runs)

    def _start(self, work: Work) -> None:
        self.children.append(_Child(work, self.command, self.lock))
        self._write_pids()

    def _ended(self, child: _Child, on_finished: Callable[[], None]) -> None:
        self._write_pids()
        work, code = child.work, child.process.returncode
        if work.stage == "train":
            trained = [run for run in work.runs if run.trained()]
            self.waiting.extendleft(Work("evaluate", (run,)) for run in reversed(trained))
        elif work.done():
            on_finished()
        if code != 0 or not work.done():
            self.failures.append(f"{work}: {work.stage} ended with code {code}; the end of {child.log}:{child.tail()}")
            self.bars.print(self.failures[-1])

    def _write_pids(self) -> None:
        """Store the process ids for a later call that finds the folder locked."""
        self.lock.seek(0)
        self.lock.truncate()
        self.lock.write(", ".join(map(str, [os.getpid(), *(child.process.pid for child in self.children)])))
        self.lock.flush()

    def __enter__(self) -> _Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        for number, wait_s in STOP_STAGES:
            for child in self.children:
                child.signal(number)
            deadline_s = time.monotonic() + wait_s
            while time.monotonic() < deadline_s and any(child.process.poll() is None for child in self.children):
                time.sleep(POLL_S)
        self.bars.close()


class _Child:
    """A process; its output is appended to a log in the folder of its first run."""

    def __init__(self, work: Work, command: Sequence[str], lock: IO[str]) -> None:
        self.work = work
        self.log = work.runs[0].folder / f"{work.stage}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                [*command, *work.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the children
                pass_fds=[lock.fileno()],  # the folder stays locked while a child lives, even an orphan
                env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "20", "PYTHONUNBUFFERED": "1"},
            )

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def tail(self) -> str:
        """The last lines of the log."""
        lines = self.log.read_text(errors="replace").replace("\r", "\n").splitlines()
        return "\n  ".join(["", *[line for line in lines if line.strip()][-TAIL_LINES:]])


class _ProgressBars:
    """A bar for the updates of all runs, and below it a line for each child."""

    def __init__(self, runs: Sequence[Run], lines: int) -> None:
        self._runs, self._done = runs, {run: run.updates_done() for run in runs}
        done = sum(self._done.values())
        total = sum(run.method.config.updates for run in runs)
        self._live = sys.stderr.isatty()  # a log file needs neither a live bar nor lines
        self._bar = tqdm(
            total=total, initial=done, desc="compare", unit="update", unit_scale=True, miniters=0,
            smoothing=0,  # the mean speed, since each seed runs all methods again
            mininterval=0.1 if self._live else 20,
        )  # fmt: skip
        shown = range(1, lines + 1) if self._live else ()
        self._lines = [tqdm(total=0, position=row, bar_format="  {desc}", leave=False) for row in shown]

    def show(self, children: Sequence[_Child], finished: int) -> None:
        texts = []
        for child in children:
            work, runs = child.work, child.work.runs
            self._done |= {run: run.updates_done() for run in runs}
            done, total = sum(self._done[run] for run in runs), len(runs) * runs[0].method.config.updates
            texts.append(f"{work}: {work.stage} {done:,} of {total:,} updates")
        self._bar.set_postfix_str(f"{finished} of {len(self._runs)} runs finished", refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)
        for line, text in zip(self._lines, [*texts, *[""] * len(self._lines)], strict=False):
            line.set_description_str(text)

    def print(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        for bar in [*reversed(self._lines), self._bar]:
            bar.close()


@contextmanager
def _lock(out: Path) -> Iterator[IO[str]]:
    """Lock the folder for this process and its children. Raises ConfigError if it is locked."""
    with (out / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{out}: another comparison, or an orphaned child of one, is running there (processes "
                f"{file.read()}); wait for them, or end them"
            ) from None
        yield file
