# SPDX-License-Identifier: Apache-2.0
"""One screen for the person at the robot: what the trial waits for, how the nodes are, and keys for all requests."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from spc_ros.node_parts.operator_link import SHOWN, OperatorLink, Pending

REDRAW_S = 0.5
TIMEOUT_S = 5.0
SETTLE_S = 0.5
KEYS = {"c": "continue", "s": "success", "f": "failure", "e": "end"}
ASKED = {"a": "abort", "w": "swap", "z": "reset"}  # after a y
COLOURS = {"OK": "\x1b[32m", "WARN": "\x1b[33m", "ERROR": "\x1b[31m", "STALE": "\x1b[31m"}
HELP = (
    "c continue   s success   f failure   e end the episode   p pause, resume   a abort",
    "x EMERGENCY STOP   r release it   v activate, deactivate the policy   w swap   z reset the context   q quit",
)


class Console:
    """Draws the screen and acts on keys; the stop acts at once, what cannot be undone asks first."""

    def __init__(self, link: OperatorLink) -> None:
        self._link = link
        self._said = "no request yet"
        self._asks = ""  # the action that waits for a y
        self._pending: Pending | None = None
        self.done = False

    def key(self, key: str) -> None:
        """Act on a key."""
        if key == "x":
            self._link.press(True)
            self._asks, self._said = "", "EMERGENCY STOP sent"
        elif self._asks:
            action, self._asks = self._asks, ""
            if key == "y":
                self._act(action)
            else:
                self._said = f"{action}: not done"
        elif key in KEYS:
            self._act(KEYS[key])
        elif key == "p":
            trial = self._link.state("trial")
            paused = trial is not None and "resume" in trial.values.get("waits_for", "")
            self._act("resume" if paused else "pause")
        elif key in ASKED:
            self._asks = ASKED[key]
        elif key == "r":
            self._asks = "release"
        elif key == "v":
            policy = self._link.state("policy")
            self._asks = "activate" if policy is not None and policy.reason.startswith("inactive") else "deactivate"
        elif key == "q":
            if self._link.pressed:
                self._said = "the stop is pressed: release it first (r, y), or end the console with Ctrl-C"
            else:
                self.done = True

    def poll(self) -> None:
        """Take the answer of a request."""
        if self._pending is not None and self._pending.result is not None:
            accepted, text = self._pending.result
            self._said, self._pending = text if accepted else f"REFUSED: {text}", None

    def screen(self, width: int) -> list[str]:
        """The lines to show."""
        link, trial = self._link, self._link.state("trial")
        lines = [f"spc operator   namespace {link.namespace}   {time.strftime('%H:%M:%S')}", ""]
        if trial is None:
            lines.append("no trial found; looking for one")
        else:
            known = trial.values
            waits = known.get("waits_for", "")
            lines.append(f"trial waits for: {waits}" if waits else f"trial: {known.get('phase', '')}, running")
            done = f"{known.get('episodes_done', '?')} of {known.get('episodes', '?')} episodes done"
            lines.append(f"episode: {known.get('episode', '') or '-'}")
            lines.append(f"{done}, last return {known.get('last_return', '') or '-'}")
        lines.append("")
        for name in SHOWN:
            state = link.state(name)
            if state is not None:
                lines.append(f"{name:16} {COLOURS[state.level]}{state.level:5}\x1b[0m {state.reason}")
        if link.pressed:
            received = ", ".join(link.listeners()) or "NOBODY"
            lines += ["", f"\x1b[1;31mEMERGENCY STOP is pressed here; received by: {received}\x1b[0m"]
        asks = f"{self._asks}? y or n" if self._asks else self._said
        lines += ["", *HELP, "", f"> {asks}" + (" ..." if self._pending else "")]
        return [line if "\x1b" in line else line[:width] for line in lines]

    def _act(self, action: str) -> None:
        if action == "release":
            self._link.press(False)
            self._said = "the stop is released"
            return
        self._pending = self._link.request(action, TIMEOUT_S)
        self._said = action


def run_console(namespace: str) -> int:
    """Show the screen until q; refuses without a terminal."""
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        raise ValueError("the console needs a terminal; without one, use `spc operator ACTION`, see --help")
    with OperatorLink(namespace) as link, _raw_terminal() as write:
        console = Console(link)
        drawn_s = 0.0
        while not console.done:
            link.spin(0.05)
            console.poll()
            while select.select([sys.stdin], [], [], 0.0)[0]:
                console.key(os.read(sys.stdin.fileno(), 1).decode(errors="replace"))
                drawn_s = 0.0
            if time.monotonic() - drawn_s > REDRAW_S:
                drawn_s = time.monotonic()
                lines = console.screen(shutil.get_terminal_size().columns)
                write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in lines) + "\x1b[J")
    return 0


@contextlib.contextmanager
def _raw_terminal() -> Iterator:
    """Keys without Enter, on a screen of its own; restored however it ends."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    write("\x1b[?1049h\x1b[?25l")
    try:
        yield write
    finally:
        write("\x1b[?25h\x1b[?1049l")
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def act_once(action: str, namespace: str, timeout_s: float) -> tuple[bool, str]:
    """One action without a screen: (accepted, text)."""
    with OperatorLink(namespace) as link:
        if action == "status":
            return _status(link, timeout_s)
        if action in ("stop", "release"):
            return _stop(link, action == "stop", timeout_s)
        pending = link.request(action, timeout_s)
        while pending.result is None:
            link.spin(0.05)
        return pending.result


def _stop(link: OperatorLink, pressed: bool, timeout_s: float) -> tuple[bool, str]:
    """Publish it until the policy, and the trial if there is one, have it. Whoever else listens does not count."""
    link.press(pressed)
    deadline_s = time.monotonic() + timeout_s

    def lacking() -> list[str]:
        received = link.listeners()
        wanted = ["policy", *(["trial"] if "trial" in link.present() else [])]
        return [name for name in wanted if name not in received]

    while lacking() and time.monotonic() < deadline_s:
        link.spin(0.05)
    link.spin(SETTLE_S)  # a node that DDS connects a little later
    word, received = "stop" if pressed else "release", link.listeners()
    told = f"received by {', '.join(received)}" if received else "NOBODY RECEIVED IT"
    if missing := lacking():
        told += f", BUT NOT BY THE {' AND '.join(missing).upper()}" if received else ""
    elif not link.delivered():
        told = f"NOT CONFIRMED by {', '.join(received)}"
    else:
        return True, f"{word}: {told}"
    return False, f"{word}: {told}, within {timeout_s:g} s in namespace {link.namespace}"


def _status(link: OperatorLink, timeout_s: float) -> tuple[bool, str]:
    """What each node says of itself; false where a node that DDS knows of says nothing, or where there is none."""
    deadline_s = time.monotonic() + timeout_s
    link.spin(min(SETTLE_S, timeout_s))  # until DDS knows the nodes
    while time.monotonic() < deadline_s and (not link.present() or any(map(_silent(link), link.present()))):
        link.spin(0.1)
    lines = []
    for name in link.present():
        state = link.state(name)
        waits = state.values.get("waits_for", "") if state is not None else ""
        told = (
            f"{state.level}, {state.reason}" if state is not None else f"says nothing for {timeout_s:g} s; is it dead?"
        )
        lines.append(f"{name}: {told}" + (f"; waits for {waits}" if waits else ""))
    heard = bool(lines) and not any(map(_silent(link), link.present()))
    return heard, "\n".join(lines) or f"no node of this package found in namespace {link.namespace}"


def _silent(link: OperatorLink) -> Callable[[str], bool]:
    return lambda name: link.state(name) is None
