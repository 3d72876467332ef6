# SPDX-License-Identifier: Apache-2.0
"""The delay from command to state with its uncertainty, from data or from a running robot.

Samples are divided into blocks with one correlogram each (correlogram.py); correlograms add up. The uncertainty comes
from leaving out each block in turn (the jackknife of Quenouille and Tukey).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.command_delay.correlogram import (
    LAGS_S,
    MIN_ROWS,
    Correlogram,
    Response,
    SlicedCorrelogram,
    peak_delay_s,
    responses,
)
from spc_core.contract.contract import Contract
from spc_core.contract.sections import Role
from spc_core.contract.transforms import JUMP_NS

BLOCK_ROWS = 150  # states of a block
BLOCKS = 8  # at most; of a running robot the last ones
MIN_BLOCKS = 3  # for an uncertainty
MIN_STEP_NS = 4_000_000  # between states; faster streams are downsampled
HISTORY_NS = 400_000_000  # of commands before a block to which its states may respond
MAX_KEPT = 4096  # samples buffered, of the commands and of each stream
MAX_COMMANDS, MAX_STATES, MAX_STREAMS = 3, 64, 3  # that are used; the others have the same delay
SLICE_ROWS = 2000  # per slice of work, about 0.3 ms
SURE_CORRELATION = 0.5  # less may be a policy's response to the state
FLOOR_MS = 1.0  # lower bound of the uncertainty: the step between lags
CEILING_MS = 20.0  # above this uncertainty the delay counts as unknown


@dataclasses.dataclass(frozen=True)
class DelayEstimate:
    """A delay from command to state, unknown if `why_not` is set."""

    delay_ms: float = 0.0
    uncertainty_ms: float = 0.0  # two standard errors
    told_from: str = ""  # the best command and state
    why_not: str = ""

    @property
    def known(self) -> bool:
        return not self.why_not

    def __str__(self) -> str:
        return self.why_not or f"{self.delay_ms:.1f} ms, give or take {self.uncertainty_ms:.1f} ms"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DelayEstimate:
        """Read the result of as_dict(), also from JSON. Raises ValueError."""
        try:
            delay_ms, uncertainty_ms = float(data["delay_ms"]), float(data["uncertainty_ms"])
            return cls(delay_ms, uncertainty_ms, str(data["told_from"]), str(data["why_not"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"command_delay is {data!r}, not what `spc convert` writes ({error!r})") from None


def estimate_delay(streams: Sequence[Sequence[Correlogram]]) -> DelayEstimate:
    """Estimate from blocks of each observed stream: the median over commands, of the state that responds best."""
    best: dict[str, tuple[Response, Sequence[Correlogram]]] = {}
    why_not = ""
    for blocks in streams:
        if len(blocks) < MIN_BLOCKS:
            why_not = why_not or f"too little was seen: {len(blocks)} stretches of movement, {MIN_BLOCKS} are needed"
            continue
        for answer in responses(sum_of(blocks)):
            former = best.get(answer.command)
            if answer.why_not:
                why_not = answer.why_not
            elif abs(answer.correlation) < SURE_CORRELATION:
                why_not = f"no state answers clearly (correlation {abs(answer.correlation):.2f})"
            elif former is None or abs(answer.correlation) > abs(former[0].correlation):
                best[answer.command] = answer, blocks
    if not best:
        return DelayEstimate(why_not=why_not or "no stream was seen")
    delay_ms = float(np.median([answer.delay_s for answer, _ in best.values()])) * 1e3
    uncertainty_ms = max(FLOOR_MS, 2e3 * _standard_error_s(list(best.values())))
    if uncertainty_ms > CEILING_MS:
        return DelayEstimate(why_not=f"too uncertain: {delay_ms:.0f} ms, give or take {uncertainty_ms:.0f} ms")
    top = max((answer for answer, _ in best.values()), key=lambda answer: abs(answer.correlation))
    how = ("follows", "changes at the rate of", "accelerates with")[top.order]
    told_from = f"{top.state} {how} {top.command}, correlation {top.correlation:+.2f}"
    return DelayEstimate(delay_ms, uncertainty_ms, told_from)


def merge_blocks(total: dict[int, list[Correlogram]], more: Mapping[int, Sequence[Correlogram]]) -> None:
    """Add blocks by stream to `total`, which keeps at most BLOCKS sums per stream."""
    for stream, blocks in more.items():
        kept = total.setdefault(stream, [])
        for block in blocks:
            if len(kept) < BLOCKS:
                kept.append(block)
                continue
            least = min(range(BLOCKS), key=lambda i: kept[i].count)
            kept[least] = kept[least] + block


def pooled_delay(streams: Mapping[int, Sequence[Correlogram]]) -> DelayEstimate:
    """Estimate from the result of merge_blocks."""
    return estimate_delay([blocks for _, blocks in sorted(streams.items())])


def periodic_streams(contract: Contract) -> list[int]:
    """Numbers of the observation streams used: periodic ones only."""
    return [i for i, stream in enumerate(contract.observation) if stream.max_age_ns is not None][:MAX_STREAMS]


def sum_of(blocks: Sequence[Correlogram]) -> Correlogram:
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total


def _standard_error_s(best: list[tuple[Response, Sequence[Correlogram]]]) -> float:
    """Of the median over commands, by leaving out each block in turn; states and orders stay fixed."""
    count = min(len(blocks) for _, blocks in best)
    left_out = []
    for out in range(count):
        delays_s = []
        for answer, blocks in best:
            curve = _curve([block for number, block in enumerate(blocks) if number != out], answer)
            delays_s.append(peak_delay_s(np.abs(curve)))
        left_out.append(float(np.median(delays_s)))
    spread = np.array(left_out) - np.mean(left_out)
    return float(np.sqrt((count - 1) / count * np.square(spread).sum()))


def _curve(blocks: Sequence[Correlogram], answer: Response) -> np.ndarray:
    """(L,) correlation of one command with one state over some of the blocks."""
    a, o, k = blocks[0].commands.index(answer.command), blocks[0].states.index(answer.state), answer.order
    cross = np.sum([block.cross[:, a, o, k] for block in blocks], axis=0)
    power = np.sum([block.command_power[:, a, k] * 1.0 for block in blocks], axis=0)
    scale = sum(float(block.state_power[o, k]) for block in blocks)
    return np.divide(cross, np.sqrt(power * scale), out=np.zeros(len(LAGS_S)), where=power * scale > 0)


class DelayEstimator:
    """Estimates the delay of a running robot in bounded memory and in slices of work.

    `sample` only stores a sample; `work` does a slice.
    """

    def __init__(self, contract: Contract) -> None:
        self.estimate = DelayEstimate(why_not="too little was seen yet")
        self._commands = Columns.of(contract.action.fields[contract.action.slices[0]], MAX_COMMANDS)
        self._streams = {i: _ObservedStream(contract, i) for i in periodic_streams(contract)}
        self._command_log: deque[tuple[int, np.ndarray]] = deque(maxlen=MAX_KEPT)
        self._due: deque[tuple[_ObservedStream, list, list]] = deque(maxlen=2 * MAX_STREAMS)  # blocks waiting for work
        self._under_way: tuple[_ObservedStream, SlicedCorrelogram] | None = None

    def sample(self, role: Role, t_ns: int, values: np.ndarray) -> None:
        """Add a sample of the action's first topic or of an observation stream; other roles are ignored."""
        if role.is_action:
            if role.part:
                return
            last_ns = self._command_log[-1][0] if self._command_log else t_ns - 1
            if t_ns < last_ns - JUMP_NS:
                self.cut()
            elif t_ns <= last_ns:
                return
            self._command_log.append((t_ns, values))
            return
        watched = self._streams.get(role.stream) if role.stream is not None else None
        if watched is None:
            return
        if watched.log and not -JUMP_NS <= t_ns - watched.log[-1][0] <= JUMP_NS:
            self.cut()
        if watched.take(t_ns, values):
            self._close(watched)

    def cut(self) -> None:
        """End all blocks, since the next samples do not continue the last ones. Gaps and clock jumps are detected."""
        for watched in self._streams.values():
            self._close(watched)
        self._command_log.clear()

    def work(self) -> DelayEstimate | None:
        """Do a slice of work; returns the estimate if it is new and known."""
        if self._under_way is None:
            if self._due:
                watched, commands, states = self._due.popleft()
                begun = _begin(self._commands, commands, watched.columns, states)
                self._under_way = None if begun is None else (watched, begun)
            return None
        watched, correlating = self._under_way
        if (found := correlating.advance(SLICE_ROWS)) is None:
            return None
        self._under_way = None
        if (small := found.as_float32()) is not None:
            watched.blocks.append(small)
        self.estimate = estimate_delay([list(watched.blocks) for watched in self._streams.values()])
        return self.estimate if self.estimate.known else None

    def _close(self, watched: _ObservedStream) -> None:
        """Make a block of the states so far and the commands to which they may respond."""
        states, watched.log = watched.log, []
        if len(states) >= MIN_ROWS:
            begin_ns = states[0][0] - HISTORY_NS
            self._due.append((watched, [sample for sample in self._command_log if sample[0] >= begin_ns], states))


