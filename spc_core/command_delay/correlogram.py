# SPDX-License-Identifier: Apache-2.0
"""Cross-correlation of commands and states over lags, for the delay from command to state.

A command u is constant between messages, so its integrals are exact at any time. A state y that obeys y = u(t - d),
y' = u(t - d) + ... or y'' = u(t - d) + ... (order k = 0, 1, 2) changes from sample to sample by the differences of the
k-th integral of u, shifted by d, plus terms in the state itself. The linear prediction from the state before the
change is removed from both sides: the robot's own motion, and the controller's response to it, which would otherwise
look like a response of the state to the command. The residuals are correlated for each lag d. Without resampling, lags
far below the sampling interval are resolved.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

LAGS_S = np.round(np.arange(-0.1, 0.3005, 0.002), 3)  # negative lags (state before command) are a control
ABSURD = 1e30  # larger values come from uninitialised memory; their square must not overflow
ORDERS = 3
MAX_ROWS = 4000  # samples used per bag; those where the commands change most
MIN_ROWS = 50
NEAR = 0.97  # states above this share of the best correlation count as equally good
KNOWN_SHARE = 6  # samples per component of the states' own motion
CHUNK_ROWS = 4000  # samples times lags per chunk, which fits a processor cache
ROUNDING = 1e-9  # share of a command's changes below which the residual is rounding error
MIN_CORRELATION = 0.25
MIN_SIGMA = 6.0  # minimum peak relative to chance correlation
LEAD = 1.3  # factor by which the peak must exceed all correlation at acausal lags
ARRAYS = ("cross", "command_power", "state_power", "whole_power")  # of a Correlogram


@dataclasses.dataclass(frozen=True)
class Correlogram:
    """Sums over state samples, additive over bags: L lags, A commands, O states, K orders."""

    commands: tuple[str, ...]
    states: tuple[str, ...]
    count: int
    period_s: float  # of the states
    cross: np.ndarray  # (L, A, O, K)
    command_power: np.ndarray  # (L, A, K)
    state_power: np.ndarray  # (O, K)
    whole_power: np.ndarray  # (O, K) before removing the prediction from the state

    def __add__(self, other: Correlogram) -> Correlogram:
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("count", *ARRAYS)}
        return dataclasses.replace(self, period_s=max(self.period_s, other.period_s), **sums)

    def as_float32(self) -> Correlogram | None:
        """The same in half the memory; None if values from damaged samples overflow."""
        with np.errstate(over="ignore"):
            kept = {name: getattr(self, name).astype(np.float32) for name in ARRAYS}
        finite = all(np.isfinite(array).all() for array in kept.values())
        return dataclasses.replace(self, **kept) if finite else None

    @property
    def correlation(self) -> np.ndarray:
        """(L, A, O, K) in [-1, 1]; 0 where command or state do not change, but for what is predicted and rounding."""
        power = self.command_power[:, :, None, :] * self.state_power[None, None]
        changes = (power > 0) & (self.state_power > ROUNDING * self.whole_power)[None, None]
        return np.divide(self.cross, np.sqrt(power), out=np.zeros_like(self.cross), where=changes).clip(-1, 1)


@dataclasses.dataclass(frozen=True)
class Response:
    """The state that responds to a command best, with delay and correlation."""

    command: str
    state: str
    order: int
    delay_s: float
    correlation: float  # at the peak, with its sign
    curve: np.ndarray = dataclasses.field(repr=False)  # (L,) over LAGS_S
    why_not: str = ""  # the reason if it is unknown


def correlogram(*series: Any) -> Correlogram | None:
    """The correlogram of what SlicedCorrelogram.begin() takes, in one go; None if there are too few rows."""
    work = SlicedCorrelogram.begin(*series)
    while work is not None:
        if (found := work.advance(CHUNK_ROWS)) is not None:
            return found
    return None


class SlicedCorrelogram:
    """Computes a correlogram in slices, for a program with other work in between."""

    def __init__(
        self, names: tuple[tuple[str, ...], tuple[str, ...]], held: _ZeroOrderHold, at_s: np.ndarray, states: np.ndarray
    ) -> None:
        """`names` are of commands and states; (N, O) states at (N,) times, which are relative to those of `held`."""
        self._names, self._held, self._at_s = names, held, at_s
        self._steps_s = np.diff(at_s)
        self._period_s = float(np.median(self._steps_s))
        self._whole = self._steps_s < 2.5 * self._period_s  # no gap
        shifted = states - states.mean(axis=0)
        self._known = [_known_before(shifted, self._whole, k) for k in range(ORDERS)]
        moved = [_changes(shifted.T, self._steps_s, self._whole, k).T for k in range(ORDERS)]
        self._answers = [_without(values, known) for values, known in zip(moved, self._known, strict=True)]
        self._power_of = [np.stack([np.square(v).sum(axis=0) for v in kind], 1) for kind in (self._answers, moved)]
        width = len(held.values)
        self._cross = np.empty((len(LAGS_S), width, states.shape[1], ORDERS))
        self._power = np.empty((len(LAGS_S), width, ORDERS))
        self._done = 0  # lags

    @classmethod
    def begin(
        cls,
        command_ns: np.ndarray,
        commands: np.ndarray,
        command_names: tuple[str, ...],
        state_ns: np.ndarray,
        states: np.ndarray,
        state_names: tuple[str, ...],
    ) -> SlicedCorrelogram | None:
        """From (M, A) commands at (M,) times and (N, O) states at (N,) times; None if there are too few rows."""
        command_ns, commands = _clean(command_ns, commands)
        state_ns, states = _clean(state_ns, states)
        if len(command_ns) < MIN_ROWS or len(state_ns) < MIN_ROWS:
            return None
        inside = (state_ns >= command_ns[0] + 300_000_000) & (state_ns <= command_ns[-1] + 100_000_000)
        if np.count_nonzero(inside) < MIN_ROWS:
            return None
        state_ns, states = _most_active(command_ns, commands, state_ns[inside], states[inside])
        begin_ns = command_ns[0]
        held = _ZeroOrderHold((command_ns - begin_ns) / 1e9, commands - commands.mean(axis=0))
        return cls((command_names, state_names), held, (state_ns - begin_ns) / 1e9, states)

    def advance(self, rows: int) -> Correlogram | None:
        """Process about `rows` samples times lags; returns the result after the last of them."""
        lags = slice(self._done, self._done + max(1, rows // len(self._at_s)))
        for k, integral in enumerate(self._held.integrals(self._at_s - LAGS_S[lags, None])):
            moved = _changes(integral, self._steps_s, self._whole, k)  # (A, lags, n)
            self._cross[lags, :, :, k] = (moved @ self._answers[k]).swapaxes(0, 1)  # residuals only
            whole = _power(moved)
            left = whole - _power(moved @ self._known[k])
            self._power[lags, :, k] = np.where(left > ROUNDING * whole, left, 0.0).T
        self._done = lags.stop
        if self._done < len(LAGS_S):
            return None
        count = int(self._whole.sum())
        return Correlogram(*self._names, count, self._period_s, self._cross, self._power, *self._power_of)


def _clean(time_ns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plausible samples, sorted by time, one per time."""
    sane = (np.abs(values) < ABSURD).all(axis=1)  # False for NaN, too
    time, index = np.unique(time_ns[sane], return_index=True)
    return time, values[sane][index]


