# SPDX-License-Identifier: Apache-2.0
"""The processes of a comparison on the machines of a Ray cluster, which share a disk with this one."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spc_core.comparison.children import Child, log_file, popen
from spc_core.comparison.plan import PLAN_FILE, WORKERS_FILE, Plan, Work
from spc_core.system.ray_cluster import EngineError

# A process that ends with the actor that started it, and so with the comparison, however that ends.
BOUND = (
    "import os, sys; from spc_core.system.signals import end_with_parent; end_with_parent(int(sys.argv[1])); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class RayMachines:
    """Processes on a Ray cluster: an actor, which takes one CPU, for each."""

    def __init__(self, ray: Any, plan: Plan, command: Sequence[str], jobs: int | None) -> None:
        """`command`: as for Processes; if it starts with this Python, then each machine uses its own."""
        self.jobs = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._ray, self._command = ray, list(command)
        self._actor = ray.remote(num_cpus=1, max_concurrency=2)(_Machine)
        self._shared = (os.getcwd(), plan.out, (plan.out / PLAN_FILE).read_text())

    def start(self, work: Work) -> Child:
        own_python = self._command[0] == sys.executable
        command = ["" if own_python else self._command[0], *self._command[1:], *work.arguments()]
        actor = self._actor.remote(*self._shared)
        return _RayProcess(work, self._ray, actor, actor.run.remote(command, log_file(work)))


class _Machine:
    """An actor on some machine, with one process."""

    def __init__(self, folder: str, out: Path, plan: str) -> None:
        self._folder, self._out, self._plan = folder, out, plan
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped, self._starting = False, threading.Lock()

    def run(self, command: list[str], log: Path) -> int:
        """Run a process to its end, in the user's folder, since paths may be relative to it; returns its exit code."""
        host = socket.gethostname()
        try:
            os.chdir(self._folder)
            shared = (self._out / PLAN_FILE).read_text() == self._plan
        except OSError as error:
            raise EngineError(f"{host} does not see {self._folder} and {self._out}: {error}; {SHARE}") from None
        if not shared:
            raise EngineError(f"{host} has another {self._out / PLAN_FILE} than this machine; {SHARE}")
        with (self._out / WORKERS_FILE).open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            with self._starting:
                if self._stopped:
                    return -signal.SIGTERM
                bound = [sys.executable, "-c", BOUND, str(os.getpid())]
                self._process = popen([*bound, command[0] or sys.executable, *command[1:]], log, lock)
            return self._process.wait()

    def signal(self, number: int) -> None:
        """Send the process a signal; if there is none yet, there will be none."""
        with self._starting:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)


SHARE = "dataset and --out must have the same paths on a disk that all machines of the cluster share"


class _RayProcess:
    def __init__(self, work: Work, ray: Any, actor: Any, ended: Any) -> None:
        self.work, self.lost, self.name = work, "", f"of Ray's actor {actor._actor_id.hex()[:8]}"
        self._ray, self._actor, self._ended = ray, actor, ended
        self._code: int | None = None

    def code(self) -> int | None:
        """As Child's. Raises EngineError where the machine does not see the comparison's folder."""
        if self._code is None and self._ray.wait([self._ended], timeout=0)[0]:
            self._code = 1
            try:
                self._code = self._ray.get(self._ended)
            except self._ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, EngineError) else error) from None
            except self._ray.exceptions.RayActorError as error:
                self.lost = str(error).splitlines()[0]
            self._ray.kill(self._actor)  # frees its CPU at once
        return self._code

    def signal(self, number: int) -> None:
        if self.code() is None:
            self._actor.signal.remote(number)
