# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can render, and films read back by ffmpeg."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from spc_core.tasks.film import find_ffmpeg
from support.paths import ROOT


def can_render() -> bool:
    """In a process of its own, since drivers may end it."""
    code = (
        "from spc_core.tasks import make_env; from spc_core.tasks.camera import Camera; "
        "Camera(make_env('arm_reach').model, 'free', 32, 32)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    return run.returncode == 0


def read_mp4(path: Path, width: int, height: int) -> np.ndarray:
    """(N, height, width, 3) of all images, by ffmpeg."""
    command = [find_ffmpeg(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)
