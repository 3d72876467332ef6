# SPDX-License-Identifier: Apache-2.0
"""The processes of a comparison: one for each work, on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from spc_core.comparison.plan import Work

TAIL_LINES = 8
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "20", "PYTHONUNBUFFERED": "1"}
JOBS = 2  # processes at a time, if not said


class Child(Protocol):
    """A process somewhere; its output is appended to a log in the folder of its first run."""

    work: Work
    lost: str  # why its machine no longer answers; empty while it does

    @property
    def name(self) -> str:
        """How to find the process."""
        ...

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        ...


class Engine(Protocol):
    """Starts processes; `jobs` at a time keep it busy."""

    jobs: int

    def start(self, work: Work) -> Child: ...


def log_file(work: Work) -> Path:
    """The log of a work's process."""
    return work.runs[0].folder / f"{work.stage}.log"


def log_tail(work: Work) -> str:
    """The last lines of the log."""
    file = log_file(work)
    lines = file.read_text(errors="replace").replace("\r", "\n").splitlines() if file.is_file() else []
    return "\n  ".join(["", *[line for line in lines if line.strip()][-TAIL_LINES:]])


def popen(command: Sequence[str], log: Path, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches only the comparison, which stops it.

    What `lock` locks stays locked while the process lives, even as an orphan.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            pass_fds=[lock.fileno()], env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip


class Processes:
    """Processes on this machine."""

    def __init__(self, command: Sequence[str], jobs: int | None, lock: IO[str]) -> None:
        """`command` is the command line to which a work's arguments are appended."""
        self.jobs, self._command, self._lock = jobs or JOBS, list(command), lock

    def start(self, work: Work) -> Child:
        return _Process(work, popen([*self._command, *work.arguments()], log_file(work), self._lock))


class _Process:
    def __init__(self, work: Work, process: subprocess.Popen[bytes]) -> None:
        self.work, self.lost, self._process = work, "", process

    @property
    def name(self) -> str:
        return str(self._process.pid)

    def code(self) -> int | None:
        return self._process.poll()

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
