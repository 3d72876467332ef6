# SPDX-License-Identifier: Apache-2.0
"""A camera in a MuJoCo model, without a display: images at a rate, and an episode as an animated GIF."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path

import mujoco
import numpy as np

FREE = "free"
MAX_FRAMES = 2000  # of a film, in memory until the episode ends
MAX_GEOMS = 10_000


class CameraError(ValueError):
    """A camera that cannot be had; says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """What is seen, how often and how large."""

    camera: str  # a camera of the model, or "free": one that sees all of it
    camera_rate_hz: float = 10.0
    camera_width: int = 320
    camera_height: int = 240
    video_directory: str = ""  # folder for a GIF of each episode; empty: none


class Camera:
    """Renders a model's state through EGL, which needs no display."""

    def __init__(self, model: mujoco.MjModel, name: str, width: int, height: int) -> None:
        """Raises CameraError where there is no such camera, or no EGL."""
        self._model, self._view = model, mujoco.MjvCamera()
        if name == FREE:
            mujoco.mjv_defaultFreeCamera(model, self._view)
        else:
            self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, _find(model, name)
        visual = model.vis.global_
        visual.offwidth, visual.offheight = max(visual.offwidth, width), max(visual.offheight, height)
        try:
            from mujoco.egl import GLContext

            self._gl = GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except (ImportError, AttributeError, RuntimeError, OSError, mujoco.FatalError) as error:
            raise CameraError(
                f"camera '{name}': this machine cannot render without a display ({error}); "
                "install EGL (Debian: libegl1), or leave the parameter 'camera' empty"
            ) from None
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene, self._option = mujoco.MjvScene(model, MAX_GEOMS), mujoco.MjvOption()
        self._frame = mujoco.MjrRect(0, 0, width, height)
        self._image = np.empty((height, width, 3), np.uint8)

    def image(self, data: mujoco.MjData) -> np.ndarray:
        """(height, width, 3) uint8, red green blue, the upper row first."""
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._view, everything, self._scene)
        mujoco.mjr_render(self._frame, self._scene, self._context)
        mujoco.mjr_readPixels(self._image, None, self._frame, self._context)
        return self._image[::-1].copy()


class EpisodeCamera:
    """A camera that looks at its rate while an episode runs, and keeps the film where one is wanted."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, config: CameraConfig, rate_hz: float) -> None:
        """`rate_hz` is that of the ticks. Raises CameraError."""
        if config.video_directory and importlib.util.find_spec("PIL") is None:
            raise CameraError("video_directory: a GIF needs Pillow; pip install pillow, or leave the parameter empty")
        self._camera = Camera(model, config.camera, config.camera_width, config.camera_height)
        self._data, self._every = data, max(1, round(rate_hz / config.camera_rate_hz))
        self._period_ms = round(1000 * self._every / rate_hz)
        self._directory = Path(config.video_directory) if config.video_directory else None
        self._tick, self._film = 0, list[np.ndarray]()

    def start(self) -> None:
        """An episode begins."""
        self._tick, self._film = 0, []

    def see(self) -> np.ndarray | None:
        """The image of this tick (height, width, 3), or None where none is due."""
        due, self._tick = self._tick % self._every == 0, self._tick + 1
        if not due:
            return None
        image = self._camera.image(self._data)
        if self._directory is not None and len(self._film) < MAX_FRAMES:
            self._film.append(image)
        return image

    def finish(self, name: str) -> Path | None:
        """Write the film of the episode as `<name>.gif`; None where there is none. Raises OSError."""
        film, self._film = self._film, []
        if self._directory is None or not film:
            return None
        from PIL import Image

        path = self._directory / f"{name}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.partial")
        first, *others = map(Image.fromarray, film)
        try:
            first.save(beside, format="GIF", save_all=True, append_images=others, duration=self._period_ms, loop=0)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        return path


def _find(model: mujoco.MjModel, name: str) -> int:
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if index < 0:
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
        raise CameraError(f"camera '{name}' is not in the model; use one of: {', '.join([FREE, *filter(None, names)])}")
    return index
