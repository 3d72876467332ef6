# SPDX-License-Identifier: Apache-2.0
"""The camera of the node `sim`: its images as a topic, its films as files."""

from __future__ import annotations

from array import array
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import Image

from spc_core.tasks.camera import CameraError, EpisodeCamera
from spc_ros.messages.fields import set_stamp
from spc_ros.node_parts.plain_node import Diagnostics
from spc_ros.node_parts.sim_params import camera_config
from spc_ros.node_parts.topics import stream_qos
from spc_ros.sim.simulation import Simulation

IMAGE_TOPIC = "camera/image_raw"


class SimCamera:
    """What the parameters ask for; nothing where they name no camera."""

    def __init__(self, node: Node, params: Any, sim: Simulation, diagnostics: Diagnostics) -> None:
        """Raises CameraError."""
        if params.video_directory and not params.camera:
            raise CameraError("video_directory is set, but no camera; set camera to 'free' or one of the model")
        self._camera: EpisodeCamera | None = None
        self._name, self._sim, self._diagnostics = params.camera, sim, diagnostics
        if params.camera:
            env = sim.env
            self._camera = EpisodeCamera(env.model, env.data, camera_config(params), sim.contract.rate_hz)
            self._images = node.create_publisher(Image, IMAGE_TOPIC, stream_qos(params.mode == "lockstep"))

    def start(self) -> None:
        """An episode begins."""
        if self._camera is not None:
            try:
                self._camera.start()
            except OSError as error:
                self._lost(error)

    def look(self, t_ns: int) -> None:
        """Publish what the camera sees at this tick, if it is due."""
        image = self._camera.see() if self._camera is not None else None
        if image is not None:
            height, width, _ = image.shape
            msg = Image(height=height, width=width, encoding="rgb8", step=3 * width)
            msg.header.frame_id = self._name
            msg.data = array("B", image.tobytes())
            set_stamp(msg, t_ns)
            self._images.publish(msg)

    def keep_film(self) -> None:
        """The episode has ended."""
        if self._camera is not None:
            info = self._sim.info
            try:
                self._camera.finish(f"{info.episode:04d}_{info.task_id.replace('/', '-')}")
            except OSError as error:
                self._lost(error)

    def close(self) -> None:
        """The program ends."""
        if self._camera is not None:
            self._camera.close()

    def _lost(self, error: OSError) -> None:
        self._diagnostics.complain("films lost", f"video_directory: the film is lost: {error}")
