# SPDX-License-Identifier: Apache-2.0
"""The task vector z on a robot, from running sums that start again when the task changes: no gradient, no history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spc_core.alignment.streaming import Transition
from spc_core.deploy.change_detector import PENDING, ChangeDetector
from spc_core.deploy.deployable import Deployable, Networks
from spc_core.deploy.hypotheses import Hypotheses
from spc_core.deploy.task_belief import TaskBelief
from spc_core.deploy.votes import VoteSums, sums_of

MODES = ("online", "collect", "frozen")
DOUBTFUL = 2.0  # TaskBelief.doubt from which on a person is told
NOTHING_KNOWN = 1.0  # uncertainty before two transitions: embeddings range over [-1, 1]


class Said(NamedTuple):
    """What a transition says of the task."""

    embedding: np.ndarray  # (E,), its vote
    evidence: np.ndarray  # (K,) its log-likelihood under each candidate of the belief, without one (0,)


def evidence_of(belief: TaskBelief | None, transitions: Sequence[Transition]) -> np.ndarray:
    """Log-likelihoods of N transitions under each candidate (N, K), without a belief (N, 0)."""
    return np.zeros((len(transitions), 0)) if belief is None else belief.log_likelihoods(transitions)


def belief_of(deployed: Deployable, has_encoder: bool) -> tuple[TaskBelief | None, str]:
    """The belief that z is judged by, or None and why."""
    if not has_encoder:
        return None, "the method has no context encoder"
    if deployed.task_belief is None:
        return None, deployed.no_task_belief
    if deployed.vote_model is None:  # consecutive votes are alike: without it their mean seems certain after two
        return None, f"the error of the votes is not known: {deployed.no_vote_model}"
    return deployed.task_belief, ""


class ContextTracker:
    """The task vector z from the transitions seen so far; the cost of a transition does not grow with the history.

    z is the mean of the transitions' votes; with a `belief`, joined with the tasks that best explain them (TaskBelief).
    Modes: `online` adds each transition and shows the result at once; `collect` adds, but shows the prior, as one
    hypothesis after another, for informative motion; `frozen` adds nothing. At most `limit`
    transitions are added (None: no limit). Before the first transition, `online` and `frozen` show zeros.
    `uncertainty` measures how well the votes determine z, in every mode.
    With a `half_life`, a transition counts half as much after that many newer ones. None: all count the same.
    With `detect_changes`, the context continues with the transitions since a change of the task, where `detection` is
    "on": where the checkpoint has a vote model. While a change is only suspected, `online` shows the z of the
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
        self.belief, self._no_belief = belief_of(deployed, self._networks.has_encoder)
        self._evidence = np.zeros(0 if self.belief is None else len(self.belief.candidates))
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
        self._recent: list[Said] = []  # of the last transitions, as many as the detector can blame on a new task
        self._suspected: list[Said] = []  # of those that look like a new task's
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
    def judging(self) -> str:
        """Whether the world model judges which task it is: "on", "on" with how far it doubts, or "off" and why."""
        if self.belief is None:
            return f"off: {self._no_belief}"
        doubt = self.belief.doubt(*self._judged) if self.count else 0.0
        if doubt < DOUBTFUL:
            return "on"
        return (
            f"on, in doubt: the task or the place is unlike the recordings, which the world model explains better by "
            f"{doubt + 1:.1f} standard deviations"
        )

    @property
    def suspicious(self) -> bool:
        """Whether the context shown is that of transitions suspected to be a new task's."""
        return bool(self._suspected)

    def reset(self) -> None:
        """Forget all transitions: back to the prior."""
        self._forget()
        self._last_ns = None
        if self.detector is not None:
            self.detector.reset()

    def _forget(self) -> None:
        self._sums.clear()
        self._evidence[:] = 0
        self.weight = self._square_weight = 0.0
        self.count = 0
        self._recent, self._suspected = [], []
        self._hypotheses.reset()

    def update(self, transition: Transition) -> bool:
        """Add a transition unless frozen or full; returns whether it was added."""
        if self.full:
            return False
        self.watch_gap(transition.t_ns)
        if self._networks.has_encoder:
            vote, detector = self._networks.embed(transition), self.watching
            said = Said(vote, evidence_of(self.belief, [transition])[0])
            changed = detector.update(transition.observation, transition.action, vote) if detector else 0
            self._add(said)
            self.remember(said, changed)
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

    def remember(self, said: Said, changed: int) -> None:
        """Look back after a transition has been added, after which the last `changed` are of a new task; they go on."""
        if self.watching is not None:
            self._look_back(said, changed, self.watching)
        if self._mode == "collect":
            self._hypotheses.advance(self.count, self._estimate)

    def _look_back(self, said: Said, changed: int, detector: ChangeDetector) -> None:
        self._recent = [*self._recent[1 - PENDING :], said]
        if changed:
            kept = self._recent[-changed:]
            before = self.count - len(kept)
            self._forget()
            for one in kept:
                self._add(one)
            self._recent = kept
            self._note_restart(f"the task changed: the last {len(kept)} transitions contradict the {before} before")
        suspected = detector.suspected
        self._suspected = self._recent[-suspected:] if suspected else []

    def _note_restart(self, reason: str) -> None:
        self.restarts += 1
        self.last_restart = reason

    def _add(self, said: Said) -> None:
        keep = 1.0 if self.half_life is None else 0.5 ** (1 / self.half_life)
        self._sums.add(said.embedding, keep)
        self.count_in(said, keep)

    def count_in(self, said: Said, keep: float = 1.0) -> None:
        """Count a transition whose vote is in the sums; all before fall to `keep` of their weight."""
        self.weight, self._square_weight = keep * self.weight + 1, keep**2 * self._square_weight + 1
        self.count += 1
        self._evidence *= keep
        self._evidence += said.evidence

    @property
    def shows_mean(self) -> bool:
        """Whether the context shown is the mean of the votes, once there are any."""
        return (
            self.belief is None
            and self.oracle_context is None
            and self._mode != "collect"
            and not self._shows_suspected
        )

    @property
    def _shows_suspected(self) -> bool:
        """Whether the context is that of the suspected transitions alone."""
        return self.suspicious and self._mode == "online"

    @property
    def _shown_sums(self) -> VoteSums:
        """Of the votes behind the context shown."""
        if not self._shows_suspected:
            return self._sums
        return sums_of(np.array([one.embedding for one in self._suspected]), self._context_dim)

    @property
    def context(self) -> np.ndarray:
        """The task vector to act on now, (Z,) float32."""
        if self.oracle_context is not None:
            return self.oracle_context
        if self._mode == "collect":
            return self._hypotheses.shown
        if self.count == 0:
            return np.zeros(self._context_dim, np.float32)
        return self._estimate.astype(np.float32)

    @property
    def _estimate(self) -> np.ndarray:
        """z (Z,) of the transitions, of the suspected ones alone where these are shown."""
        sums = self._shown_sums
        if self.belief is None:
            return sums.mean
        return self.belief.joined(*self._judged, sums.mean, self.uncertainty)

    @property
    def _judged(self) -> tuple[np.ndarray, float]:
        """The evidence (K,) of the transitions behind the context shown, and their number."""
        if not self._shows_suspected:
            return self._evidence, self.weight
        return np.sum([one.evidence for one in self._suspected], 0), float(len(self._suspected))

    @property
    def uncertainty(self) -> np.ndarray:
        """Standard error of z by the votes, (Z,) float32; ones before two, and where no vote is worth anything.

        That of independent votes, each of the variance that its weight says (see votes.VoteSums), and with a vote model
        at least that of so many consecutive ones in the data, which are similar and depend on where the robot is.
        """
        if self.count < 2 or not self._networks.has_encoder:
            return np.full(self._context_dim, NOTHING_KNOWN, np.float32)
        if self._shows_suspected:
            count = decayed = float(len(self._suspected))
        else:
            count, decayed = self.weight**2 / self._square_weight, self.weight
        sums = self._shown_sums
        error = sums.error(decayed) if decayed > 1 else np.zeros(self._context_dim)
        error = np.where(sums.known, error, NOTHING_KNOWN)
        if self._model is not None:
            error = np.maximum(error, self._model.error_of_mean(count))
        return error.astype(np.float32)
