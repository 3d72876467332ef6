# SPDX-License-Identifier: Apache-2.0
"""Runs a simulated robot in real time: `ros2 launch spc_ros sim.launch.py family:=arm_payload`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def text(name: str) -> ParameterValue:
    return ParameterValue(LaunchConfiguration(name), value_type=str)


def generate_launch_description() -> LaunchDescription:
    nodes_yaml = PathJoinSubstitution([FindPackageShare("spc_ros"), "config", "nodes.yaml"])
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="the robot's namespace"),
        DeclareLaunchArgument("family", default_value="arm_reach", description="task family, or the path of its file"),
        DeclareLaunchArgument("model", default_value="", description="MJCF file of any robot; needs a contract"),
        DeclareLaunchArgument("contract", default_value="", description="contract; empty: the family's"),
        DeclareLaunchArgument("task_id", default_value="", description="task; empty: the family's first"),
        DeclareLaunchArgument("mode", default_value="realtime", description="realtime or lockstep"),
        DeclareLaunchArgument("auto_reset", default_value="true", description="episode after episode"),
        DeclareLaunchArgument("params_file", default_value=nodes_yaml, description="parameters of all nodes"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    ]
    sim = Node(
        package="spc_ros",
        executable="sim",
        name="sim",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {name: text(name) for name in ("family", "model", "contract", "task_id", "mode")},
            {"auto_reset": ParameterValue(LaunchConfiguration("auto_reset"), value_type=bool)},
        ],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )
    return LaunchDescription([*arguments, sim])
