# SPDX-License-Identifier: Apache-2.0
"""TransitionAssembler for blocks of a recorded log: the same ticks to the last bit, from arrays.

Sample by sample, a decision may depend on what has arrived by then. In a regular log it does not: what arrives is
never older, by more than patience, than the newest stamp seen before; so nothing comes too late for a decision, and
each can be made from the stamps alone. Only a stream of any age is not waited for; its samples count from their
place in the log on. A log that is not regular raises Irregular, and takes the assembler in frames.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spc_core.alignment.beats import BeatState
from spc_core.alignment.faults import Fault, FaultKind
from spc_core.alignment.frames import JUMP_NS, NO_TIME
from spc_core.alignment.tick_frames import END, Frames, FrameSource, SampleBuffer
from spc_core.alignment.ticks import Samples, Ticks
from spc_core.contract.contract import Contract

__all__ = ["ArrayAssembler", "Irregular", "Samples", "Ticks"]

MOST_JUMPS = 100  # in one block: each costs a pass over the rest of the block
NO_COMMAND, ACTION_NOT_FINITE, NO_REWARD, REWARD_NOT_FINITE = -1, -2, -3, -4  # beside the faults of frames, above 0
START = -5
KINDS = {
    NO_COMMAND: FaultKind.NO_COMMAND,
    ACTION_NOT_FINITE: FaultKind.SAMPLE_NOT_FINITE,
    NO_REWARD: FaultKind.NO_REWARD,
    REWARD_NOT_FINITE: FaultKind.SAMPLE_NOT_FINITE,
    START: FaultKind.START,
}


class Irregular(ValueError):
    """A log whose decisions depend on when its messages arrived; take the assembler in frames.py for all of it."""


class ArrayAssembler:
    """Turns blocks of samples of all the contract's streams into ticks."""

    def __init__(self, contract: Contract, patience_ns: int) -> None:
        self.contract = contract
        self.patience_ns = patience_ns
        self._source = FrameSource(contract, patience_ns)
        self._actions = SampleBuffer(contract.action.topic, contract.action_dim)
        self._rewards = SampleBuffer(contract.reward.topic or "reward", 1)
        self._buffers = [*self._source.buffers, self._actions, self._rewards]
        self._reward_function = contract.reward_function()
        self._beat = BeatState()
        self._horizon_ns = NO_TIME
        self._last_order = NO_TIME
        self._frames = Frames.nothing(contract)  # the last one that is out, then those whose transition is still open

    @property
    def counts(self) -> dict[str, int]:
        """Late and duplicate samples that were dropped, by topic and kind."""
        return {f"{buffer.name} {kind}": n for buffer in self._buffers for kind, n in buffer.counts.items()}

    @property
    def kept(self) -> int:
        """Samples and ticks that are still in memory, since later ticks may need them."""
        return sum(len(buffer.t_ns) for buffer in self._buffers) + len(self._frames.t_ns)

    def push(self, observations: Sequence[Samples], actions: Samples, rewards: Samples | None = None) -> Ticks:
        """Add the next block of the log, one entry for each observation stream; returns the ticks that it decides.

        Raises Irregular; the assembler is then of no more use.
        """
        if len(observations) != len(self.contract.observation):
            raise ValueError(f"{len(observations)} observation streams, expected {len(self.contract.observation)}")
        block = self._in_turn([*observations, actions, Samples.none(1) if rewards is None else rewards])
        parts: list[Ticks] = []
        jumps = 0
        while (jump := self._first_jump(block)) is not None:
            order, index = jump
            jumps += 1
            if jumps > MOST_JUMPS:
                raise Irregular(f"clock jumped back more than {MOST_JUMPS} times, last on {self._buffers[index].name}")
            ends = [int(np.searchsorted(samples.order, order)) for samples in block]
            parts.append(self._advance([s.part(0, end) for s, end in zip(block, ends, strict=True)]))
            block = [s.part(end) for s, end in zip(block, ends, strict=True)]
            parts += self._jump(index, block)
        return Ticks.concatenate([*parts, self._advance(block)])

    def _in_turn(self, block: list[Samples]) -> list[Samples]:
        """The block with places in the log that differ among streams: a message may be a sample of several of them."""
        orders = [samples.order for samples in block if len(samples)]
        if orders and min(int(order[0]) for order in orders) < self._last_order:
            raise ValueError("a block holds messages from before the last one; push blocks in the order of the log")
        self._last_order = max((int(order[-1]) for order in orders), default=self._last_order)
        return [Samples(s.order * len(block) + i, s.t_ns, s.values) for i, s in enumerate(block)]

    def flush(self) -> Ticks:
        """Decide what is left; for the end of a bag, and before a clock jump."""
        newest_ns = self._source.buffers[0].newest_ns
        self._source.hear(np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._take_frames(newest_ns + 2 * self.contract.period_ns, newest_ns)
        return self._decide(-NO_TIME)

    def _first_jump(self, block: list[Samples]) -> tuple[int, int] | None:
        """(order, stream) of the first sample that shows that the clock jumped back."""
        jumps = []
        for index, (buffer, samples) in enumerate(zip(self._buffers, block, strict=True)):
            jumped = samples.t_ns < buffer.newest_before(samples.t_ns) - JUMP_NS
            if jumped.any():
                jumps.append((int(samples.order[np.argmax(jumped)]), index))
        return min(jumps, default=None)

    def _jump(self, index: int, block: list[Samples]) -> list[Ticks]:
        """What stands at a jump that stream number `index` shows by its first sample in the block."""
        buffer, samples = self._buffers[index], block[index]
        t_ns = int(samples.t_ns[0])
        stream = index if index < len(self._source.buffers) else None
        fault = Fault(FaultKind.CLOCK_JUMP, buffer.name, stream, amount_ns=buffer.newest_ns - t_ns)
        settled = self.flush()
        for each in self._buffers:
            each.clear()
        self._beat, self._horizon_ns, self._frames = BeatState(), NO_TIME, Frames.nothing(self.contract)
        if stream is None:  # frames.py leaves this one's stamp out of the horizon
            buffer.admit(samples.part(0, 1))
            block[index] = samples.part(1)
        nothing = np.full((1, self.contract.observation_dim), np.nan), np.full((1, self.contract.action_dim), np.nan)
        jump = Ticks(np.array([t_ns]), *nothing, np.array([np.nan]), np.ones(1, np.int32), (None, fault))
        return [settled, jump]

    def _advance(self, block: list[Samples]) -> Ticks:
        """Take in samples among which the clock does not jump."""
        if any(map(len, block)):
            self._admit(block)
            forced_ns = self._horizon_ns - self.patience_ns
            self._take_frames(forced_ns, max(forced_ns - 1, self._source.reached_ns()))
        ticks = self._decide(self._horizon_ns)
        self._forget()
        return ticks

    def _admit(self, block: list[Samples]) -> None:
        """Store the samples. Raises Irregular where one comes too late for what waits no longer than patience."""
        accepted = [buffer.admit(samples) for buffer, samples in zip(self._buffers, block, strict=True)]
        for mask, stream in zip(accepted, self.contract.observation, strict=False):
            if stream.max_age_ns is None:
                mask[:] = False  # not waited for
        order = np.concatenate([samples.order for samples in block])
        in_log = np.argsort(order, kind="stable")
        t_ns = np.concatenate([samples.t_ns for samples in block])[in_log]
        horizon_ns = np.maximum(np.maximum.accumulate(t_ns), self._horizon_ns)
        too_late = (t_ns < horizon_ns - self.patience_ns) & np.concatenate(accepted)[in_log]
        if too_late.any():
            first = int(np.argmax(too_late))
            topic = self._buffers[order[in_log[first]] % len(block)].name
            behind_s = (horizon_ns[first] - t_ns[first]) / 1e9
            raise Irregular(f"{topic}: a message comes {behind_s:.3f} s after newer ones of other topics")
        self._horizon_ns = int(horizon_ns[-1])
        self._source.hear(horizon_ns, order[in_log])

    def _take_frames(self, forced_ns: int, limit_ns: int) -> None:
        frames, self._beat = self._source.frames(self._beat, forced_ns, limit_ns)
        self._frames = self._frames.followed_by(frames)

    def _decide(self, horizon_ns: int) -> Ticks:
        """The ticks, up to the first whose transition may still get a command or reward."""
        frames = self._frames
        begin_ns, end_ns = frames.t_ns[:-1], frames.t_ns[1:]
        joined = (frames.faults[:-1] == 0) & (frames.faults[1:] == 0)
        command_faults, command, commanded = self._commands(begin_ns, end_ns)
        reward_faults, reward, rewarded = self._topic_rewards(begin_ns, end_ns)
        known = ~joined | (end_ns < horizon_ns - self.patience_ns) | (commanded & ((command_faults != 0) | rewarded))
        count = len(known) if known.all() else int(np.argmin(known))
        unjoined_faults = np.where(frames.faults[1:] == 0, START, frames.faults[1:])
        faults = np.where(command_faults == 0, reward_faults, command_faults)
        faults = np.where(joined, faults, unjoined_faults)[:count]
        whole = faults == 0
        actions = np.full((count, self.contract.action_dim), np.nan)
        actions[whole] = self._actions.values[command[:count][whole]]
        rewards = np.full(count, np.nan)
        after = frames.observations[1 : count + 1]
        if self._reward_function is None:
            rewards[whole] = self._rewards.values[reward[:count][whole], 0]
        else:
            rewards[whole] = self._reward_function(frames.observations[:count][whole], actions[whole], after[whole])
        self._frames = frames.part(count)
        return Ticks(end_ns[:count], after, actions, rewards, *self._codes(faults))

    def _commands(self, begin_ns: np.ndarray, end_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of N periods what is wrong with the first command, its place, and whether no other can come; each (N,)."""
        actions = self._actions
        row = np.searchsorted(actions.t_ns, begin_ns, "right")
        finite = np.where(np.append(actions.finite, True)[row], 0, ACTION_NOT_FINITE)
        faults = np.where(np.append(actions.t_ns, END)[row] <= end_ns, finite, NO_COMMAND)
        return faults, row, row < len(actions.t_ns)

    def _topic_rewards(self, begin_ns: np.ndarray, end_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of N periods what is wrong with the newest reward, its place, and whether no other can come; each (N,)."""
        if self._reward_function is not None:
            nothing = np.zeros(len(end_ns), np.int64)
            return nothing, nothing, nothing == 0
        rewards = self._rewards
        row = np.searchsorted(rewards.t_ns, end_ns, "right") - 1
        finite = np.where(np.append(rewards.finite, True)[row], 0, REWARD_NOT_FINITE)
        faults = np.where(np.append(rewards.t_ns, NO_TIME)[row] > begin_ns, finite, NO_REWARD)
        return faults, row, rewards.newest_ns >= end_ns

    def _codes(self, faults: np.ndarray) -> tuple[np.ndarray, tuple[Fault | None, ...]]:
        """Codes (N,) and faults of Ticks."""
        codes = np.zeros(len(faults), np.int32)
        wrong = faults != 0
        kinds, place = np.unique(faults[wrong], return_inverse=True)
        codes[wrong] = place + 1
        return codes, (None, *(self._fault(int(kind)) for kind in kinds))

    def _fault(self, code: int) -> Fault:
        if code > 0:
            return self._source.fault(code)
        kind = KINDS[code]
        topic = {START: "", NO_COMMAND: self._actions.name, ACTION_NOT_FINITE: self._actions.name}
        return Fault(kind, topic.get(code, self._rewards.name))

    def _forget(self) -> None:
        """Drop the samples that no later tick needs."""
        past_ns, first = self._beat.done_ns, self._source.buffers[0]
        if not self._beat.beating and first.newest_ns <= past_ns:  # the next tick is a sample that is yet to come
            past_ns = max(past_ns, self._horizon_ns - self.patience_ns)
        for buffer in self._source.buffers:
            buffer.forget(past_ns)
        open_ns = self._frames.t_ns[0 if self._frames.faults[0] == 0 else 1 :]
        for buffer in (self._actions, self._rewards):
            buffer.forget(int(open_ns[0]) if len(open_ns) else past_ns)
