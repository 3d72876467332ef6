# SPDX-License-Identifier: Apache-2.0
"""Launch and parameter files: every name in them exists, and the launch files run where `launch_ros` is installed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from node_probe import Probe, own_domain
from random_checkpoint import write_random_checkpoint

from spc_core.contract import find_config, load_contract
from spc_ros.driver_node import DRIVER_PARAMS
from spc_ros.managed_node import AUTOSTART, ManagedNode
from spc_ros.plain_node import EXECUTOR
from spc_ros.processes import NodeGroup

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = sorted((ROOT / "launch").glob("*.launch.py"))
NODES = ("sim", "behaviour", "recorder", "context_encoder", "policy", "collect", "trial")
ROS_OWN = {"use_sim_time"}  # declared by rclpy itself
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
    module = importlib.import_module(f"spc_ros.{node}_node")
    params = [*module.PARAMS, EXECUTOR]
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    if any(issubclass(c, ManagedNode) for c in classes):
        params.append(AUTOSTART)
    if node in ("collect", "trial"):
        params.extend(DRIVER_PARAMS)
    return {param.name: param.default for param in params}


def parameters(file: str) -> dict[str, dict[str, Any]]:
    """Node name to its parameters in a parameter file."""
    root = yaml.safe_load((ROOT / "config" / file).read_text())
    assert all(key.startswith("/**/") and set(value) == {"ros__parameters"} for key, value in root.items())
    return {key.removeprefix("/**/"): value["ros__parameters"] for key, value in root.items()}


@pytest.mark.parametrize("node", NODES)
def test_nodes_yaml_shows_every_parameter_with_its_default(node: str) -> None:
    assert parameters("nodes.yaml")[node] == declared(node)


def test_nodes_yaml_explains_every_parameter() -> None:
    seen: set[str] = set()
    for line in (ROOT / "config" / "nodes.yaml").read_text().splitlines():
        if line.startswith("    ") and ":" in line:
            name = line.split(":")[0].strip()
            assert " # " in line or name in seen, f"no comment: {line}"
            seen.add(name)


def test_lockstep_yaml_names_known_parameters() -> None:
    for node, values in parameters("lockstep.yaml").items():
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
        "use_sim_time:=true", "device:=cpu", "autostart:=true",
    )  # fmt: skip
    with Probe(launch.domain) as probe:
        from spc_ros.topic_bridge import stream_qos

        probe.listen(f"/r1/{contract.action.topic}", contract.action.type, stream_qos(reliable=False))
        heard = probe.heard[f"/r1/{contract.action.topic}"]
        probe.until(lambda: len(heard) > 20, "commands in the namespace", 60.0)
    for process, output in (deploy, sim):
        process.send_signal(signal.SIGINT)
        process.wait(30.0)
        text = output.read_text()
        assert "process has died" not in text and "Traceback" not in text, text


@needs_launch
@pytest.mark.timeout(180)
def test_trial_launch_runs_a_trial_and_ends(launch, tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", "arm_reach")
    changed = yaml.safe_load((ROOT / "config" / "nodes.yaml").read_text())
    changed["/**/trial"]["ros__parameters"] |= {"tasks_per_split": 1, "episodes": 1}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(changed))
    out = tmp_path / "out"
    process, output = launch("trial.launch.py", f"checkpoint:={checkpoint}", f"out:={out}", f"params_file:={file}")
    process.wait(120.0)
    text = output.read_text()
    assert "process has died" not in text and "Traceback" not in text, text
    rows = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert [row["protocol"] for row in rows] == ["no_context", "zero_shot", "collect", "few_shot"]
    assert all(Path(row["bag"]).is_dir() for row in rows)
