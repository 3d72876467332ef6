# SPDX-License-Identifier: Apache-2.0
"""Correlograms of the stretches of a bag with the most command activity, in bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.alignment.batch.sampling import Samples
from spc_core.command_delay.correlogram import ARRAYS, Correlogram, correlogram
from spc_core.command_delay.estimate import (
    BLOCK_ROWS,
    HISTORY_NS,
    MAX_COMMANDS,
    MAX_STATES,
    MIN_STEP_NS,
    Columns,
    periodic_streams,
)
from spc_core.contract.contract import Contract

STRETCHES = 3  # per bag, each of at most BLOCK_ROWS states
GATHER_ROWS = 1000  # states buffered before they are divided into stretches

Stretch = tuple[np.ndarray, np.ndarray, dict[int, tuple[np.ndarray, np.ndarray]]]  # command ns, commands, states


class DelaySurvey:
    """Collects a bag's samples as they are read, and keeps the stretches with the most command activity.

    Of an action of several topics, the first one is looked at.
    """

    def __init__(self, contract: Contract) -> None:
        self._action = len(contract.observation)
        self._commands = Columns.of(contract.action.fields[contract.action.slices[0]], MAX_COMMANDS)
        self._streams = {
            i: Columns.of([f"{contract.observation[i].topic}.{name}" for name in contract.observation[i].names],
                          MAX_STATES)
            for i in periodic_streams(contract)
        }  # fmt: skip
        self._span = np.asarray(contract.action.high, float) - np.asarray(contract.action.low, float)
        self.clear()

    def clear(self) -> None:
        """Discard all samples."""
        self._waiting: list[Sequence[Samples]] = []
        self._rows = 0
        self._best: list[tuple[float, int, Stretch]] = []
        self._number = 0

    def add(self, samples: Sequence[Samples]) -> None:
        """Add samples of every source, observation streams first, then the action."""
        if not self._streams:
            return
        self._waiting.append(samples)
        self._rows += len(samples[min(self._streams)].t_ns)
        if self._rows >= GATHER_ROWS:
            self._cut()

    def blocks(self) -> dict[int, list[Correlogram]]:
        """Correlograms by observation stream; call it once, at the end."""
        if self._rows:
            self._cut()
        found: dict[int, list[Correlogram]] = {}
        for _, _, (command_ns, commands, states) in sorted(self._best, key=lambda kept: kept[1]):
            for i, (state_ns, values) in states.items():
                block = correlogram(
                    command_ns, commands, self._commands.names, state_ns, values, self._streams[i].names
                )  # fmt: skip
                if block is not None and (small := block.as_float32()) is not None:
                    found.setdefault(i, []).append(small)
        return found

    def _cut(self) -> None:
        """Divide the buffered samples into stretches."""
        command_ns, commands = self._joined(self._action)
        commands = commands[:, self._commands.indices]
        states = {i: _downsampled(*self._joined(i)) for i in self._streams}
        self._waiting, self._rows = [], 0
        tick_ns = states[min(states)][0]
        steps = np.nan_to_num(np.abs(np.diff(commands, axis=0)) / self._span[self._commands.indices]).sum(axis=1)
        moved = np.concatenate(([0.0], np.cumsum(steps)))  # cumulative
        for begin in range(0, len(tick_ns), BLOCK_ROWS):
            times_ns = tick_ns[begin : begin + BLOCK_ROWS]
            first, end = np.searchsorted(command_ns, (times_ns[0] - HISTORY_NS, times_ns[-1] + HISTORY_NS + 1)).tolist()
            self._number += 1
            rank = (float(moved[end - 1] - moved[first]) if end - first > 1 else -1.0, -self._number)
            if rank[0] < 0 or (len(self._best) == STRETCHES and rank < self._best[0][:2]):
                continue
            parts = {i: _between(*part, times_ns, self._streams[i].indices) for i, part in states.items()}
            kept = (*rank, (command_ns[first:end].copy(), commands[first:end].copy(), parts))
            (heapq.heappush if len(self._best) < STRETCHES else heapq.heapreplace)(self._best, kept)

    def _joined(self, source: int) -> tuple[np.ndarray, np.ndarray]:
        """Times and values of a source, in order of time."""
        parts = [samples[source] for samples in self._waiting]
        if len(parts) == 1:
            t_ns, values = parts[0].t_ns, parts[0].values
        else:
            t_ns, values = (
                np.concatenate([part.t_ns for part in parts]),
                np.concatenate([part.values for part in parts]),
            )
        if (t_ns[1:] >= t_ns[:-1]).all():
            return t_ns, values
        order = np.argsort(t_ns, kind="stable")
        return t_ns[order], values[order]


def _downsampled(t_ns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every n-th sample of a stream faster than MIN_STEP_NS."""
    step_ns = float(np.median(np.diff(t_ns))) if len(t_ns) > 1 else MIN_STEP_NS
    every = max(1, int(np.ceil(MIN_STEP_NS / max(step_ns, 1.0))))
    return t_ns[::every], values[::every]


def _between(
    t_ns: np.ndarray, values: np.ndarray, times_ns: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The samples within a stretch of times, twice as many at most."""
    first, end = np.searchsorted(t_ns, times_ns[0]), np.searchsorted(t_ns, times_ns[-1], "right")
    inside = slice(first, min(end, first + 2 * BLOCK_ROWS))
    return t_ns[inside].copy(), values[inside][:, columns]


def to_arrays(blocks: Mapping[int, Sequence[Correlogram]]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """(JSON values, arrays) of blocks, for from_arrays()."""
    entries, arrays = [], {}
    for stream, several in blocks.items():
        for block in several:
            entry = {"stream": stream, "commands": block.commands, "states": block.states, "count": block.count}
            arrays |= {f"delay_{len(entries)}_{name}": getattr(block, name) for name in ARRAYS}
            entries.append({**entry, "period_s": block.period_s})
    return entries, arrays


def from_arrays(entries: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> dict[int, list[Correlogram]]:
    blocks: dict[int, list[Correlogram]] = {}
    for number, entry in enumerate(entries):
        names = (tuple(entry["commands"]), tuple(entry["states"]), entry["count"], entry["period_s"])
        block = Correlogram(*names, *(arrays[f"delay_{number}_{name}"] for name in ARRAYS))
        blocks.setdefault(entry["stream"], []).append(block)
    return blocks
