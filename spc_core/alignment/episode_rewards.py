# SPDX-License-Identifier: Apache-2.0
"""Computed rewards of a recording's episodes: where each begins, and which are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spc_core.alignment.batch.aligner import Ticks
from spc_core.alignment.episode import EpisodeSpan, Segmentation
from spc_core.alignment.faults import FaultKind
from spc_core.contract.contract import Contract
from spc_core.contract.rewards import MEND_REWARD


def episode_rewards(ticks: Ticks, segmentation: Segmentation, contract: Contract) -> np.ndarray:
    """The rewards of ticks (N,), where an episode's first step has no action before, whatever came before the episode.

    A part that continues an episode behind its time limit is no beginning.
    """
    function = contract.reward_function()
    if function is None or not function.uses_previous:
        return ticks.rewards
    rewards, last = ticks.rewards.copy(), None
    for segment in segmentation.segments:
        goes_on = last is not None and (last.span, last.last) == (segment.span, segment.first)
        if not goes_on and ticks.has_transition[segment.first]:
            first = segment.first + 1
            rewards[first] = function(ticks.observations[first - 1], ticks.actions[first], ticks.observations[first])
        last = segment
    return rewards


def infinite_reward(ticks: Ticks, spans: Sequence[EpisodeSpan]) -> str:
    """Which term is not finite, and where first in the episodes; '' for nowhere."""
    terms = [fault is not None and fault.kind is FaultKind.REWARD_NOT_FINITE for fault in ticks.faults]
    for i in np.flatnonzero(np.array(terms)[ticks.codes]).tolist():
        t_ns = int(ticks.t_ns[i])
        if any(span.begin_ns <= t_ns <= span.end_ns for span in spans):
            at_s = (t_ns - int(ticks.t_ns[0])) / 1e9
            return f"{ticks.fault(i)} in the transition that ends at {at_s:.2f} s (tick {i}, stamp {t_ns} ns); {MEND_REWARD}"  # fmt: skip  # noqa: E501
    return ""
