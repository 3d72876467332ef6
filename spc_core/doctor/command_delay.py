# SPDX-License-Identifier: Apache-2.0
"""How long it takes from a command until the state answers, by cross-correlation.

A command u is held from message to message, so its integrals are exact at any time. A state y that obeys
y = u(t - d), y' = u(t - d) + ... or y'' = u(t - d) + ... (order k = 0, 1, 2) has, from sample to sample, the
differences of the k-th integral of u, shifted by d, plus what is smooth. Both sides are differenced once more, which
takes away most of what is smooth (the state's own motion, and a controller's answer to it), and correlated for each
lag d. No resampling is needed, and lags far below the sampling interval are found.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from spc_core.doctor.diagnosis import ABSURD, Finding, Severity, Thresholds

LAGS_S = np.round(np.arange(-0.1, 0.3005, 0.001), 3)  # negative: the state answers before the command, a control
ORDERS = 3
MAX_ROWS = 4000  # samples of a bag that are looked at; those where the commands move most
MIN_ROWS = 50
MIN_CORRELATION = 0.25
MIN_SIGMA = 6.0  # a peak this many times what chance gives
LEAD = 1.3  # times that the peak must exceed all correlation before the cause


@dataclasses.dataclass(frozen=True)
class Correlogram:
    """Sums over state samples, which add up over bags: L lags, A commands, O states, K orders."""

    commands: tuple[str, ...]
    states: tuple[str, ...]
    count: int
    period_s: float  # of the states
    cross: np.ndarray  # (L, A, O, K)
    command_power: np.ndarray  # (L, A, K)
    state_power: np.ndarray  # (O, K)

    def __add__(self, other: Correlogram) -> Correlogram:
        return dataclasses.replace(
            self,
            count=self.count + other.count,
            period_s=max(self.period_s, other.period_s),
            cross=self.cross + other.cross,
            command_power=self.command_power + other.command_power,
            state_power=self.state_power + other.state_power,
        )

    @property
    def correlation(self) -> np.ndarray:
        """(L, A, O, K) in [-1, 1]; 0 where command or state do not change."""
        power = self.command_power[:, :, None, :] * self.state_power[None, None]
        return np.divide(self.cross, np.sqrt(power), out=np.zeros_like(self.cross), where=power > 0)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Which state answers a command best, how late, and how well."""

    command: str
    state: str
    order: int
    delay_s: float
    correlation: float  # at the peak, with its sign
    curve: np.ndarray = dataclasses.field(repr=False)  # (L,) over LAGS_S
    why_not: str = ""  # set where it cannot be told


def correlogram(
    command_ns: np.ndarray,
    commands: np.ndarray,
    command_names: tuple[str, ...],
    state_ns: np.ndarray,
    states: np.ndarray,
    state_names: tuple[str, ...],
) -> Correlogram | None:
    """Of (M, A) commands at (M,) times and (N, O) states at (N,) times; None where there are too few."""
    command_ns, commands = _clean(command_ns, commands)
    state_ns, states = _clean(state_ns, states)
    if len(command_ns) < MIN_ROWS or len(state_ns) < MIN_ROWS:
        return None
    inside = (state_ns >= command_ns[0] + 300_000_000) & (state_ns <= command_ns[-1] + 100_000_000)
    if np.count_nonzero(inside) < MIN_ROWS:
        return None
    state_ns, states = _liveliest(command_ns, commands, state_ns[inside], states[inside])
    begin_ns = command_ns[0]
    held = _Held((command_ns - begin_ns) / 1e9, (commands - commands.mean(axis=0)))
    at_s = (state_ns - begin_ns) / 1e9
    steps_s = np.diff(at_s)
    period_s = float(np.median(steps_s))
    whole = steps_s < 2.5 * period_s  # no gap
    answers = [_changes(states - states.mean(axis=0), steps_s, whole, k) for k in range(ORDERS)]
    cross = np.empty((len(LAGS_S), commands.shape[1], states.shape[1], ORDERS))
    power = np.empty((len(LAGS_S), commands.shape[1], ORDERS))
    for i, lag_s in enumerate(LAGS_S.tolist()):
        for k, integral in enumerate(held.integrals(at_s - lag_s)):
            moved = _changes(integral, steps_s, whole, k)
            cross[i, :, :, k] = moved.T @ answers[k]
            power[i, :, k] = np.square(moved).sum(axis=0)
    scale = np.stack([np.square(answer).sum(axis=0) for answer in answers], axis=1)
    return Correlogram(command_names, state_names, int(whole.sum()), period_s, cross, power, scale)


