# SPDX-License-Identifier: Apache-2.0
"""Launch and parameter files: every name in them exists, and the launch files run where `launch_ros` is installed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.duration import Duration
from rosbags.highlevel import AnyReader
from std_srvs.srv import SetBool, Trigger

from spc_core.contract.contract import load_contract
from spc_core.deploy.checkpoint_files import weights_sha256
from spc_core.system.config_files import find_config
from spc_ros.processes import NodeGroup
from support.bare_robot import bare_robot
from support.contracts import ARM_REACH
from support.node_probe import FakeRobot, Probe, own_domain
from support.parameter_files import NODES, WRITER, parameters
from support.paths import ROOT
from support.random_checkpoint import write_random_checkpoint

LAUNCH = sorted((ROOT / "launch").glob("*.launch.py"))
ROS_OWN = {"use_sim_time"}  # declared by rclpy itself
PROGRAMS = {**{name: (name,) for name in NODES}, "deploy": ("context_encoder", "policy")}  # their nodes
MISSING = "launch_ros is not installed; it comes with a ROS installation, not from PyPI"
needs_launch = pytest.mark.skipif(importlib.util.find_spec("launch_ros") is None, reason=MISSING)
RUNNER = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [tuple(argument.split(":=", 1)) for argument in sys.argv[2:]]
source = PythonLaunchDescriptionSource(sys.argv[1])
service = LaunchService(noninteractive=True)
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


def declared(node: str) -> dict[str, Any]:
    """Parameters of a node with their defaults."""
    return {param.name: param.default for param in WRITER["declared"](node)}


def test_nodes_yaml_is_what_the_tables_of_parameters_say() -> None:
    assert (ROOT / "config" / "nodes.yaml").read_text() == WRITER["text"](), "run: python tools/write_nodes_yaml.py"


@pytest.mark.parametrize("node", NODES)
def test_nodes_yaml_shows_every_parameter_with_its_default(node: str) -> None:
    assert parameters("nodes.yaml")[node] == declared(node)


def test_nodes_yaml_explains_every_parameter() -> None:
    for line in (ROOT / "config" / "nodes.yaml").read_text().splitlines():
        if line.startswith("    ") and ":" in line:
            assert len(line.partition(" # ")[2]) > 5 and len(line) <= 120, line


@pytest.mark.parametrize("file", ["trial/lockstep.yaml", "trial/robot.yaml"])
def test_other_parameter_files_name_known_parameters(file: str) -> None:
    for node, values in parameters(file).items():
        assert values.keys() <= declared(node).keys(), node


def test_nodes_accept_the_parameter_file(tmp_path: Path) -> None:
    file = ROOT / "config" / "nodes.yaml"
    with NodeGroup(tmp_path, namespace="robot1", environment=own_domain(), params_file=file) as nodes:
        for name in ("sim", "behaviour", "recorder"):
            nodes.start(name)
        nodes.wait_ready()
        nodes.check()


def calls(path: Path, name: str) -> set[str]:
    """First arguments of all calls of `name` in a launch file."""
    tree = ast.parse(path.read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == name and n.args]
    return {n.args[0].value for n in found if isinstance(n.args[0], ast.Constant)}


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.name)
def test_launch_arguments_are_declared_and_described(path: Path) -> None:
    names = calls(path, "DeclareLaunchArgument")
    assert calls(path, "LaunchConfiguration") <= names
    assert path.read_text().count("description=") == len(names)
    assert {"namespace", "params_file", "log_level"} <= names


class Said:
    """Stands for any class of launch: remembers what it was called with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


