# SPDX-License-Identifier: Apache-2.0
"""Runs one function over many bags: in this process, in several processes, or on a Ray cluster."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from spc_core.system.ray_cluster import EngineError, ray_cluster
from spc_core.system.signals import end_with_parent

POLL_S = 0.2  # between updates of the progress of the workers
START_BYTES = 50_000_000  # of bags that are converted in the time that a process takes to start
AHEAD = 16  # tasks per process that may finish before their turn
T = TypeVar("T")
J = TypeVar("J")
R = TypeVar("R")
Work = Callable[[T, J, Callable[[int], None]], R]
"""A module's function of a task, the job, which all tasks share, and a callback for the bytes read so far."""


def run(
    tasks: Sequence[T],
    work: Work[T, J, R],
    job: J,
    progress: Callable[[int], Any],
    workers: int | None,
    size_bytes: int,
) -> Iterator[R]:
    """The results of `work` for each task, in their order, whatever the number of processes.

    `progress` receives the bytes read since its last call. `work` and its results must be picklable.
    """
    count = process_count(len(tasks), workers, size_bytes)
    return in_processes(tasks, work, job, progress, count) if count > 1 else here(tasks, work, job, progress)


def process_count(tasks: int, workers: int | None, size_bytes: int) -> int:
    """At most `workers`, by default one per core; fewer where `size_bytes` of all bags are not worth starting them."""
    worth = max(tasks // 4, size_bytes // START_BYTES)
    return min(workers or len(os.sched_getaffinity(0)), tasks, worth)


def here(tasks: Sequence[T], work: Work[T, J, R], job: J, progress: Callable[[int], Any]) -> Iterator[R]:
    """One bag after the other in this process."""
    for task in tasks:
        yield work(task, job, _Counter(progress))


def in_processes(
    tasks: Sequence[T], work: Work[T, J, R], job: J, progress: Callable[[int], Any], count: int
) -> Iterator[R]:
    """Several bags at a time; only a few results wait for their turn."""
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads the caller has
    shared = context.Value("q", 0)
    seen = 0
    with ProcessPoolExecutor(
        count, context, initializer=_start_worker, initargs=(work, job, shared, os.getpid())
    ) as pool:
        rest = iter(tasks)
        futures = deque(pool.submit(_work, task) for task in itertools.islice(rest, AHEAD * count))
        try:
            while futures:
                future = futures.popleft()
                while not wait([future], POLL_S).done:
                    progress(shared.value - seen)
                    seen = shared.value
                futures.extend(pool.submit(_work, task) for task in itertools.islice(rest, 1))
                yield _result(future)
            progress(shared.value - seen)
        finally:
            pool.shutdown(cancel_futures=True)


def on_ray(tasks: Sequence[T], work: Work[T, J, R], job: J, progress: Callable[[int], Any]) -> Iterator[R]:
    """On the Ray cluster named by RAY_ADDRESS, or on this machine. Bags and dataset must be on a shared disk."""
    with ray_cluster() as ray:
        remote: Any = ray.remote(num_cpus=1, max_retries=2)(_on_worker)
        shared_job = ray.put(job)
        waiting = [remote.remote(task, work, shared_job, os.getcwd()) for task in tasks]
        for reference in waiting:
            result, bytes_read = ray.get(reference)
            progress(bytes_read)
            yield result


def _on_worker(task: T, work: Work[T, J, R], job: J, folder: str) -> tuple[R, int]:
    """(result, bytes read), in the user's folder, since paths may be relative to it."""
    os.chdir(folder)
    counter = _Counter(lambda _: None)
    return work(task, job, counter), counter.bytes_read


class _Counter:
    """Passes on the bytes read since the last call."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report, self.bytes_read = report, 0

    def __call__(self, bytes_read: int) -> None:
        self._report(bytes_read - self.bytes_read)
        self.bytes_read = bytes_read


def _result(future: Future[R]) -> R:
    try:
        return future.result()
    except BrokenProcessPool:
        raise EngineError("a worker process died, most likely for want of memory; use fewer workers") from None


_worker: tuple[Work[Any, Any, Any], Any, Any] | None = None


def _start_worker(work: Work[Any, Any, Any], job: Any, shared: Any, parent: int) -> None:
    global _worker
    _worker = (work, job, shared)
    end_with_parent(parent)  # otherwise it would wait for work forever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def _work(task: Any) -> Any:
    if _worker is None:
        raise RuntimeError("worker was not started by in_processes()")
    work, job, shared = _worker

    def add(count: int) -> None:
        with shared.get_lock():
            shared.value += count

    return work(task, job, _Counter(add))
