# SPDX-License-Identifier: Apache-2.0
"""Streaming alignment of stamped samples to causal transitions: the specification, and the path of live nodes.

`BatchAligner` in batch/aligner.py does the same from arrays, for bags; test/alignment/test_alignment_parity.py holds
the two bitwise equal. Bags whose topics are too far out of order also take this path.

Tick k is at t_k, a stamp of the contract's first observation stream, downsampled to `rate_hz`; where that stream skips
a period, the tick is one period after the last. o_k is a zero-order hold: each stream's newest sample at or before
t_k. a_k is the first command in (t_k, t_{k+1}], the one that o_k caused, and r_k the newest reward in (t_k, t_{k+1}].
Of an action of several topics, each has its own first command there, and the last of them completes it.
A command with the very stamp of a state that was seen before it answers that state, and counts as 1 ns later, since
some controllers copy the stamp. Stale, missing, non-finite or late data cut the sequence; nothing is invented.

Samples may arrive in any order across streams. A tick is decided as soon as every stream has reached it, or when
anything newer than the tick by `patience_ns` has been seen; so bag and node decide alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque

import numpy as np

from spc_core.alignment import NO_TIME
from spc_core.alignment.faults import Fault, FaultKind, stale
from spc_core.contract.contract import Contract
from spc_core.contract.sections import REWARD, Role, Stream, commanded, observed
from spc_core.contract.transforms import JUMP_NS

FEW = 64  # up to this many numbers, Python is faster than numpy


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """The observation at a tick, or the fault that prevented it."""

    t_ns: int
    observation: np.ndarray | None  # (O,) float64
    fault: Fault | None = None
    also: tuple[Fault, ...] = dataclasses.field(default=(), compare=False)  # faults of further streams at the tick


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """(o_k, a_k, r_k, o_{k+1}) in the contract's units; `t_ns` is t_k."""

    t_ns: int
    observation: np.ndarray  # (O,)
    action: np.ndarray  # (A,)
    reward: float
    next_observation: np.ndarray  # (O,)
    lag_ns: int = 0  # from t_k to the time at which the last command counts; 0 if all hold from an earlier period


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A decided tick: the transition that ends at `t_ns`, or the reason for none (START at a sequence's first tick)."""

    t_ns: int
    transition: Transition | None
    cut: Fault | None = None
    observation: np.ndarray | None = None  # (O,) at the tick itself, with or without a transition


class Answers:
    """Recent stamps of the first stream, by which a command is known that carries the stamp of the state it answers."""

    def __init__(self, patience_ns: int) -> None:
        self._patience_ns = patience_ns
        self._stamps: dict[int, None] = {}  # in rising order

    def state(self, t_ns: int) -> None:
        self._stamps[t_ns] = None
        while next(iter(self._stamps)) < t_ns - self._patience_ns:
            del self._stamps[next(iter(self._stamps))]

    def time_ns(self, t_ns: int) -> int:
        """When a command with this stamp counts: 1 ns after the state whose stamp it carries."""
        return t_ns + (t_ns in self._stamps)

    def clear(self) -> None:
        self._stamps.clear()


class _Stream:
    """The samples of one topic that are still needed, oldest first."""

    def __init__(self, name: str, role: Role) -> None:
        self.name, self.role = name, role
        self.samples: deque[tuple[int, np.ndarray]] = deque()
        self.newest_ns = NO_TIME
        self.counts: Counter[str] = Counter()

    def push(self, t_ns: int, values: np.ndarray, counts_ns: int | None = None) -> Fault | None:
        """Store a sample, to count at `counts_ns` instead of its stamp; late ones are counted and dropped.

        Returns the fault when the clock jumped back.
        """
        if t_ns <= self.newest_ns:
            if t_ns < self.newest_ns - JUMP_NS:
                return Fault(FaultKind.CLOCK_JUMP, self.name, self.role.stream, amount_ns=self.newest_ns - t_ns)
            self.counts["duplicate" if t_ns == self.newest_ns else "late"] += 1
            return None
        self.newest_ns = t_ns
        self.samples.append((t_ns if counts_ns is None else counts_ns, values))
        return None

    def at(self, t_ns: int) -> tuple[int, np.ndarray] | None:
        """The newest sample at or before a time."""
        return next((sample for sample in reversed(self.samples) if sample[0] <= t_ns), None)

    def drop_before(self, t_ns: int) -> None:
        """Drop what no later tick can use: all but the newest sample at or before t_ns."""
        while len(self.samples) > 1 and self.samples[1][0] <= t_ns:
            self.samples.popleft()

    def clear(self) -> None:
        self.samples.clear()
        self.newest_ns = NO_TIME


class ObservationAligner:
    """Turns samples of the observation streams into one Frame per tick."""

    def __init__(self, contract: Contract, patience_ns: int) -> None:
        self.contract = contract
        self.patience_ns = patience_ns
        self.streams = [_Stream(stream.topic, observed(i)) for i, stream in enumerate(contract.observation)]
        self._horizon_ns = NO_TIME
        self._skip = 0  # states of the first stream yet to be dropped
        self._last_ns: int | None = None  # the last tick; None before the first one and after a fault
        self._early_ns, self._late_ns = contract.tick_window_ns
        self._pairs = list(zip(self.streams, contract.observation, strict=True))

    def push(self, role: Role, t_ns: int, values: np.ndarray) -> list[Frame]:
        """Add a sample of an observation stream (other roles are ignored); returns the frames that it decides."""
        if role.stream is None:
            return []
        if role.stream == 0 and self._skip:
            self._skip -= 1
            return []
        stream = self.streams[role.stream]
        fault = stream.push(t_ns, values)
        if fault:
            frames = self.flush()  # those that waited for other streams, which have no more samples of that time
            self.reset()
            stream.push(t_ns, values)
            return [*frames, Frame(t_ns, None, fault), *self.advance(t_ns)]
        return self.advance(t_ns)

    def advance(self, now_ns: int) -> list[Frame]:
        """Advance time to `now_ns`; returns the frames that this decides."""
        self._horizon_ns = max(self._horizon_ns, now_ns)
        return self._decide(self._horizon_ns - self.patience_ns)

    def flush(self) -> list[Frame]:
        """Decide every tick that has a sample of the first stream; for the end of a bag, and before a clock jump."""
        newest_ns = self.streams[0].newest_ns
        return self._decide(newest_ns + self._late_ns + 1, newest_ns)

    def reset(self, keep_held: bool = False, skip: int = 0) -> None:
        """Forget all ticks and samples; `keep_held`: but for the newest ones of streams without a maximum age.

        `skip`: the next samples of the first stream to drop, which changes the phase of the ticks.
        """
        self._skip = skip
        for stream, spec in self._pairs:
            if keep_held and spec.max_age_ns is None:
                stream.drop_before(stream.newest_ns)
            else:
                stream.clear()
        self._last_ns, self._horizon_ns = None, NO_TIME

    def _decide(self, forced_ns: int, until_ns: int | None = None) -> list[Frame]:
        """Frames of all ticks that every stream has reached, or that lie before `forced_ns`."""
        frames = []
        while (t_ns := self._next_tick(forced_ns)) is not None:
            if (until_ns is not None and t_ns > until_ns) or (t_ns >= forced_ns and not self._reached(t_ns)):
                break
            frame = self._frame(t_ns)
            self._last_ns = None if frame.fault else t_ns
            for stream in self.streams:
                stream.drop_before(t_ns)
            if self._last_ns is None and self.streams[0].samples and self.streams[0].samples[0][0] <= t_ns:
                self.streams[0].samples.popleft()  # used: the ticks restart at a newer sample
            frames.append(frame)
        return frames

    def _reached(self, t_ns: int) -> bool:
        """Whether every stream with a maximum age has samples up to t_ns."""
        return all(stream.newest_ns >= t_ns or spec.max_age_ns is None for stream, spec in self._pairs)

    def _next_tick(self, forced_ns: int) -> int | None:
        samples = self.streams[0].samples
        if self._last_ns is None:
            return samples[0][0] if samples else None
        due_ns = before_ns = self._last_ns + self.contract.period_ns
        for t_ns, _ in samples:
            next_ns = 2 * t_ns - before_ns  # extrapolated, so as not to wait for the next sample
            before_ns = t_ns
            if t_ns > self._last_ns + self._late_ns:
                return due_ns
            if t_ns >= self._last_ns + self._early_ns and abs(t_ns - due_ns) <= abs(next_ns - due_ns):
                return t_ns
        return due_ns if forced_ns > self._last_ns + self._late_ns else None

    def _frame(self, t_ns: int) -> Frame:
        parts = []
        for stream, spec in self._pairs:
            sample = stream.at(t_ns)
            if sample is None or _fault(len(parts), spec, sample, t_ns) is not None:
                first, *others = self.faults(t_ns)
                return Frame(t_ns, None, first, tuple(others))
            parts.append(sample[1])
        return Frame(t_ns, parts[0].copy() if len(parts) == 1 else np.concatenate(parts))

    def is_state(self, t_ns: int) -> bool:
        """Whether a recent state of the first stream has this stamp, so that a command with it answers that state."""
        return any(stamp == t_ns for stamp, _ in self.streams[0].samples)

    def faults(self, t_ns: int) -> list[Fault]:
        """Faults at a time in the order of the streams, at most one each."""
        found = (_fault(index, spec, stream.at(t_ns), t_ns) for index, (stream, spec) in enumerate(self._pairs))
        return [fault for fault in found if fault is not None]


def _fault(index: int, spec: Stream, sample: tuple[int, np.ndarray] | None, t_ns: int) -> Fault | None:
    """The fault of a stream's newest sample at a tick, or None."""
    if sample is None:
        return Fault(FaultKind.NO_MESSAGE, spec.topic, index)
    age_ns = t_ns - sample[0]
    if spec.max_age_ns is not None and age_ns > spec.max_age_ns:
        return stale(index, spec, age_ns)
    values = sample[1]  # the sum of a few Python numbers is faster than numpy, unless it overflows
    if (len(values) <= FEW and math.isfinite(sum(values.tolist()))) or bool(np.isfinite(values).all()):
        return None
    return Fault(FaultKind.NOT_FINITE, spec.topic, index, spec.names[int(np.argmin(np.isfinite(values)))])


class StreamingAligner:
    """Turns samples of all the contract's streams into transitions and cuts, one by one.

    BatchAligner in batch/aligner.py does the same in bulk.
    """

    def __init__(self, contract: Contract, patience_ns: int) -> None:
        self.contract = contract
        self.patience_ns = patience_ns
        self.observations = ObservationAligner(contract, patience_ns)
        self.actions = [_Stream(part.topic, commanded(i)) for i, part in enumerate(contract.action.parts)]
        self.rewards = _Stream(contract.reward.topic or "reward", REWARD)
        self._answers = Answers(patience_ns)
        self._reward_function = contract.reward_function()
        self._frames: deque[Frame] = deque()
        self._previous: Frame | None = None
        self._last_action: np.ndarray | None = None  # of the period that ended at the previous tick
        self._action: np.ndarray | None = None  # of the period that ends at the tick being decided
        self._observed_ns: int | None = None  # the last tick with an observation
        self._since_ns = NO_TIME  # no command up to here holds, since a pause came after it
        self._horizon_ns = NO_TIME

    def push(self, role: Role, t_ns: int, values: np.ndarray) -> list[Step]:
        """Add a sample; returns the steps that it decides."""
        if role.stream is not None:
            steps = self._steps(t_ns, self.observations.push(role, t_ns, values))
            if role.stream == 0 and self.observations.streams[0].newest_ns == t_ns:
                self._answers.state(t_ns)
            return steps
        stream = self.actions[role.part] if role.is_action else self.rewards
        fault = stream.push(t_ns, values, self._answers.time_ns(t_ns) if role.is_action else None)
        if fault:
            self._frames.extend(self.observations.flush())
            steps = self._settle()
            self.reset()
            stream.push(t_ns, values)
            return [*steps, Step(t_ns, None, fault)]
        return self._steps(t_ns, self.observations.advance(t_ns))

    def advance(self, now_ns: int) -> list[Step]:
        return self._steps(now_ns, self.observations.advance(now_ns))

    def flush(self) -> list[Step]:
        """Decide the remaining steps; for the end of a bag."""
        frames = self.observations.flush()
        last_ns = max([frame.t_ns for frame in [*self._frames, *frames]], default=NO_TIME)
        return self._steps(last_ns + self.patience_ns + 1, frames)

    def reset(self, keep_held: bool = False, skip: int = 0) -> None:
        """The next tick starts a new sequence; arguments as for the observations.

        `keep_held` keeps a command that holds, too: the robot executes it whatever becomes of the ticks.
        """
        self.observations.reset(keep_held, skip)
        for stream, part in zip(self.actions, self.contract.action.parts, strict=True):
            if keep_held and part.hold:
                stream.drop_before(stream.newest_ns + 1)  # which may count 1 ns later than its stamp
            else:
                stream.clear()
        if not (keep_held and self.contract.action.holds):
            self._observed_ns, self._since_ns = None, NO_TIME
        self.rewards.clear()
        self._answers.clear()
        self._frames.clear()
        self._previous, self._last_action, self._horizon_ns = None, None, NO_TIME

    @property
    def counts(self) -> dict[str, int]:
        """Late and duplicate samples that were dropped, by topic and kind."""
        streams = [*self.observations.streams, *self.actions, self.rewards]
        return {f"{stream.name} {kind}": n for stream in streams for kind, n in stream.counts.items()}

    def _steps(self, now_ns: int, frames: list[Frame]) -> list[Step]:
        steps = []
        jumps = [i for i, frame in enumerate(frames) if frame.fault and frame.fault.kind is FaultKind.CLOCK_JUMP]
        if jumps:
            self._frames.extend(frames[: jumps[0]])
            frames = frames[jumps[0] :]
            steps = self._settle()
            for stream in (*self.actions, self.rewards):
                stream.clear()
            self._observed_ns, self._since_ns = None, NO_TIME
            self._answers.clear()
            self._horizon_ns = NO_TIME
        self._horizon_ns = max(self._horizon_ns, now_ns)
        self._frames.extend(frames)
        return [*steps, *self._decided()]

    def _settle(self) -> list[Step]:
        """Decide the ticks that still wait for a command or reward, since none will come."""
        self._horizon_ns = -NO_TIME
        return self._decided()

    def _decided(self) -> list[Step]:
        steps: list[Step] = []
        while self._frames and (step := self._decide(self._frames[0])) is not None:
            frame = self._frames.popleft()
            self._previous = None if frame.fault else frame
            self._last_action, self._action = self._action, None
            for stream in (*self.actions, self.rewards):
                stream.drop_before(frame.t_ns)
            self._note_pause(frame)
            steps.append(step)
        return steps

    def _note_pause(self, frame: Frame) -> None:
        if frame.observation is None:
            return
        if self._observed_ns is not None and frame.t_ns - self._observed_ns >= self.contract.hold_gap_ns:
            self._since_ns = frame.t_ns
        self._observed_ns = frame.t_ns

    def _held(self, stream: _Stream, t_ns: int) -> np.ndarray | None:
        """The command that holds at a time without one of its own."""
        found = stream.at(t_ns)
        return None if found is None or found[0] <= self._since_ns else found[1]

    def _decide(self, frame: Frame) -> Step | None:
        """The step that ends at `frame`, or None while one of its samples may still come."""
        if self._previous is None or self._previous.observation is None or frame.observation is None:
            return Step(frame.t_ns, None, frame.fault or Fault(FaultKind.START), frame.observation)
        begin_ns, end_ns = self._previous.t_ns, frame.t_ns
        over = self._horizon_ns > end_ns + self.patience_ns
        command_ns, parts = begin_ns, []
        for stream, section in zip(self.actions, self.contract.action.parts, strict=True):
            part_ns, part = next(((t, v) for t, v in stream.samples if begin_ns < t <= end_ns), (begin_ns, None))
            if part is None:
                if not (over or stream.newest_ns >= end_ns):
                    return None
                part = self._held(stream, begin_ns) if section.hold else None
            if part is None:
                return Step(end_ns, None, Fault(FaultKind.NO_COMMAND, stream.name), frame.observation)
            if not np.isfinite(part).all():
                return Step(end_ns, None, Fault(FaultKind.SAMPLE_NOT_FINITE, stream.name), frame.observation)
            command_ns = max(command_ns, part_ns)
            parts.append(part)
        action = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if (function := self._reward_function) is not None:
            self._action = action
            row = self._previous.observation, action, frame.observation, self._last_action
            reward = float(function(*row))
            if not math.isfinite(reward):
                fault = Fault(FaultKind.REWARD_NOT_FINITE, detail=function.culprit(*row))
                return Step(end_ns, None, fault, frame.observation)
        else:
            if not (over or self.rewards.newest_ns >= end_ns):
                return None
            found = next((v for t, v in reversed(self.rewards.samples) if begin_ns < t <= end_ns), None)
            if found is None or not np.isfinite(found[0]):
                kind = FaultKind.NO_REWARD if found is None else FaultKind.SAMPLE_NOT_FINITE
                return Step(end_ns, None, Fault(kind, self.rewards.name), frame.observation)
            reward = float(found[0])
        previous = self._previous.observation
        transition = Transition(begin_ns, previous, action, reward, frame.observation, command_ns - begin_ns)
        return Step(end_ns, transition, observation=frame.observation)