def _clean(time_ns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples that can be numbers of a robot, sorted by time, one for each time."""
    sane = (np.abs(values) < ABSURD).all(axis=1)  # False for NaN, too
    time, index = np.unique(time_ns[sane], return_index=True)
    return time, values[sane][index]


def _liveliest(
    command_ns: np.ndarray, commands: np.ndarray, state_ns: np.ndarray, states: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_ROWS states in a row, where the commands change most."""
    if len(state_ns) <= MAX_ROWS:
        return state_ns, states
    change = np.abs(np.diff(commands, axis=0)) / (commands.std(axis=0) + 1e-12)
    total = np.concatenate(([0.0], np.cumsum(change.sum(axis=1))))
    at_state = np.interp(state_ns, command_ns, total)
    begin = int(np.argmax(at_state[MAX_ROWS:] - at_state[:-MAX_ROWS]))
    return state_ns[begin : begin + MAX_ROWS], states[begin : begin + MAX_ROWS]


class _Held:
    """A (M, A) signal that holds each value until the next, and its first and second integral at any time."""

    def __init__(self, at_s: np.ndarray, values: np.ndarray) -> None:
        steps_s = np.diff(at_s)[:, None]
        self.at_s, self.values = at_s, values
        self.once = np.concatenate((np.zeros((1, values.shape[1])), np.cumsum(values[:-1] * steps_s, axis=0)))
        rise = self.once[:-1] * steps_s + values[:-1] * np.square(steps_s) / 2
        self.twice = np.concatenate((np.zeros((1, values.shape[1])), np.cumsum(rise, axis=0)))

    def integrals(self, at_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, A) the signal, its integral and the integral of that."""
        place = np.maximum(np.searchsorted(self.at_s, at_s, "right") - 1, 0)
        since_s = (at_s - self.at_s[place])[:, None]
        value, once = self.values[place], self.once[place]
        return (
            value,
            once + value * since_s,
            self.twice[place] + once * since_s + value * np.square(since_s) / 2,
        )


def _changes(values: np.ndarray, steps_s: np.ndarray, whole: np.ndarray, order: int) -> np.ndarray:
    """(n, D) the change of the derivative of that order from sample to sample; rows that touch a gap are 0."""
    usable = whole[:, None]
    for _ in range(order):
        values = np.diff(values, axis=0) / steps_s[: len(values) - 1, None]
    for _ in range(order):
        usable = usable[:-1] & usable[1:]
    return np.where(usable, np.diff(values, axis=0), 0.0)


def answers(found: Correlogram) -> list[Answer]:
    """For each command, the state and order that answer it best."""
    correlation = found.correlation
    causal = LAGS_S >= -1e-9
    before = LAGS_S + max(found.period_s, 0.005) < 0
    result = []
    for a, command in enumerate(found.commands):
        strength = np.abs(correlation[:, a])  # (L, O, K)
        peak = strength[causal].max(axis=0)
        state, order = np.unravel_index(int(np.argmax(peak)), peak.shape)
        curve, size = correlation[:, a, state, order], strength[:, state, order]
        top = int(np.flatnonzero(causal)[int(np.argmax(size[causal]))])
        noise = 1.0 / np.sqrt(found.count)
        why_not = ""
        if not size[top] > 0:
            why_not = "the command never changes, or no state does"
        elif size[top] < max(MIN_CORRELATION, MIN_SIGMA * noise):
            why_not = f"no state answers clearly (correlation {size[top]:.2f})"
        elif before.any() and size[top] < LEAD * size[before].max():
            why_not = "the states move as much before the command as after it"
        elif size[top] < LEAD * np.median(size):
            why_not = "the commands change so smoothly that the states go with them at most lags"
        delay_s = float(LAGS_S[top] + _vertex(size, top))
        result.append(
            Answer(command, found.states[state], int(order), max(0.0, delay_s), float(curve[top]), curve, why_not)
        )
    return result


def _vertex(size: np.ndarray, top: int) -> float:
    """Where the parabola through the peak and its neighbours is highest, in seconds from the peak."""
    if not 0 < top < len(size) - 1:
        return 0.0
    left, middle, right = size[top - 1 : top + 2].tolist()
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else 0.5 * (left - right) / bend * float(LAGS_S[1] - LAGS_S[0])


def check_command_delay(topic: str, found: Correlogram, period_s: float | None, t: Thresholds) -> list[Finding]:
    """The delay over all commands; `period_s` is the contract's, None where there is no contract."""
    told = answers(found)
    sure = [answer for answer in told if not answer.why_not]
    if not sure:
        text = f"the delay from command to state cannot be told: {told[0].why_not}; record livelier commands to know it"
        return [Finding("ok", topic, "command delay", text)]
    delay_s = float(np.median([answer.delay_s for answer in sure]))
    best = max(sure, key=lambda answer: abs(answer.correlation))
    severity: Severity = "ok"
    if period_s is not None:
        severity = t.grade(delay_s / period_s, t.command_delay_periods)
    how = ("follows", "changes at the rate of", "accelerates with")[best.order]
    text = (
        f"{delay_s * 1e3:.1f} ms from command to state (told from {len(sure)} of {len(told)} commands; best "
        f"{best.state}, which {how} {best.command}, correlation {best.correlation:+.2f})"
    )
    if period_s is not None:
        text += f"; that is {delay_s / period_s:.1f} periods, allowed {t.command_delay_periods:g}"
    if severity != "ok":
        text += (
            "; an observation does not show the commands of that time: shorten the chain, or observe the last commands"
        )
    return [Finding(severity, topic, "command delay", text, delay_s)]
