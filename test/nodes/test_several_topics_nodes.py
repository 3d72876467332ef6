# SPDX-License-Identifier: Apache-2.0
"""Nodes with an action of two topics: each gets its part, and each the safe one."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger

from spc_core.contract.contract import Contract
from spc_core.data.reader import stored_tasks
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.deployable import Policy
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.messages.fields import FieldReader
from spc_ros.node_parts.topics import latched_qos, stream_qos
from spc_ros.processes import NodeGroup
from support.contracts import ARM_REACH, make_contract
from support.node_probe import FakeRobot, Probe
from support.random_checkpoint import write_random_checkpoint

pytestmark = pytest.mark.timeout(120)
FLOATS = "std_msgs/msg/Float64MultiArray"
JOINT_STATE = "sensor_msgs/msg/JointState"
SHOULDER = {"topic": "joint_commands", "type": JOINT_STATE, "fields": ["effort.shoulder"],
            "low": [-40], "high": [40], "safe": [3], "max_rate": [4000]}  # fmt: skip
ELBOW = {"topic": "elbow_commands", "type": FLOATS, "fields": ["data.0"],
         "low": [11], "high": [20], "safe": [12], "max_rate": [4000]}  # fmt: skip
SAFE = [3.0], [12.0]


def two_topics() -> Contract:
    """The arm of arm_reach, its joints commanded on a topic each, the second without a stamp."""
    return make_contract(base=ARM_REACH, action=[SHOULDER, ELBOW])


class TwoTopics:
    """A fake robot that hears both commands."""

    def __init__(self, nodes: NodeGroup, probe: Probe, folder: Path, prefix: str = "", **params: Any) -> None:
        self.probe, self.contract = probe, two_topics()
        self.parts = [(FieldReader(part.type, part.fields, part.topic), f"{prefix}{part.topic}")
                      for part in self.contract.action.parts]  # fmt: skip
        for part, (_, topic) in zip(self.contract.action.parts, self.parts, strict=True):
            probe.listen(topic, part.type, stream_qos(reliable=True))
        self.robot = FakeRobot(probe, self.contract)
        checkpoint = write_random_checkpoint(folder / "checkpoint", "", self.contract)
        nodes.start("policy", {"checkpoint": str(checkpoint), **params})
        nodes.wait_ready(60.0)

    def heard(self) -> list[list[list[float]]]:
        """The commands of each topic so far."""
        return [[reader.read(msg).tolist() for msg in self.probe.heard[topic]] for reader, topic in self.parts]

    def acts(self) -> None:
        """Wait for commands that are not the safe ones on both topics."""

        def answered() -> bool:
            self.robot.keep_saying()
            self.probe.executor.spin_once(timeout_sec=0.02)
            return all(any(value != safe for value in values) for values, safe in zip(self.heard(), SAFE, strict=True))

        self.probe.until(answered, "commands on both topics")

    def is_safe(self) -> bool:
        return all(values[-1] == safe for values, safe in zip(self.heard(), SAFE, strict=True))


def test_each_topic_gets_its_part_and_at_the_end_its_safe_command(
    nodes: NodeGroup, probe: Probe, tmp_path: Path
) -> None:
    robot = TwoTopics(nodes, probe, tmp_path)
    robot.acts()
    shoulder, elbow = robot.heard()
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    nothing = np.zeros(checkpoint.config.model.context_dim, np.float32)
    expected = Policy(checkpoint).act(np.full(4, 0.1), nothing)
    assert abs(len(shoulder) - len(elbow)) <= 1
    assert shoulder[-1] == [pytest.approx(expected[0])] and elbow[-1] == [pytest.approx(expected[1])]
    policy = nodes.nodes["policy"].process
    policy.send_signal(signal.SIGTERM)
    probe.until(lambda: policy.poll() is not None, "the policy's end", 10.0)
    probe.until(robot.is_safe, "the safe action on both topics", 5.0)


def test_the_emergency_stop_sends_both_safe_commands(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    robot = TwoTopics(nodes, probe, tmp_path)
    stop = probe.node.create_publisher(Bool, "emergency_stop", 10)
    robot.acts()
    probe.until(lambda: stop.get_subscription_count() == 1, "the policy's subscription")
    stop.publish(Bool(data=True))
    counts = [len(values) for values in robot.heard()]
    probe.until(lambda: [len(v) for v in robot.heard()] > counts and robot.is_safe(), "both safe commands", 5.0)


def test_silence_sends_both_safe_commands(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    robot = TwoTopics(nodes, probe, tmp_path)
    robot.acts()
    probe.until(robot.is_safe, "the safe action on both topics", 5.0)


def test_another_publisher_of_the_second_topic_stops_the_policy(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    probe.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 10)
    robot = TwoTopics(nodes, probe, tmp_path)
    robot.acts()
    probe.node.create_publisher(Float64MultiArray, "elbow_commands", 10)

    def stopped() -> bool:
        robot.robot.keep_saying()
        return any(
            "'elbow_commands' is also published by /probe" in value.value or "elbow_commands" in status.message
            for msg in probe.heard["/diagnostics"] for status in msg.status for value in status.values
        )  # fmt: skip

    probe.until(stopped, "the other publisher on /diagnostics")
    probe.until(robot.is_safe, "the safe action on both topics", 5.0)


def test_a_shadow_publishes_both_topics_beside_the_robots(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    for part in two_topics().action.parts:
        probe.listen(part.topic, part.type, stream_qos(reliable=False))
    robot = TwoTopics(nodes, probe, tmp_path, prefix="shadow/", shadow=True)
    robot.acts()
    assert not probe.heard["joint_commands"] and not probe.heard["elbow_commands"]


@pytest.mark.parametrize("mode", ["lockstep", "realtime"])
def test_sim_recorder_and_encoder_take_both_topics(nodes: NodeGroup, probe: Probe, tmp_path: Path, mode: str) -> None:
    """The bags convert, and their actions are the policy's: within the second topic's own limits."""
    contract = tmp_path / "two.yaml"
    contract.write_text(two_topics().text)
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", "", two_topics())
    lockstep = mode == "lockstep"
    episode = probe.listen_episodes()
    probe.listen("recorder/bags", "std_msgs/msg/String", latched_qos(depth=100))
    probe.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 10)
    common = {"lockstep": lockstep, "use_sim_time": True}
    nodes.start("sim", {"mode": mode, "contract": str(contract), "min_subscriptions": 3})
    nodes.start("recorder", {"contract": str(contract), "directory": str(tmp_path / "bags"), **common})
    nodes.start("context_encoder", {"checkpoint": str(checkpoint), **common})
    nodes.start("policy", {"checkpoint": str(checkpoint), **common})
    nodes.wait_ready(60.0)
    assert probe.call("sim/reset", Trigger).success
    probe.until(lambda: (info := episode()) is not None and info.state == "ended", "the end of the episode", 60.0)
    probe.until(lambda: probe.heard["recorder/bags"], "the bag")

    def learned() -> bool:
        values = [v for m in probe.heard["/diagnostics"] for s in m.status for v in s.values if v.key == "transitions"]
        return any(int(value.value) > 20 for value in values)

    probe.until(learned, "transitions of the encoder")
    report = convert(ConvertOptions((tmp_path / "bags",), tmp_path / "dataset", workers=1), progress=False)
    (bag,) = report.bags
    if lockstep:
        assert not bag.dropped_ticks and bag.episodes == 1, (
            bag.dropped_ticks,
            bag.cuts,
            bag.dropped_samples,
            episode(),
        )
    assert bag.transitions > 20
    (store,) = stored_tasks(tmp_path / "dataset")
    actions = np.concatenate([entry.actions for entry in store.episodes()])
    assert actions.shape[1] == 2
    assert (actions[:, 1] >= 11).all() and (actions[:, 1] <= 20).all() and (np.abs(actions[:, 0]) <= 40).all()
