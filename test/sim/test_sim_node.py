# SPDX-License-Identifier: Apache-2.0
"""The node `sim` as a real process: disturbances over DDS, many resets with task changes, any MJCF, the camera."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.contract.contract import Contract, load_contract, parse_contract
from spc_core.tasks import find_family, find_task
from spc_core.tasks.film import missing
from spc_ros.messages.fields import FieldReader, message_class, stamp_ns
from spc_ros.node_parts.command_publisher import CommandPublisher
from spc_ros.node_parts.topics import stream_qos
from spc_ros.processes import NodeGroup, NodeProcess
from support.cart_family import write_cart_family
from support.contracts import ARM_REACH
from support.node_probe import Probe, own_domain
from support.paths import ROOT
from support.video import can_render, read_mp4

pytestmark = pytest.mark.timeout(180)

TERMINATES = {"terminate": {"joint_states.velocity.rail": [-1, 0.1]}}


class Commander:
    """Answers every state with the same command, in lock-step, and keeps the states' stamps."""

    def __init__(self, probe: Probe, contract: Contract = ARM_REACH, action: tuple[float, ...] = (0.1, 0.0)) -> None:
        self.stamps: list[int] = []
        self.states: list = []
        self.answering = True
        self._action = np.array(action)
        self._commands = CommandPublisher(probe.node, contract, lockstep=True)
        stream = contract.observation[0]
        kind = message_class(stream.type)
        probe.node.create_subscription(kind, stream.topic, self._on_state, stream_qos(reliable=True))

    def _on_state(self, msg) -> None:
        self.stamps.append(stamp_ns(msg))
        self.states.append(msg)
        if self.answering:
            self._commands.send(self._action, self.stamps[-1])


def set_parameters(probe: Probe, **values: object) -> list:
    """The answers of the sim."""
    messages = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    return list(probe.call("sim/set_parameters", SetParameters, SetParameters.Request(parameters=messages)).results)


def diagnosed(probe: Probe) -> dict[str, str]:
    """The newest values of the sim on /diagnostics."""
    heard = probe.heard["/diagnostics"]
    return {v.key: v.value for v in heard[-1].status[0].values} if heard else {}


def test_disturbances_in_lock_step(nodes: NodeGroup, probe: Probe) -> None:
    """Time continues over lost ticks, the episode keeps its length, and all disturbances are counted."""
    probe.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 10)
    episode, commander = probe.listen_episodes(), Commander(probe)
    nodes.start("sim", {"sensor_dropout": 0.2, "command_dropout": 0.1, "push_impulse": 0.01, "push_interval_s": 0.1})
    nodes.wait_ready(60.0)
    refused = set_parameters(probe, noise=["joint_states.torque=0.1"])[0]
    assert not refused.successful and "observed are joint_states.position.shoulder" in refused.reason
    assert set_parameters(probe, noise=["joint_states.velocity=0.1"])[0].successful

    def run() -> EpisodeInfo:
        number = EpisodeInfo.from_json(probe.call("sim/reset", Trigger).message).episode

        def ended() -> bool:
            info = episode()
            return info is not None and (info.episode, info.state) == (number, "ended")

        probe.until(ended, "the end of the episode")
        info = episode()
        assert info is not None
        probe.until(lambda: commander.stamps and commander.stamps[-1] == info.end_ns, "the last state")
        return info

    info = run()
    assert info.truncated and info.reason == "time limit"
    assert info.end_ns - info.start_ns == 100 * ARM_REACH.period_ns
    heard = len(commander.stamps)
    assert info.published["/joint_states"] == heard
    assert info.published["/joint_commands"] == heard - 1, "one for each state but the last"

    def counted() -> bool:
        values = diagnosed(probe)
        return int(values.get("states lost", 0)) == 101 - heard and "commands lost" in values and "pushes" in values

    probe.until(counted, "the counts on /diagnostics")
    assert 5 <= 101 - heard <= 40
    assert float(diagnosed(probe)["real_time_factor"]) > 0.1
    first = [
        (s - commander.stamps[0], list(m.velocity)) for s, m in zip(commander.stamps, commander.states, strict=True)
    ]
    commander.stamps.clear()
    commander.states.clear()
    run()
    again = [
        (s - commander.stamps[0], list(m.velocity)) for s, m in zip(commander.stamps, commander.states, strict=True)
    ]
    assert again == first, "the same seed gives the same disturbances"