def _most_active(
    command_ns: np.ndarray, commands: np.ndarray, state_ns: np.ndarray, states: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_ROWS consecutive states, where the commands change most."""
    if len(state_ns) <= MAX_ROWS:
        return state_ns, states
    change = np.abs(np.diff(commands, axis=0)) / (commands.std(axis=0) + 1e-12)
    total = np.concatenate(([0.0], np.cumsum(change.sum(axis=1))))
    at_state = np.interp(state_ns, command_ns, total)
    begin = int(np.argmax(at_state[MAX_ROWS:] - at_state[:-MAX_ROWS]))
    return state_ns[begin : begin + MAX_ROWS], states[begin : begin + MAX_ROWS]


class _ZeroOrderHold:
    """A zero-order hold of a (M, A) signal, with its first and second integral at any time."""

    def __init__(self, at_s: np.ndarray, values: np.ndarray) -> None:
        steps_s, values = np.diff(at_s), np.ascontiguousarray(values.T)
        self.at_s, self.values = at_s, values  # (M,), (A, M)
        self.once = np.zeros_like(values)
        self.once[:, 1:] = np.cumsum(values[:, :-1] * steps_s, axis=1)
        self.twice = np.zeros_like(values)
        rise = self.once[:, :-1] * steps_s + values[:, :-1] * np.square(steps_s) / 2
        self.twice[:, 1:] = np.cumsum(rise, axis=1)

    def integrals(self, at_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(A, ...) at times (...): the signal, its integral and the integral of that."""
        row = np.maximum(np.searchsorted(self.at_s, at_s, "right") - 1, 0)
        since_s = at_s - self.at_s[row]
        value, once, twice = (signal.take(row, axis=1) for signal in (self.values, self.once, self.twice))
        return value, once + value * since_s, twice + (once + value * (since_s / 2)) * since_s


def _changes(values: np.ndarray, steps_s: np.ndarray, whole: np.ndarray, order: int) -> np.ndarray:
    """(..., n) differences of that order in time, the last axis, one for orders 0 and 1; 0 where they touch a gap."""
    for _ in range(order - 1):
        values = np.diff(values) / steps_s[: values.shape[-1] - 1]
    usable = _usable(whole, order)
    return np.diff(values) if usable.all() else np.where(usable, np.diff(values), 0.0)


def _power(values: np.ndarray) -> np.ndarray:
    """(...) sums of the squares of (..., n)."""
    return np.einsum("...n,...n->...", values, values)


def _usable(whole: np.ndarray, order: int) -> np.ndarray:
    """(n,) mask of the rows of _changes that touch no gap."""
    for _ in range(order - 1):
        whole = whole[:-1] & whole[1:]
    return whole


def _known_before(states: np.ndarray, whole: np.ndarray, order: int) -> np.ndarray:
    """(n, p) orthonormal columns that span a constant and the state just before the end of each change.

    p is limited to a share of n to avoid overfitting.
    """
    usable, before = _usable(whole, order), max(order - 1, 0)
    columns = states[before : before + len(usable)]
    columns = columns / (columns.std(axis=0) + 1e-12)
    columns = np.concatenate((np.ones((len(usable), 1)), columns), axis=1) * usable[:, None]
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    kept = sizes > 1e-6 * max(sizes[0], 1e-12)
    return left[:, kept][:, : max(1, len(usable) // KNOWN_SHARE)]


def _without(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(..., n, D) values less their projection on the columns (n, p)."""
    return values - known @ (known.T @ values)


def responses(found: Correlogram) -> list[Response]:
    """For each command, the state and order that respond best."""
    correlation = found.correlation
    causal = LAGS_S >= -1e-9
    before = LAGS_S + max(found.period_s, 0.005) < 0
    result = []
    moves = found.whole_power > 0  # a number that stands still, as in the rotation of a base, answers nothing
    share = np.divide(found.state_power, found.whole_power, out=np.zeros_like(found.state_power), where=moves)
    for a, command in enumerate(found.commands):
        strength = np.abs(correlation[:, a])  # (L, O, K)
        peak = strength[causal].max(axis=0)
        direct = np.where(peak >= NEAR * peak.max(), share, -1.0)  # a position follows its velocity, not the command
        state, order = np.unravel_index(int(np.argmax(direct)), peak.shape)
        curve, size = correlation[:, a, state, order], strength[:, state, order]
        top = int(np.flatnonzero(causal)[int(np.argmax(size[causal]))])
        noise = 1.0 / np.sqrt(found.count)
        why_not = ""
        if not size[top] > 0:
            why_not = "the command never changes, or no state does"
        elif size[top] < max(MIN_CORRELATION, MIN_SIGMA * noise):
            why_not = f"no state answers clearly (correlation {size[top]:.2f})"
        elif size[top] < LEAD * np.median(size):
            why_not = "the commands change so smoothly that the states go with them at most lags"
        elif before.any() and size[top] < LEAD * size[before].max():
            why_not = "the states move as much before the command as after it"
        delay_s = peak_delay_s(size)
        result.append(Response(command, found.states[state], int(order), delay_s, float(curve[top]), curve, why_not))
    return result


def peak_delay_s(size: np.ndarray) -> float:
    """The causal lag of the highest point of a curve (L,), interpolated between the steps of LAGS_S."""
    causal = np.flatnonzero(LAGS_S >= -1e-9)
    top = int(causal[int(np.argmax(size[causal]))])
    return max(0.0, float(LAGS_S[top] + _vertex(size, top)))


def _vertex(size: np.ndarray, top: int) -> float:
    """The vertex of the parabola through the peak and its neighbours, in seconds from the peak."""
    if not 0 < top < len(size) - 1:
        return 0.0
    left, middle, right = size[top - 1 : top + 2].tolist()
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else 0.5 * (left - right) / bend * float(LAGS_S[1] - LAGS_S[0])
