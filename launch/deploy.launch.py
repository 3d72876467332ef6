# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on a robot: `ros2 launch spc_ros deploy.launch.py checkpoint:=<folder> contract:=<file>`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def typed(name: str, value_type: type) -> ParameterValue:
    return ParameterValue(LaunchConfiguration(name), value_type=value_type)


def generate_launch_description() -> LaunchDescription:
    nodes_yaml = PathJoinSubstitution([FindPackageShare("spc_ros"), "config", "nodes.yaml"])
    arguments = [
        DeclareLaunchArgument("checkpoint", description="folder of a trained checkpoint"),
        DeclareLaunchArgument("contract", default_value="", description="the robot's contract, to be compared"),
        DeclareLaunchArgument("namespace", default_value="", description="the robot's namespace"),
        DeclareLaunchArgument("device", default_value="cpu", description="cpu, cuda, cuda:<n> or auto"),
        DeclareLaunchArgument("params_file", default_value=nodes_yaml, description="parameters of all nodes"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="true with a simulation"),
        DeclareLaunchArgument("autostart", default_value="true", description="configure and activate at once"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    ]
    parameters = [
        LaunchConfiguration("params_file"),
        {name: typed(name, str) for name in ("checkpoint", "contract", "device")},
        {name: typed(name, bool) for name in ("use_sim_time", "autostart")},
    ]
    nodes = [
        LifecycleNode(
            package="spc_ros",
            executable=name,
            name=name,
            namespace=LaunchConfiguration("namespace"),
            parameters=parameters,
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            output="screen",
        )
        for name in ("context_encoder", "policy")
    ]
    return LaunchDescription([*arguments, *nodes])
