# SPDX-License-Identifier: Apache-2.0
"""Where bags are worked on: in this process, in a few processes, or on a Ray cluster. The function is the same."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from spc_core.system.signals import end_with_parent
from spc_ros.conversion.bag_conversion import Job, convert_to_part

POLL_S = 0.2  # between two looks at how far the workers are
START_BYTES = 50_000_000  # of bags, which are converted in the time that a process takes to start
AHEAD = 16  # tasks for each process that may be done before their turn
Task = tuple[Path, Path]
"""A bag and the part that it becomes."""
T = TypeVar("T")
J = TypeVar("J")
R = TypeVar("R")
Work = Callable[[T, J, Callable[[int], None]], R]
"""A function of a module, of a task, of what is the same for all tasks, and of what is told the bytes read so far."""


class EngineError(ValueError):
    """An engine that cannot run; the message says what to install or start."""


def run(
    tasks: Sequence[T],
    work: Work[T, J, R],
    job: J,
    progress: Callable[[int], Any],
    workers: int | None,
    size_bytes: int,
) -> Iterator[R]:
    """What `work` returns for each task, in their order, whatever the number of processes.

    `progress` is told the bytes read since it was last told; `size_bytes` of all bags decide how many processes of
    `workers`, or of one for each core, are worth their start. `work` and its results must be picklable.
    """
    worth = max(len(tasks) // 4, size_bytes // START_BYTES)
    count = min(workers or len(os.sched_getaffinity(0)), len(tasks), worth)
    return in_processes(tasks, work, job, progress, count) if count > 1 else here(tasks, work, job, progress)


def convert_task(task: Task, job: Job, progress: Callable[[int], None]) -> None:
    """The work of `spc convert`."""
    convert_to_part(task[0], job, task[1], progress)


def here(tasks: Sequence[T], work: Work[T, J, R], job: J, progress: Callable[[int], Any]) -> Iterator[R]:
    """One bag after the other in this process."""
    for task in tasks:
        yield work(task, job, _Counter(progress))


def in_processes(
    tasks: Sequence[T], work: Work[T, J, R], job: J, progress: Callable[[int], Any], count: int
) -> Iterator[R]:
    """Several bags at a time; few results wait for their turn."""
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


def on_ray(tasks: Sequence[Task], job: Job, progress: Callable[[int], Any]) -> Iterator[None]:
    """On the Ray cluster that RAY_ADDRESS names, or on this machine. Bags and dataset must be on a shared disk."""
    try:
        import ray
    except ImportError:
        raise EngineError("the engine 'ray' needs Ray; install it with pip install 'spc_ros[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        remote: Any = ray.remote(num_cpus=1, max_retries=2)(_on_worker)
        shared_job = ray.put(job)
        waiting = [remote.remote(path, shared_job, part, os.getcwd()) for path, part in tasks]
        for reference in waiting:
            progress(ray.get(reference))
            yield
    finally:
        if started:
            ray.shutdown()


def _on_worker(path: Path, job: Job, part: Path, folder: str) -> int:
    """Convert in the folder that the user is in, since paths may be relative to it; returns the bytes read."""
    os.chdir(folder)
    counter = _Counter(lambda _: None)
    convert_to_part(path, job, part, counter)
    return counter.seen


class _Counter:
    """Turns bytes read so far into bytes since the last call."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell, self.seen = tell, 0

    def __call__(self, bytes_read: int) -> None:
        self.tell(bytes_read - self.seen)
        self.seen = bytes_read


def _result(future: Future[R]) -> R:
    try:
        return future.result()
    except BrokenProcessPool:
        raise EngineError("a worker process died, most likely for want of memory; use fewer workers") from None


_worker: tuple[Work[Any, Any, Any], Any, Any] | None = None


def _start_worker(work: Work[Any, Any, Any], job: Any, shared: Any, parent: int) -> None:
    global _worker
    _worker = (work, job, shared)
    end_with_parent(parent)  # it would else wait for work for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business


def _work(task: Any) -> Any:
    if _worker is None:
        raise RuntimeError("worker was not started by in_processes()")
    work, job, shared = _worker

    def tell(count: int) -> None:
        with shared.get_lock():
            shared.value += count

    return work(task, job, _Counter(tell))
