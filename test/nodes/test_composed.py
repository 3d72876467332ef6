# SPDX-License-Identifier: Apache-2.0
"""The program `deploy`: both nodes in one process do what they do in two."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from std_srvs.srv import Trigger

from spc_ros.node_parts.context_message import decode_context
from spc_ros.node_parts.topics import latched_qos
from spc_ros.processes import NodeGroup
from support.contracts import ARM_REACH
from support.node_probe import FakeRobot, Probe, own_domain

pytestmark = pytest.mark.timeout(180)
SAFE = list(ARM_REACH.action.safe)
TICKS = 30


def answers(programs: tuple[str, ...], checkpoint: Path, folder: Path) -> tuple[list[list[float]], list[np.ndarray]]:
    """Commands (TICKS, 2) and contexts (TICKS, Z) in lock-step with a robot of fixed motion; ends with SIGTERM."""
    params = {"checkpoint": str(checkpoint), "lockstep": True, "context_wait_s": 10.0, "min_subscriptions": 2}
    params["silence_timeout_s"] = 30.0
    motion = np.random.default_rng(0).normal(0, 0.3, (TICKS, 4)).cumsum(axis=0)
    environment = own_domain()
    with NodeGroup(folder, environment=environment) as nodes, Probe(environment) as probe:
        commands = probe.listen_commands(ARM_REACH, reliable=True)
        probe.listen("context", "std_msgs/msg/Float32MultiArray", latched_qos(depth=100))
        robot = FakeRobot(probe, ARM_REACH, reliable=True)
        for program in programs:
            nodes.start(program, params)
        nodes.wait_ready(60.0)
        probe.until(lambda: robot.first_stream.get_subscription_count() == 2, "the nodes' subscriptions")
        hearing = probe.node.count_subscribers("context") - 1  # all but ours
        assert hearing == len(programs) - 1, "in one process the context needs no topic"
        for k in range(TICKS):
            robot.say(motion[k])
            probe.until(lambda count=k + 1: len(commands()) >= count, f"the command of tick {k}")
        probe.until(lambda: decode_context(probe.heard["context"][-1]).t_ns == robot.t_ns, "the last context")
        report = json.loads(probe.call("policy/report", Trigger).message)
        assert report["commands"] == TICKS and "context came too late" not in report
        driven = commands()[:TICKS]
        policy = nodes.nodes[programs[-1]].process
        policy.send_signal(signal.SIGTERM)
        probe.until(lambda: commands()[-1] == SAFE and len(commands()) > TICKS, "the safe action", 10.0)
        probe.until(lambda: policy.poll() is not None, "its end", 10.0)
        assert policy.returncode == 0
        contexts = {r.t_ns: r.context for r in map(decode_context, probe.heard["context"]) if r.t_ns}
    return driven, list(contexts.values())


def test_one_process_commands_what_two_do(tiny_checkpoint: Path, tmp_path: Path) -> None:
    one, z = answers(("deploy",), tiny_checkpoint, tmp_path / "one")
    two, same = answers(("context_encoder", "policy"), tiny_checkpoint, tmp_path / "two")
    assert one == two
    assert len(z) == len(same) == TICKS and np.array_equal(z, same)
    assert np.ptp(one, axis=0).min() > 0.1 and np.ptp(z, axis=0).max() > 0.01, "nothing moved, so nothing was compared"


def test_parameters_by_node_name_reach_each_node(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A refusal of either node ends the program, with its reason."""
    file = tmp_path / "params.yaml"
    file.write_text(
        f"/**/context_encoder: {{ros__parameters: {{checkpoint: '{tiny_checkpoint}'}}}}\n"
        "/**/policy: {ros__parameters: {checkpoint: /nowhere}}\n"
    )
    with NodeGroup(tmp_path, "robot1", own_domain(), file) as nodes:
        node = nodes.start("deploy")
        assert node.wait(60.0) == 1
    text = node.log.read_text()
    assert "[robot1.policy]: cannot configure" in text and "/nowhere" in text
    assert "[robot1.context_encoder]: cannot" not in text
