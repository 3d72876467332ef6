# SPDX-License-Identifier: Apache-2.0
"""Faults of whole processes: nodes frozen, killed and started anew, both nodes swapped, three robots in one domain."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from spc_core.deploy.checkpoint_files import model_id
from spc_ros.messages.fields import FieldReader
from spc_ros.node_parts.topics import latched_qos, stream_qos
from spc_ros.processes import NodeGroup
from support.contracts import ARM_REACH
from support.node_probe import FakeRobot, Probe, own_domain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
SAFE = list(ARM_REACH.action.safe)


def live(nodes: NodeGroup, probe: Probe, checkpoint: Path):
    """A simulated robot in real time under policy and encoder; returns its commands so far."""
    commands = probe.listen_commands(ARM_REACH)
    nodes.start("sim", {"mode": "realtime", "auto_reset": True})
    nodes.start("policy", {"checkpoint": str(checkpoint), "use_sim_time": True})
    nodes.start("context_encoder", {"checkpoint": str(checkpoint), "use_sim_time": True})
    nodes.wait_ready(60.0)
    probe.until(lambda: commands() and commands()[-1] != SAFE, "a command")
    return commands


def acts_on(probe: Probe, commands) -> None:
    count = len(commands())
    probe.until(lambda: sum(command != SAFE for command in commands()[count:]) > 20, "further commands")


def test_a_frozen_robot_is_safe_and_comes_back(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    commands = live(nodes, probe, tiny_checkpoint)
    nodes.nodes["sim"].process.send_signal(signal.SIGSTOP)
    probe.until(lambda: commands()[-1] == SAFE, "the safe action", 5.0)
    nodes.nodes["sim"].process.send_signal(signal.SIGCONT)
    acts_on(probe, commands)


def test_a_frozen_or_killed_encoder_leaves_the_last_context(
    nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path
) -> None:
    commands = live(nodes, probe, tiny_checkpoint)
    encoder = nodes.nodes["context_encoder"].process
    encoder.send_signal(signal.SIGSTOP)
    acts_on(probe, commands)
    encoder.send_signal(signal.SIGCONT)
    nodes.nodes.pop("context_encoder")
    encoder.kill()
    encoder.wait(10.0)
    acts_on(probe, commands)


def test_a_killed_policy_can_be_started_anew(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    commands = live(nodes, probe, tiny_checkpoint)
    policy = nodes.nodes.pop("policy").process
    policy.kill()
    policy.wait(10.0)
    nodes.start("policy", {"checkpoint": str(tiny_checkpoint), "use_sim_time": True})
    nodes.wait_ready(60.0)
    acts_on(probe, commands)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_the_safe_action(
    nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path, number: signal.Signals
) -> None:
    commands = live(nodes, probe, tiny_checkpoint)
    policy = nodes.nodes.pop("policy").process
    policy.send_signal(number)
    probe.until(lambda: policy.poll() is not None, "the policy's end", 10.0)
    assert policy.returncode == 0
    probe.until(lambda: commands()[-1] == SAFE, "the safe action", 5.0)


def swap(probe: Probe, node: str, folder: Path, state: str) -> None:
    """Ask a node for a model, and wait until it says this of it."""
    parameter = Parameter("checkpoint", value=str(folder)).to_parameter_msg()
    request = SetParametersAtomically.Request(parameters=[parameter])
    assert probe.call(f"{node}/set_parameters_atomically", SetParametersAtomically, request).result.successful
    assert probe.call(f"{node}/swap", Trigger).success
    wait_for(probe, node, state, folder)


def wait_for(probe: Probe, node: str, state: str, folder: Path) -> None:
    def told() -> bool:
        words = [json.loads(msg.data) for msg in probe.heard["model_swap"]]
        return any((w["node"], w["state"], w["model"]) == (node, state, model_id(folder)) for w in words)

    probe.until(told, f"{node} {state}")


def test_both_nodes_are_swapped_and_never_differ_unseen(
    nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    commands = live(nodes, probe, tiny_checkpoint)
    probe.listen("model_swap", "std_msgs/msg/String", latched_qos(depth=20))
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    stats = json.loads((other / "stats.json").read_text())
    (other / "stats.json").write_text(json.dumps({**stats, "reward_mean": 0.1}))
    swap(probe, "policy", other, "warm")
    acts_on(probe, commands)  # with the old model, whose context comes still
    swap(probe, "context_encoder", other, "swapped")
    wait_for(probe, "policy", "swapped", other)
    acts_on(probe, commands)
    counts = json.loads(probe.call("policy/report", Trigger).message)
    assert "foreign model" not in counts and "rollback" not in counts


def test_the_encoder_follows_the_policy_back(
    nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The new actor is NaN, its encoder is sound: only the policy can see that the pair must go."""
    commands = live(nodes, probe, tiny_checkpoint)
    probe.listen("model_swap", "std_msgs/msg/String", latched_qos(depth=20))
    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    weights = safetensors.torch.load_file(broken / "weights.safetensors")
    spoiled = {key: value * float("nan") if key.startswith("actor") else value for key, value in weights.items()}
    safetensors.torch.save_file(spoiled, broken / "weights.safetensors")
    swap(probe, "policy", broken, "warm")
    swap(probe, "context_encoder", broken, "swapped")
    wait_for(probe, "policy", "rolled back", tiny_checkpoint)
    wait_for(probe, "context_encoder", "rolled back", tiny_checkpoint)
    acts_on(probe, commands)
    counts = json.loads(probe.call("policy/report", Trigger).message)
    assert counts["rollback"] == 1 and not counts.get("not_finite")
    print(f"{counts.get('foreign model', 0)} ticks with the safe action until the encoder was back")
    assert 1 <= counts["foreign model"] <= 5, "safe until the encoder's first context of the old model, and no longer"


def test_three_robots_in_one_domain_do_not_hear_each_other(tmp_path: Path, tiny_checkpoint: Path) -> None:
    environment = own_domain()
    names = ("red", "green", "blue")
    groups = [NodeGroup(tmp_path / name, namespace=name, environment=environment) for name in names]
    with Probe(environment) as probe, groups[0], groups[1], groups[2]:
        reader = FieldReader(
            ARM_REACH.action.parts[0].type, ARM_REACH.action.parts[0].fields, ARM_REACH.action.parts[0].topic
        )
        for name, group in zip(names, groups, strict=True):
            probe.listen(f"/{name}/joint_commands", ARM_REACH.action.parts[0].type, stream_qos(reliable=False))
            group.start("policy", {"checkpoint": str(tiny_checkpoint)})
        for group in groups:
            group.wait_ready(60.0)
        for speaker in names:
            robot = FakeRobot(probe, ARM_REACH, namespace=speaker)
            robot.t_ns = time.time_ns()
            before = {name: len(probe.heard[f"/{name}/joint_commands"]) for name in names}

            def answered(speaker: str = speaker, robot: FakeRobot = robot, before: dict = before) -> bool:
                robot.keep_saying()
                probe.executor.spin_once(timeout_sec=0.02)
                new = probe.heard[f"/{speaker}/joint_commands"][before[speaker] :]
                return sum(reader.read(msg).tolist() != SAFE for msg in new) >= 5

            probe.until(answered, f"commands of {speaker}")
            for other in set(names) - {speaker}:
                new = probe.heard[f"/{other}/joint_commands"][before[other] :]
                assert all(reader.read(msg).tolist() == SAFE for msg in new), f"{other} answered {speaker}"
