# SPDX-License-Identifier: Apache-2.0
"""What a policy does about each observation, each context, and about their failing to come: one command, made safe."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from spc_core.alignment.faults import Fault, FaultKind
from spc_core.alignment.streaming import Frame
from spc_core.contract.contract import Contract
from spc_core.deploy.deployable import Policy
from spc_core.deploy.guards import (
    EmergencyStop,
    Heartbeat,
    ObservationWatch,
    Reaction,
    ReactionKind,
    StallWatch,
    WorkspaceBox,
)
from spc_core.deploy.latency_bins import LatencyBins
from spc_core.deploy.model_swap import ModelSwitch
from spc_core.deploy.safety import InterventionKind, InterventionLog, SafetyFilter, by_name

AGES = 1000  # contexts whose age is kept until somebody asks


class Outlet(Protocol):
    """What a controller acts through."""

    def send(self, action: np.ndarray, t_ns: int) -> None:
        """The command (A,) that answers the tick at `t_ns`."""

    def tell(self, news: str) -> None:
        """JSON about an intervention."""

    def swapped(self, state: str, model: int, reason: str = "") -> None:
        """A model took over, or went back."""

    def deactivate(self, reason: str) -> None:
        """Close the gate; calls `Controller.stop`."""

    def is_heard(self) -> bool:
        """Whether all who need the commands would get them."""
        ...


@dataclasses.dataclass(frozen=True)
class Guards:
    """What may keep an answer from being sent."""

    watch: ObservationWatch
    box: WorkspaceBox
    stop: EmergencyStop
    clock: Heartbeat  # of simulated time
    context: Heartbeat
    stall: StallWatch


@dataclasses.dataclass
class Record:
    """What has happened so far. It outlives a controller."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    log: InterventionLog = dataclasses.field(default_factory=InterventionLog)
    latency: LatencyBins = dataclasses.field(default_factory=LatencyBins)


