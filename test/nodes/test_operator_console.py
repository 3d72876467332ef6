# SPDX-License-Identifier: Apache-2.0
"""`spc operator` and `spc run`: one action, the screen with its keys in a pseudo-terminal, and wrong usage."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spc_core.trials.protocol import EpisodeResult
from spc_ros.processes import NodeGroup
from spc_ros.trials.trial import run_trial
from support.bare_robot import bare_robot
from support.base_robot import BaseRobot
from support.node_probe import Probe, own_domain
from support.paths import ROOT
from support.random_checkpoint import trial_options

pytestmark = pytest.mark.timeout(120)
SPC = [sys.executable, "-m", "spc_ros.cli"]


def environment(domain: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **domain, "PYTHONPATH": str(ROOT), "TERM": "xterm"}


def spc(domain: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*SPC, *arguments], env=environment(domain), capture_output=True, text=True, timeout=60)


class Terminal:
    """`spc operator` in a pseudo-terminal."""

    def __init__(self, domain: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*SPC, "operator"], stdin=slave, stdout=slave, stderr=slave, env=environment(domain), close_fds=True
        )
        os.close(slave)
        self._text = ""

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def shows(self, text: str, timeout_s: float = 40.0) -> None:
        """Wait until the screen shows this, after what was waited for before."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self._text:
            assert time.monotonic() < deadline_s, f"'{text}' not within {timeout_s:g} s: {self._text[-1500:]}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self._master, 65536).decode())
        self._text = self._text.partition(text)[2][-200:]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(10.0)
        os.close(self._master)


def test_a_trial_is_conducted_from_the_screen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The prompt, continue, success; then the stop, which invalidates, its release, and an abort that asks."""
    domain, out = own_domain(), tmp_path / "out"
    rows: list[EpisodeResult] = []
    prompts: list[str] = []

    def trial() -> None:
        asked = trial_options(
            tiny_checkpoint, "", out, contract="arm_reach", task_ids=["bench/spring"], protocols=["no_context"],
            episodes=2, operator=True, sim=False, time_limit_s=3.0,
        )  # fmt: skip
        try:
            run_trial(asked, environment=domain, progress=lambda done, total, text: prompts.append(text))
        except RuntimeError as error:
            prompts.append(str(error))

    with bare_robot(domain, done_after=0):
        thread = threading.Thread(target=trial)
        thread.start()
        terminal = Terminal(domain)
        try:
            terminal.shows("no trial found; looking for one")
            terminal.shows("bring the robot to its start, then call continue")  # which it is told once the robot is on
            terminal.press("c")
            terminal.shows("> continue")
            terminal.shows("trial waits for: the operator's verdict")
            terminal.press("s")
            terminal.shows("1 of 2 episodes done")
            terminal.press("c")
            terminal.shows("trial: episode, running")
            terminal.press("x")
            terminal.shows("EMERGENCY STOP is pressed here; received by: ")
            terminal.shows("trial waits for: the release of the emergency stop")
            terminal.press("q")
            terminal.shows("the stop is pressed: release it first")
            terminal.press("ry")
            terminal.shows("bring the robot to its start, then call continue")
            terminal.press("a")
            terminal.shows("> abort? y or n")
            terminal.press("n")
            terminal.shows("abort: not done")
            terminal.press("ay")
            thread.join(40.0)
            terminal.press("q")
            assert terminal.process.wait(10.0) == 0
        finally:
            terminal.close()
            thread.join(40.0)
    rows = [EpisodeResult.from_json(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert [(row.success, row.aborted) for row in rows] == [(True, ""), (None, "emergency stop")]
    assert any(text.startswith("waiting for the operator: bring the robot") for text in prompts)
    assert "aborted on request" in prompts[-1]


def test_single_actions_have_an_exit_code(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    robot = BaseRobot(nodes, probe, tmp_path)
    domain = dict(nodes.environment or {})
    robot.goal()
    robot.start(activate=False)
    results: list[subprocess.CompletedProcess] = []

    def act(*arguments: str) -> tuple[int, str]:
        thread = threading.Thread(target=lambda: results.append(spc(domain, "operator", *arguments)))
        thread.start()
        robot.until(lambda: not thread.is_alive(), "the command", 60.0)
        return results[-1].returncode, results[-1].stdout + results[-1].stderr

    assert act("activate") == (0, "activate: done\n")
    robot.acts()
    code, text = act("stop")
    assert code == 0 and re.fullmatch("stop: received by policy\n", text)
    robot.rests()
    assert act("release")[0] == 0
    robot.acts()
    code, text = act("activate")
    assert code == 1 and "activate: refused; it is in another state than that needs" in text
    code, text = act("continue", "--timeout-s", "1")
    assert code == 1 and "continue: no trial found in namespace /; is it running, and in this domain?" in text
    code, text = act("status", "--timeout-s", "3")
    assert code == 0 and text.startswith("policy: ")


def test_a_stop_that_nobody_hears_is_an_error() -> None:
    done = spc(own_domain(), "operator", "stop", "--timeout-s", "1")
    assert done.returncode == 1 and "stop: NOBODY RECEIVED IT, within 1 s in namespace /" in done.stderr


def test_without_a_terminal_the_console_names_the_other_form() -> None:
    done = spc(own_domain(), "operator")
    assert (
        done.returncode == 1 and "the console needs a terminal; without one, use `spc operator ACTION`" in done.stderr
    )


def test_run_starts_a_node_with_its_arguments_and_its_exit_code(tmp_path: Path) -> None:
    domain = own_domain()
    node = subprocess.Popen(
        [*SPC, "run", "sim", "--ros-args", "-p", "family:=arm_payload", "-r", "__ns:=/r1"],
        env=environment(domain), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert node.stdout is not None
        line = next(line for line in node.stdout if "ready" in line)
        assert "[r1.sim]" in line
    finally:
        node.send_signal(signal.SIGINT)
        node.communicate(timeout=20.0)
    assert node.returncode == 0
    wrong = spc(domain, "run", "sim", "--ros-args", "-p", "family:=arm_reech")
    assert wrong.returncode == 1 and "'arm_reech' (did you mean 'arm_reach'?)" in wrong.stderr


def test_run_names_the_nodes() -> None:
    wrong = spc({}, "run", "polcy")
    assert wrong.returncode == 2 and "unknown node 'polcy'; did you mean policy?" in wrong.stderr
    listed = spc({}, "run", "--help")
    assert listed.returncode == 0 and re.search(r"\n  recorder +writes one bag per episode", listed.stdout)
    misplaced = spc({}, "run", "sim", "--shadow")
    assert misplaced.returncode == 2 and "--shadow is for policy and deploy, not for sim" in misplaced.stderr
