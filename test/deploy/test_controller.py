# SPDX-License-Identifier: Apache-2.0
"""The controller's commands for observations, contexts and missing ones, without ROS and without waiting."""

import json
import math

import numpy as np
import pytest

from spc_core.alignment.faults import Fault, FaultKind
from spc_core.alignment.streaming import Frame, ObservationAligner
from spc_core.contract.contract import parse_contract
from spc_core.contract.sections import observed
from spc_core.deploy.controller import Controller, Guards, Record
from spc_core.deploy.emergency_stop import EmergencyStop
from spc_core.deploy.guards import Heartbeat, Mode, ObservationWatch, StallWatch, WorkspaceBox
from spc_core.deploy.model_swap import ModelSwitch
from spc_core.deploy.safety import InterventionKind
from support.contracts import ARM_REACH

PERIOD_NS = ARM_REACH.period_ns
PERIOD_S = 1 / ARM_REACH.rate_hz
SAFE = list(ARM_REACH.action.safe)
FORCE = """  - topic: %s
    type: sensor_msgs/msg/JointState
    fields: [effort.elbow]
    max_age_s: 0.05
"""
OLD, NEW = 11, 22  # ids of models


class Model:
    """Answers with a constant, plus the context's first number."""

    planner = None

    def __init__(self, value):
        self.value, self.resets = value, 0

    def act(self, observation, context):
        return np.full(ARM_REACH.action_dim, self.value + context[0])

    def reset(self):
        self.resets += 1


class Robot:
    """Everything that leaves the controller, in order."""

    def __init__(self):
        self.sent, self.events, self.swaps, self.closed, self.listens = [], [], [], [], True

    def send(self, action, t_ns):
        self.sent.append((action.tolist(), t_ns))

    def publish_intervention(self, event):
        self.events.append(json.loads(event)["kind"])

    def publish_swap(self, state, model, reason=""):
        self.swaps.append((state, model, reason))

    def deactivate(self, reason):
        self.closed.append(reason)
        self.control.stop()

    def has_listeners(self):
        return self.listens


@pytest.fixture
def robot():
    return Robot()


@pytest.fixture
def model():
    return Model(0.25)


@pytest.fixture
def control(robot, model):
    return make(robot, model)


def make(robot, model, *modes, context_timeout_s=0.0, contract=ARM_REACH):
    topics = [stream.topic for stream in contract.observation]
    guards = Guards(
        ObservationWatch(topics, modes or [Mode()], 1.5 * PERIOD_S),
        WorkspaceBox(contract, (), (), ()),
        EmergencyStop(),
        Heartbeat("clock", 0.0),
        Heartbeat("context: silent", context_timeout_s),
        StallWatch(1.5 * PERIOD_S, PERIOD_S / 2),
    )
    switch = ModelSwitch(model, OLD, probation_ticks=5, deadline_s=math.inf)
    robot.control = Controller(contract, switch, 2, guards, robot, Record())
    robot.control.start(0.0)
    return robot.control


def tick(control, k, fault=None):
    """Observation number k, when it is due."""
    observation = None if fault else np.zeros(ARM_REACH.observation_dim)
    return control.observe([Frame(k * PERIOD_NS, observation, fault)], True, k * PERIOD_S)


def press(control, pressed, now_s):
    control.guards.stop.receive(pressed, now_s)
    control.emergency_stop(pressed)


def rate_limited(value):
    """A constant action, as far as the rate limit allows it right after rest."""
    step = [rate / ARM_REACH.rate_hz for rate in ARM_REACH.action.max_rate]
    return [min(value, most) for most in step]


def test_an_observation_becomes_one_command(control, robot):
    assert tick(control, 1) and robot.sent == [(rate_limited(0.25), PERIOD_NS)]
    control.take_context(np.array([0.125, 0.0], np.float32), PERIOD_NS, OLD, PERIOD_S)
    assert len(robot.sent) == 1, "a context alone asks for no command"
    tick(control, 2)
    assert robot.sent[1] == ([0.375] * ARM_REACH.action_dim, 2 * PERIOD_NS)
    assert control.record.counts["commands"] == 2 and not robot.events


