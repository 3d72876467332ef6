# SPDX-License-Identifier: Apache-2.0
"""Runs a few-shot trial: `ros2 launch spc_ros trial.launch.py checkpoint:=<folder> out:=<folder>`.

Runs sim, recorder, context_encoder, policy and trial in lock-step, and ends with the trial. With sim:=false it
uses your own robot, which an operator brings to its start: /trial/continue, /trial/stop, /trial/success; list its tasks
as task_ids of the node trial in a params_file.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, Shutdown
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import IfElseSubstitution, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

CONFIG = [FindPackageShare("spc_ros"), "config"]
BOTH_AGENT_NODES = "deploy"  # one process; a name would rename both of its nodes


def text(*parts: LaunchConfiguration | str) -> ParameterValue:
    return ParameterValue(list(parts), value_type=str)


def generate_launch_description() -> LaunchDescription:
    family = LaunchConfiguration("family")
    arguments = [
        DeclareLaunchArgument("checkpoint", description="folder of a trained checkpoint"),
        DeclareLaunchArgument("family", default_value="arm_reach", description="task family, or the path of its file"),
        DeclareLaunchArgument("contract", default_value=family, description="contract; needed for a family's file"),
        DeclareLaunchArgument("out", default_value="trial", description="folder for episodes.jsonl and bags"),
        DeclareLaunchArgument("sim", default_value="true", description="false: a robot and an operator, no sim"),
        DeclareLaunchArgument("namespace", default_value="", description="the robot's namespace"),
        DeclareLaunchArgument("device", default_value="cpu", description="cpu, cuda, cuda:<n> or auto"),
        DeclareLaunchArgument("composed", default_value="false", description="the policy's nodes in one process"),
        DeclareLaunchArgument(
            "params_file",
            default_value=PathJoinSubstitution([*CONFIG, "nodes.yaml"]),
            description="parameters of all nodes",
        ),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    ]
    return LaunchDescription([*arguments, *(node(name, values) for name, values in parameters().items())])


def parameters() -> dict[str, dict]:
    """Parameters of each node in addition to the parameter files."""
    names = ("family", "contract", "checkpoint", "out", "device")
    family, contract, checkpoint, out, device = map(LaunchConfiguration, names)
    agent = {"checkpoint": text(checkpoint), "device": text(device), "contract": text(contract)}
    simulated = ParameterValue(LaunchConfiguration("sim"), value_type=bool)
    return {
        "recorder": {"contract": text(contract), "directory": text(out, "/bags"), "use_sim_time": simulated},
        "context_encoder": agent,
        "policy": agent,
        BOTH_AGENT_NODES: agent,
        "sim": {"family": text(family), "contract": text(contract)},
        "trial": {
            "family": text(family),
            "contract": text(contract),
            "out": text(out),
            "checkpoint": text(checkpoint),  # a resumed trial must use the same one
        },
    }


def node(name: str, values: dict) -> Node:
    """One node; the launch ends with any of them."""
    composed, sim = LaunchConfiguration("composed"), LaunchConfiguration("sim")
    conditions = {
        "context_encoder": UnlessCondition(composed),
        "policy": UnlessCondition(composed),
        BOTH_AGENT_NODES: IfCondition(composed),
        "sim": IfCondition(sim),
    }
    pace = IfElseSubstitution(sim, if_value="lockstep.yaml", else_value="robot.yaml")
    return Node(
        package="spc_ros",
        executable=name,
        name=None if name == BOTH_AGENT_NODES else name,
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), PathJoinSubstitution([*CONFIG, "trial", pace]), values],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        condition=conditions.get(name),
        on_exit=Shutdown(reason=f"{name} ended"),
    )
