# SPDX-License-Identifier: Apache-2.0
"""`colcon build` gives the tree that `ros2 run` and `ros2 launch` expect, and its nodes start and stop."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node

from support.paths import ROOT

pytestmark = pytest.mark.nodes

BIN = Path(sys.executable).parent
EXECUTABLES = {"sim", "recorder", "context_encoder", "policy", "trial", "behaviour", "deploy"}
START_S = 60.0  # importing torch on a busy machine
STOP_S = 30.0


@pytest.fixture(scope="module", params=["copy", "symlink"])
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with these sources under src/, built by the environment's own colcon."""
    root = tmp_path_factory.mktemp(request.param)
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    shutil.copytree(ROOT, root / "src" / "spc_ros", ignore=shutil.ignore_patterns(".git", *ignored))
    command = [str(BIN / "colcon"), "--log-base", "log", "build"]
    command += ["--symlink-install"] if request.param == "symlink" else []
    built = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    return root


def environment(root: Path) -> dict[str, str]:
    """The caller's environment, without the caller's colcon defaults and with this Python first."""
    return os.environ | {"COLCON_HOME": str(root), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def start(root: Path, command: str, **kwargs) -> subprocess.Popen:
    """Run a command as a user does after sourcing the workspace; exec keeps the process id."""
    line = f". {root}/install/setup.sh && exec {command}"
    return subprocess.Popen(["sh", "-c", line], cwd=root, env=environment(root), text=True, **kwargs)


def test_install_tree(workspace: Path) -> None:
    prefix = workspace / "install" / "spc_ros"
    share = prefix / "share" / "spc_ros"
    found = {path.name for path in (prefix / "lib" / "spc_ros").iterdir() if os.access(path, os.X_OK)}
    assert found == EXECUTABLES | {"spc"}
    for folder, pattern in [("launch", "*.launch.py"), ("config/contracts", "*.yaml"), ("config", "*.yaml")]:
        names = {path.name for path in (ROOT / folder).glob(pattern)}
        assert names and names <= {path.name for path in (share / folder).iterdir()}, folder
    assert (share / "package.xml").is_file()
    assert (prefix / "share" / "ament_index" / "resource_index" / "packages" / "spc_ros").is_file()


def test_sourced_workspace_wins_over_the_editable_install(workspace: Path) -> None:
    code = "import spc_core, spc_ros; print(spc_core.__file__); print(spc_ros.__file__)"
    with start(workspace, f"python3 -c '{code}'", stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=START_S)
    assert [line.startswith(str(workspace)) for line in output.split()] == [True, True], output


def test_installed_node_starts_and_stops(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = 1 + os.getpid() % 100  # parallel runs must not see each other
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    prefix = workspace / "install" / "spc_ros"
    contract = prefix / "share" / "spc_ros" / "config" / "contracts" / "arm_reach.yaml"
    command = f"{prefix}/lib/spc_ros/recorder --ros-args -p contract:={contract}"
    with (workspace / "recorder.txt").open("w+") as output:
        process = start(workspace, command, stdout=output, stderr=subprocess.STDOUT)
        try:
            seen = wait_for_node("recorder", process, domain)
            interrupt(process)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        text = output.read()
    assert seen, f"exit status {process.returncode}\n{text}"
    assert process.returncode in (0, -signal.SIGINT, 128 + signal.SIGINT), text
    assert "Traceback" not in text, text


def wait_for_node(name: str, process: subprocess.Popen, domain: int) -> bool:
    """True once a node of that name is on the graph, False when the process ends or START_S is over."""
    context = Context()
    rclpy.init(context=context, domain_id=domain)
    probe = Node("colcon_probe", context=context)
    try:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            if name in probe.get_node_names():
                return True
            time.sleep(0.1)
        return False
    finally:
        probe.destroy_node()
        rclpy.shutdown(context=context)


def interrupt(process: subprocess.Popen) -> None:
    """SIGINT until the process ends: rclpy can miss one between a node's creation and its spin."""
    deadline = time.monotonic() + STOP_S
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            continue