class Controller:
    """Frames, contexts and steady times in; commands and news out. Nothing leaves before `start` or after `stop`."""

    def __init__(
        self,
        contract: Contract,
        models: ModelSwitch[Policy],
        context_dim: int,
        guards: Guards,
        outlet: Outlet,
        record: Record,
    ) -> None:
        self.models, self.guards, self.record, self._outlet = models, guards, record, outlet
        self.filter = SafetyFilter(contract)
        self.context_wait_s = 0.0  # longest wait for the context of the same tick
        self.last_ns = 0  # the last frame's time
        self._gap_ns = 2 * contract.period_ns
        self._z, self._z_ns = np.zeros(context_dim, np.float32), 0
        self._z_model: int | None = None  # whose encoder made z
        self._ages_ns: deque[int] = deque(maxlen=AGES)  # of the contexts that were acted on
        self._frame: Frame | None = None  # waits for its context, or for the first listeners
        self._frame_s = 0.0
        self._active = self._heard = False

    @property
    def waiting(self) -> bool:
        """Whether an observation is still to be answered."""
        return self._frame is not None

    def start(self) -> None:
        """The gate is open: begin anew."""
        self.guards.watch.reset()
        self._begin_sequence()
        self._frame, self._active = None, True

    def stop(self) -> None:
        """The gate closes: the safe action is the last one."""
        self._frame, self._active = None, False
        self._send(None, "the policy is being closed", self.last_ns, InterventionKind.CLOSED)

    def await_listeners(self) -> None:
        """Before the next command, see anew whether it would be heard."""
        self._heard = False

    def observe(self, frames: Sequence[Frame], fresh: bool, now_s: float, rest_s: float = 0.0) -> bool:
        """Answer the last of the frames that were decided; returns whether it was news.

        `fresh` tells that a message of the first stream brought it, else the one before was held. `rest_s` is how
        long nobody may have called.
        """
        frame, guards = frames[-1], self.guards
        if not self._active or (guards.watch.silent and not fresh):
            return False
        if any(f.fault for f in frames) or frame.t_ns - self.last_ns > self._gap_ns:
            self._begin_sequence()
            self.record.counts["sequences begun"] += 1
        self.last_ns = frame.t_ns
        if guards.stall.held_up(now_s, rest_s):
            self._react(guards.watch.bad(Fault(FaultKind.HELD_UP), now_s, fresh))
        elif frame.observation is None:
            fault = frame.fault or Fault(FaultKind.NO_OBSERVATION)
            self._react(guards.watch.bad(fault, now_s, fresh, frame.also))
        else:
            if fresh:
                guards.watch.good(now_s)
            self._frame, self._frame_s = frame, now_s
            self.act(now_s)
        return True

    def look(self, now_s: float, faults: Callable[[], list[Fault]], rest_s: float = 0.0) -> None:
        """By a steady clock: silence where observations should be. `faults` tells what is wrong with the streams."""
        watch = self.guards.watch
        if self.guards.stall.held_up(now_s, rest_s):
            self._frame = None  # an observation of before
        if not self._active:
            return
        if not self.waiting and (reaction := watch.check(now_s)) is not None:  # else the robot waits for us
            self.record.counts["silences"] += watch.silent
            self._react(reaction)
        if self._active and watch.silent:  # a hold is not for streams that fail besides
            reaction = watch.worse(faults(), now_s)
            if reaction is not None:
                self._react(reaction)

    def act(self, now_s: float) -> None:
        """Answer the waiting frame, if nothing that it waits for is still to come."""
        frame = self._frame
        if frame is None or frame.observation is None or not self._active or not self._is_heard(now_s):
            return
        if self._z_ns < frame.t_ns and self.context_wait_s > 0:
            if now_s - self._frame_s < self.context_wait_s:
                return
            self.record.counts["context came too late"] += 1
        self._frame = None
        if self.models.take(self._z_model):
            self._outlet.swapped("swapped", self.models.model_id)
        refusal, action = self._refusal(frame.observation, now_s), None
        if refusal is None:
            action, refusal = self._answer(frame.observation, now_s)
        kind, reason = refusal or (InterventionKind.FAULT, None)
        self._send(action, reason, frame.t_ns, kind)
        self.record.latency.note(time.monotonic() - self._frame_s)
        self._ages_ns.append(frame.t_ns - self._z_ns)
        self.record.counts["commands"] += 1

    def take_context(self, context: np.ndarray, t_ns: int, model: int | None, now_s: float) -> None:
        """The task vector (Z,) meant for the tick at `t_ns`, by this model's encoder. Raises ValueError."""
        if len(context) != len(self._z) or not math.isfinite(sum(context.tolist())):
            raise ValueError(f"{context.size} numbers, not {self._z.size} finite ones")
        self._z, self._z_ns, self._z_model = context, t_ns, model
        self.guards.context.look(now_s, now_s)
        self.act(now_s)

    def emergency_stop(self, pressed: bool, now_s: float) -> None:
        """The stop topic spoke."""
        self.guards.stop.heard(pressed, now_s)
        if pressed and self._active:
            self._frame = None
            self._send(None, "emergency stop", self.last_ns, InterventionKind.EMERGENCY_STOP)

    def values(self) -> dict[str, Any]:
        """For `/diagnostics`."""
        values = {**by_name(self.filter.counts), **self.record.log.values(), "model": self.models.model_id}
        if self._ages_ns and self._z_ns:
            values["context age ms"] = f"{statistics.median(self._ages_ns) / 1e6:.2f}"
            self._ages_ns.clear()
        planner = self.models.model.planner
        if planner is not None:
            values |= {"plans": planner.plans, "plans cut short": planner.cut_short, "plans too late": planner.late}
        return values

    def _begin_sequence(self) -> None:
        """What comes next does not follow from what was: an episode, or the end of a gap."""
        self.filter.reset()
        self.models.model.reset()

    def _react(self, reaction: Reaction) -> None:
        """An observation is bad or fails to come."""
        self._frame = None
        if reaction.kind is ReactionKind.HOLD:
            self._note(InterventionKind.HOLD, reaction.reason)
        else:
            self._begin_sequence()
            kind = InterventionKind.SILENCE if self.guards.watch.silent else InterventionKind.FAULT
            self._send(None, reaction.reason, self.last_ns, kind)
        if reaction.kind is ReactionKind.DEACTIVATE:
            self._outlet.deactivate(reaction.reason)

    def _answer(self, observation: np.ndarray, now_s: float) -> Any:
        """(action, refusal): of the model, or of the former one where this one fails on probation."""
        models, begin_s = self.models, time.monotonic()
        action = models.model.act(observation, self._z)
        failed_id = models.model_id
        why = models.judge(action, time.monotonic() - begin_s)
        if why is None:
            return action, None
        self._outlet.swapped("rolled back", models.model_id, f"model {failed_id}: {why}")
        self._note(InterventionKind.ROLLBACK, why)
        refusal = self._refusal(observation, now_s)  # z may be the failed model's
        return (models.model.act(observation, self._z), None) if refusal is None else (None, refusal)

    def _refusal(self, observation: np.ndarray, now_s: float) -> tuple[InterventionKind, str] | None:
        """(kind, reason) to send the safe action instead of an answer."""
        guards = self.guards
        if reason := guards.stop.reason(now_s):
            return InterventionKind.EMERGENCY_STOP, reason
        if self._z_model not in (None, self.models.model_id):
            reason = f"context: made by model {self._z_model}, the policy is {self.models.model_id}"
            return InterventionKind.FOREIGN_MODEL, reason
        if reason := guards.clock.reason(now_s):
            return InterventionKind.FROZEN_CLOCK, reason
        if reason := guards.context.reason(now_s):
            return InterventionKind.CONTEXT_LOST, reason
        reason = guards.box.reason(observation)
        return (InterventionKind.WORKSPACE, reason) if reason else None

    def _send(self, action: np.ndarray | None, fault: str | None, t_ns: int, kind: InterventionKind) -> None:
        self._outlet.send(self.filter.apply(action, fault, kind), t_ns)
        for what, reason in self.filter.happened:
            self._note(what, reason)

    def _note(self, kind: InterventionKind, reason: str) -> None:
        news = self.record.log.note(kind, reason, self.last_ns, time.monotonic())
        if news is not None:
            self._outlet.tell(news)

    def _is_heard(self, now_s: float) -> bool:
        """In lock-step, the first command waits until all who need it would get it."""
        if not self._heard:
            self._heard = self._outlet.is_heard()
            self._frame_s = now_s
        return self._heard
