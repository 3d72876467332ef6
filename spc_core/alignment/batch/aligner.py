# SPDX-License-Identifier: Apache-2.0
"""Batch alignment of a recorded log, bitwise equal to `StreamingAligner`.

In general a decision may depend on which samples have arrived. In a regular log no sample is older, by more than
patience, than the newest stamp before it; so none comes too late, and all decisions follow from the stamps alone. Only
streams without a maximum age are not waited for; their samples count from their log index on. An irregular log raises
Irregular and needs StreamingAligner in alignment/streaming.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spc_core.alignment import NO_TIME
from spc_core.alignment.batch.commands import Answers, Holds, HoldState
from spc_core.alignment.batch.sampling import END, Frames, GridState, ObservationSampler, SampleBuffer, Samples
from spc_core.alignment.faults import Fault, FaultKind
from spc_core.alignment.streaming import Step
from spc_core.contract.contract import Contract
from spc_core.contract.rewards import RewardFunction
from spc_core.contract.transforms import JUMP_NS

MAX_JUMPS = 100  # in one block: each costs a pass over the rest of the block
START, REWARD_NOT_FINITE, NO_REWARD, ACTION_NOT_FINITE, NO_COMMAND = range(-5, 0)  # codes next to those of Frames
NEXT_PART = -5  # from a code of one of the action's topics to that of the next
TERM_NOT_FINITE = -1_000_000  # code of the reward's first term; those of the others are below


@dataclasses.dataclass(frozen=True)
class Ticks:
    """N decided ticks in order. A transition that ends at tick i began at tick i - 1."""

    t_ns: np.ndarray  # (N,) int64
    observations: np.ndarray  # (N, O) float64, NaN where the tick has none
    actions: np.ndarray  # (N, A) float64, of the transition that ends at the tick, NaN where none does
    rewards: np.ndarray  # (N,) float64, likewise
    lags_ns: np.ndarray  # (N,) int64, as Transition.lag_ns, of the transition that ends at the tick
    codes: np.ndarray  # (N,) int32, index in `faults` of why no transition ends at the tick; 0 where one does
    faults: tuple[Fault | None, ...] = (None,)

    def __len__(self) -> int:
        return len(self.t_ns)

    @property
    def has_transition(self) -> np.ndarray:
        """(N,) bool: a transition ends at the tick."""
        return self.codes == 0

    @property
    def command_lags_ns(self) -> np.ndarray:
        """(n,) from tick to command, of the transitions whose command was sent in their period."""
        return self.lags_ns[self.lags_ns > 0]

    def fault(self, index: int) -> Fault | None:
        """Why no transition ends at the tick, as in Step.cut; None where one does."""
        return self.faults[self.codes[index]]

    @classmethod
    def from_steps(cls, steps: Sequence[Step], contract: Contract) -> Ticks:
        """Convert the steps of a StreamingAligner."""
        nowhere = np.full(contract.observation_dim, np.nan), np.full(contract.action_dim, np.nan)
        index_of: dict[Fault | None, int] = {None: 0}
        codes = [index_of.setdefault(step.cut, len(index_of)) for step in steps]
        observations = [nowhere[0] if step.observation is None else step.observation for step in steps]
        actions = [nowhere[1] if step.transition is None else step.transition.action for step in steps]
        return cls(
            t_ns=np.array([step.t_ns for step in steps], np.int64),
            observations=np.array(observations, np.float64).reshape(len(steps), len(nowhere[0])),
            actions=np.array(actions, np.float64).reshape(len(steps), len(nowhere[1])),
            rewards=np.array([np.nan if s.transition is None else s.transition.reward for s in steps], np.float64),
            lags_ns=np.array([0 if s.transition is None else s.transition.lag_ns for s in steps], np.int64),
            codes=np.array(codes, np.int32),
            faults=tuple(index_of),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Ticks]) -> Ticks:
        """Join the ticks of consecutive blocks, at least one."""
        if len(parts) == 1:
            return parts[0]
        index_of: dict[Fault | None, int] = {None: 0}
        codes = []
        for part in parts:
            own = np.array([index_of.setdefault(fault, len(index_of)) for fault in part.faults], np.int32)
            codes.append(own[part.codes])
        return cls(
            t_ns=np.concatenate([part.t_ns for part in parts]),
            observations=np.concatenate([part.observations for part in parts]),
            actions=np.concatenate([part.actions for part in parts]),
            rewards=np.concatenate([part.rewards for part in parts]),
            lags_ns=np.concatenate([part.lags_ns for part in parts]),
            codes=np.concatenate(codes),
            faults=tuple(index_of),
        )


class Irregular(ValueError):
    """A log whose decisions depend on the arrival of its messages; use StreamingAligner for all of it."""


class BatchAligner:
    """Turns blocks of samples of all the contract's streams into ticks.

    StreamingAligner in alignment/streaming.py is the specification; test/alignment/test_alignment_parity.py compares
    the two.
    """

    def __init__(self, contract: Contract, patience_ns: int) -> None:
        self.contract = contract
        self.patience_ns = patience_ns
        self._observations = ObservationSampler(contract, patience_ns)
        self._actions = [SampleBuffer(part.topic, len(part.fields)) for part in contract.action.parts]
        self._rewards = SampleBuffer(contract.reward.topic or "reward", 1)
        self._buffers = [*self._observations.buffers, *self._actions, self._rewards]
        self._answers = Answers()
        self._reward_function = contract.reward_function()
        self._terms = () if self._reward_function is None else (*self._reward_function.names, "sum")
        self._last_action = np.full(contract.action_dim, np.nan)  # of the period that ended at the last decided tick
        self._faults = {
            START: Fault(FaultKind.START),
            NO_REWARD: Fault(FaultKind.NO_REWARD, self._rewards.name),
            REWARD_NOT_FINITE: Fault(FaultKind.SAMPLE_NOT_FINITE, self._rewards.name),
        }
        for i, part in enumerate(self._actions):
            self._faults[NO_COMMAND + i * NEXT_PART] = Fault(FaultKind.NO_COMMAND, part.name)
            self._faults[ACTION_NOT_FINITE + i * NEXT_PART] = Fault(FaultKind.SAMPLE_NOT_FINITE, part.name)
        for i, term in enumerate(self._terms):
            self._faults[TERM_NOT_FINITE - i] = Fault(FaultKind.REWARD_NOT_FINITE, detail=term)
        self._grid = GridState()
        self._horizon_ns = NO_TIME
        self._last_index = NO_TIME
        self._frames = Frames.initial(contract)  # the last decided one, then those whose transition is undecided
        self._hold = HoldState()

    @property
    def counts(self) -> dict[str, int]:
        """Late and duplicate samples that were dropped, by topic and kind."""
        return {f"{buffer.name} {kind}": n for buffer in self._buffers for kind, n in buffer.counts.items()}

    @property
    def kept(self) -> int:
        """Number of samples and ticks kept in memory for later ticks."""
        return sum(len(buffer.t_ns) for buffer in self._buffers) + len(self._frames.t_ns)

    def push(self, samples: Sequence[Samples]) -> Ticks:
        """Add the next block of the log: samples of each observation stream, each topic of the action, and any reward.

        Returns the ticks that it decides. Raises Irregular, after which the aligner must not be used.
        """
        if len(samples) not in (len(self._buffers) - 1, len(self._buffers)):
            raise ValueError(f"samples of {len(samples)} streams, expected {len(self._buffers)}, the reward last")
        block = self._distinct([*samples, Samples.empty(1)][: len(self._buffers)])
        parts: list[Ticks] = []
        jumps = 0
        while (jump := self._first_jump(block)) is not None:
            log_index, index = jump
            jumps += 1
            if jumps > MAX_JUMPS:
                raise Irregular(f"clock jumped back more than {MAX_JUMPS} times, last on {self._buffers[index].name}")
            ends = [int(np.searchsorted(samples.log_index, log_index)) for samples in block]
            parts.append(self._advance([s.part(slice(end)) for s, end in zip(block, ends, strict=True)]))
            block = [s.part(slice(end, None)) for s, end in zip(block, ends, strict=True)]
            parts += self._jump(index, block)
        return Ticks.concatenate([*parts, self._advance(block)])

    def _distinct(self, block: list[Samples]) -> list[Samples]:
        """The block with log indices that differ among streams: a message may be a sample of several of them."""
        indices = [samples.log_index for samples in block if len(samples)]
        if indices and min(int(index[0]) for index in indices) < self._last_index:
            raise ValueError("a block contains messages from before the last one; push blocks in log order")
        self._last_index = max((int(index[-1]) for index in indices), default=self._last_index)
        return [Samples(s.log_index * len(block) + i, s.t_ns, s.values) for i, s in enumerate(block)]

    def flush(self) -> Ticks:
        """Decide the remaining ticks; for the end of a bag, and before a clock jump."""
        newest_ns = self._observations.buffers[0].newest_ns
        self._observations.note_horizon(np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._take_frames(newest_ns + 2 * self.contract.period_ns, newest_ns)
        return self._decide(-NO_TIME)

    def _first_jump(self, block: list[Samples]) -> tuple[int, int] | None:
        """(log index, stream) of the first sample with a backward clock jump."""
        jumps = []
        for index, (buffer, samples) in enumerate(zip(self._buffers, block, strict=True)):
            jumped = samples.t_ns < buffer.newest_before(samples.t_ns) - JUMP_NS
            if jumped.any():
                jumps.append((int(samples.log_index[np.argmax(jumped)]), index))
        return min(jumps, default=None)

    def _jump(self, index: int, block: list[Samples]) -> list[Ticks]:
        """Ticks up to and at a clock jump in the first sample of stream number `index` in the block."""
        buffer, samples = self._buffers[index], block[index]
        t_ns = int(samples.t_ns[0])
        stream = index if index < len(self._observations.buffers) else None
        fault = Fault(FaultKind.CLOCK_JUMP, buffer.name, stream, amount_ns=buffer.newest_ns - t_ns)
        settled = self.flush()
        for each in self._buffers:
            each.clear()
        self._answers.clear()
        self._grid, self._horizon_ns, self._frames = GridState(), NO_TIME, Frames.initial(self.contract)
        self._hold = HoldState()
        if stream is None:  # StreamingAligner excludes its stamp from the horizon
            buffer.admit(samples.part(slice(1)))
            block[index] = samples.part(slice(1, None))
        nothing = np.full((1, self.contract.observation_dim), np.nan), np.full((1, self.contract.action_dim), np.nan)
        no_lag, code = np.zeros(1, np.int64), np.ones(1, np.int32)
        jump = Ticks(np.array([t_ns]), *nothing, np.array([np.nan]), no_lag, code, (None, fault))
        return [settled, jump]

    def _advance(self, block: list[Samples]) -> Ticks:
        """Process samples without a clock jump."""
        if any(map(len, block)):
            self._admit(block)
            forced_ns = self._horizon_ns - self.patience_ns
            self._take_frames(forced_ns, max(forced_ns - 1, self._observations.reached_ns()))
        ticks = self._decide(self._horizon_ns)
        self._forget()
        return ticks

    def _admit(self, block: list[Samples]) -> None:
        """Store the samples. Raises Irregular if one arrives later than patience allows."""
        accepted: list[np.ndarray] = []
        for i, (buffer, samples) in enumerate(zip(self._buffers, block, strict=True)):
            is_command = len(self._observations.buffers) <= i < len(self._buffers) - 1
            accepted.append(buffer.admit(samples, self._answers.later_ns(samples) if is_command else None))
            if i == 0:
                self._answers.states(samples, accepted[0])
        for mask, stream in zip(accepted, self.contract.observation, strict=False):
            if stream.max_age_ns is None:
                mask[:] = False  # not waited for
        log_index = np.concatenate([samples.log_index for samples in block])
        in_log = np.argsort(log_index, kind="stable")
        t_ns = np.concatenate([samples.t_ns for samples in block])[in_log]
        horizon_ns = np.maximum(np.maximum.accumulate(t_ns), self._horizon_ns)
        too_late = (t_ns < horizon_ns - self.patience_ns) & np.concatenate(accepted)[in_log]
        if too_late.any():
            first = int(np.argmax(too_late))
            topic = self._buffers[log_index[in_log[first]] % len(block)].name
            behind_s = (horizon_ns[first] - t_ns[first]) / 1e9
            raise Irregular(f"{topic}: a message comes {behind_s:.3f} s after newer ones of other topics")
        self._horizon_ns = int(horizon_ns[-1])
        self._observations.note_horizon(horizon_ns, log_index[in_log])

    def _take_frames(self, forced_ns: int, limit_ns: int) -> None:
        frames, self._grid = self._observations.frames(self._grid, forced_ns, limit_ns)
        self._frames = self._frames.append(frames)

    def _decide(self, horizon_ns: int) -> Ticks:
        """Ticks up to the first one whose transition may still receive a command or reward."""
        frames = self._frames
        begin_ns, end_ns = frames.t_ns[:-1], frames.t_ns[1:]
        joined = (frames.codes[:-1] == 0) & (frames.codes[1:] == 0)
        holds = self._hold.over(frames, self.contract.hold_gap_ns) if self.contract.action.holds else None
        command_codes, commands, commanded = self._commands(begin_ns, end_ns, holds)
        reward_codes, reward, rewarded = self._topic_rewards(begin_ns, end_ns)
        known = ~joined | (end_ns < horizon_ns - self.patience_ns) | (commanded & ((command_codes != 0) | rewarded))
        count = len(known) if known.all() else int(np.argmin(known))
        not_joined_codes = np.where(frames.codes[1:] == 0, START, frames.codes[1:])
        joined_codes = np.where(command_codes == 0, reward_codes, command_codes)
        codes = np.where(joined, joined_codes, not_joined_codes)[:count]
        good = codes == 0
        actions = np.full((count, self.contract.action_dim), np.nan)
        lags_ns = np.zeros(count, np.int64)
        for buffer, row, columns in zip(self._actions, commands, self.contract.action.slices, strict=True):
            row = row[:count][good]
            actions[good, columns] = buffer.values[row]
            lags_ns[good] = np.maximum(lags_ns[good], buffer.t_ns[row] - begin_ns[:count][good])
        rewards = np.full(count, np.nan)
        after = frames.observations[1 : count + 1]
        if self._reward_function is None:
            rewards[good] = self._rewards.values[reward[:count][good], 0]
        else:
            previous = self._previous_actions(actions)[good] if self._reward_function.uses_previous else None
            rows = frames.observations[:count][good], actions[good], after[good], previous
            rewards[good] = self._reward_function(*rows)
            if not np.isfinite(rewards[good]).all():
                codes[good] = self._not_finite(self._reward_function, *rows)
                bad = codes != 0
                actions[bad], rewards[bad], lags_ns[bad] = np.nan, np.nan, 0
        self._frames = frames.part(count)
        if holds is not None:
            self._hold = holds.at(count)
        return Ticks(end_ns[:count], after, actions, rewards, lags_ns, *self._distinct_faults(codes))

    def _previous_actions(self, actions: np.ndarray) -> np.ndarray:
        """Of N ticks the action of the period that ended where that of each begins, (N, A); remembers the last one."""
        before = np.concatenate([self._last_action[None], actions])
        self._last_action = before[-1].copy()
        return before[:-1]

    @staticmethod
    def _not_finite(
        function: RewardFunction, before: np.ndarray, action: np.ndarray, after: np.ndarray, previous: np.ndarray | None
    ) -> np.ndarray:
        """The code of the first term of each of N transitions that is not finite; 0 where the reward is."""
        parts = np.isfinite(function.parts(before, action, after, previous))
        whole = np.isfinite(function(before, action, after, previous))
        return np.where(whole, 0, TERM_NOT_FINITE - np.argmin(np.concatenate([parts, whole[None]]), axis=0))

    def _commands(
        self, begin_ns: np.ndarray, end_ns: np.ndarray, holds: Holds | None
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Of N periods the code of the commands, their rows by topic, and whether no other can come; each (N,).

        The code is that of the first topic that has a fault; what comes on those behind it does not matter.
        """
        codes, rows, known = np.zeros(len(end_ns), np.int64), [], np.ones(len(end_ns), bool)
        for i, (buffer, part) in enumerate(zip(self._actions, self.contract.action.parts, strict=True)):
            row = following = np.searchsorted(buffer.t_ns, begin_ns, "right")
            sent = np.append(buffer.t_ns, END)[following] <= end_ns
            if holds is not None and part.hold:
                held = ~sent & (np.append(buffer.t_ns, NO_TIME)[following - 1] > holds.since_ns[:-1])
                row, sent = np.where(held, following - 1, following), sent | held
            finite = np.where(np.append(buffer.finite, True)[row], 0, ACTION_NOT_FINITE + i * NEXT_PART)
            own = np.where(sent, finite, NO_COMMAND + i * NEXT_PART)
            sound = codes == 0
            known &= ~sound | (following < len(buffer.t_ns))
            codes = np.where(sound, own, codes)
            rows.append(row)
        return codes, rows, known

    def _topic_rewards(self, begin_ns: np.ndarray, end_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of N periods the code of the newest reward, its row, and whether no other can come; each (N,)."""
        if self._reward_function is not None:
            nothing = np.zeros(len(end_ns), np.int64)
            return nothing, nothing, nothing == 0
        rewards = self._rewards
        row = np.searchsorted(rewards.t_ns, end_ns, "right") - 1
        finite = np.where(np.append(rewards.finite, True)[row], 0, REWARD_NOT_FINITE)
        codes = np.where(np.append(rewards.t_ns, NO_TIME)[row] > begin_ns, finite, NO_REWARD)
        return codes, row, rewards.newest_ns >= end_ns

    def _distinct_faults(self, codes: np.ndarray) -> tuple[np.ndarray, tuple[Fault | None, ...]]:
        """The codes (N,) and faults of Ticks."""
        found, inverse = np.unique(codes[codes != 0], return_inverse=True)
        indices = np.zeros(len(codes), np.int32)
        indices[codes != 0] = inverse + 1
        return indices, (None, *(self._faults.get(code) or self._observations.fault(code) for code in found.tolist()))

    def _forget(self) -> None:
        """Drop the samples that no later tick needs."""
        past_ns, first = self._grid.done_ns, self._observations.buffers[0]
        if not self._grid.running and first.newest_ns <= past_ns:  # the next tick is a future sample
            past_ns = max(past_ns, self._horizon_ns - self.patience_ns)
        for buffer in self._observations.buffers:
            buffer.forget(past_ns)
        open_ns = self._frames.t_ns[0 if self._frames.codes[0] == 0 else 1 :]
        for buffer in (*self._actions, self._rewards):
            buffer.forget(int(open_ns[0]) if len(open_ns) else past_ns)
        self._answers.forget(self._horizon_ns - self.patience_ns)
