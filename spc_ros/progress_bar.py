# SPDX-License-Identifier: Apache-2.0
"""Progress of commands on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from spc_ros.processes import PROMPT


class Bar:
    """A progress bar that is called with (done, total, text), from any thread."""

    def __init__(self, title: str, unit: str) -> None:
        self._bar = tqdm(desc=title, unit=unit)
        self._prompt = ""

    def __call__(self, done: int, total: int, text: str) -> None:
        if text.startswith(PROMPT):  # on a line of its own, once
            if text != self._prompt:
                self._bar.write(f"{text}; the keys are in `spc operator`, in another terminal", file=sys.stderr)
            self._prompt = text
            return
        if self._bar.total is None:  # what earlier runs did says nothing about how fast this one is
            self._bar.initial = self._bar.n = done
        self._bar.total, self._prompt = total, ""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()


@contextmanager
def status_line(title: str) -> Iterator[Callable[[str], None]]:
    """A line that is called with the current step; it disappears at the end, and is not shown without a terminal."""
    with tqdm(desc=title, bar_format="{desc}", leave=False, disable=None) as bar:
        yield lambda text: bar.set_description_str(f"{title}: {text}")
