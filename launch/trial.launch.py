# SPDX-License-Identifier: Apache-2.0
"""A few-shot trial in simulation: `ros2 launch spc_ros trial.launch.py checkpoint:=<folder> out:=<folder>`.

Runs sim, recorder, context_encoder, policy and trial in lock-step, and ends with the trial.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, Shutdown
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def text(*parts: LaunchConfiguration | str) -> ParameterValue:
    return ParameterValue(list(parts), value_type=str)


def generate_launch_description() -> LaunchDescription:
    config = PathJoinSubstitution([FindPackageShare("spc_ros"), "config"])
    nodes_yaml = PathJoinSubstitution([config, "nodes.yaml"])
    lockstep_yaml = PathJoinSubstitution([config, "lockstep.yaml"])
    family = LaunchConfiguration("family")
    arguments = [
        DeclareLaunchArgument("checkpoint", description="folder of a trained checkpoint"),
        DeclareLaunchArgument("family", default_value="arm_reach", description="arm_reach or arm_payload"),
        DeclareLaunchArgument("contract", default_value=family, description="contract; the family's by default"),
        DeclareLaunchArgument("out", default_value="trial", description="folder for episodes.jsonl and bags"),
        DeclareLaunchArgument("namespace", default_value="", description="the robot's namespace"),
        DeclareLaunchArgument("device", default_value="cpu", description="cpu, cuda, cuda:<n> or auto"),
        DeclareLaunchArgument("composed", default_value="false", description="the policy's nodes in one process"),
        DeclareLaunchArgument("params_file", default_value=nodes_yaml, description="parameters of all nodes"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    ]
    contract, checkpoint = LaunchConfiguration("contract"), LaunchConfiguration("checkpoint")
    composed = LaunchConfiguration("composed")
    agent = {
        "checkpoint": text(checkpoint),
        "device": text(LaunchConfiguration("device")),
        "contract": text(contract),
    }
    out = LaunchConfiguration("out")
    parameters = {
        "recorder": {"contract": text(contract), "directory": text(out, "/bags")},
        "context_encoder": agent,
        "policy": agent,
        "deploy": agent,
        "sim": {"family": text(family), "contract": text(contract)},
        "trial": {
            "family": text(family),
            "contract": text(contract),
            "out": text(out),
            "checkpoint": text(checkpoint),  # a resumed trial must be of the same
        },
    }
    conditions = {
        "context_encoder": UnlessCondition(composed),
        "policy": UnlessCondition(composed),
        "deploy": IfCondition(composed),
    }
    nodes = [
        Node(
            package="spc_ros",
            executable=name,
            name=None if name == "deploy" else name,  # a name would rename both of its nodes
            namespace=LaunchConfiguration("namespace"),
            parameters=[
                LaunchConfiguration("params_file"),
                lockstep_yaml,
                {"use_sim_time": name == "recorder", **values},
            ],
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            output="screen",
            condition=conditions.get(name),
            on_exit=Shutdown(reason=f"{name} ended"),
        )
        for name, values in parameters.items()
    ]
    return LaunchDescription([*arguments, *nodes])
