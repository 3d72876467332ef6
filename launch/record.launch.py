# SPDX-License-Identifier: Apache-2.0
"""Records bags of a robot: `ros2 launch spc_ros record.launch.py contract:=<file> out:=<folder>`.

Then `ros2 service call /recorder/start std_srvs/srv/Trigger` starts a bag, and `stop` ends it. With
auto_episode:=true each episode announced on the topic `episode` is recorded.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def typed(name: str, value_type: type) -> ParameterValue:
    return ParameterValue(LaunchConfiguration(name), value_type=value_type)


def generate_launch_description() -> LaunchDescription:
    nodes_yaml = PathJoinSubstitution([FindPackageShare("spc_ros"), "config", "nodes.yaml"])
    arguments = [
        DeclareLaunchArgument("contract", description="the robot's contract, which lists the topics to record"),
        DeclareLaunchArgument("out", default_value="bags", description="folder for the bags"),
        DeclareLaunchArgument("storage", default_value="mcap", description="mcap or sqlite3"),
        DeclareLaunchArgument("behaviour", default_value="", description="name of the behaviour, stored in the bags"),
        DeclareLaunchArgument("auto_episode", default_value="false", description="a bag for each announced episode"),
        DeclareLaunchArgument("namespace", default_value="", description="the robot's namespace"),
        DeclareLaunchArgument("params_file", default_value=nodes_yaml, description="parameters of all nodes"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="true with a simulation"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    ]
    recorder = Node(
        package="spc_ros",
        executable="recorder",
        name="recorder",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {"directory": typed("out", str)},
            {name: typed(name, str) for name in ("contract", "storage", "behaviour")},
            {name: typed(name, bool) for name in ("auto_episode", "use_sim_time")},
        ],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )
    return LaunchDescription([*arguments, recorder])
