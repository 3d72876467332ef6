# SPDX-License-Identifier: Apache-2.0
"""Swaps the running model between two ticks for one loaded on a worker thread, and rolls back if it fails."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

M = TypeVar("M")


class SwapError(ValueError):
    """A refused swap; the message gives the reason and the fix."""


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[M]):
    """The result of a load: a model or the problem."""

    model: M | None
    problem: str = ""


class BackgroundLoad(Generic[M]):
    """Loads one model at a time on a worker thread; `poll` hands it over on the caller's."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: Loaded[M] | None = None

    def begin(self, load: Callable[[], M]) -> None:
        """Raises SwapError during another load."""
        if self._thread is not None:
            raise SwapError("a model is being loaded already; ask again when that swap has ended")
        self._result = None
        self._thread = threading.Thread(target=self._run, args=(load,), daemon=True)
        self._thread.start()

    def poll(self) -> Loaded[M] | None:
        """The result, once; None before that."""
        if self._thread is None or self._result is None:
            return None
        self._thread.join()
        self._thread, result = None, self._result
        return result

    def _run(self, load: Callable[[], M]) -> None:
        try:
            self._result = Loaded(load())
        except Exception as error:  # the robot keeps the old model, whatever the file contains
            plain = isinstance(error, (ValueError, OSError))
            self._result = Loaded(None, str(error) if plain else f"{type(error).__name__}: {error}")


class ModelSwitch(Generic[M]):
    """Chooses the acting model. A new one waits, then acts on probation for some ticks, with the old one in reserve."""

    def __init__(self, model: M, model_id: int, probation_ticks: int, deadline_s: float) -> None:
        """`deadline_s` is the longest time for an action on probation; infinity: no limit."""
        self.model, self.model_id = model, model_id
        self._previous: tuple[M, int] | None = None
        self._waiting: tuple[M, int] | None = None
        self._probation_ticks, self._deadline_s = probation_ticks, deadline_s
        self._left = 0

    @property
    def waiting(self) -> bool:
        return self._waiting is not None

    def offer(self, model: M, model_id: int) -> None:
        """Queue a warmed-up model."""
        self._waiting = (model, model_id)

    def take(self, context_id: int | None) -> bool:
        """Between two ticks, let the waiting model take over once z comes from its own encoder or from none."""
        if self._waiting is None or context_id not in (None, self._waiting[1]):
            return False
        self._previous = (self.model, self.model_id)
        (self.model, self.model_id), self._waiting = self._waiting, None
        self._left = self._probation_ticks
        return True

    def check(self, action: np.ndarray, took_s: float) -> str | None:
        """After each action: None, or reason the previous model was restored."""
        if not self._left:
            return None
        reason = None
        if not np.isfinite(action).all():
            reason = "its action is not finite"
        elif took_s > self._deadline_s:
            reason = f"its action took {took_s * 1e3:.1f} ms, allowed {self._deadline_s * 1e3:.1f} ms"
        self._left -= 1
        if reason is not None and self._previous is not None:
            self.model, self.model_id = self._previous
            self._previous, self._left = None, 0
            return reason
        if not self._left:
            self._previous = None  # probation is over; this frees the old model's memory
        return None
