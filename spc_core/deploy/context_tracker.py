# SPDX-License-Identifier: Apache-2.0
"""The task vector z on a robot, as a running mean that starts again when the task changes: no gradient, no history."""

from __future__ import annotations

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.change_detector import PENDING, ChangeDetector
from spc_core.deploy.deployable import Deployable, Networks
from spc_core.deploy.hypotheses import Hypotheses
from spc_core.deploy.votes import VoteSums, sums_of, weighted_mean

MODES = ("online", "collect", "frozen")
NOTHING_KNOWN = 1.0  # uncertainty before two transitions: embeddings range over [-1, 1]


class ContextTracker:
    """The task vector z from the transitions seen so far; the cost of a transition does not grow with the history.

    Modes: `online` adds each transition and shows the result at once; `collect` adds, but shows the prior, as one
    hypothesis after another, for informative motion; `frozen` adds nothing. At most `limit`
    transitions are added (None: no limit). Before the first transition, `online` and `frozen` show zeros.
    `uncertainty` measures how well the transitions determine z, in every mode.
    With a `half_life`, a transition counts half as much after that many newer ones. None: all count the same.
    With `detect_changes`, the context continues with the transitions since a change of the task, where `detection` is
    "on": where the checkpoint has a vote model. While a change is only suspected, `online` shows the mean of the
    suspected transitions, and returns to that of all if the suspicion passes. A pause of more than `max_gap_s` (None:
    any) starts it again.
    `restarts` counts both, and `last_restart` tells why.
    An agent without a context encoder counts transitions and shows zeros, or its `oracle_context`.
    """

    def __init__(self, deployed: Deployable, networks: Networks | None = None) -> None:
        """`networks`: those of `deployed`, if several trackers share them."""
        self._networks = networks or deployed.networks()
        self._context_dim = self._networks.context_dim
        self.hold_sums(np.zeros((4, self._context_dim)))
        self.weight = self._square_weight = 0.0  # votes counted by their decay, and by its square
        self.half_life: float | None = None
        method, rate_hz = deployed.config.method, deployed.contract.rate_hz
        steps = max(1, round(method.hypothesis_s * rate_hz))
        self._hypotheses = Hypotheses(self._networks.task_means, steps, method.collect)
        self._mode = "online"
        self.limit: int | None = None
        self.oracle_context: np.ndarray | None = None  # the true task vector (Z,), for the oracle in a simulation
        self.count = 0
        self.detect_changes = True
        self.max_gap_s: float | None = None
        self.restarts = 0  # since construction: reset() on request is none
        self.last_restart = ""
        self._model = deployed.vote_model if self._networks.has_encoder else None
        self.detector = None if self._model is None else ChangeDetector(self._model)
        self._why_not = deployed.no_vote_model if self._networks.has_encoder else "the method has no context encoder"
        self._recent: list[np.ndarray] = []  # the last embeddings, as many as the detector can blame on a new task
        self._suspected: np.ndarray | None = None  # (N, E) embeddings that look like a new task's
        self._last_ns: int | None = None  # time of the last transition

    def hold_sums(self, arrays: np.ndarray) -> None:
        """Keep the sums of the votes in (4, Z) of zeros."""
        self._sums = VoteSums(arrays)

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"context mode {mode!r} is unknown; use one of: {', '.join(MODES)}")
        self._mode = mode

    @property
    def detection(self) -> str:
        """Whether changes of the task are noticed: "on", or "off" and why."""
        if not self.detect_changes:
            return "off: switched off"
        return "on" if self.detector is not None else f"off: {self._why_not}"

    @property
    def suspicious(self) -> bool:
        """Whether the context shown is that of transitions suspected to be a new task's."""
        return self._suspected is not None

    def reset(self) -> None:
        """Forget all transitions: back to the prior."""
        self._forget()
        self._last_ns = None
        if self.detector is not None:
            self.detector.reset()

    def _forget(self) -> None:
        self._sums.clear()
        self.weight = self._square_weight = 0.0
        self.count = 0
        self._recent.clear()
        self._suspected = None
        self._hypotheses.reset()

    def update(self, transition: Transition) -> bool:
        """Add a transition unless frozen or full; returns whether it was added."""
        if self.full:
            return False
        self.watch_gap(transition.t_ns)
        if self._networks.has_encoder:
            vote, detector = self._networks.embed(transition), self.watching
            self.add_vote(vote, detector.update(transition.observation, transition.action, vote) if detector else 0)
        else:
            self.count += 1
            self._hypotheses.advance(self.count, self._sums.mean)
        return True

    @property
    def full(self) -> bool:
        """Whether transitions are no longer added."""
        return self._mode == "frozen" or (self.limit is not None and self.count >= self.limit)

    @property
    def watching(self) -> ChangeDetector | None:
        """The detector that each vote is shown to."""
        return self.detector if self.detect_changes else None

    def watch_gap(self, t_ns: int) -> None:
        """Start again after a pause in which anything may have happened."""
        gap_s = 0.0 if self._last_ns is None else (t_ns - self._last_ns) / 1e9
        if self.max_gap_s is not None and self.count and gap_s > self.max_gap_s:
            self.reset()
            self._note_restart(f"no transition for {gap_s:.1f} s")
        self._last_ns = t_ns

    def add_vote(self, vote: np.ndarray, changed: int) -> None:
        """Add an embedding (E,), after which the detector finds the last `changed` to be of a new task; these go on."""
        self._add(vote)
        self.remember_vote(vote, changed)

    def remember_vote(self, vote: np.ndarray, changed: int) -> None:
        """Look back after a vote has been added to the sums."""
        if self.watching is not None:
            self._look_back(vote, changed, self.watching)
        if self._mode == "collect":
            self._hypotheses.advance(self.count, self._sums.mean)

    def _look_back(self, vote: np.ndarray, changed: int, detector: ChangeDetector) -> None:
        self._recent = [*self._recent[1 - PENDING :], vote]
        if changed:
            kept = self._recent[-changed:]
            before = self.count - len(kept)
            self._forget()
            for vote in kept:
                self._add(vote)
            self._recent = kept
            self._note_restart(f"the task changed: the last {len(kept)} transitions contradict the {before} before")
        suspected = detector.suspected
        self._suspected = np.array(self._recent[-suspected:]) if suspected else None

    def _note_restart(self, reason: str) -> None:
        self.restarts += 1
        self.last_restart = reason

    def _add(self, embedding: np.ndarray) -> None:
        """Add an embedding (E,)."""
        keep = 1.0 if self.half_life is None else 0.5 ** (1 / self.half_life)
        self._sums.add(embedding, keep)
        self.count_vote(keep)

    def count_vote(self, keep: float = 1.0) -> None:
        """Count a vote, for which all before fall to `keep` of their weight."""
        self.weight, self._square_weight = keep * self.weight + 1, keep**2 * self._square_weight + 1
        self.count += 1

    @property
    def shows_mean(self) -> bool:
        """Whether the context shown is the mean of the embeddings, once there are any."""
        return (
            self.oracle_context is None
            and self._mode != "collect"
            and (self._suspected is None or self._mode != "online")
        )

    @property
    def context(self) -> np.ndarray:
        """The task vector to act on now, (Z,) float32."""
        if self.oracle_context is not None:
            return self.oracle_context
        if self._mode == "collect":
            return self._hypotheses.shown
        if self.count == 0:
            return np.zeros(self._context_dim, np.float32)
        if self._suspected is not None and self._mode == "online":
            return weighted_mean(self._suspected, self._context_dim).astype(np.float32)
        return self._sums.mean.astype(np.float32)

    @property
    def uncertainty(self) -> np.ndarray:
        """Standard error of z, (Z,) float32; ones before two transitions, and where no vote is worth anything.

        That of independent votes, each of the variance that its weight says (see votes.VoteSums), and with a vote model
        at least that of so many consecutive ones in the data, which are similar and depend on where the robot is.
        """
        if self.count < 2 or not self._networks.has_encoder:
            return np.full(self._context_dim, NOTHING_KNOWN, np.float32)
        if self._suspected is not None and self._mode == "online":
            count = decayed = float(len(self._suspected))
            sums = sums_of(self._suspected, self._context_dim)
        else:
            count, decayed, sums = self.weight**2 / self._square_weight, self.weight, self._sums
        error = sums.error(decayed) if decayed > 1 else np.zeros(self._context_dim)
        error = np.where(sums.known, error, NOTHING_KNOWN)
        if self._model is not None:
            error = np.maximum(error, self._model.error_of_mean(count))
        return error.astype(np.float32)
