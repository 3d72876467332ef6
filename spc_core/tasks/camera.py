# SPDX-License-Identifier: Apache-2.0
"""A camera in a MuJoCo model, without a display: images at a rate, and each episode as a film."""

# pyright: reportAttributeAccessIssue=false
# (mujoco re-exports its compiled functions without stubs)

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import mujoco
import numpy as np

from spc_core.tasks.film import Film, begin_film, missing

FREE = "free"
MAX_GEOMS = 10_000


class CameraError(ValueError):
    """An unavailable camera; the message names the reason and the fix."""


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """View, rate and size of the images."""

    camera: str  # a camera of the model, or "free": one that sees all of it
    camera_rate_hz: float = 10.0
    camera_width: int = 320
    camera_height: int = 240
    video_directory: str = ""  # folder for a film of each episode; empty: none
    video_format: str = "mp4"  # or gif


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
        self._gl.make_current()  # another camera may have come or gone
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._view, everything, self._scene)
        mujoco.mjr_render(self._frame, self._scene, self._context)
        mujoco.mjr_readPixels(self._image, None, self._frame, self._context)
        return self._image[::-1].copy()

    def close(self) -> None:
        """Without it, a camera that is collected late frees the resources of the next one, whose images turn black."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


class EpisodeCamera:
    """A camera that looks at its rate while an episode runs, and keeps the film where one is wanted."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, config: CameraConfig, rate_hz: float) -> None:
        """`rate_hz` is that of the ticks. Raises CameraError."""
        lacks = missing(config.video_format) if config.video_directory else ""
        if lacks:
            raise CameraError(f"video_directory: {lacks}, or leave the parameter empty")
        self._camera = Camera(model, config.camera, config.camera_width, config.camera_height)
        self._data, self._every = data, max(1, round(rate_hz / config.camera_rate_hz))
        self._image_rate_hz, self._config = rate_hz / self._every, config
        self._tick = 0
        self._film: Film | None = None

    def start(self) -> None:
        """An episode begins. Raises OSError when its film cannot."""
        self.drop()
        self._tick, config = 0, self._config
        if config.video_directory:
            path = Path(config.video_directory, f".film-{os.getpid()}.{config.video_format}.partial")
            size = (config.camera_width, config.camera_height)
            self._film = begin_film(config.video_format, path, *size, self._image_rate_hz)

    def see(self) -> np.ndarray | None:
        """The image of this tick (height, width, 3), or None where none is due."""
        due, self._tick = self._tick % self._every == 0, self._tick + 1
        if not due:
            return None
        image = self._camera.image(self._data)
        if self._film is not None:
            self._film.add(image)
        return image

    def finish(self, name: str) -> Path | None:
        """Keep the film of the episode under this name; None where there is none. Raises OSError."""
        film, self._film = self._film, None
        if film is None:
            return None
        path = Path(self._config.video_directory, f"{name}.{self._config.video_format}")
        film.keep(path)
        return path

    def drop(self) -> None:
        """Forget a film that was begun."""
        film, self._film = self._film, None
        if film is not None:
            film.drop()

    def close(self) -> None:
        """See Camera; a film that was begun is forgotten."""
        self.drop()
        self._camera.close()


def _find(model: mujoco.MjModel, name: str) -> int:
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if index < 0:
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
        raise CameraError(f"camera '{name}' is not in the model; use one of: {', '.join([FREE, *filter(None, names)])}")
    return index
