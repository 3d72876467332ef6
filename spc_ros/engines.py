# SPDX-License-Identifier: Apache-2.0
"""Where bags are converted: in this process, in a few processes, or on a Ray cluster. The function is the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from spc_core.stopping import end_with_parent
from spc_ros.bag_conversion import Job, convert_to_part

POLL_S = 0.2  # between two looks at how far the workers are
Task = tuple[Path, Path]
"""A bag and the part that it becomes."""


class EngineError(ValueError):
    """An engine that cannot run; the message says what to install or start."""


def here(tasks: Sequence[Task], job: Job, progress: Callable[[int], None]) -> Iterator[None]:
    """One bag after the other in this process; `progress` is told the bytes read since it was last told."""
    for path, part in tasks:
        counter = _Counter(progress)
        convert_to_part(path, job, part, counter)
        yield


def in_processes(tasks: Sequence[Task], job: Job, progress: Callable[[int], None], count: int) -> Iterator[None]:
    """Several bags at a time, told as done in their order."""
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads the caller has
    shared = context.Value("q", 0)
    seen = 0
    with ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(job, shared, os.getpid())) as pool:
        futures = [pool.submit(_work, path, part) for path, part in tasks]
        try:
            for future in futures:
                while not wait([future], POLL_S).done:
                    progress(shared.value - seen)
                    seen = shared.value
                _result(future)
                yield
            progress(shared.value - seen)
        finally:
            pool.shutdown(cancel_futures=True)


def on_ray(tasks: Sequence[Task], job: Job, progress: Callable[[int], None]) -> Iterator[None]:
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


def _result(future: Future[None]) -> None:
    try:
        future.result()
    except BrokenProcessPool:
        raise EngineError("a worker process died, most likely for want of memory; use fewer workers") from None


_worker: tuple[Job, Any] | None = None


def _start_worker(job: Job, shared: Any, parent: int) -> None:
    global _worker
    _worker = (job, shared)
    end_with_parent(parent)  # it would else wait for work for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business


def _work(path: Path, part: Path) -> None:
    if _worker is None:
        raise RuntimeError("worker was not started by in_processes()")
    job, shared = _worker

    def tell(count: int) -> None:
        with shared.get_lock():
            shared.value += count

    convert_to_part(path, job, part, _Counter(tell))
