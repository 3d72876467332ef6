# SPDX-License-Identifier: Apache-2.0
"""Between processes: who is latched, missing, doubled, restarted or late, and what the nodes say of it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from geometry_msgs.msg import Twist, Vector3Stamped
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.node_parts.topics import latched_qos
from spc_ros.processes import NodeGroup
from support.base_robot import BEST_EFFORT, ERROR, LATCHED, OK, TWIST, VOLATILE, WARN, BaseRobot, base_contract
from support.node_probe import Probe

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def robot(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> BaseRobot:
    return BaseRobot(nodes, probe, tmp_path)


def test_policy_and_encoder_get_a_goal_that_was_latched_before_they_started(robot: BaseRobot) -> None:
    """With a robot that is complete, both say ok."""
    robot.goal()
    robot.start("policy")
    robot.start("context_encoder")
    robot.acts()
    robot.until(lambda: int(robot.values("context_encoder").get("transitions", 0)) > 20, "transitions")
    robot.says(OK, "ok")
    robot.says(OK, "ok", "context_encoder")


def record_two_episodes(robot: BaseRobot, episodes: Publisher) -> None:
    """A second each, told on the topic `episode`; waits for their bags."""
    for number in (1, 2):
        info = EpisodeInfo("running", "base/slow", {}, number, 0, time.time_ns())
        episodes.publish(String(data=info.to_json()))
        robot.run(1.0)
        ended = EpisodeInfo("ended", "base/slow", {}, number, 0, info.start_ns, end_ns=time.time_ns(), truncated=True)
        episodes.publish(String(data=ended.to_json()))
        robot.until(lambda number=number: len(robot.probe.heard["recorder/bags"]) == number, "the bag")


def test_each_bag_starts_with_the_command_that_holds(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    """One command was sent, before both episodes; every period of their bags has it."""
    robot = BaseRobot(nodes, probe, tmp_path, base_contract(action={**TWIST, "hold": True}))
    contract = tmp_path / "base.yaml"
    contract.write_text(robot.contract.text)
    robot.goal()
    robot.start("recorder", contract=str(contract), directory=str(tmp_path / "bags"))
    episodes = probe.node.create_publisher(String, "episode", latched_qos())
    commands = probe.node.create_publisher(Twist, "cmd_vel", VOLATILE)
    probe.listen("recorder/bags", "std_msgs/msg/String", latched_qos(depth=100))
    robot.until(lambda: episodes.get_subscription_count() == 1, "the recorder")
    robot.until(lambda: commands.get_subscription_count() == 2, "the recorder and the robot's own ear")
    command = Twist()
    command.linear.x = 0.25
    commands.publish(command)
    robot.until(lambda: robot.values("recorder").get("latched") == "/cmd_vel, /goal", "command and goal")
    record_two_episodes(robot, episodes)
    for bag in sorted((tmp_path / "bags").iterdir()):
        with BagReader(bag) as reader:
            assert [message.linear.x for _, _, message in reader.messages(["/cmd_vel"])] == [0.25]
    report = convert(ConvertOptions((tmp_path / "bags",), tmp_path / "dataset", workers=1), progress=False)
    assert [bag.transitions > 10 for bag in report.bags] == [True, True]


def test_each_bag_has_the_goal_that_was_latched_before_it(robot: BaseRobot, tmp_path: Path) -> None:
    """Two episodes after the goal was set once; the bag converts, and the goal is its observation."""
    contract = tmp_path / "base.yaml"
    contract.write_text(robot.contract.text)
    robot.goal(0.75)
    robot.start("policy")
    robot.start("recorder", contract=str(contract), directory=str(tmp_path / "bags"))
    episodes = robot.probe.node.create_publisher(String, "episode", latched_qos())
    robot.probe.listen("recorder/bags", "std_msgs/msg/String", latched_qos(depth=100))
    robot.acts()
    robot.until(lambda: episodes.get_subscription_count() == robot.listeners() == 2, "policy and recorder")
    robot.until(lambda: robot.values("recorder").get("latched") == "/goal", "the goal")
    robot.until(lambda: "/cmd_vel" in robot.values("recorder")["received"], "commands at the recorder")
    record_two_episodes(robot, episodes)
    for bag in sorted((tmp_path / "bags").iterdir()):
        with BagReader(bag) as reader:
            goals = [message.vector.x for _, _, message in reader.messages(["/goal"])]
        assert goals == [0.75], "neither lost nor doubled"
    report = convert(ConvertOptions((tmp_path / "bags",), tmp_path / "dataset", workers=1), progress=False)
    assert [bag.transitions > 10 for bag in report.bags] == [True, True]


@pytest.mark.slow
def test_a_recording_that_lacks_a_topic_is_a_warning(robot: BaseRobot, tmp_path: Path) -> None:
    contract = tmp_path / "base.yaml"
    contract.write_text(robot.contract.text)
    robot.goal()
    robot.rewards = False
    robot.start("policy")
    robot.start("recorder", contract=str(contract), directory=str(tmp_path / "bags"), auto_episode=False)
    assert robot.call("recorder/start", Trigger).success
    robot.says(WARN, "recording, and nothing was ever received on /reward", "recorder")
    robot.rewards = True
    robot.says(OK, "ok", "recorder")


def test_a_qos_that_no_publisher_offers_is_named(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    robot = BaseRobot(nodes, probe, tmp_path, base_contract({"durability": "transient_local"}))
    robot.goal(qos=VOLATILE)
    robot.start()
    robot.says(ERROR, "goal: no message yet", each=lambda: robot.goal(qos=VOLATILE))
    told = "topic 'goal': the contract's qos.durability is transient_local, which no publisher"
    robot.until(lambda: told in robot.log("policy"), "the reason in the log")


@pytest.mark.slow
def test_a_goal_of_which_only_some_publishers_are_latched(robot: BaseRobot) -> None:
    """What comes after the start counts, and the rest is named."""
    robot.goal(qos=LATCHED)
    other = Node("other", context=robot.probe.context)
    volatile = other.create_publisher(Vector3Stamped, "goal", VOLATILE)
    try:
        robot.start()
        robot.until(lambda: "some publishers latch it and others do not" in robot.log("policy"), "the warning")
        volatile.publish(Vector3Stamped())
        robot.acts()
    finally:
        other.destroy_node()


def test_no_reward_is_a_warning_with_its_reason(robot: BaseRobot) -> None:
    robot.rewards = False
    robot.goal()
    robot.start("policy")
    robot.start("context_encoder")
    robot.acts()
    assert robot.says(WARN, "no transitions: no readable message on 'reward'", "context_encoder") < 8.0
    assert robot.values("context_encoder")["last cut"] == "reward: no reward in the period"
    robot.rewards = True
    robot.says(OK, "ok", "context_encoder")
    robot.until(lambda: "state: ok" in robot.log("context_encoder"), "the change in the log")
    assert robot.log("context_encoder").count("state: warning: no transitions: no readable message on 'reward'") == 1


@pytest.mark.slow
@pytest.mark.parametrize("parity", [0, 1])
def test_the_encoder_takes_the_phase_of_the_controller(
    nodes: NodeGroup, probe: Probe, tmp_path: Path, parity: int
) -> None:
    """States at 25 Hz, a contract and a controller at 12.5 Hz, which answers every second state."""
    robot = BaseRobot(nodes, probe, tmp_path, base_contract(rate_hz=12.5))
    robot.period_s = 0.04
    robot.goal()
    commands, count = robot.probe.node.create_publisher(Twist, "cmd_vel", VOLATILE), iter(range(10_000))

    def answer() -> None:
        if next(count) % 2 == parity:
            commands.publish(Twist())

    robot.start("context_encoder", each=answer)

    def lag_ms() -> float:
        found = re.match("median ([0-9.]+) ms", robot.values("context_encoder").get("state to command", ""))
        return float(found[1]) if found else 99.0

    robot.until(lambda: lag_ms() < 25.0, "commands soon after their state", each=answer)


def test_the_encoder_learns_from_a_single_command_that_holds(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    """It tells nothing of the time from state to command."""
    robot = BaseRobot(nodes, probe, tmp_path, base_contract(action={**TWIST, "hold": True}))
    robot.goal()
    robot.start("context_encoder")
    probe.node.create_publisher(Twist, "cmd_vel", LATCHED).publish(Twist())  # heard whenever the encoder has matched it
    robot.until(lambda: int(robot.values("context_encoder").get("transitions", 0)) > 30, "transitions")
    assert "state to command" not in robot.values("context_encoder")
    robot.says(OK, "ok", "context_encoder")


@pytest.mark.slow
def test_no_command_is_a_warning_with_its_reason(robot: BaseRobot) -> None:
    robot.goal()
    robot.start("context_encoder")
    robot.says(WARN, "no transitions: 'cmd_vel' has no publisher", "context_encoder")


@pytest.mark.slow
def test_an_encoder_without_observations_names_the_topics(robot: BaseRobot) -> None:
    robot.states = False
    robot.start("context_encoder")
    robot.says(
        WARN, "no readable message on 'wheels', which has a publisher; 'goal' has no publisher", "context_encoder"
    )


def test_a_policy_that_never_acts_is_an_error_that_names_what_is_missing(robot: BaseRobot) -> None:
    robot.states = False
    robot.start()
    robot.says(ERROR, "does not control the robot: no readable message on 'wheels', which has a publisher; 'goal' has")
    robot.states = True
    robot.says(ERROR, "does not control the robot: goal: no message yet")
    robot.goal()
    robot.acts()
    robot.says(OK, "ok")
    robot.until(lambda: "state: ok" in robot.log("policy"), "the change in the log")


@pytest.mark.slow
def test_a_policy_in_its_safe_action_says_so_within_seconds(robot: BaseRobot) -> None:
    robot.goal()
    robot.start()
    robot.acts()
    robot.states = False
    began_s = time.monotonic()
    robot.says(WARN, "does not control the robot: wheels: no observation")
    robot.says(ERROR, "does not control the robot: wheels: no observation")
    assert time.monotonic() - began_s < 7.0
    robot.states = True
    robot.says(OK, "ok")


@pytest.mark.slow
def test_a_policy_that_is_interrupted_often_says_so(robot: BaseRobot) -> None:
    robot.goal()
    robot.start()
    robot.acts()
    count = iter(range(10_000))

    def gaps() -> None:
        robot.states = next(count) % 12 < 8

    robot.says(WARN, "of the commands are not the policy's", each=gaps)


@pytest.mark.slow
def test_commands_that_nobody_receives_are_an_error(robot: BaseRobot) -> None:
    robot.goal()
    robot.start()
    robot.acts()
    robot.probe.node.destroy_subscription(robot.ear)
    robot.says(ERROR, "'/cmd_vel' has no subscriber, so the robot gets no commands")
    robot.subscribe()
    robot.acts()
    robot.says(OK, "ok")


@pytest.mark.slow
def test_a_policy_without_its_encoder_says_so(robot: BaseRobot) -> None:
    robot.goal()
    robot.start("policy")
    robot.start("context_encoder")
    robot.acts()
    robot.until(lambda: "context age ms" in robot.values("policy"), "a context")
    robot.nodes.nodes["context_encoder"].process.send_signal(signal.SIGKILL)
    robot.says(WARN, "the last one is used: is the context encoder running?")
    robot.nodes.nodes["context_encoder"].wait(10.0)
    robot.start("context_encoder")
    robot.says(OK, "ok")


def test_two_living_policies_of_one_name_do_not_drive_together(
    robot: BaseRobot, nodes: NodeGroup, tmp_path: Path
) -> None:
    """Neither can be told from a killed predecessor by its name; both speak on /diagnostics."""
    robot.goal()
    robot.start()
    robot.acts()
    with NodeGroup(tmp_path / "twin", environment=nodes.environment) as twins:
        twin = twins.start("policy", {"checkpoint": str(robot.checkpoint)})
        robot.until(lambda: twin.is_ready, "the twin")
        began_s = time.monotonic()
        robot.until(lambda: "another /policy runs, as process" in robot.log("policy"), "the refusal")
        assert time.monotonic() - began_s < 6.0
        refusals = ("another /policy runs", "'cmd_vel' is also published by")  # the latter before it knows by whom
        robot.until(lambda: any(text in twin.log.read_text() for text in refusals), "the twin's refusal")
        count = len(robot.commands)
        robot.run(1.0)
        assert robot.own(count) == 0


@contextlib.contextmanager
def rival(robot: BaseRobot) -> Iterator[None]:
    """Another node that publishes commands."""
    node = Node("joystick", context=robot.probe.context)
    node.create_publisher(Twist, "cmd_vel", VOLATILE)
    try:
        yield
    finally:
        node.destroy_node()


def test_a_policy_does_not_start_beside_another_publisher(robot: BaseRobot) -> None:
    robot.goal()
    with rival(robot):
        robot.run(0.5)
        robot.start(activate=False)
        robot.until(lambda: robot.probe.node.count_publishers("cmd_vel") == 2, "both publishers")
        said = "'cmd_vel' is also published by /joystick: stop it, remap it"
        robot.until(lambda: robot.activate() or said in robot.log("policy"), "a refusal that names the other")
        assert not robot.activate() and robot.own() == 0
    robot.until(lambda: robot.activate(), "activation once the other is gone")
    robot.acts()


def test_a_policy_stops_when_another_publisher_appears(robot: BaseRobot) -> None:
    robot.goal()
    robot.start()
    robot.acts()
    with rival(robot):
        robot.says(ERROR, "'cmd_vel' is also published by /joystick")
        assert robot.commands[-1][1] == (0.0, 0.0)
        count = len(robot.commands)
        robot.run(0.5)
        assert len(robot.commands) == count, "it is inactive"


@pytest.mark.slow
def test_another_publisher_may_be_allowed(robot: BaseRobot) -> None:
    robot.goal()
    robot.start(other_publishers="warn")
    robot.acts()
    with rival(robot):
        robot.says(WARN, "'cmd_vel' is also published by /joystick")
        robot.acts()
    robot.says(OK, "ok")


def test_a_killed_policy_does_not_keep_its_successor_from_driving(robot: BaseRobot) -> None:
    """DDS keeps what was killed in its graph for a while."""
    robot.goal()
    robot.start()
    robot.acts()
    robot.nodes.nodes["policy"].process.send_signal(signal.SIGKILL)
    robot.nodes.nodes["policy"].wait(10.0)
    robot.start()
    robot.acts()


@pytest.mark.slow
def test_a_killed_encoder_learns_again_after_its_restart(robot: BaseRobot) -> None:
    robot.goal()
    robot.start("policy")
    restart_encoder(robot)
    restart_encoder(robot)


def restart_encoder(robot: BaseRobot) -> None:
    robot.start("context_encoder")
    robot.probe.heard["/diagnostics"].clear()
    robot.until(lambda: int(robot.values("context_encoder").get("transitions", 0)) > 5, "transitions", 20.0)
    robot.nodes.nodes["context_encoder"].process.send_signal(signal.SIGKILL)
    robot.nodes.nodes["context_encoder"].wait(10.0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_encoder_learns_after_each_of_a_hundred_restarts_under_load(robot: BaseRobot) -> None:
    robot.goal()
    robot.start("policy")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"]) for _ in range(2)]
    try:
        for _ in range(100):
            restart_encoder(robot)
    finally:
        for program in busy:
            program.kill()
            program.wait()


@pytest.mark.slow
def test_best_effort_states_and_late_starts_make_no_difference(robot: BaseRobot) -> None:
    """The policy is there first, then the encoder, then the robot."""
    robot.states = False
    robot.start("policy")
    robot.start("context_encoder")
    robot.states = True
    robot.goal(qos=BEST_EFFORT)
    robot.until(lambda: robot.own() > 10, "own commands", each=lambda: robot.goal(qos=BEST_EFFORT))
    robot.says(OK, "ok", "context_encoder")
    assert robot.call("policy/report", Trigger).success


def test_a_transition_that_the_state_does_not_have_is_refused(robot: BaseRobot) -> None:
    """Activating twice must not stop the robot."""
    robot.goal()
    robot.start()
    robot.acts()
    assert not robot.activate()
    refusal = "transition 3 refused in state active: Failed to trigger lifecycle state machine"
    robot.until(lambda: refusal in robot.log("policy"), "the refusal in the log")
    robot.acts()
    robot.says(OK, "ok")
