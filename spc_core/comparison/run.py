# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates each method with each seed, in child processes that can be stopped and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from spc_core.comparison.children import Child, Engine, Processes, log_file, log_tail
from spc_core.comparison.plan import LOCK_FILE, WORKERS_FILE, Plan, Work, store_plan, works
from spc_core.comparison.progress import ProgressBars
from spc_core.comparison.ray_children import RayMachines
from spc_core.method.config import ConfigError
from spc_core.system.ray_cluster import ray_cluster
from spc_core.system.signals import stop_on_signals

POLL_S = 0.2  # between two polls of the children
STOP_STAGES = ((signal.SIGTERM, 60.0), (signal.SIGKILL, 5.0))  # signal, then seconds; a training saves on the first
ENGINES = ("processes", "ray")
RETRIES = 2  # of a work whose machine was lost


class CompareError(RuntimeError):
    """An incomplete comparison; the message names the failed runs and the reasons."""


@dataclasses.dataclass(frozen=True)
class Spent:
    """How long a work's process ran."""

    work: Work
    seconds: float


def compare(
    plan: Plan, jobs: int | None, command: Sequence[str], on_finished: Callable[[], None], engine: str = "processes"
) -> list[Spent]:
    """Finish all runs, `jobs` at a time; `command` is the command line to which a stage's arguments are appended.

    `engine`: "processes" on this machine, two by default, or "ray", on a cluster, by default one for each of its CPUs.
    `on_finished` is called after each run and at the end. SIGINT, SIGTERM and SIGHUP stop all children and
    raise KeyboardInterrupt. Raises ConfigError for a folder with another plan, EngineError for an engine that cannot
    run, and CompareError at the end if runs have failed.
    """
    with contextlib.ExitStack() as opened:
        ray = opened.enter_context(ray_cluster()) if engine == "ray" else None  # first: it takes signals, too
        plan.out.mkdir(parents=True, exist_ok=True)
        lock, stopped = opened.enter_context(_lock(plan.out)), opened.enter_context(stop_on_signals())
        store_plan(plan)
        machines: Engine = RayMachines(ray, plan, command, jobs) if ray else Processes(command, jobs, lock)
        with _Comparison(plan, machines, lock) as work:
            work.run(stopped, on_finished)
        on_finished()
        if stopped:
            raise KeyboardInterrupt("all children are stopped; run the same command to resume")
    if work.failures:
        failed = sum(not run.finished() for run in plan.runs())
        raise CompareError("\n".join([f"{failed} of {len(plan.runs())} runs failed", *work.failures]))
    return work.spent


class _Comparison:
    """The running children, and what is still to do."""

    def __init__(self, plan: Plan, engine: Engine, lock: IO[str]) -> None:
        self.engine, self.lock = engine, lock
        self.waiting = deque(works(plan.runs(), engine.jobs))
        self.children: list[Child] = []
        self.failures: list[str] = []
        self.spent: list[Spent] = []
        self.lost: Counter[Work] = Counter()
        self.bars = ProgressBars(plan.runs(), min(engine.jobs, len(self.waiting)), engine.jobs)

    def run(self, stopped: list[int], on_finished: Callable[[], None]) -> None:
        """Run until everything is finished or a signal arrives."""
        while (self.waiting or self.children) and not stopped:
            while self.waiting and len(self.children) < self.engine.jobs:
                self._start(self.waiting.popleft())
            self._show()
            time.sleep(POLL_S)
            for child in [child for child in self.children if child.code() is not None]:
                self.children.remove(child)
                if not stopped:
                    self._ended(child, on_finished)
        self._show()

    def _show(self) -> None:
        self.bars.show([child.work for child in self.children], self.waiting)

    def _start(self, work: Work) -> None:
        self.children.append(self.engine.start(work))
        self._write_names()

    def _ended(self, child: Child, on_finished: Callable[[], None]) -> None:
        self._write_names()
        work, code = child.work, child.code()
        self.spent.append(Spent(work, self.bars.estimate.end(work)))
        if child.lost and self.lost[work] < RETRIES:
            self.lost[work] += 1
            self.waiting.appendleft(work)
            self.bars.print(f"{work}: {work.stage} goes on elsewhere: {child.lost}")
            return
        if work.stage == "train":
            trained = [run for run in work.runs if run.trained()]
            self.waiting.extendleft(Work("evaluate", (run,)) for run in reversed(trained))
        elif work.done():
            on_finished()
        if code != 0 or not work.done():
            why = f"ended with code {code}; the end of {log_file(work)}:{log_tail(work)}"
            self.failures.append(f"{work}: {work.stage} {child.lost or why}")
            self.bars.print(self.failures[-1])

    def _write_names(self) -> None:
        """Store the processes for a later call that finds the folder locked."""
        self.lock.seek(0)
        self.lock.truncate()
        self.lock.write(", ".join([str(os.getpid()), *(child.name for child in self.children)]))
        self.lock.flush()

    def __enter__(self) -> _Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        for number, wait_s in STOP_STAGES:
            for child in self.children:
                child.signal(number)
            deadline_s = time.monotonic() + wait_s
            while time.monotonic() < deadline_s and any(child.code() is None for child in self.children):
                time.sleep(POLL_S)
        self.bars.close()


@contextmanager
def _lock(out: Path) -> Iterator[IO[str]]:
    """Lock the folder for this process and its children. Raises ConfigError if it is locked."""
    with (out / LOCK_FILE).open("a+") as file, (out / WORKERS_FILE).open("a+") as workers:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{out}: another comparison, or an orphaned child of one, is running there (processes "
                f"{file.read()}); wait for them, or end them"
            ) from None
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield file
