# SPDX-License-Identifier: Apache-2.0
"""Parts of the node `sim`: parameters, camera, task changes within an episode, and simulation_interfaces services.

A task change keeps the robot's state and changes only the hidden parameters. If announced, the topic `episode` reports
it at once, so that listeners can reset; otherwise only the end of the episode, and so its bag, records it.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from spc_core.tasks import Task, find_family, find_task
from spc_core.tasks.camera import CameraConfig, CameraError, EpisodeCamera
from spc_core.tasks.disturbances import DisturbanceConfig, noise_std
from spc_core.tasks.film import FORMATS
from spc_core.tasks.task_env import TaskEnv
from spc_ros.messages.fields import set_stamp
from spc_ros.node_parts.diagnostics import Diagnostics
from spc_ros.node_parts.plain_node import FAMILY, Param, PlainNode
from spc_ros.node_parts.topics import stream_qos
from spc_ros.sim.control import Player, SimControl
from spc_ros.sim.simulation import Simulation

IMAGE_TOPIC = "camera/image_raw"
MODE = "lockstep: simulated time waits for the command | realtime: it does not"
VIDEO_FORMAT = "mp4 | gif; mp4 needs ffmpeg (included in imageio-ffmpeg), gif needs Pillow"
PARAMS = [
    Param("family", "arm_reach", FAMILY, read_only=True),
    Param("model", "", "MJCF file of any robot, instead of a family; needs a contract", read_only=True),
    Param("keyframe", "", "model: initial state of episodes; empty: its first keyframe, else qpos0", read_only=True),
    Param("contract", "", "contract file or name of a shipped contract; empty: the family's", read_only=True),
    Param("task_id", "", "task of the next episode, such as arm_reach/id/03; empty: the first; a label for a model"),
    Param("change_task_id", "", "task to which a running episode changes; empty: none"),
    Param("change_after_steps", 0, "change after this many steps of each episode; 0: only on ~/change", 0, 10_000_000),
    Param("change_announced", True, "report the change on the topic episode at once; false: at the end of the episode"),
    Param("episode_steps", 0, "time limit in steps from the next episode on; 0: the family's", 0, 10_000_000),
    Param("seed", 0, "seed of the next episode", 0, 2**31),
    Param("mode", "lockstep", MODE, choices=("lockstep", "realtime"), read_only=True),
    Param("auto_reset", False, "start an episode at once, and the next one (seed + 1) when it ends"),
    Param("command_timeout_s", 5.0, "lockstep: abort an episode after this time without a command", 0.01, 3600.0),
    Param("connect_timeout_s", 20.0, "lockstep: longest wait for other nodes to connect at a reset", 0.0, 3600.0),
    Param("min_subscriptions", 1, "lockstep: subscribers of the first observed topic to await at a reset", 0, 100),
    Param("sensor_delay_ms", 0.0, "observations lag their timestamps by this much", 0.0, 1000.0),
    Param(
        "actuator_delay_ms",
        0.0,
        "commands take effect this much later; until then the previous one applies",
        0.0,
        1000.0,
    ),
    Param("noise", [""], "standard deviations by field group, such as [joint_states.velocity=0.1]"),
    Param("noise_relative", 0.0, "standard deviation as a fraction of each observed value", 0.0, 10.0),
    Param("sensor_dropout", 0.0, "fraction of state messages that are lost; lockstep: of complete ticks", 0.0, 0.99),
    Param("command_dropout", 0.0, "fraction of commands that are lost; the previous one holds", 0.0, 0.99),
    Param("push_impulse", 0.0, "maximum impulse of a push on each joint, Nms (hinge) or Ns (slide); 0: none", 0.0, 1e6),
    Param("push_interval_s", 2.0, "mean time between pushes", 0.001, 3600.0),
    Param("camera", "", "camera of the model, or free, for topic camera/image_raw; empty: none", read_only=True),
    Param("camera_rate_hz", 10.0, "images per second of simulated time", 0.01, 1000.0, read_only=True),
    Param("camera_width", 320, "pixels", 16, 4096, read_only=True),
    Param("camera_height", 240, "pixels", 16, 4096, read_only=True),
    Param(
        "video_directory", "", "folder for a video of each episode, which needs a camera; empty: none", read_only=True
    ),
    Param("video_format", "mp4", VIDEO_FORMAT, choices=FORMATS, read_only=True),
]


def next_task(params: Any, env: TaskEnv) -> Task:
    """The task of the next episode."""
    if params.model:
        return dataclasses.replace(env.task, task_id=params.task_id or env.task.family)
    family = find_family(params.family)
    return family.find(params.task_id) if params.task_id else family.tasks["train"][0]


def check_value(params: Any, fields: Sequence[str], name: str, value: Any) -> None:
    """Raises ValueError for a task of another family, and for noise on unobserved fields."""
    if name == "noise":
        noise_std(value or (), fields)
    elif name in ("task_id", "change_task_id") and value and not params.model:
        family = find_family(params.family).name
        if find_task(value).family != family:
            raise ValueError(f"task '{value}' is not of the family '{family}'")


def disturbance_config(params: Any) -> DisturbanceConfig:
    """The disturbances from the next episode on."""
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(DisturbanceConfig)}
    return DisturbanceConfig(**{**values, "noise": tuple(values["noise"])})


def camera_config(params: Any) -> CameraConfig:
    """The camera that the parameters describe."""
    return CameraConfig(*(getattr(params, field.name) for field in dataclasses.fields(CameraConfig)))


class TaskChange:
    """Changes the task on service ~/change, or after `change_after_steps`."""

    def __init__(self, node: PlainNode, sim: Simulation, announce: Callable[[], None]) -> None:
        self._params: Any = node.params
        self._sim, self._announce, self._family_steps = sim, announce, sim.env.episode_steps
        node.create_service(Trigger, "~/change", self._on_change)

    def begin(self) -> None:
        """Set the time limit of the next episode. Raises ValueError."""
        if self._params.model:
            if self._params.change_task_id or self._params.episode_steps:
                raise ValueError("a model has one task; change_task_id and episode_steps are for task families")
            return
        self._sim.env.episode_steps = self._params.episode_steps or self._family_steps

    def step(self) -> bool:
        """After a step, change the task if it is due; return whether that was announced."""
        p = self._params
        due = self._sim.running and p.change_task_id and self._sim.steps == p.change_after_steps > 0
        if due:
            self._change()
        return bool(due) and p.change_announced

    def _change(self) -> None:
        self._sim.change(find_task(self._params.change_task_id), self._params.change_announced)
        if self._params.change_announced:
            self._announce()

    def _on_change(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._sim.running:
            response.message = "no episode is running"
        elif self._params.model or not self._params.change_task_id:
            response.message = "first set the parameter change_task_id to a task of the family"
        else:
            self._change()
            response.success, response.message = True, self._sim.info.to_json()
        return response


class SimCamera:
    """Publishes images and records videos of episodes, if the parameters name a camera."""

    def __init__(self, node: Node, params: Any, sim: Simulation, diagnostics: Diagnostics) -> None:
        """Raises CameraError."""
        if params.video_directory and not params.camera:
            raise CameraError("video_directory needs a camera; set camera to 'free' or to a camera of the model")
        self._camera: EpisodeCamera | None = None
        self._name, self._sim, self._diagnostics = params.camera, sim, diagnostics
        if params.camera:
            env = sim.env
            self._camera = EpisodeCamera(env.model, env.data, camera_config(params), sim.contract.rate_hz)
            self._images = node.create_publisher(Image, IMAGE_TOPIC, stream_qos(params.mode == "lockstep"))

    def start(self) -> None:
        """Call it when an episode begins."""
        if self._camera is not None:
            try:
                self._camera.start()
            except OSError as error:
                self._warn_film_lost(error)

    def publish_image(self, t_ns: int) -> None:
        """Publish the image of this tick, if one is due."""
        image = self._camera.see() if self._camera is not None else None
        if image is not None:
            height, width, _ = image.shape
            msg = Image(height=height, width=width, encoding="rgb8", step=3 * width)
            msg.header.frame_id = self._name
            msg.data = array("B", image.tobytes())
            set_stamp(msg, t_ns)
            self._images.publish(msg)

    def save_film(self) -> None:
        """Call it when an episode has ended."""
        if self._camera is not None:
            info = self._sim.info
            try:
                self._camera.finish(f"{info.episode:04d}_{info.task_id.replace('/', '-')}")
            except OSError as error:
                self._warn_film_lost(error)

    def close(self) -> None:
        """Release the renderer."""
        if self._camera is not None:
            self._camera.close()

    def _warn_film_lost(self, error: OSError) -> None:
        self._diagnostics.warn_once("films lost", f"video_directory: the video is lost: {error}")


def offer_simulation_interfaces(node: Node, player: Player) -> list[Any]:
    """Offer the services of simulation_interfaces, or log one line where that package is not installed.

    ~/get_simulator_features, ~/get_simulation_state, ~/set_simulation_state, ~/reset_simulation, ~/step_simulation.
    """
    try:
        from simulation_interfaces import srv  # pyright: ignore[reportMissingImports]
    except ImportError:
        node.get_logger().info("the package simulation_interfaces is not installed: none of its services")
        return []
    control = SimControl(player)
    return [
        node.create_service(srv.GetSimulatorFeatures, "~/get_simulator_features", control.features),
        node.create_service(srv.GetSimulationState, "~/get_simulation_state", control.state),
        node.create_service(srv.SetSimulationState, "~/set_simulation_state", control.set_state),
        node.create_service(srv.ResetSimulation, "~/reset_simulation", control.reset),
        DeferredService(node, srv.StepSimulation, "~/step_simulation", control.step),
    ]


class DeferredService:
    """A service that can respond after its callback has returned.

    rclpy's events executor does not run coroutines. It passes the return value of the callback to `send_response`, so
    the callback returns an object that sends itself later.
    """

    def __init__(self, node: Node, kind: Any, name: str, handler: Callable[[Any, Any, Callable], None]) -> None:
        self._handler = handler
        self._service = node.create_service(kind, name, self._on_request)
        self._send = self._service.send_response
        self._service.send_response = self._set_header  # type: ignore[method-assign]

    def _on_request(self, request: Any, response: Any) -> _DeferredAnswer:
        answer = _DeferredAnswer(self._send)
        self._handler(request, response, answer.set_response)
        return answer

    @staticmethod
    def _set_header(answer: _DeferredAnswer, header: Any) -> None:
        answer.set_header(header)


class _DeferredAnswer:
    """Sends itself once both the response and the request header are known."""

    def __init__(self, send: Callable[[Any, Any], None]) -> None:
        self._send, self._response, self._header = send, None, None

    def set_response(self, response: Any) -> None:
        self._response = response
        self._send_if_complete()

    def set_header(self, header: Any) -> None:
        self._header = header
        self._send_if_complete()

    def _send_if_complete(self) -> None:
        if self._response is not None and self._header is not None:
            self._send(self._response, self._header)