def test_a_wait_for_the_context_of_the_same_tick(control, robot):
    control.context_wait_s = 0.5 * PERIOD_S
    tick(control, 1)
    assert control.waiting and not robot.sent
    control.take_context(np.zeros(2, np.float32), PERIOD_NS, OLD, 1.1 * PERIOD_S)
    assert len(robot.sent) == 1 and not control.waiting
    tick(control, 2)
    control.act(2.4 * PERIOD_S)
    assert len(robot.sent) == 1
    control.act(2.6 * PERIOD_S)
    assert len(robot.sent) == 2 and control.record.counts["context came too late"] == 1


def test_nothing_is_sent_without_listeners(control, robot):
    robot.listens = False
    tick(control, 1)
    assert control.waiting and not robot.sent
    robot.listens = True
    control.act(1.2 * PERIOD_S)
    assert len(robot.sent) == 1
    robot.listens = False
    tick(control, 2)
    assert len(robot.sent) == 2, "asked once"
    control.await_listeners()
    tick(control, 3)
    assert len(robot.sent) == 2


def test_a_fault_is_answered_with_the_safe_action_and_begins_a_sequence(control, robot, model):
    tick(control, 1)
    before = model.resets
    tick(control, 2, Fault(FaultKind.NOT_FINITE, "joint_states", 0, "velocity"))
    assert robot.sent[-1] == (SAFE, 2 * PERIOD_NS) and model.resets > before
    assert robot.events == ["fault"] and control.record.log.counts == {InterventionKind.FAULT: 1}
    tick(control, 3)
    assert robot.sent[-1] == (rate_limited(0.25), 3 * PERIOD_NS)


def test_silence_is_answered_once_and_then_deactivates(robot, model):
    control = make(robot, model, Mode(0.0, 1.0))
    tick(control, 1)
    sent = []
    for k in range(1, 130):
        now_s = PERIOD_S * (1 + 0.4 * k)
        control.check_silence(now_s, list)
        sent.append(len(robot.sent))
        assert not control.waiting
    assert sent[:4] == [1, 1, 1, 2], "safe after 1.5 periods"
    assert len(robot.closed) == 1 and "no observation" in robot.closed[0] and robot.sent[-1][0] == SAFE
    assert not tick(control, 80) and len(robot.sent) == sent[-1], "closed: nothing leaves"


def test_an_observation_repeated_after_silence_is_not_used(control, robot):
    tick(control, 1)
    for k in (1.6, 2.0, 2.6):
        control.check_silence(k * PERIOD_S, list)
    count = len(robot.sent)
    old = Frame(2 * PERIOD_NS, np.zeros(ARM_REACH.observation_dim))
    assert not control.observe([old], False, 2.7 * PERIOD_S) and len(robot.sent) == count


def test_messages_queued_during_a_stall_are_not_acted_on(control, robot):
    tick(control, 1)
    late_s = 9 * PERIOD_S
    for k in (2, 3):
        control.observe([Frame(k * PERIOD_NS, np.zeros(ARM_REACH.observation_dim))], True, late_s)
        assert robot.sent[-1] == (SAFE, k * PERIOD_NS)
    control.check_silence(9.4 * PERIOD_S, list)
    control.observe([Frame(10 * PERIOD_NS, np.zeros(ARM_REACH.observation_dim))], True, 10 * PERIOD_S)
    assert robot.sent[-1] == (rate_limited(0.25), 10 * PERIOD_NS)


def test_an_intended_pause_is_not_a_stall(control, robot):
    tick(control, 1)
    frame = Frame(2 * PERIOD_NS, np.zeros(ARM_REACH.observation_dim))
    control.observe([frame], True, 3 * PERIOD_S, rest_s=2 * PERIOD_S)
    assert robot.sent[-1][0] != SAFE


def test_the_context_of_another_model_is_not_acted_on(control, robot):
    control.take_context(np.zeros(2, np.float32), 0, NEW, 0.0)
    tick(control, 1)
    assert robot.sent == [(SAFE, PERIOD_NS)] and robot.events == ["foreign model"]
    control.take_context(np.zeros(2, np.float32), 0, None, PERIOD_S)
    tick(control, 2)
    assert robot.sent[-1][0] != SAFE, "a context without a model is used"


def test_an_invalid_context_is_refused(control):
    with pytest.raises(ValueError, match="3 numbers, not 2 finite ones"):
        control.take_context(np.zeros(3, np.float32), 0, None, 0.0)
    with pytest.raises(ValueError, match="finite"):
        control.take_context(np.array([np.nan, 0.0], np.float32), 0, None, 0.0)


