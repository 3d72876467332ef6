# SPDX-License-Identifier: Apache-2.0
"""The ticks of a log from blocks of its samples, in the phase that its commands follow soonest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.batch.aligner import BatchAligner, Irregular, Ticks
from spc_core.alignment.batch.sampling import Samples
from spc_core.alignment.command_lag import skipped_states
from spc_core.alignment.streaming import Step, StreamingAligner
from spc_core.contract.contract import Contract
from spc_ros.messages.columns import sources


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The ticks of a log. `counts` are dropped samples by topic and kind (late, duplicate)."""

    ticks: Ticks
    counts: Mapping[str, int]
    skipped: int = 0  # samples of the first stream before the first tick, for the phase


def align(contract: Contract, blocks: Callable[[], Iterable[list[Samples]]]) -> Aligned:
    """The ticks of a log; each call of `blocks` starts it again.

    Where the first stream is faster than the contract, a first pass shows after which of its samples the commands
    follow soonest, and a second one begins there.
    """
    states_ns: list[np.ndarray] = []

    def watched() -> Iterator[list[Samples]]:
        states_ns.clear()
        for samples in blocks():
            states_ns.append(samples[0].t_ns)
            yield samples

    ticks, counts = _align(contract, watched)
    steps_ns = np.diff(np.concatenate([np.empty(0, np.int64), *states_ns]))
    lags_ns = ticks.command_lags_ns
    steps_ns = steps_ns[steps_ns > 0]  # else a duplicate or a clock jump
    skip = skipped_states(lags_ns, float(np.median(steps_ns)), contract.period_ns) if len(steps_ns) else 0
    if not skip:
        return Aligned(ticks, counts)
    shifted, shifted_counts = _align(contract, lambda: _without_first(blocks(), skip))
    shifted_ns = shifted.command_lags_ns
    if len(shifted_ns) and np.median(shifted_ns) < np.median(lags_ns):
        return Aligned(shifted, shifted_counts, skip)
    return Aligned(ticks, counts)


def _without_first(blocks: Iterable[list[Samples]], skip: int) -> Iterator[list[Samples]]:
    """The log without the first samples of its first stream."""
    for first, *others in blocks:
        dropped = min(skip, len(first))
        skip -= dropped
        yield [first.part(slice(dropped, None)), *others]


def _align(contract: Contract, blocks: Callable[[], Iterable[list[Samples]]]) -> tuple[Ticks, Mapping[str, int]]:
    """(ticks, dropped samples by topic and kind).

    Each block holds the samples of every source. A log whose topics are more than PATIENCE_NS out of order takes the
    streaming path of a live node, sample by sample.
    """
    try:
        batch = BatchAligner(contract, PATIENCE_NS)
        parts = [batch.push(samples) for samples in blocks()]
        return Ticks.concatenate([*parts, batch.flush()]), batch.counts
    except Irregular:
        aligner = StreamingAligner(contract, PATIENCE_NS)
    roles = [source.role for source in sources(contract)]
    steps: list[Step] = []
    for samples in blocks():
        log_index = np.concatenate([part.log_index for part in samples])
        source = np.repeat(np.arange(len(samples)), [len(part) for part in samples])
        row = np.concatenate([np.arange(len(part)) for part in samples])
        for i in np.lexsort((source, log_index)).tolist():
            part, at = samples[source[i]], row[i]
            steps += aligner.push(roles[source[i]], int(part.t_ns[at]), part.values[at])
    steps += aligner.flush()
    return Ticks.from_steps(steps, contract), aligner.counts
