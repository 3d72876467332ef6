# SPDX-License-Identifier: Apache-2.0
"""Turns each observation, and each missing one, into one safe command; independent of ROS."""

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
from spc_core.deploy.emergency_stop import EmergencyStop
from spc_core.deploy.guards import (
    Heartbeat,
    ObservationWatch,
    Reaction,
    ReactionKind,
    StallWatch,
    WorkspaceBox,
)
from spc_core.deploy.health import ControlHealth, Health, Level
from spc_core.deploy.latency_bins import LatencyBins
from spc_core.deploy.model_swap import ModelSwitch
from spc_core.deploy.safety import InterventionKind, InterventionLog, SafetyFilter, by_name

CONTEXT_AFTER_S = 3.0  # without a context, where one came before
AGES = 1000  # most context ages kept between two reports


class CommandSink(Protocol):
    """Where a controller's commands and events go."""

    def send(self, action: np.ndarray, t_ns: int) -> None:
        """Send the command (A,) for the tick at `t_ns`."""

    def publish_intervention(self, event: str) -> None:
        """Publish JSON about an intervention."""

    def publish_swap(self, state: str, model: int, reason: str = "") -> None:
        """Publish that a model took over or was rolled back."""

    def deactivate(self, reason: str) -> None:
        """Deactivate the node, which calls `Controller.stop`."""

    def has_listeners(self) -> bool:
        """Whether every required subscriber is connected."""
        ...


@dataclasses.dataclass(frozen=True)
class Guards:
    """The checks that can replace an action by the safe one."""

    watch: ObservationWatch
    box: WorkspaceBox
    stop: EmergencyStop
    clock: Heartbeat  # of simulated time
    context: Heartbeat
    stall: StallWatch


