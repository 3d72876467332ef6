# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on a robot: `ros2 launch spc_ros deploy.launch.py checkpoint:=<folder> contract:=<file>`.

The context encoder learns at once. The policy waits until somebody activates it, also after it died and was restarted
(activate:=true lets it drive at once), and acts only after `emergency_stop` has said false (estop_required:=false for
a robot without that topic). With autostart:=false both stay unconfigured.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

RESPAWN_DELAY_S = 2.0
RESPAWNS = 10  # else a node that refuses its parameters would respawn forever


def typed(name: str, value_type: type) -> ParameterValue:
    return ParameterValue(LaunchConfiguration(name), value_type=value_type)


def generate_launch_description() -> LaunchDescription:
    nodes_yaml = PathJoinSubstitution([FindPackageShare("spc_ros"), "config", "nodes.yaml"])
    arguments = [
        DeclareLaunchArgument("checkpoint", description="folder of a trained checkpoint"),
        DeclareLaunchArgument(
            "contract", default_value="", description="the robot's contract, to check the checkpoint's"
        ),
        DeclareLaunchArgument("namespace", default_value="", description="the robot's namespace"),
        DeclareLaunchArgument("device", default_value="cpu", description="cpu, cuda, cuda:<n> or auto"),
        DeclareLaunchArgument("params_file", default_value=nodes_yaml, description="parameters of all nodes"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="true with a simulation"),
        DeclareLaunchArgument("composed", default_value="false", description="both nodes in one process"),
        DeclareLaunchArgument("autostart", default_value="true", description="configure, and start the encoder"),
        DeclareLaunchArgument("activate", default_value="false", description="true: the policy drives at once"),
        DeclareLaunchArgument(
            "estop_required", default_value="true", description="act only after emergency_stop has said false"
        ),
        DeclareLaunchArgument("shadow", default_value="false", description="compare, and send nothing to the robot"),
        DeclareLaunchArgument("respawn", default_value="true", description="start a node again when it dies"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    ]
    composed = LaunchConfiguration("composed")
    shared = {
        "package": "spc_ros",
        "namespace": LaunchConfiguration("namespace"),
        "parameters": [
            LaunchConfiguration("params_file"),
            {name: typed(name, str) for name in ("checkpoint", "contract", "device")},
            {name: typed(name, bool) for name in ("use_sim_time", "autostart")},
        ],
        "arguments": ["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        "output": "screen",
        "respawn": LaunchConfiguration("respawn"),
        "respawn_delay": RESPAWN_DELAY_S,
        "respawn_max_retries": RESPAWNS,
    }
    driving = {
        **shared,
        "parameters": [
            *shared["parameters"],
            {name: typed(name, bool) for name in ("activate", "estop_required", "shadow")},
        ],
    }
    separate, together = UnlessCondition(composed), IfCondition(composed)
    encoder = LifecycleNode(executable="context_encoder", name="context_encoder", condition=separate, **shared)
    policy = LifecycleNode(executable="policy", name="policy", condition=separate, **driving)
    both = Node(executable="deploy", condition=together, **driving)  # a name would rename both nodes
    return LaunchDescription([*arguments, encoder, policy, both])
