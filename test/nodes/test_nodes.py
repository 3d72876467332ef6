# SPDX-License-Identifier: Apache-2.0
"""The nodes as real processes over DDS: refusals, safe ends, lock-step."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from std_srvs.srv import SetBool, Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.contract.contract import ContractError, load_contract, parse_contract
from spc_core.method.planner import PlannerConfig
from spc_ros.messages.fields import message_class
from spc_ros.node_parts.command_publisher import CommandPublisher
from spc_ros.node_parts.context_message import decode_context, encode_context
from spc_ros.node_parts.model_params import planner_config
from spc_ros.node_parts.topics import latched_qos, stream_qos
from spc_ros.processes import NodeGroup, NodeProcess, ProcessError
from support.contracts import ARM_REACH
from support.node_probe import FakeRobot, Probe, own_domain
from support.paths import ROOT

pytestmark = pytest.mark.timeout(180)
SAFE = list(ARM_REACH.action.safe)


def refusal(tmp_path: Path, name: str, params: dict) -> str:
    """The log of a node that must end with code 1 before it is ready."""
    node = NodeProcess(name, tmp_path, params, environment=own_domain())
    with pytest.raises(ProcessError):
        node.wait_ready(60.0)
    assert node.wait(10.0) == 1
    return node.log.read_text()


@pytest.mark.parametrize("name", ["policy", "context_encoder"])
def test_configure_names_the_differing_fields(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(ARM_REACH.text.replace("rate_hz: 50", "rate_hz: 40"))
    text = refusal(tmp_path, name, {"checkpoint": str(tiny_checkpoint), "contract": str(other)})
    assert "rate_hz: 40 here, 50 there" in text
    assert "Traceback" not in text


def test_configure_says_what_is_missing(tmp_path: Path) -> None:
    assert "parameter 'checkpoint' is empty" in refusal(tmp_path, "policy", {})
    assert "not a checkpoint" in refusal(tmp_path, "policy", {"checkpoint": str(tmp_path)})


@pytest.mark.parametrize("name", ["policy", "context_encoder", "recorder", "trial", "sim"])
def test_a_reward_that_cannot_be_computed_is_refused_as_by_a_conversion(
    name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_checkpoint, tmp_path / "run")
    file = next(run.rglob("contract.yaml"))
    bad = yaml.safe_load(file.read_text())
    bad["reward"] = {"terms": {"near": {"kind": "distance", "of": ["position.shoulder"], "to": [0, 0]}}}
    file.write_text(yaml.safe_dump(bad))
    with pytest.raises(ContractError) as error:
        load_contract(file)
    assert "reward.terms.near.to has 2 entries, but of has 1; give one for each" in str(error.value)
    params = {"policy": {"checkpoint": str(run)}, "context_encoder": {"checkpoint": str(run)}}
    assert str(error.value) in refusal(tmp_path, name, params.get(name, {"contract": str(file)}))
    if name == "context_encoder":
        own = {"checkpoint": str(tiny_checkpoint), "contract": str(file)}
        assert str(error.value) in refusal(tmp_path, name, own)


def test_start_refuses_bad_parameters(tmp_path: Path) -> None:
    assert "use one of: lockstep, realtime" in refusal(tmp_path, "sim", {"mode": "lock-step"})
    assert "hopper" in refusal(tmp_path, "sim", {"family": "hopper"})
    assert "command_timeout_s" in refusal(tmp_path, "sim", {"command_timeout_s": -1.0})
    assert "'arm_payload' has" in refusal(tmp_path, "sim", {"contract": "arm_payload"})


def drive_policy(nodes: NodeGroup, probe: Probe, checkpoint: Path, **params: object):
    """A policy that answers a fake robot; returns (robot, its commands so far)."""
    commands = probe.listen_commands(ARM_REACH)
    robot = FakeRobot(probe, ARM_REACH)
    nodes.start("policy", {"checkpoint": str(checkpoint), **params})
    nodes.wait_ready(60.0)

    def answered() -> bool:
        robot.keep_saying()
        probe.executor.spin_once(timeout_sec=0.02)
        return any(command != SAFE for command in commands())

    probe.until(answered, "a command of the policy")
    return robot, commands


def test_sigterm_sends_the_safe_action_last(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    _, commands = drive_policy(nodes, probe, tiny_checkpoint)
    policy = nodes.nodes["policy"].process
    policy.send_signal(signal.SIGTERM)
    probe.until(lambda: policy.poll() is not None, "the policy's end", 10.0)
    assert policy.returncode == 0
    probe.until(lambda: commands()[-1] == SAFE, "the safe action", 5.0)


def test_silence_sends_the_safe_action_once(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    robot, commands = drive_policy(nodes, probe, tiny_checkpoint)
    probe.until(lambda: commands()[-1] == SAFE, "the safe action after the robot fell silent", 5.0)
    count = len(commands())
    assert commands()[-2] != SAFE
    robot.say()
    probe.until(lambda: len(commands()) > count and commands()[-1] != SAFE, "a command after the silence", 5.0)


def test_fault_sends_the_safe_action(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    robot, commands = drive_policy(nodes, probe, tiny_checkpoint, silence_timeout_s=30.0)
    count = len(commands())
    robot.say(np.array([0.1, np.nan, 0.1, 0.1]))
    probe.until(lambda: len(commands()) > count and commands()[-1] == SAFE, "the safe action", 5.0)


def test_policy_plans_when_asked_to(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    probe.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 10)
    robot, _ = drive_policy(nodes, probe, tiny_checkpoint, planning=True)

    def planned() -> bool:
        robot.keep_saying()
        values = {v.key: v.value for m in probe.heard["/diagnostics"] for s in m.status for v in s.values}
        return int(values.get("plans", 0)) > 0 and int(values["plans cut short"]) <= int(values["plans"])

    probe.until(planned, "plans on /diagnostics")


def test_planning_deadline_follows_the_contract() -> None:
    params = {"planning": True, "planning_samples": 512, "planning_deadline_ms": 0.0, "lockstep": False}
    assert planner_config(SimpleNamespace(**params), ARM_REACH) == PlannerConfig(deadline_ms=10.0), "half of 20 ms"
    params["planning_deadline_ms"] = 4.0
    assert planner_config(SimpleNamespace(**params), ARM_REACH) == PlannerConfig(deadline_ms=4.0)
    params |= {"planning_deadline_ms": 0.0, "lockstep": True}
    assert planner_config(SimpleNamespace(**params), ARM_REACH) == PlannerConfig(), "time waits"
    params["planning_samples"] = 128
    assert planner_config(SimpleNamespace(**params), ARM_REACH) == PlannerConfig(samples=128, elites=16)
    params["planning"] = False
    assert planner_config(SimpleNamespace(**params), ARM_REACH) is None


def test_lifecycle_by_hand(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    commands = probe.listen_commands(ARM_REACH)
    robot = FakeRobot(probe, ARM_REACH)
    nodes.start("policy", {"checkpoint": str(tiny_checkpoint), "autostart": False})
    nodes.wait_ready(60.0)

    def change(transition: int) -> str:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert probe.call("policy/change_state", ChangeState, request).success
        return probe.call("policy/get_state", GetState).current_state.label

    def answers() -> bool:
        robot.keep_saying()
        probe.executor.spin_once(timeout_sec=0.02)
        return bool(commands()) and commands()[-1] != SAFE

    for _ in range(2):  # a node that was cleaned up can be configured again
        assert change(Transition.TRANSITION_CONFIGURE) == "inactive"
        probe.until(lambda: robot.first_stream.get_subscription_count() == 1, "the policy's subscription")
        assert change(Transition.TRANSITION_ACTIVATE) == "active"
        probe.until(answers, "commands of the active policy")
        assert change(Transition.TRANSITION_DEACTIVATE) == "inactive"
        probe.until(lambda: commands()[-1] == SAFE, "the safe action at deactivation", 5.0)
        assert change(Transition.TRANSITION_CLEANUP) == "unconfigured"
        probe.until(lambda: robot.first_stream.get_subscription_count() == 0, "the end of the subscription")


def test_policy_goes_safe_when_the_sim_dies(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    commands = probe.listen_commands(ARM_REACH)
    nodes.start("sim", {"mode": "realtime", "auto_reset": True})
    nodes.start("policy", {"checkpoint": str(tiny_checkpoint), "use_sim_time": True})
    nodes.wait_ready(60.0)
    probe.until(lambda: any(command != SAFE for command in commands()), "a command of the policy")
    nodes.nodes.pop("sim").process.kill()
    probe.until(lambda: commands()[-1] == SAFE, "the safe action", 5.0)


def test_sim_says_why_an_episode_broke_off(nodes: NodeGroup, probe: Probe) -> None:
    episode = probe.listen_episodes()
    diagnostics: list[DiagnosticArray] = []
    probe.node.create_subscription(DiagnosticArray, "/diagnostics", diagnostics.append, 10)
    nodes.start("sim", {"command_timeout_s": 0.5, "connect_timeout_s": 0.5, "min_subscriptions": 0})
    nodes.wait_ready(60.0)

    def ended(number: int) -> EpisodeInfo:
        def has_ended() -> bool:
            info = episode()
            return info is not None and (info.episode, info.state) == (number, "ended")

        probe.until(has_ended, f"the end of episode {number}")
        info = episode()
        assert info is not None and not info.terminated and not info.truncated
        return info

    assert probe.call("sim/reset", Trigger).success
    assert ended(1).reason == "no publisher of /joint_commands within 0.5 s"
    commands = CommandPublisher(probe.node, ARM_REACH, lockstep=True)
    probe.listen("joint_states", "sensor_msgs/msg/JointState", 10)
    states = probe.heard["joint_states"]
    probe.until(lambda: commands.listeners == 1, "the sim's subscription")
    answer = probe.call("sim/reset", Trigger)
    start_ns = EpisodeInfo.from_json(answer.message).start_ns
    probe.until(lambda: states, "the first state")
    commands.send(np.array([np.nan, 0.0]), start_ns)
    commands.send(np.zeros(2), start_ns - ARM_REACH.period_ns)
    commands.send(np.zeros(2), start_ns + ARM_REACH.period_ns)
    assert ended(2).reason == "no command within 0.5 s"
    assert len(states) == 1

    def refused() -> bool:
        counts = {v.key: v.value for m in diagnostics for s in m.status for v in s.values}
        refusals = {"command not finite", "command for an earlier state", "command from the future"}
        return refusals <= counts.keys()

    probe.until(refused, "the refused commands on /diagnostics")


def test_sim_pauses_and_steps(nodes: NodeGroup, probe: Probe) -> None:
    probe.listen("joint_states", "sensor_msgs/msg/JointState", stream_qos(reliable=False))
    states = probe.heard["joint_states"]
    nodes.start("sim", {"mode": "realtime"})
    nodes.wait_ready(60.0)
    publishers = probe.node.count_publishers
    probe.until(lambda: publishers("joint_states") == 1, "the sim's publisher")
    assert not probe.call("sim/step", Trigger).success
    assert probe.call("sim/pause", SetBool, SetBool.Request(data=True)).success
    assert probe.call("sim/reset", Trigger).success
    probe.until(lambda: len(states) == 1, "the first state")
    assert probe.call("sim/step", Trigger).success
    probe.until(lambda: len(states) == 2, "the state after a step")
    stamps = [state.header.stamp.sec * 10**9 + state.header.stamp.nanosec for state in states]
    assert stamps[1] - stamps[0] == ARM_REACH.period_ns and stamps[0] % ARM_REACH.period_ns == 0
    assert probe.call("sim/pause", SetBool, SetBool.Request(data=False)).success
    probe.until(lambda: len(states) > 5, "states in real time")


def test_encoder_publishes_after_each_tick(nodes: NodeGroup, probe: Probe, tiny_checkpoint: Path) -> None:
    probe.listen("context", "std_msgs/msg/Float32MultiArray", latched_qos(depth=100))
    heard = probe.heard["context"]
    nodes.start("context_encoder", {"checkpoint": str(tiny_checkpoint), "lockstep": True})
    robot = FakeRobot(probe, ARM_REACH, reliable=True)
    robot.t_ns = probe.node.get_clock().now().nanoseconds + 3_600 * 10**9  # commands are stamped just behind it
    commands = CommandPublisher(probe.node, ARM_REACH, lockstep=True)
    nodes.wait_ready(60.0)
    probe.until(
        lambda: robot.first_stream.get_subscription_count() == commands.listeners == 1, "the encoder's subscriptions"
    )

    def newest() -> tuple[int, int]:
        """(transitions, time) of the newest context."""
        reading = decode_context(heard[-1]) if heard else None
        return (reading.count, reading.t_ns) if reading else (-1, -1)

    robot.say()
    probe.until(lambda: newest() == (0, robot.t_ns), "the prior at the first tick")
    for count in (1, 2, 3):
        commands.send(np.zeros(2), robot.t_ns)
        robot.say()
        probe.until(lambda count=count: newest() == (count, robot.t_ns), f"the context of {count} transitions")
    assert probe.call("context_encoder/reset", Trigger).success
    probe.until(lambda: newest() == (0, robot.t_ns), "the prior after a reset")


def test_nodes_end_with_the_program_that_started_them(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from spc_ros.processes import NodeProcess
        node = NodeProcess("sim", Path({str(tmp_path)!r}), environment={own_domain()!r})
        node.wait_ready()
        print(node.process.pid, flush=True)
        input()
    """
    root = str(ROOT)
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        watch = os.pidfd_open(pid)
        parent.kill()
    assert select.select([watch], [], [], 15.0)[0], "the node outlived its parent"
    os.close(watch)