@dataclasses.dataclass
class Record:
    """Counters and logs, which outlive a controller."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    log: InterventionLog = dataclasses.field(default_factory=InterventionLog)
    latency: LatencyBins = dataclasses.field(default_factory=LatencyBins)


class Controller:
    """Frames, contexts and steady times in; commands and events out. Sends nothing before `start` or after `stop`."""

    def __init__(
        self,
        contract: Contract,
        models: ModelSwitch[Policy],
        context_dim: int,
        guards: Guards,
        sink: CommandSink,
        record: Record,
    ) -> None:
        self.models, self.guards, self.record, self._sink = models, guards, record, sink
        self.filter = SafetyFilter(contract)
        self.context_wait_s = 0.0  # longest wait for the context of the same tick
        self.last_ns = 0  # the last frame's time
        self._gap_ns = 2 * contract.period_ns
        self._z, self._z_ns = np.zeros(context_dim, np.float32), 0
        self._z_s, self._acted_s = math.inf, -math.inf  # when the newest z came, and the newest command left
        self._z_model: int | None = None  # the model whose encoder computed z
        self._ages_ns: deque[int] = deque(maxlen=AGES)  # of the contexts used
        self._frame: Frame | None = None  # waiting for its context or for the first listeners
        self._frame_s = 0.0
        self._active = self._listened = False
        self._health = ControlHealth()

    @property
    def waiting(self) -> bool:
        """Whether an observation has no command yet."""
        return self._frame is not None

    def start(self, now_s: float) -> None:
        """Begin, at activation."""
        self._health.start(now_s)
        self.guards.watch.reset()
        self._begin_sequence()
        self._frame, self._active = None, True

    def stop(self) -> None:
        """End with the safe action, at deactivation."""
        self._frame, self._active = None, False
        self._send(None, "the policy is being closed", self.last_ns, InterventionKind.CLOSED)
        self._health.stop()

    def await_listeners(self) -> None:
        """Check for listeners again before the next command."""
        self._listened = False

    def observe(self, frames: Sequence[Frame], fresh: bool, now_s: float, rest_s: float = 0.0) -> bool:
        """Act on the last of the completed frames; returns whether it was used.

        `fresh`: a message of the first stream completed it; else the previous one was repeated by zero-order hold.
        `rest_s` is the longest intended pause between calls.
        """
        frame, guards = frames[-1], self.guards
        if not self._active or (guards.watch.silent and not fresh):
            return False
        if any(f.fault for f in frames) or frame.t_ns - self.last_ns > self._gap_ns:
            self._begin_sequence()
            self.record.counts["sequences begun"] += 1
        self.last_ns = frame.t_ns
        if guards.stall.is_stalled(now_s, rest_s):
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

    def check_silence(self, now_s: float, faults: Callable[[], list[Fault]], rest_s: float = 0.0) -> None:
        """React to missing observations, by a steady clock; `faults` returns the current faults of the streams."""
        watch = self.guards.watch
        if self.guards.stall.is_stalled(now_s, rest_s):
            self._frame = None  # too old to act on
        if not self._active:
            return
        if not self.waiting and (reaction := watch.check(now_s)) is not None:  # else the robot waits for this process
            self.record.counts["silences"] += watch.silent
            self._react(reaction)
        if self._active and watch.silent:  # the hold of one stream does not cover another that fails meanwhile
            reaction = watch.worse(faults(), now_s)
            if reaction is not None:
                self._react(reaction)

    def act(self, now_s: float) -> None:
        """Send the command for the waiting frame, once its context and listeners are there."""
        frame = self._frame
        if frame is None or frame.observation is None or not self._active or not self._has_listeners(now_s):
            return
        if self._z_ns < frame.t_ns and self.context_wait_s > 0:
            if now_s - self._frame_s < self.context_wait_s:
                return
            self.record.counts["context came too late"] += 1
        self._frame = None
        if self.models.take(self._z_model):
            self._sink.publish_swap("swapped", self.models.model_id)
        refusal, action = self._refusal(frame.observation, now_s), None
        if refusal is None:
            action, refusal = self._answer(frame.observation, now_s)
        kind, reason = refusal or (InterventionKind.FAULT, None)
        self._send(action, reason, frame.t_ns, kind)
        self.record.latency.add(time.monotonic() - self._frame_s)
        self._ages_ns.append(frame.t_ns - self._z_ns)
        self.record.counts["commands"] += 1
        self._acted_s = now_s

    def take_context(self, context: np.ndarray, t_ns: int, model: int | None, now_s: float) -> None:
        """Use the task vector (Z,) for the tick at `t_ns`, computed by the encoder of `model`. Raises ValueError."""
        if len(context) != len(self._z) or not math.isfinite(sum(context.tolist())):
            raise ValueError(f"{context.size} numbers, not {self._z.size} finite ones")
        self._z, self._z_ns, self._z_model, self._z_s = context, t_ns, model, now_s
        self.guards.context.update(now_s, now_s)
        self.act(now_s)

    def emergency_stop(self, pressed: bool) -> None:
        """React to a message of a stop topic, which `guards.stop` has taken already."""
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

    def health(self, now_s: float, waits_for: str) -> Health:
        """Whether the robot is controlled; `waits_for` tells what is missing where no command is due."""
        if self.waiting:
            waits_for = "the command waits for its context" if self._listened else "the command topic lacks subscribers"
        found = self._health.judge(now_s, waits_for)
        silent_s = now_s - self._z_s
        if found.level or silent_s < CONTEXT_AFTER_S or now_s - self._acted_s > CONTEXT_AFTER_S:
            return found
        text = f"no context for {silent_s:.0f} s, the last one is used: is the context encoder running?"
        return Health(Level.WARN, text)

    def _begin_sequence(self) -> None:
        """Forget the previous tick: a new episode begins, or a gap ends."""
        self.filter.reset()
        self.models.model.reset()

    def _react(self, reaction: Reaction) -> None:
        """Carry out the reaction to a bad or missing observation."""
        self._frame = None
        if reaction.kind is ReactionKind.HOLD:
            self._log(InterventionKind.HOLD, reaction.reason)
            self._health.other(reaction.reason)
        else:
            self._begin_sequence()
            kind = InterventionKind.SILENCE if self.guards.watch.silent else InterventionKind.FAULT
            self._send(None, reaction.reason, self.last_ns, kind)
        if reaction.kind is ReactionKind.DEACTIVATE:
            self._sink.deactivate(reaction.reason)

    def _answer(self, observation: np.ndarray, now_s: float) -> Any:
        """(action, refusal) of the model, or of the previous one if this one fails on probation."""
        models, began_s = self.models, time.monotonic()
        action = models.model.act(observation, self._z)
        failed_id = models.model_id
        failure = models.check(action, time.monotonic() - began_s)
        if failure is None:
            return action, None
        self._sink.publish_swap("rolled back", models.model_id, f"model {failed_id}: {failure}")
        self._log(InterventionKind.ROLLBACK, failure)
        refusal = self._refusal(observation, now_s)  # z may be the failed model's
        return (models.model.act(observation, self._z), None) if refusal is None else (None, refusal)

    def _refusal(self, observation: np.ndarray, now_s: float) -> tuple[InterventionKind, str] | None:
        """(kind, reason) to send the safe action instead of the model's, or None."""
        guards = self.guards
        if reason := guards.stop.reason(now_s):
            return InterventionKind.EMERGENCY_STOP, reason
        if self._z_model not in (None, self.models.model_id):
            reason = (
                f"context: made by model {self._z_model}, the policy is {self.models.model_id}; start both from the "
                "same checkpoint"
            )
            return InterventionKind.FOREIGN_MODEL, reason
        if reason := guards.clock.reason(now_s):
            return InterventionKind.FROZEN_CLOCK, reason
        if reason := guards.context.reason(now_s):
            return InterventionKind.CONTEXT_LOST, reason
        reason = guards.box.reason(observation)
        return (InterventionKind.WORKSPACE, reason) if reason else None

    def _send(self, action: np.ndarray | None, fault: str | None, t_ns: int, kind: InterventionKind) -> None:
        self._sink.send(self.filter.apply(action, fault, kind), t_ns)
        own = True
        for applied, reason in self.filter.interventions:
            self._log(applied, reason)
            if applied not in (InterventionKind.LIMIT, InterventionKind.RATE):
                own = False
                self._health.other(reason)
        if own:
            self._health.own(time.monotonic())

    def _log(self, kind: InterventionKind, reason: str) -> None:
        event = self.record.log.add(kind, reason, self.last_ns, time.monotonic())
        if event is not None:
            self._sink.publish_intervention(event)

    def _has_listeners(self, now_s: float) -> bool:
        """In lock-step, the first command waits until every required subscriber is connected."""
        if not self._listened:
            self._listened = self._sink.has_listeners()
            self._frame_s = now_s
        return self._listened
