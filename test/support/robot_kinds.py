# SPDX-License-Identifier: Apache-2.0
"""Robots of many kinds, by the topics, types and rates that drivers of such robots publish."""

from __future__ import annotations

from typing import Any

import numpy as np

from support.robot_streams import (
    Moment,
    RobotKind,
    Stream,
    T,
    battery,
    floats,
    gps,
    imu,
    joints,
    number,
    odometry,
    scan,
    stamped,
    text,
    trajectory,
    transforms,
    twist,
    urdf,
)

PANDA = [f"panda_joint{i}" for i in range(1, 8)]
LEGS = [f"{leg}_{part}_joint" for leg in ("lf", "rf", "lh", "rh") for part in ("hip", "upper_leg", "lower_leg")]
UR = ["shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint"]
BODY = [f"{side}_{part}" for side in ("left", "right") for part in (
    "hip_yaw", "hip_roll", "hip_pitch", "knee", "ankle", "shoulder_pitch", "shoulder_roll", "elbow")]  # fmt: skip
WRENCH = stamped("WrenchStamped", wrench=lambda m: T["geometry_msgs/msg/Wrench"](m.vector(20, 8.0), m.vector(23)))
DVL = stamped(
    "TwistWithCovarianceStamped",
    twist=lambda m: T["geometry_msgs/msg/TwistWithCovariance"](m.twist([0, 1, 2], []), np.zeros(36)),
)
PRESSURE = stamped(
    "FluidPressure", "sensor_msgs", fluid_pressure=lambda m: m.wave(30, 4e3, 1.3e5), variance=lambda m: 0.0
)
SPEED = stamped("TwistStamped", twist=lambda m: m.twist([0, 1, 2], [2]))
DRIVE = stamped(
    "AckermannDriveStamped", "ackermann_msgs",
    drive=lambda m: T["ackermann_msgs/msg/AckermannDrive"](m.wave(1, 0.3), 0.0, m.wave(2, 1.0, 1.5), 0.0, 0.0),
)  # fmt: skip
MODE = stamped("State", "mavros_msgs", connected=lambda m: True, armed=lambda m: True, mode=lambda m: "OFFBOARD")


def at_height(m: Moment) -> Any:
    """A goal 2 m above the ground, looking ahead."""
    place = T["geometry_msgs/msg/Point"](x=m.wave(50, 3.0), y=m.wave(51, 3.0), z=2.0)
    ahead = T["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0)
    return T["geometry_msgs/msg/Pose"](position=place, orientation=ahead)


LOCAL, GOAL = stamped("PoseStamped", pose=lambda m: m.pose()), stamped("PoseStamped", pose=at_height)

KINDS = (
    RobotKind("arm", (
        joints(UR, 125), Stream("/force_torque_sensor_broadcaster/wrench", *WRENCH, 125),
        floats("/forward_position_controller/commands", 6, 125, still=[0]),
        number("/speed_scaling_state_broadcaster/speed_scaling", 125, lambda m: 100.0), transforms("/tf", 125),
        text("/robot_description", urdf({name: (-6.28, 6.28, 3.14, 150.0) for name in UR})),
    )),
    RobotKind("arm and gripper", (
        joints([*PANDA, "panda_finger_joint1", "panda_finger_joint2"], 100),
        trajectory("/panda_arm_controller/joint_trajectory", PANDA, 50),
        floats("/panda_hand_controller/commands", 2, 10),
        text("/robot_description", urdf({name: (-2.9, 2.9, 2.1, 87.0) for name in PANDA})),
    )),
    RobotKind("mobile base", (
        odometry("/odom", 30), imu("/imu", 100), scan("/scan", 5), twist("/cmd_vel", 20, [0], [2]),
        Stream("/joint_states", "sensor_msgs/msg/JointState", lambda m: T["sensor_msgs/msg/JointState"](
            m.header, ["wheel_left_joint", "wheel_right_joint"], np.array([9 * m.s, 8.5 * m.s]),
            np.array([m.wave(1), m.wave(2)]), np.empty(0)), 30),
        battery("/battery_state", 20), transforms("/tf", 30),
        Stream("/goal_pose", *LOCAL, at_s=(0.5,)), number("/odometer", 10, lambda m: 2 * m.s + 3.0),
    )),
    RobotKind("quadruped", (
        joints(LEGS, 200), imu("/imu/data", 200),
        trajectory("/joint_group_effort_controller/joint_trajectory", LEGS, 200),
        twist("/cmd_vel", 10, [0, 1], [2]), floats("/foot_forces", 4, 200), odometry("/odom", 50),
    )),
    RobotKind("drone", (
        Stream("/mavros/local_position/pose", *LOCAL, 30), Stream("/mavros/local_position/velocity_local", *SPEED, 30),
        imu("/mavros/imu/data", 50), Stream("/mavros/setpoint_position/local", *GOAL, 20),
        Stream("/mavros/state", *MODE, 1), battery("/mavros/battery", 1), gps("/mavros/global_position/global", 1),
    )),
    RobotKind("underwater vehicle", (
        imu("/bluerov2/imu/data", 50), Stream("/bluerov2/dvl/velocity", *DVL, 8),
        Stream("/bluerov2/pressure", *PRESSURE, 10), twist("/bluerov2/cmd_vel", 20, [0, 1, 2], [2]),
    )),
    RobotKind("boat", (
        gps("/boat/gps/fix", 1.5), imu("/boat/imu/data", 20), odometry("/boat/gps/odometry", 1.5),
        twist("/boat/cmd_vel", 10, [0], [2]), number("/boat/wind_speed", 2, lambda m: m.wave(70, 1.0, 4.0)),
    )),
    RobotKind("boat with two thrusters", (
        gps("/wamv/sensors/gps/gps/fix", 20), imu("/wamv/sensors/imu/imu/data", 50),
        number("/wamv/thrusters/left/thrust", 20, lambda m: m.wave(1, 300.0)),
        number("/wamv/thrusters/right/thrust", 20, lambda m: m.wave(2, 300.0)),
    )),
    RobotKind("scan only", (scan("/scan", 10, 720), twist("/cmd_vel", 10, [0], [2]))),
    RobotKind("Ackermann car", (scan("/scan", 40, 1080), odometry("/odom", 50), Stream("/drive", *DRIVE, 40))),
    RobotKind("humanoid", (
        joints(BODY, 200), imu("/imu/data", 200), Stream("/left_foot/wrench", *WRENCH, 200),
        Stream("/right_foot/wrench", *WRENCH, 200), joints(BODY, 100, "/joint_commands", "p"),
        text("/robot_description", urdf({name: (-1.57, 1.57, 6.0, 60.0) for name in BODY})),
    )),
    RobotKind("base told only of changes", (
        odometry("/odom", 50), twist("/cmd_vel", 0, [0], [2], at_s=tuple(np.cumsum([0.3, 0.1, 1.2, 0.2, 0.1, 0.9, 0.3, 0.1, 2.0, 0.4, 0.2, 0.8]))),  # noqa: E501
    )),
)  # fmt: skip