class StandIn(types.ModuleType):
    """A module of launch, without launch: each of its classes is a Said of that name."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__.setdefault(name, type(name, (Said,), {}))


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch):
    """What a launch file says, run without launch: (declared arguments, nodes)."""
    for name in ("launch", "launch.actions", "launch.conditions", "launch.substitutions", "launch_ros",
                 "launch_ros.actions", "launch_ros.parameter_descriptions", "launch_ros.substitutions"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, StandIn(name))

    def describe(path: Path) -> tuple[dict[str, Said], list[Said]]:
        (entities,) = runpy.run_path(str(path))["generate_launch_description"]().args
        by_kind: dict[str, list[Said]] = defaultdict(list)
        for entity in entities:
            by_kind[type(entity).__name__].append(entity)
        arguments = {argument.args[0]: argument for argument in by_kind.pop("DeclareLaunchArgument")}
        nodes = by_kind.pop("Node", []) + by_kind.pop("LifecycleNode", [])
        assert not by_kind, f"{path.name}: no check for {sorted(by_kind)}"
        return arguments, nodes

    return describe


def files_of(substitution: Said) -> list[Path]:
    """The files in the source tree that a launch file's path may mean."""
    (parts,) = substitution.args
    paths = [ROOT]
    for part in parts:
        if isinstance(part, str):
            paths = [path / part for path in paths]
        elif type(part).__name__ == "IfElseSubstitution":
            paths = [path / part.kwargs[name] for path in paths for name in ("if_value", "else_value")]
        elif type(part).__name__ == "PathJoinSubstitution":
            paths = files_of(part)
        else:
            assert (type(part).__name__, part.args) == ("FindPackageShare", ("spc_ros",))
    return paths


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.name)
def test_launch_files_name_what_exists(described, path: Path) -> None:
    """Every executable, parameter and file, whatever loop or table it comes from."""
    arguments, nodes = described(path)
    assert nodes
    for node in nodes:
        executable = node.kwargs["executable"]
        assert node.kwargs["package"] == "spc_ros" and os.access(ROOT / "scripts" / executable, os.X_OK), executable
        assert node.kwargs.get("name") == (executable if len(PROGRAMS[executable]) == 1 else None)
        for entry in node.kwargs["parameters"]:
            if isinstance(entry, dict):
                known = {name for each in PROGRAMS[executable] for name in declared(each)}
                assert entry.keys() <= known | ROS_OWN, executable
            elif type(entry).__name__ == "PathJoinSubstitution":
                assert all(path.is_file() for path in files_of(entry))
            else:
                assert entry.args == ("params_file",)
    assert files_of(arguments["params_file"].kwargs["default_value"]) == [ROOT / "config" / "nodes.yaml"]


def test_deploy_starts_a_dead_node_again(described) -> None:
    _, nodes = described(ROOT / "launch" / "deploy.launch.py")
    assert sorted(node.kwargs["executable"] for node in nodes) == ["context_encoder", "deploy", "policy"]
    for node in nodes:
        assert node.kwargs["respawn"].args == ("respawn",) and node.kwargs["respawn_delay"] >= 1.0
        condition = type(node.kwargs["condition"]).__name__
        assert condition == ("IfCondition" if node.kwargs["executable"] == "deploy" else "UnlessCondition")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("deploy", {"contract", "checkpoint", "device", "use_sim_time", "composed", "autostart", "respawn"}),
        ("record", {"contract", "out", "use_sim_time"}),
        ("sim", {"family", "model", "contract", "task_id", "mode"}),
        ("trial", {"contract", "checkpoint", "device", "composed", "out", "sim"}),
    ],
)
def test_launch_files_have_the_arguments_that_users_need(described, name: str, wanted: set[str]) -> None:
    arguments, _ = described(ROOT / "launch" / f"{name}.launch.py")
    assert wanted | {"namespace", "params_file", "log_level"} <= arguments.keys()


@pytest.fixture
def launch(tmp_path: Path):
    """Starts launch files as a ROS installation would find them; ends them with Ctrl-C's signal."""
    prefix, share = tmp_path / "prefix", tmp_path / "prefix" / "share" / "spc_ros"
    (prefix / "share/ament_index/resource_index/packages").mkdir(parents=True)
    (prefix / "share/ament_index/resource_index/packages/spc_ros").touch()
    (prefix / "lib").mkdir()
    share.mkdir()
    (prefix / "lib/spc_ros").symlink_to(ROOT / "scripts")
    (share / "config").symlink_to(ROOT / "config")
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER)
    prefixes = [str(prefix), *filter(None, [os.environ.get("AMENT_PREFIX_PATH")])]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    domain = own_domain()
    environment = {
        **os.environ,
        **domain,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "AMENT_PREFIX_PATH": os.pathsep.join(prefixes),
        "PYTHONPATH": os.pathsep.join(paths),
        "ROS_LOG_DIR": str(tmp_path / "log"),
    }
    started: list[tuple[subprocess.Popen, Path]] = []

    def start(name: str, *arguments: str) -> tuple[subprocess.Popen, Path]:
        output = tmp_path / f"{name}.txt"
        command = [sys.executable, str(runner), str(ROOT / "launch" / name), *arguments]
        with output.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path, start_new_session=True
            )  # fmt: skip
        started.append((process, output))
        return process, output

    start.domain = domain  # type: ignore[attr-defined]
    yield start
    for process, _ in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30.0)


