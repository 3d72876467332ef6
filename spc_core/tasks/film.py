# SPDX-License-Identifier: Apache-2.0
"""Films of simulated episodes: mp4 through ffmpeg, image by image, or an animated GIF. A film appears only whole."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

FORMATS = ("mp4", "gif")
MAX_GIF_IMAGES = 2000  # in memory until the episode ends


class Film(Protocol):
    """One film while it is made."""

    def add(self, image: np.ndarray) -> None:
        """The next image, (height, width, 3) uint8."""

    def keep(self, path: Path) -> None:
        """The film is complete: it appears at the path. Raises OSError."""

    def drop(self) -> None:
        """Nobody wants the film."""


def missing(form: str) -> str:
    """What has to be installed for films of this format; empty when all is there."""
    if form == "gif":
        return "" if importlib.util.find_spec("PIL") else "a GIF needs Pillow; pip install pillow"
    return "" if find_ffmpeg() else "mp4 needs ffmpeg; pip install imageio-ffmpeg, which brings one, or install ffmpeg"


def find_ffmpeg() -> str:
    """The program that imageio-ffmpeg brings, else the system's; empty where there is none."""
    if importlib.util.find_spec("imageio_ffmpeg"):
        from imageio_ffmpeg import get_ffmpeg_exe  # pyright: ignore[reportMissingImports]

        with contextlib.suppress(RuntimeError):  # a package without the program, as built from source
            return get_ffmpeg_exe()
    return shutil.which("ffmpeg") or ""


def begin_film(form: str, path: Path, width: int, height: int, rate_hz: float) -> Film:
    """A film that is written to the file `path` unless it is kept in memory. Raises OSError."""
    if form == "gif":
        return GifFilm(path, rate_hz)
    return Mp4Film(path, width, height, rate_hz)


class Mp4Film:
    """H.264, encoded by a process of its own as the images come. A side of odd length gets a black line."""

    def __init__(self, path: Path, width: int, height: int, rate_hz: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._process = subprocess.Popen(
            _encoder(find_ffmpeg(), path, width, height, rate_hz),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the episode, and that the film
        )

    def add(self, image: np.ndarray) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its exit code will say why
            self._process.stdin.write(image.tobytes())

    def keep(self, path: Path) -> None:
        _, words = self._process.communicate()
        if self._process.returncode:
            self._path.unlink(missing_ok=True)
            text = words.decode(errors="replace").strip().splitlines()
            raise OSError(f"ffmpeg ended with {self._process.returncode}: {text[-1] if text else 'without a word'}")
        os.replace(self._path, path)

    def drop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._path.unlink(missing_ok=True)


def _encoder(program: str, file: Path, width: int, height: int, rate_hz: float) -> Sequence[str]:
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate_hz:g}", "-i", "-"]
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"  # yuv420p, which every player shows, needs even sides
    how = ["-vf", even, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-threads", "1", "-movflags", "+faststart"]
    return [program, "-v", "error", "-nostats", *source, *how, "-f", "mp4", "-y", str(file)]


class GifFilm:
    """An animated GIF that repeats; what comes after 2,000 images is left out."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        self._path, self._period_ms = path, round(1000 / rate_hz)
        self._images: list[np.ndarray] = []

    def add(self, image: np.ndarray) -> None:
        if len(self._images) < MAX_GIF_IMAGES:
            self._images.append(image)

    def keep(self, path: Path) -> None:
        from PIL import Image

        self._path.parent.mkdir(parents=True, exist_ok=True)
        first, *others = map(Image.fromarray, self._images)
        try:
            first.save(self._path, format="GIF", save_all=True, append_images=others, duration=self._period_ms, loop=0)
            os.replace(self._path, path)
        finally:
            self._path.unlink(missing_ok=True)

    def drop(self) -> None:
        self._images.clear()
