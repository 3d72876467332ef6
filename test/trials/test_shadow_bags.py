# SPDX-License-Identifier: Apache-2.0
"""Shadow mode: on recordings, and between processes beside a controller that drives."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import Twist
from std_msgs.msg import String
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.deploy.deployable import load_deployed
from spc_core.pages.shadow_page import shadow_page, shadow_text
from spc_ros.bags.files import BagError
from spc_ros.node_parts.topics import latched_qos
from spc_ros.processes import NodeGroup
from spc_ros.trials.shadow_bags import shadow_bags
from support.base_robot import OK, VOLATILE, WARN, BaseRobot
from support.node_probe import Probe
from support.paths import BAGS

pytestmark = pytest.mark.timeout(120)


def test_a_policy_beside_the_sample_recordings(tiny_checkpoint: Path) -> None:
    """Every transition is compared, the differences are those of its pairs, and the page has them."""
    contract, found = shadow_bags(tiny_checkpoint, [BAGS / "mcap"])
    recordings = [(bag.path.name, bag.comparison, bag.transitions) for bag in found]
    assert len(found) == 16 and all(bag.comparison.compared == bag.transitions == 100 for bag in found)
    ours, theirs = (np.array([pair[i] for bag in found for pair in bag.comparison.pairs or ()]) for i in (1, 2))
    text = shadow_text(recordings)
    assert f"{np.abs(ours - theirs).max(0)[0]:10.3g}" in text and "100.0% of the ticks" in text
    page = shadow_page("run", contract, recordings)
    assert "Would I let it drive?" in page and page.count("plotly-graph-div") == 7


def test_what_the_recording_did_not_show_does_not_reach_the_policy(tiny_checkpoint: Path) -> None:
    """The would-be command of a tick is the same whatever was commanded at it and after."""
    from spc_ros.bags.reader import BagReader
    from spc_ros.conversion.bag_conversion import align_bag
    from spc_ros.trials.shadow_bags import shadow_ticks

    deployed, path = load_deployed(tiny_checkpoint), next((BAGS / "mcap").iterdir())
    with BagReader(path) as bag:
        ticks = align_bag(bag, deployed.contract).aligned.ticks
    other = dataclasses.replace(ticks, actions=ticks.actions.copy(), rewards=ticks.rewards.copy())
    other.actions[50:], other.rewards[50:] = 0.5, 9.0
    first, second = (shadow_ticks(deployed, each, path).comparison.pairs or [] for each in (ticks, other))
    same = [np.array_equal(a[1], b[1]) for a, b in zip(first, second, strict=True)]
    assert all(same[:49]) and not all(same[51:])


def test_bags_without_a_tick_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError):
        shadow_bags(tiny_checkpoint, [tmp_path])


def test_live_and_recorded_comparisons_agree(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    """A controller drives, the policy shadows it, and the recorder records; nothing reaches the robot."""
    robot = BaseRobot(nodes, probe, tmp_path)
    contract = tmp_path / "base.yaml"
    contract.write_text(robot.contract.text)
    commands, count = probe.node.create_publisher(Twist, "cmd_vel", VOLATILE), iter(range(10_000))
    would = probe.heard["shadow/cmd_vel"]
    probe.listen("shadow/cmd_vel", "geometry_msgs/msg/Twist", VOLATILE)
    robot.goal()
    robot.start("policy", shadow=True)
    robot.says(WARN, "shadow: nothing to compare with, since nobody commands on 'cmd_vel'")
    robot.start("recorder", contract=str(contract), directory=str(tmp_path / "bags"))
    episodes = probe.node.create_publisher(String, "episode", latched_qos())

    def drive() -> None:
        msg = Twist()
        msg.linear.x = 0.1 * (next(count) % 7)
        commands.publish(msg)

    def connected() -> bool:
        return episodes.get_subscription_count() == robot.listeners() == commands.get_subscription_count() - 1 == 2

    def heard() -> bool:
        return {"/wheels", "/goal", "/cmd_vel", "/reward"} <= set(
            robot.values("recorder").get("received", "").split(", ")
        )

    robot.until(connected, "policy, recorder and our own ear", each=drive)
    robot.until(heard, "a message of each topic in the recorder", each=drive)
    robot.says(OK, "shadow: nothing is sent to the robot", each=drive)
    before = json.loads(robot.call("policy/report", Trigger).message)["shadow"]
    info = EpisodeInfo("running", "base/slow", {}, 1, 0, time.time_ns())
    episodes.publish(String(data=info.to_json()))
    robot.run(4.0, each=drive)
    after = json.loads(robot.call("policy/report", Trigger).message)["shadow"]
    ended = dataclasses.replace(info, state="ended", end_ns=time.time_ns(), truncated=True)
    probe.listen("recorder/bags", "std_msgs/msg/String", latched_qos(depth=100))
    episodes.publish(String(data=ended.to_json()))
    robot.until(lambda: probe.heard["recorder/bags"], "the bag", each=drive)
    assert probe.node.count_publishers("cmd_vel") == 1, "the policy has none there"
    assert len(would) > 50 and all(command[0] in (0.0, *(0.1 * k for k in range(7))) for _, command in robot.commands)
    _, (bag,) = shadow_bags(robot.checkpoint, [tmp_path / "bags"], learn=False)
    live, recorded = after["compared"] - before["compared"], bag.comparison
    assert recorded.compared >= 60 and abs(live - recorded.compared) <= 30, "but for ticks that this machine lost"
    for field, known in zip(after["fields"], recorded.fields(), strict=True):
        assert field["mean"] == pytest.approx(known.mean, abs=0.05 * field["span"])
