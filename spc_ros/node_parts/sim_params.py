# SPDX-License-Identifier: Apache-2.0
"""The parameters of the node `sim`, and what they say of task, disturbances and camera."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from spc_core.tasks import Task, TaskEnv, families, find_task, make_env
from spc_core.tasks.camera import CameraConfig
from spc_core.tasks.disturbances import DisturbanceConfig, noise_std
from spc_core.tasks.film import FORMATS
from spc_ros.node_parts.plain_node import Param
from spc_ros.node_parts.task_change import CHANGE_PARAMS

MODE = "lockstep: time waits for the command | realtime: time does not wait"
VIDEO_FORMAT = "mp4 | gif; mp4 needs ffmpeg (imageio-ffmpeg brings one), gif needs Pillow"
PARAMS = [
    Param("family", "arm_reach", "task family", choices=families(), read_only=True),
    Param("model", "", "MJCF file of any robot, instead of a family; needs its contract", read_only=True),
    Param("keyframe", "", "model: where an episode begins; empty: its first keyframe, or else qpos0", read_only=True),
    Param("contract", "", "contract file, or name of a shipped one; empty: the family's", read_only=True),
    Param("task_id", "", "of the next episode, such as arm_reach/id/03; empty: the first; a model's is a label"),
    *CHANGE_PARAMS,
    Param("seed", 0, "seed of the next episode", 0, 2**31),
    Param("mode", "lockstep", MODE, choices=("lockstep", "realtime"), read_only=True),
    Param("auto_reset", False, "start an episode at once, and the next one (seed + 1) when one ends"),
    Param("command_timeout_s", 5.0, "lockstep: an episode breaks off when no command comes for so long", 0.01, 3600.0),
    Param("connect_timeout_s", 20.0, "lockstep: longest wait for others to connect at a reset", 0.0, 3600.0),
    Param("min_subscriptions", 1, "lockstep: subscribers of the first observed topic to wait for at a reset", 0, 100),
    Param("sensor_delay_ms", 0.0, "states are so much older than their stamps say", 0.0, 1000.0),
    Param("actuator_delay_ms", 0.0, "commands work so much later; until then the one before does", 0.0, 1000.0),
    Param("noise", [""], "standard deviations by field group, such as [joint_states.velocity=0.1]"),
    Param("noise_relative", 0.0, "standard deviation as a share of each observed value", 0.0, 10.0),
    Param("sensor_dropout", 0.0, "share of state messages that are lost; lockstep: of whole ticks", 0.0, 0.99),
    Param("command_dropout", 0.0, "share of commands that are lost; the one before holds", 0.0, 0.99),
    Param("push_impulse", 0.0, "largest impulse of a push on each joint, Nms (hinge) or Ns (slide); 0: none", 0.0, 1e6),
    Param("push_interval_s", 2.0, "mean time between two pushes", 0.001, 3600.0),
    Param("camera", "", "a camera of the model, or free; publishes camera/image_raw. Empty: none", read_only=True),
    Param("camera_rate_hz", 10.0, "images in a second of simulated time", 0.01, 1000.0, read_only=True),
    Param("camera_width", 320, "pixels", 16, 4096, read_only=True),
    Param("camera_height", 240, "pixels", 16, 4096, read_only=True),
    Param("video_directory", "", "folder for a film of each episode; empty: none. Needs a camera", read_only=True),
    Param("video_format", "mp4", VIDEO_FORMAT, choices=FORMATS, read_only=True),
]


def next_task(params: Any, env: TaskEnv) -> Task:
    """The task of the next episode."""
    if params.model:
        return dataclasses.replace(env.task, task_id=params.task_id or env.task.family)
    return find_task(params.task_id) if params.task_id else make_env(params.family).task


def check_value(params: Any, fields: Sequence[str], name: str, value: Any) -> None:
    """Raises ValueError for a task that is not of this simulation, and for noise on what is not observed."""
    if name == "noise":
        noise_std(value or (), fields)
    elif name in ("task_id", "change_task_id") and value and not params.model:
        family = find_task(value).family
        if family != params.family:
            raise ValueError(f"task '{value}' is not of the family '{params.family}'")


def disturbance_config(params: Any) -> DisturbanceConfig:
    """What the robot shall suffer from the next episode on."""
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(DisturbanceConfig)}
    return DisturbanceConfig(**{**values, "noise": tuple(values["noise"])})


def camera_config(params: Any) -> CameraConfig:
    """What the camera shall see."""
    return CameraConfig(*(getattr(params, field.name) for field in dataclasses.fields(CameraConfig)))