@needs_launch
@pytest.mark.timeout(180)
def test_sim_and_deploy_drive_a_robot_in_a_namespace(launch, tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", "arm_payload")
    contract = load_contract(find_config("contracts", "arm_payload"))
    sim = launch("sim.launch.py", "namespace:=r1", "family:=arm_payload", "log_level:=warn")
    deploy = launch(
        "deploy.launch.py", f"checkpoint:={checkpoint}", "contract:=arm_payload", "namespace:=r1",
        "use_sim_time:=true", "device:=cpu", "autostart:=true", "activate:=true", "estop_required:=false",
    )  # fmt: skip
    with Probe(launch.domain) as probe:
        from spc_ros.node_parts.topics import stream_qos

        probe.listen(f"/r1/{contract.action.parts[0].topic}", contract.action.parts[0].type, stream_qos(reliable=False))
        heard = probe.heard[f"/r1/{contract.action.parts[0].topic}"]
        probe.until(lambda: len(heard) > 20, "commands in the namespace", 60.0)
    for process, output in (deploy, sim):
        process.send_signal(signal.SIGINT)
        process.wait(30.0)
        text = output.read_text()
        assert "process has died" not in text and "Traceback" not in text, text


@needs_launch
@pytest.mark.timeout(180)
@pytest.mark.parametrize("composed", ["false", "true"])
def test_deploy_comes_back_after_a_crash(launch, tiny_checkpoint: Path, composed: str) -> None:
    """Killed, the policy is started again; with autostart it commands again, by a process of its own."""
    launch("sim.launch.py", "log_level:=warn")
    by_itself = ("activate:=true", "estop_required:=false")
    _, output = launch(
        "deploy.launch.py", f"checkpoint:={tiny_checkpoint}", "use_sim_time:=true", f"composed:={composed}", *by_itself
    )
    program = "deploy" if composed == "true" else "policy"

    def started() -> list[int]:
        """Process ids of the program, in the order of their start."""
        return [
            int(pid)
            for pid in re.findall(rf"\[{program}-\d+\]: process started with pid \[(\d+)\]", output.read_text())
        ]

    with Probe(launch.domain) as probe:
        commands = probe.listen_commands(ARM_REACH)

        def driven() -> bool:
            return sum(command != list(ARM_REACH.action.safe) for command in commands()) > 20

        probe.until(driven, "commands", 60.0)
        (pid,) = started()
        os.kill(pid, signal.SIGKILL)
        probe.until(lambda: len(started()) == 2, "another process", 30.0)
        probe.heard[ARM_REACH.action.parts[0].topic].clear()
        probe.until(driven, "commands of the new process", 60.0)


@needs_launch
@pytest.mark.timeout(180)
def test_deploy_without_autostart_stays_still_after_a_crash(launch, tiny_checkpoint: Path) -> None:
    _, output = launch("deploy.launch.py", f"checkpoint:={tiny_checkpoint}", "autostart:=false")
    with Probe(launch.domain) as probe:

        def state() -> str:
            """Asked again and again: a request that goes to the dead process is not answered."""
            client, futures, asked_s = probe.node.create_client(GetState, "policy/get_state"), [], 0.0

            def answered() -> bool:
                nonlocal asked_s
                if time.monotonic() - asked_s > 1.0:
                    futures.append(client.call_async(GetState.Request()))
                    asked_s = time.monotonic()
                return any(future.done() for future in futures)

            probe.until(answered, "the policy's state", 60.0)
            return next(future.result() for future in futures if future.done()).current_state.label

        def ready(count: int) -> bool:
            return len(re.findall(r"\[policy-\d+\].*\[policy\]: ready", output.read_text())) == count

        def change(transition: int) -> None:
            request = ChangeState.Request(transition=Transition(id=transition))
            assert probe.call("policy/change_state", ChangeState, request).success

        probe.until(lambda: ready(1), "the policy", 60.0)
        change(Transition.TRANSITION_CONFIGURE)
        change(Transition.TRANSITION_ACTIVATE)
        assert state() == "active"
        (pid,) = re.findall(r"\[policy-\d+\]: process started with pid \[(\d+)\]", output.read_text())
        os.kill(int(pid), signal.SIGKILL)
        probe.until(lambda: ready(2), "the policy's return", 60.0)
        assert state() == "unconfigured"


@needs_launch
@pytest.mark.timeout(180)
def test_record_launch_writes_a_bag(launch, tmp_path: Path) -> None:
    """A robot without the topic `episode`: ~/start and ~/stop make a bag with its states."""
    out = tmp_path / "bags"
    process, output = launch("record.launch.py", "contract:=arm_reach", f"out:={out}")
    with Probe(launch.domain) as probe:
        robot = FakeRobot(probe, ARM_REACH, reliable=True)
        assert probe.call("recorder/start", Trigger).success
        robot.t_ns = probe.node.get_clock().now().nanoseconds
        probe.until(lambda: robot.first_stream.get_subscription_count() == 1, "the recorder's subscription")
        for _ in range(20):
            robot.say()
            probe.executor.spin_once(timeout_sec=0.01)
        assert robot.first_stream.wait_for_all_acked(Duration(seconds=5.0))
        answer = probe.call("recorder/stop", Trigger)
    assert answer.success
    bag = json.loads(answer.message)["path"]
    assert bag, answer.message
    with AnyReader([Path(bag)]) as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
    assert counts["/joint_states"] == 20
    process.send_signal(signal.SIGINT)
    process.wait(30.0)
    assert "Traceback" not in output.read_text()


@needs_launch
@pytest.mark.timeout(180)
@pytest.mark.parametrize("composed", ["false", "true"])
def test_trial_launch_runs_a_trial_and_ends(launch, tiny_checkpoint: Path, tmp_path: Path, composed: str) -> None:
    changed = yaml.safe_load((ROOT / "config" / "nodes.yaml").read_text())
    changed["/**/trial"]["ros__parameters"] |= {"tasks_per_split": 1, "episodes": 1}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(changed))
    out = tmp_path / "out"
    process, output = launch(
        "trial.launch.py",
        f"checkpoint:={tiny_checkpoint}",
        f"out:={out}",
        f"params_file:={file}",
        f"composed:={composed}",
    )
    process.wait(120.0)
    text = output.read_text()
    assert "process has died" not in text and "Traceback" not in text, text
    rows = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    protocols = [row["protocol"] for row in rows]  # in blocks, shuffled; few_shot follows its collect
    assert sorted(protocols) == ["collect", "few_shot", "no_context", "zero_shot"]
    assert protocols.index("few_shot") == protocols.index("collect") + 1
    assert all(Path(row["bag"]).is_dir() for row in rows)