@dataclasses.dataclass(frozen=True)
class Columns:
    """The numbers of a sample that are used, by name."""

    names: tuple[str, ...]
    indices: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str], most: int) -> Columns:
        """At most `most` of the names, evenly spaced."""
        indices = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
        return cls(tuple(str(names[i]) for i in indices.tolist()), indices)


class _ObservedStream:
    """One observed stream: the states of its unfinished block, and the last blocks."""

    def __init__(self, contract: Contract, number: int) -> None:
        stream = contract.observation[number]
        self.columns = Columns.of([f"{stream.topic}.{name}" for name in stream.names], MAX_STATES)
        self.log: list[tuple[int, np.ndarray]] = []
        self.blocks: deque[Correlogram] = deque(maxlen=BLOCKS)

    def take(self, t_ns: int, values: np.ndarray) -> bool:
        """Store a state unless it is too close to the last; returns whether the block is full."""
        if self.log and t_ns - self.log[-1][0] < MIN_STEP_NS:
            return False
        self.log.append((t_ns, values))
        return len(self.log) >= BLOCK_ROWS


def _begin(commands: Columns, command_log: list, states: Columns, state_log: list) -> SlicedCorrelogram | None:
    if len(command_log) < MIN_ROWS:
        return None
    command_ns, u = (np.array([sample[i] for sample in command_log]) for i in range(2))
    state_ns, x = (np.array([sample[i] for sample in state_log]) for i in range(2))
    return SlicedCorrelogram.begin(
        command_ns, u[:, commands.indices], commands.names, state_ns, x[:, states.indices], states.names
    )


def differs(here: DelayEstimate, data: DelayEstimate, tolerance_ms: float) -> str:
    """Message if the robot's delay differs from the data's by more than tolerance and uncertainty, else ''."""
    if not here.known or not data.known:
        return ""
    apart_ms = abs(here.delay_ms - data.delay_ms)
    if apart_ms <= max(tolerance_ms, float(np.hypot(here.uncertainty_ms, data.uncertainty_ms))):
        return ""
    return (
        f"command delay: {here} here, {data} in the data, allowed {tolerance_ms:g} ms apart; make the chain from "
        f"command to state as fast as it was, or record and train with this delay"
    )