def test_context_message() -> None:
    context, uncertainty = np.array([[0.5, -1.0, 2.0], [0.1, 0.0, 1.0]], np.float32)
    msg = encode_context(context, uncertainty, 42, 3_000_000_007)
    labels = ["context", "transitions", "stamp.sec", "stamp.nanosec", "uncertainty"]
    assert [dim.label for dim in msg.layout.dim] == labels
    assert [dim.size for dim in msg.layout.dim] == [3, 42, 3, 7, 3]
    assert msg.data.tolist() == [*context, *uncertainty]
    reading = decode_context(msg)
    assert np.array_equal(reading.context, context) and np.array_equal(reading.uncertainty, uncertainty)
    assert (reading.count, reading.t_ns) == (42, 3_000_000_007)
    with pytest.raises(ValueError, match="uncertainty has 2 numbers; give one for each of context's 3"):
        encode_context(context, uncertainty[:2], 42, 0)


def test_context_message_of_an_old_bag() -> None:
    """Messages from before the uncertainty: z alone."""
    context = np.array([0.5, -1.0, 2.0], np.float32)
    msg = encode_context(context, np.ones(3, np.float32), 42, 7)
    msg.layout.dim, msg.data = msg.layout.dim[:4], msg.data[:3]
    reading = decode_context(msg)
    assert np.array_equal(reading.context, context) and reading.uncertainty is None
    assert (reading.count, reading.t_ns) == (42, 7)


@pytest.mark.parametrize(("dims", "numbers"), [(1, 6), (4, 6), (5, 3), (5, 5), (0, 0)])
def test_other_layouts_are_no_context_message(dims: int, numbers: int) -> None:
    msg = encode_context(np.zeros(3, np.float32), np.ones(3, np.float32), 42, 7)
    msg.layout.dim, msg.data = msg.layout.dim[:dims], msg.data[:numbers]
    with pytest.raises(ValueError, match=f"not a context message.* {numbers} numbers"):
        decode_context(msg)


def test_no_message_package_beyond_the_list() -> None:
    text = ARM_REACH.text.replace("sensor_msgs/msg/JointState", "subprocess/msg/Popen")
    contract = parse_contract(text, "evil.yaml")
    with pytest.raises(ValueError, match="not of a known package"):
        message_class(contract.observation[0].type)