def test_a_lost_context_is_safe_after_its_timeout(robot, model):
    control = make(robot, model, context_timeout_s=1.2 * PERIOD_S)
    control.take_context(np.zeros(2, np.float32), 0, None, PERIOD_S)
    tick(control, 2)
    assert robot.sent[-1][0] != SAFE
    tick(control, 3)
    assert robot.sent[-1][0] == SAFE and robot.events == ["context lost"]


def test_a_new_model_takes_over_with_its_own_context_and_is_rolled_back_when_it_fails(control, robot):
    new = Model(0.125)
    control.models.offer(new, NEW)
    control.take_context(np.zeros(2, np.float32), 0, OLD, 0.0)
    tick(control, 1)
    assert not robot.swaps, "the old encoder is still in use"
    control.take_context(np.zeros(2, np.float32), 0, NEW, PERIOD_S)
    tick(control, 2)
    assert robot.swaps == [("swapped", NEW, "")] and robot.sent[-1] == (rate_limited(0.125), 2 * PERIOD_NS)
    new.value = math.nan
    tick(control, 3)
    assert robot.swaps[-1] == ("rolled back", OLD, f"model {NEW}: its action is not finite")
    assert robot.sent[-1] == (SAFE, 3 * PERIOD_NS), "z is the failed model's"
    control.take_context(np.zeros(2, np.float32), 0, OLD, 3 * PERIOD_S)
    tick(control, 4)
    assert robot.sent[-1][0] == rate_limited(0.25)


def test_an_emergency_stop_is_answered_at_once_and_until_released(control, robot):
    tick(control, 1)
    press(control, True, 1.1 * PERIOD_S)
    assert robot.sent[-1] == (SAFE, PERIOD_NS)
    tick(control, 2)
    assert robot.sent[-1] == (SAFE, 2 * PERIOD_NS)
    press(control, False, 2.1 * PERIOD_S)
    tick(control, 3)
    assert robot.sent[-1] == (rate_limited(0.25), 3 * PERIOD_NS)


def test_the_safe_action_is_the_last_one(control, robot):
    tick(control, 1)
    control.stop()
    assert robot.sent[-1] == (SAFE, PERIOD_NS) and robot.events == ["closed"]
    press(control, True, 2 * PERIOD_S)
    control.act(2 * PERIOD_S)
    assert not tick(control, 2) and len(robot.sent) == 2


def with_force(topic):
    """The contract with a second observation stream."""
    return parse_contract(ARM_REACH.text.replace("action: #", FORCE % topic + "action: #"), "two streams")


def sent_after(robot, model, contract, samples):
    """The last command after (stream, ms, values), with a long hold for the first stream and none for the second."""
    control, aligner = make(robot, model, Mode(0.5), Mode(), contract=contract), ObservationAligner(contract, 10**9)
    for stream, t_ms, values in samples:
        frames = aligner.push(observed(stream), round(t_ms * 1e6), np.asarray(values, float))
        if frames:
            control.observe(frames, stream == 0, t_ms / 1e3)
    return robot.sent[-1][0]


def test_a_clock_jump_takes_the_hold_of_its_own_stream(robot, model):
    """With the first stream at fault instead, its hold applies and the last command stays in effect."""
    contract, states = with_force("force"), [0.0] * 4
    good = [(1, 10_000, [0.0]), (0, 10_000, states), (1, 10_020, [0.0]), (0, 10_020, states)]
    assert sent_after(robot, model, contract, [*good, (1, 40, [0.0])]) == SAFE
    assert robot.events == ["fault"]
    robot.sent.clear()
    assert sent_after(robot, model, contract, [*good, (0, 40, states)]) != SAFE
    assert robot.events == ["fault", "hold"]


def test_two_streams_of_one_topic_keep_their_own_holds(robot, model):
    contract, nan = with_force("joint_states"), math.nan
    good = [(1, 1_000, [0.0]), (0, 1_000, [0.0] * 4)]
    assert sent_after(robot, model, contract, [*good, (1, 1_020, [nan]), (0, 1_020, [0.0] * 4)]) == SAFE
    robot.sent.clear()
    assert sent_after(robot, model, contract, [*good, (1, 1_020, [0.0]), (0, 1_020, [nan, 0.0, 0.0, 0.0])]) != SAFE
