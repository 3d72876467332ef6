# SPDX-License-Identifier: Apache-2.0
"""From ticks to episodes: which stretch of a recording is an episode, and how each of its pieces ends."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.faults import Fault, FaultKind
from spc_core.alignment.ticks import Ticks
from spc_core.contract.contract import Contract

END_PERIODS = 2.5  # an episode's last transition ends at most this many periods before the episode does


@dataclasses.dataclass(frozen=True)
class Window:
    """The time of one episode, and how it ended: exactly one of terminated, truncated and cut."""

    begin_ns: float = -math.inf
    end_ns: float = math.inf
    terminated: bool = False
    truncated: bool = False
    cut: Fault | None = Fault(FaultKind.RECORDING_ENDED)
    task_id: str = ""
    params: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Transitions in a row: from tick `first` to tick `last`, within window number `window`."""

    first: int
    last: int
    window: int
    terminated: bool
    truncated: bool
    cut: Fault | None


@dataclasses.dataclass(frozen=True)
class Cutting:
    """What became of the ticks: pieces in the order of time, cuts as (t_ns, fault), ticks lost by summary."""

    pieces: tuple[Piece, ...]
    cuts: tuple[tuple[int, Fault], ...]
    dropped: Mapping[str, int]


def episode_window(info: EpisodeInfo, period_ns: int) -> Window:
    """The window that the topic `episode` tells of, half a period wider on both sides, up to a change of task."""
    slack_ns = period_ns // 2
    begin_ns = info.start_ns - slack_ns
    if info.changes:  # what follows belongs to another task
        change = info.changes[0]
        cut = Fault(FaultKind.TASK_CHANGED, detail=change.task_id)
        return Window(begin_ns, change.t_ns + slack_ns, cut=cut, task_id=info.task_id, params=info.params)
    if info.state != "ended":
        cut = Fault(FaultKind.EPISODE_UNFINISHED)
        return Window(begin_ns, math.inf, cut=cut, task_id=info.task_id, params=info.params)
    end_ns = info.end_ns + slack_ns if info.end_ns else math.inf
    truncated = info.truncated and not info.terminated
    given_up = Fault(FaultKind.GIVEN_UP, detail=info.reason or "no reason given")
    cut = None if info.terminated or truncated else given_up
    return Window(begin_ns, end_ns, info.terminated, truncated, cut, info.task_id, info.params)


def marker_windows(t_ns: Sequence[int], values: Sequence[float | str]) -> list[Window]:
    """A window for each stretch in which a marker stays at one value that is neither 0, false nor ''."""
    windows: list[Window] = []
    begin_ns: int | None = None
    current: float | str = 0.0
    for now_ns, value in zip(t_ns, values, strict=True):
        if value == current:
            continue
        if begin_ns is not None:
            windows.append(Window(begin_ns, now_ns, truncated=True, cut=None))
        begin_ns, current = (now_ns if value else None), value
    if begin_ns is not None:
        windows.append(Window(begin_ns, cut=Fault(FaultKind.EPISODE_UNFINISHED)))
    return windows


def cut_into_pieces(ticks: Ticks, windows: Sequence[Window], contract: Contract) -> Cutting:
    """Pieces of all windows, none with a gap in it; every transition inside a window is in one piece."""
    pieces: list[Piece] = []
    cuts: list[tuple[int, Fault]] = []
    dropped: Counter[str] = Counter()
    for number, window in enumerate(windows):
        inside = (ticks.t_ns >= window.begin_ns) & (ticks.t_ns <= window.end_ns)
        runs = _runs(ticks, inside)
        for place, (first, last) in enumerate(runs):
            if last + 1 < len(inside) and inside[last + 1]:
                following = runs[place + 1][0] if place + 1 < len(runs) else last
                pause_ns = int(ticks.t_ns[following] - ticks.t_ns[last])
                terminated, truncated, cut = _interrupted(ticks.fault(last + 1), pause_ns, contract)
                at_ns = int(ticks.t_ns[last + 1])
            else:
                at_ns = int(ticks.t_ns[last])
                terminated, truncated, cut = _end(window, at_ns, contract.period_ns)
            if cut is not None:
                cuts.append((at_ns, cut))
            pieces += _limited(Piece(first, last, number, terminated, truncated, cut), contract)
        for code, count in enumerate(np.bincount(ticks.codes[inside & ~ticks.whole])):
            fault = ticks.faults[code]
            if count and fault is not None and fault.kind is not FaultKind.START:
                dropped[fault.summary] += int(count)
    return Cutting(tuple(pieces), tuple(cuts), dict(dropped))


def _runs(ticks: Ticks, inside: np.ndarray) -> list[tuple[int, int]]:
    """(first tick, last tick) of each run of transitions that begin and end inside."""
    used = np.flatnonzero(ticks.whole & inside & np.concatenate([[False], inside[:-1]]))
    if not len(used):
        return []
    return [(int(run[0]) - 1, int(run[-1])) for run in np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)]


def _interrupted(fault: Fault | None, pause_ns: int, contract: Contract) -> tuple[bool, bool, Fault | None]:
    """(terminated, truncated, cut) of a run that a tick without transition ends; a pause may be what parts episodes."""
    if contract.segments.by == "gap" and pause_ns >= contract.segments.gap_s * 1e9:
        return False, True, None
    return False, False, fault


def _end(window: Window, last_ns: int, period_ns: int) -> tuple[bool, bool, Fault | None]:
    """(terminated, truncated, cut) of a window's last run, which ends at `last_ns`."""
    missing_ns = window.end_ns - last_ns
    if math.isfinite(missing_ns) and missing_ns > END_PERIODS * period_ns:
        return False, False, Fault(FaultKind.NO_DATA_AT_END, amount_ns=round(missing_ns))
    return window.terminated, window.truncated, window.cut


def _limited(piece: Piece, contract: Contract) -> list[Piece]:
    """The piece in parts of at most the time limit, all but the last of them truncated."""
    if math.isinf(contract.segments.limit_s):
        return [piece]
    length = max(1, round(contract.segments.limit_s * contract.rate_hz))
    parts = []
    for first in range(piece.first, piece.last, length):
        if first + length >= piece.last:
            parts.append(dataclasses.replace(piece, first=first))
        else:
            parts.append(Piece(first, first + length, piece.window, False, True, None))
    return parts