@needs_launch
@pytest.mark.timeout(180)
def test_trial_launch_on_a_robot_asks_its_operator(launch, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """No sim: the policy rests until the operator says that the robot is at its start."""
    changed = yaml.safe_load((ROOT / "config" / "nodes.yaml").read_text())
    changed["/**/trial"]["ros__parameters"] |= {
        "task_ids": ["bench/spring"], "episodes": 1, "protocols": ["no_context"], "time_limit_s": 2.0,
    }  # fmt: skip
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(changed))
    out = tmp_path / "out"
    process, output = launch(
        "trial.launch.py", f"checkpoint:={tiny_checkpoint}", f"out:={out}", f"params_file:={file}", "sim:=false"
    )
    with bare_robot(launch.domain, done_after=0), Probe(launch.domain) as probe:

        def agreed(name: str, kind: type, request: Any = None) -> None:
            probe.until(lambda: probe.call(name, kind, request).success, name, 60.0)

        probe.until(lambda: "waiting for the operator" in output.read_text(), "the question", 60.0)
        assert probe.call("policy/get_state", GetState).current_state.label == "inactive"
        agreed("trial/continue", Trigger)
        agreed("trial/success", SetBool, SetBool.Request(data=True))
        process.wait(60.0)
    text = output.read_text()
    assert "process has died" not in text and "Traceback" not in text and "[sim-" not in text, text
    (row,) = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert row["success"] and row["reason"] == "time limit" and row["steps"] > 10
    assert json.loads((out / "plan.json").read_text())["checkpoint"] == weights_sha256(tiny_checkpoint)