def test_disturbances_in_real_time(nodes: NodeGroup, probe: Probe) -> None:
    probe.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 10)
    nodes.start("sim", {"mode": "realtime", "auto_reset": True, "sensor_dropout": 0.5, "push_impulse": 0.01})
    nodes.wait_ready(60.0)

    def settled() -> bool:
        """The counter is of the episode, so it may be small; the factor needs its first seconds."""
        values = diagnosed(probe)
        return int(values.get("states lost", 0)) > 20 and 0.8 < float(values["real_time_factor"]) < 1.1

    probe.until(settled, "lost states at the pace of real time")


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.parametrize("resets", [40, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_resets_with_task_changes(nodes: NodeGroup, probe: Probe, resets: int) -> None:
    """Every reset another task and seed, in the middle of the episode before; none is missed, nothing grows."""
    commander = Commander(probe)
    nodes.start("sim", {"command_timeout_s": 60.0})
    nodes.wait_ready(60.0)
    pid, warm_kib, began_s = nodes.nodes["sim"].process.pid, 0, time.monotonic()
    for k in range(resets):
        task_id = f"arm_reach/{('train', 'id')[k % 2]}/{k % 10:02d}"
        results = set_parameters(probe, task_id=task_id, seed=k)
        assert all(result.successful for result in results), (k, results)
        answer = probe.call("sim/reset", Trigger)
        info = EpisodeInfo.from_json(answer.message)
        assert answer.success and (info.episode, info.task_id, info.seed) == (k + 1, task_id, k)
        assert dict(info.params) == dict(find_task(task_id).params)
        steps = 3 + k % 3
        probe.until(lambda end=info.start_ns + steps * ARM_REACH.period_ns: commander.stamps[-1:] >= [end], "its steps")
        if k == resets // 4:
            warm_kib = resident_kib(pid)
    nodes.check()
    grown_kib, took_s = resident_kib(pid) - warm_kib, time.monotonic() - began_s
    print(f"{resets} resets in {took_s:.1f} s, {grown_kib} KiB more after the first quarter")
    starts = [b for a, b in zip(commander.stamps, commander.stamps[1:], strict=False) if b - a > ARM_REACH.period_ns]
    assert len(starts) == resets - 1 and all(np.diff(commander.stamps) > 0)
    assert grown_kib < 4096


def test_any_model_with_its_contract(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    """A robot without task and reward: states, episodes with a label, and a clear refusal of a wrong name."""
    contract = parse_contract(ARM_REACH.text.replace("segment: bag", "segment: bag, limit_s: 0.2"), "arm.yaml")
    (tmp_path / "arm.yaml").write_text(contract.text)
    model = ROOT / "spc_core" / "tasks" / "arm_reach.xml"
    probe.listen("reward", "geometry_msgs/msg/Vector3Stamped", stream_qos(reliable=True))
    episode, commander = probe.listen_episodes(), Commander(probe)
    nodes.start("sim", {"model": str(model), "contract": str(tmp_path / "arm.yaml"), "task_id": "lab/arm"})
    nodes.wait_ready(60.0)
    info = EpisodeInfo.from_json(probe.call("sim/reset", Trigger).message)
    assert info.task_id == "lab/arm" and dict(info.params) == {}
    probe.until(lambda: (latest := episode()) is not None and latest.state == "ended", "the end of the episode")
    probe.until(lambda: len(commander.states) == 11, "its last state")
    assert commander.states[0].position.tolist() == [0.0, 0.0] and commander.states[-1].position[0] > 0
    assert probe.heard["reward"] == []
    assert set_parameters(probe, task_id="lab/other")[0].successful
    (tmp_path / "wrong.yaml").write_text(contract.text.replace("effort.elbow", "effort.elbo"))
    other = NodeProcess(
        "sim", tmp_path, {"model": str(model), "contract": str(tmp_path / "wrong.yaml")}, "", own_domain()
    )
    assert other.wait(30.0) == 1
    text = other.log.read_text()
    assert "no actuator 'elbo' (did you mean 'elbow'?)" in text and "Traceback" not in text


@pytest.mark.parametrize("family", ["hopper_mass", "a file"])
def test_a_family_moves_over_ros_as_in_process(family: str, nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    """Every observation and reward, to the bit, up to the end of the episode, of which the last one tells."""
    reference = str(write_cart_family(tmp_path / "cart", TERMINATES)) if family == "a file" else family
    found = find_family(reference)
    task, contract = found.tasks["id"][4], load_contract(found.contract)
    action = np.full(contract.action_dim, 0.7)
    probe.listen("reward", "geometry_msgs/msg/Vector3Stamped", stream_qos(reliable=True))
    for stream in contract.observation[1:]:
        probe.listen(stream.topic, stream.type, stream_qos(reliable=True))
    episode, commander = probe.listen_episodes(), Commander(probe, contract, tuple(action))
    nodes.start("sim", {"family": reference, "task_id": task.task_id, "seed": 3})
    nodes.wait_ready(60.0)
    info = EpisodeInfo.from_json(probe.call("sim/reset", Trigger).message)
    assert info.task_id == task.task_id and dict(info.params) == dict(task.params)
    probe.until(lambda: (latest := episode()) is not None and latest.state == "ended", "the end of the episode")
    env = found.make(task)
    observations, rewards, ended = [env.reset(seed=3)[0]], [], False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(action)
        observations, rewards = [*observations, observation], [*rewards, reward]
        ended = terminated or truncated
    info = episode()
    assert info is not None and info.terminated and terminated and info.reason == "task ended"
    probe.until(lambda: len(commander.states) == len(observations), "its last state")
    heard = [commander.states, *(probe.heard[stream.topic] for stream in contract.observation[1:])]
    readers = [FieldReader(stream.type, stream.fields, stream.topic) for stream in contract.observation]
    columns = [[reader.read(message) for message in messages] for reader, messages in zip(readers, heard, strict=True)]
    np.testing.assert_array_equal(np.concatenate(columns, axis=1), observations)
    assert [message.vector.x for message in probe.heard["reward"]] == rewards


def test_camera_and_film(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    if not can_render():
        pytest.skip("this machine cannot render without a display")
    if missing("mp4"):
        pytest.skip(missing("mp4"))
    probe.listen("camera/image_raw", "sensor_msgs/msg/Image", stream_qos(reliable=True))
    episode, images = probe.listen_episodes(), probe.heard["camera/image_raw"]
    commander = Commander(probe, action=(1.0, 0.5))
    size = {"camera_width": 64, "camera_height": 48, "camera_rate_hz": 10.0}
    nodes.start("sim", {"camera": "free", "video_directory": str(tmp_path / "films"), **size})
    nodes.wait_ready(60.0)
    probe.until(lambda: probe.node.count_publishers("camera/image_raw") == 1, "the camera")
    info = EpisodeInfo.from_json(probe.call("sim/reset", Trigger).message)
    probe.until(lambda: (latest := episode()) is not None and latest.state == "ended", "the end of the episode")
    probe.until(lambda: len(images) == 21, "an image every fifth of 101 ticks")
    assert [stamp_ns(m) - info.start_ns for m in images] == [k * 100_000_000 for k in range(21)]
    assert {(m.height, m.width, m.encoding, m.step, len(m.data)) for m in images} == {(48, 64, "rgb8", 192, 9216)}
    first, last = (np.array(m.data).reshape(48, 64, 3) for m in (images[0], images[-1]))
    assert first.std() > 5 and (first != last).any(), "the arm moves through the picture"
    film = tmp_path / "films" / f"0001_{info.task_id.replace('/', '-')}.mp4"
    probe.until(film.exists, "the film")
    filmed = read_mp4(film, 64, 48).astype(float)
    sent = np.array([np.array(m.data).reshape(48, 64, 3) for m in images], float)
    assert filmed.shape == sent.shape and abs(filmed - sent).mean() < 12, "the film shows what was sent"
    assert sorted(file.name for file in film.parent.iterdir()) == [film.name]
    assert len(commander.states) == 101


@pytest.mark.parametrize(
    ("params", "reason"),
    [({"camera": "front"}, "camera 'front' is not in the model; use one of: free"),
     ({"video_directory": "films"}, "video_directory needs a camera")],
)  # fmt: skip
def test_camera_refusals(tmp_path: Path, params: dict, reason: str) -> None:
    node = NodeProcess("sim", tmp_path, params, "", own_domain())
    assert node.wait(30.0) == 1
    text = node.log.read_text()
    assert reason in text and "Traceback" not in text
