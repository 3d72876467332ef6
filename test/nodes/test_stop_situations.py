# SPDX-License-Identifier: Apache-2.0
"""Between processes: the emergency stop, whoever publishes it, in whatever order things start."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition
from std_msgs.msg import Bool, String

from spc_ros.processes import NodeGroup
from support.base_robot import BEST_EFFORT, ERROR, LATCHED, OK, VOLATILE, WARN, BaseRobot
from support.node_probe import Probe

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def robot(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> BaseRobot:
    return BaseRobot(nodes, probe, tmp_path)


@pytest.mark.parametrize(
    "qos",
    [LATCHED, pytest.param(VOLATILE, marks=pytest.mark.slow), pytest.param(BEST_EFFORT, marks=pytest.mark.slow)],
    ids=["latched", "volatile", "best effort"],
)
def test_a_stop_is_heard_and_released_whatever_its_qos(robot: BaseRobot, qos) -> None:
    press = robot.stop_button(qos)
    robot.goal()
    robot.start()
    robot.acts()
    press(True)
    robot.rests()
    robot.says(ERROR, "emergency stop")
    press(False)
    robot.acts()
    robot.says(OK, "ok")


def test_a_latched_stop_that_was_pressed_before_the_start_holds(robot: BaseRobot) -> None:
    """And again after the policy was killed and started once more."""
    press = robot.stop_button(LATCHED)
    press(True)
    robot.goal()
    robot.start(estop_required=True)
    robot.rests()
    robot.nodes.nodes["policy"].process.send_signal(signal.SIGKILL)
    robot.nodes.nodes["policy"].wait(10.0)
    robot.start(estop_required=True)
    robot.rests()
    assert robot.own() == 0
    press(False)
    robot.acts()


def test_without_a_word_that_it_may_a_policy_does_not_act(robot: BaseRobot) -> None:
    robot.goal()
    robot.start(estop_required=True)
    robot.rests()
    robot.says(ERROR, "no message on emergency_stop yet")
    assert robot.own() == 0
    press = robot.stop_button()
    robot.until(lambda: robot.own() > 5, "own commands", each=lambda: press(False))


def test_a_volatile_stop_holds_over_a_clean_up(robot: BaseRobot) -> None:
    """It is said once, and the node is configured again afterwards."""
    press = robot.stop_button()
    robot.goal()
    robot.start()
    robot.acts()
    press(True)
    robot.rests()
    assert robot.change(Transition.TRANSITION_DEACTIVATE)
    assert robot.change(Transition.TRANSITION_CLEANUP)
    assert robot.change(Transition.TRANSITION_CONFIGURE)
    count = len(robot.commands)
    assert robot.change(Transition.TRANSITION_ACTIVATE)
    robot.rests()
    assert robot.own(count) == 0


@pytest.mark.slow
def test_one_publisher_may_not_release_the_press_of_another(robot: BaseRobot) -> None:
    first, second = robot.stop_button(), robot.stop_button()
    robot.goal()
    robot.start()
    robot.acts()
    first(True)
    robot.rests()
    count = len(robot.commands)
    robot.run(1.5, each=lambda: second(False))
    assert robot.own(count) == 0
    robot.says(ERROR, "2 publishers, so one may not release the other's", each=lambda: second(False))


def test_a_press_outlives_another_publisher_that_released_and_left(robot: BaseRobot) -> None:
    """Two consoles: what one has pressed holds, although the other said false and is gone."""
    node = robot.probe.node
    first = robot.stop_button(LATCHED, "operator_stop")
    robot.goal()
    robot.start()
    robot.acts()
    first(True)
    robot.rests()
    second = node.create_publisher(Bool, "operator_stop", LATCHED)
    second.publish(Bool(data=False))
    robot.says(ERROR, "has 2 publishers, so one may not release the other's")
    node.destroy_publisher(second)
    robot.says(ERROR, "emergency stop: operator_stop")
    count = len(robot.commands)
    robot.run(1.5)
    assert robot.own(count) == 0
    first(False)
    robot.acts()


@pytest.mark.slow
def test_the_operators_stop_is_a_topic_of_its_own(robot: BaseRobot) -> None:
    """A console releases its own press, and the robot's heartbeat of false does not."""
    heartbeat, press = robot.stop_button(), robot.stop_button(LATCHED, "operator_stop")
    robot.goal()
    robot.start(estop_required=True)
    robot.until(lambda: robot.own() > 5, "own commands", each=lambda: heartbeat(False))
    press(True)
    robot.rests()
    count = len(robot.commands)
    robot.run(1.0, each=lambda: heartbeat(False))
    assert robot.own(count) == 0
    robot.says(ERROR, "operator_stop", each=lambda: heartbeat(False))
    press(False)
    robot.acts()


def test_a_stop_that_cannot_be_read_is_a_stop(robot: BaseRobot) -> None:
    robot.goal()
    robot.start()
    robot.acts()
    robot.probe.node.create_publisher(String, "emergency_stop", VOLATILE)
    robot.rests()
    robot.says(ERROR, "emergency_stop is published as std_msgs/msg/String by /probe; publish std_msgs/msg/Bool")


@pytest.mark.slow
def test_a_policy_that_waits_for_activation_sends_nothing(robot: BaseRobot) -> None:
    """The choice of deploy.launch.py."""
    robot.goal()
    robot.start(activate=False)
    robot.says(WARN, "inactive: no commands are sent")
    assert not robot.commands
    assert robot.change(Transition.TRANSITION_ACTIVATE)
    robot.acts()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_command_after_a_stop_in_a_hundred_starts(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    """Under load, the stop is pressed before, during or after the start, by publishers of every QoS."""
    robot = BaseRobot(nodes, probe, tmp_path)
    robot.goal()
    profiles = (LATCHED, VOLATILE, BEST_EFFORT)
    with load():
        for number in range(100):
            when, qos = number % 3, profiles[number // 3 % 3]
            press = robot.stop_button(qos)
            pressed: list[int] = []

            def now(pressed=pressed, press=press) -> None:
                pressed.append(len(robot.commands))
                press(True)

            if when == 0:
                now()
            nodes.start("policy", {"checkpoint": str(robot.checkpoint), "estop_required": True})
            if when == 1:
                robot.run(0.02 * number)
                now()
            process = nodes.nodes["policy"]
            robot.until(lambda process=process: process.is_ready, "ready", 60.0)
            if when == 2:
                robot.until(lambda: robot.own(), "own commands", each=lambda press=press: press(False))
                now()
                robot.rests()
                robot.commands.clear()
            robot.run(0.5)
            late = robot.own() if when == 2 else robot.own(pressed[0])
            assert not late, f"start {number}: {late} own commands after the stop ({when}, {qos})"
            process.process.send_signal(signal.SIGKILL)
            process.wait(10.0)
            robot.commands.clear()
            for publisher in [p for p in probe.node.publishers if p.topic_name == "/emergency_stop"]:
                probe.node.destroy_publisher(publisher)


@contextlib.contextmanager
def load() -> Iterator[None]:
    """Two programs that compute all the time."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"]) for _ in range(2)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()
