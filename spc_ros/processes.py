# SPDX-License-Identifier: Apache-2.0
"""Nodes as child processes: starts, awaits, logs and stops them. Without ROS."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

PARENT_VARIABLE = "SPC_PARENT_PID"  # a node that finds it ends with that process
READY_LINE = re.compile(r"\]: ready$")
STOP_STAGES = ((signal.SIGINT, 5.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0))  # signal, then seconds
TAIL_LINES = 15
POLL_S = 0.25
PROMPT = "waiting for "  # start of a progress text that asks a person for something
PROGRESS = '{"progress": '  # start of a line with a node's progress

Progress = Callable[[int, int, str], None]  # done, total, text


def progress_line(done: int, total: int, text: str) -> str:
    """The line that a node prints for its NodeProcess's `on_progress`."""
    return json.dumps({"progress": [done, total, text]})


class ProcessError(RuntimeError):
    """A node did not start, or ended; the message holds the end of its log."""


class NodeProcess:
    """One node, `python -m spc_ros.nodes.<name>`, with its output in `<log_dir>/<name>.log`.

    Start it from a long-lived thread: Linux ends the node with the thread that started it.
    """

    def __init__(
        self,
        name: str,
        log_dir: Path,
        params: Mapping[str, Any] | None = None,
        namespace: str = "",
        environment: Mapping[str, str] | None = None,
        on_progress: Progress | None = None,
        params_file: Path | None = None,
    ) -> None:
        """`params` are written to a file, to keep their types, and override `params_file`.

        `environment` is added to ours. `on_progress` is called on another thread.
        """
        self.name = name
        self.log = log_dir / f"{name}.log"
        log_dir.mkdir(parents=True, exist_ok=True)
        file = log_dir / f"{name}.params.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": dict(params or {})}}))
        shared = ["--params-file", str(params_file)] if params_file is not None else []
        remaps = ["-r", f"__ns:=/{namespace.strip('/')}"] if namespace.strip("/") else []
        command = [sys.executable, "-m", f"spc_ros.nodes.{name}", "--ros-args"]
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._ready = threading.Event()
        self._on_progress = on_progress
        self._printed_s = time.monotonic()
        self.process = subprocess.Popen(
            [*command, *shared, "--params-file", str(file), *remaps],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches only this process, which stops the nodes in order
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONUNBUFFERED": "1",
                PARENT_VARIABLE: str(os.getpid()),
                **(environment or {}),
            },
        )
        self._reader = threading.Thread(target=self._copy_output, daemon=True)
        self._reader.start()

    @property
    def is_ready(self) -> bool:
        """Whether the node is ready, or has ended."""
        return self._ready.is_set()

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Return when the node is ready. Raises ProcessError."""
        if not self._ready.wait(timeout_s):
            raise ProcessError(f"node '{self.name}' was not ready within {timeout_s:g} s{self.tail()}")
        self.check()

    def check(self) -> None:
        """Raises ProcessError when the node has ended."""
        if self.process.poll() is not None:
            raise ProcessError(f"node '{self.name}' ended with code {self.process.returncode}{self.tail()}")

    def wait(self, timeout_s: float) -> int:
        """The node's exit code. Raises ProcessError after the timeout."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            late = f"node '{self.name}' did not end within {timeout_s:g} s{self.tail()}"
            raise ProcessError(late) from None
        self._reader.join(1.0)
        return code

    def wait_while_printing(self, silence_s: float, check: Callable[[], None] = lambda: None) -> int:
        """The exit code of a node that reports its progress. Raises ProcessError when it stops reporting.

        `check` is called a few times per second, and may raise.
        """
        while self.process.poll() is None:
            check()
            if time.monotonic() - self._printed_s > silence_s:
                raise ProcessError(f"node '{self.name}' printed nothing for {silence_s:g} s{self.tail()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(POLL_S)
        return self.wait(1.0)

    def interrupt(self) -> None:
        """Ask the node to end."""
        if self.process.poll() is None:
            self.process.send_signal(STOP_STAGES[0][0])

    def stop(self) -> int:
        """End the node, with stronger signals after timeouts; returns its exit code."""
        for number, wait_s in STOP_STAGES:
            if self.process.poll() is None:
                self.process.send_signal(number)
            try:
                return self.wait(wait_s)
            except ProcessError:
                continue
        raise ProcessError(f"node '{self.name}' (pid {self.process.pid}) cannot be stopped")

    def _copy_output(self) -> None:
        assert self.process.stdout is not None
        with self.log.open("w") as log, self.process.stdout:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                self._printed_s = time.monotonic()
                if self._on_progress is not None and line.startswith(PROGRESS) and line.endswith("}\n"):
                    self._on_progress(*json.loads(line)["progress"])
                if READY_LINE.search(line.rstrip()):
                    self._ready.set()
        self.process.wait()
        self._ready.set()  # so that wait_ready() returns for a node that has ended

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n  ".join([f"; the end of {self.log}:", *lines[-TAIL_LINES:]])


class NodeGroup:
    """Nodes that start together and stop in reverse order, even after an error."""

    def __init__(
        self,
        log_dir: Path,
        namespace: str = "",
        environment: Mapping[str, str] | None = None,
        params_file: Path | None = None,
    ) -> None:
        """`params_file` applies to every node; its own parameters override it."""
        self.log_dir, self.namespace, self.environment = log_dir, namespace, environment
        self.params_file = params_file
        self.nodes: dict[str, NodeProcess] = {}

    def start(
        self, name: str, params: Mapping[str, Any] | None = None, on_progress: Progress | None = None
    ) -> NodeProcess:
        """Start a node without waiting for it."""
        node = NodeProcess(name, self.log_dir, params, self.namespace, self.environment, on_progress, self.params_file)
        self.nodes[name] = node
        return node

    def drive(self, name: str, params: Mapping[str, Any], silence_s: float, on_progress: Progress | None) -> None:
        """Run the node that drives the others until it ends.

        Raises ProcessError when it fails or prints nothing for `silence_s`, or when another node ends.
        """
        driver = self.start(name, params, on_progress)
        driver.wait_while_printing(silence_s, lambda: self.check(but=driver))
        if driver.process.returncode != 0:
            raise ProcessError(f"node '{name}' failed{driver.tail()}")

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Return when all nodes are ready. Raises ProcessError."""
        deadline_s = time.monotonic() + timeout_s
        for node in self.nodes.values():
            node.wait_ready(max(0.0, deadline_s - time.monotonic()))

    def check(self, but: NodeProcess | None = None) -> None:
        """Raises ProcessError when a node other than `but` has ended."""
        for node in self.nodes.values():
            if node is not but:
                node.check()

    def stop(self) -> None:
        """Interrupt all nodes at once, then stop them one by one, the last started first."""
        nodes = list(reversed(self.nodes.values()))
        self.nodes.clear()
        for node in nodes:
            node.interrupt()
        for node in nodes:
            node.stop()

    def __enter__(self) -> NodeGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
