# SPDX-License-Identifier: Apache-2.0
"""Cameras and films without ROS: what is seen, mp4 read back by ffmpeg, GIF by Pillow, and what cannot be had."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from spc_core.tasks import film as film_module
from spc_core.tasks import make_env
from spc_core.tasks.camera import Camera, CameraConfig, CameraError, EpisodeCamera
from spc_core.tasks.film import FORMATS, Mp4Film, begin_film, find_ffmpeg, missing
from support.video import can_render, read_mp4


def needs(form: str) -> None:
    if missing(form):
        pytest.skip(f"no film in this format: {missing(form)}")


def gradient(k: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth image of mostly one colour: k tenths of full red."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[:, :, 0] = 25 * k
    image[:, : width // 2, 1] = 120
    return image


def test_mp4_holds_every_image_in_order(tmp_path: Path) -> None:
    needs("mp4")
    film = begin_film("mp4", tmp_path / "films" / ".partial", 64, 48, 10.0)
    for k in range(10):
        film.add(gradient(k))
    assert not (tmp_path / "film.mp4").exists(), "a film appears only whole"
    film.keep(tmp_path / "film.mp4")
    assert list(tmp_path.rglob(".partial")) == []
    seen = read_mp4(tmp_path / "film.mp4", 64, 48).astype(float)
    assert len(seen) == 10
    wanted = np.array([gradient(k) for k in range(10)], float)
    assert abs(seen - wanted).mean(axis=(1, 2, 3)).max() < 6, "but for what compression takes"
    probe = subprocess.run(
        [find_ffmpeg(), "-i", str(tmp_path / "film.mp4")], capture_output=True, text=True, timeout=60
    )
    assert "Video: h264" in probe.stderr and "yuv420p" in probe.stderr and "10 fps" in probe.stderr
    assert "Duration: 00:00:01.00" in probe.stderr


def test_a_side_of_odd_length_is_padded(tmp_path: Path) -> None:
    needs("mp4")
    film = begin_film("mp4", tmp_path / ".partial", 33, 17, 25.0)
    film.add(gradient(4, 17, 33))
    film.keep(tmp_path / "odd.mp4")
    (seen,) = read_mp4(tmp_path / "odd.mp4", 34, 18)
    assert abs(seen[:17, :33].astype(float) - gradient(4, 17, 33)).mean() < 12


def test_a_film_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    needs("mp4")
    film = Mp4Film(tmp_path / ".partial", 64, 48, 10.0)
    film.add(gradient(1))
    film.drop()
    assert list(tmp_path.iterdir()) == [] and film._process.returncode is not None


def test_a_film_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    """ffmpeg ends at once; the images after that do not matter, and the end reports its reason."""
    needs("mp4")
    film = Mp4Film(tmp_path / ".partial", 64, 48, 10.0)
    film._process.kill()
    film._process.wait()
    for k in range(10):
        film.add(gradient(k))
    with pytest.raises(OSError, match="ffmpeg ended with -9"):
        film.keep(tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


def test_gif_repeats_what_was_seen(tmp_path: Path) -> None:
    needs("gif")
    from PIL import Image

    film = begin_film("gif", tmp_path / ".partial", 64, 48, 10.0)
    for k in range(5):
        film.add(gradient(2 * k))
    film.keep(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        assert (gif.size, gif.n_frames, gif.info["duration"]) == ((64, 48), 5, 100)
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]


@pytest.mark.parametrize(("form", "advice"), [("mp4", "pip install imageio-ffmpeg"), ("gif", "pip install pillow")])
def test_what_is_missing_is_named_before_the_first_episode(form: str, advice: str, monkeypatch) -> None:
    assert form in FORMATS
    monkeypatch.setattr(film_module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(film_module.shutil, "which", lambda name: None)
    assert advice in missing(form)
    env = make_env("arm_reach")
    config = CameraConfig("free", video_directory="films", video_format=form)
    with pytest.raises(CameraError, match=advice):
        EpisodeCamera(env.model, env.data, config, 50.0)


@pytest.mark.parametrize(("family", "fixed"), [("arm_reach", "above"), ("arm_payload", "front")])
def test_all_that_the_arm_reaches_is_in_the_picture(family: str, fixed: str) -> None:
    """Stretched out to each side it differs from the folded arm, and never at the picture's edge."""
    if not can_render():
        pytest.skip("this machine cannot render without a display")
    env = make_env(family)
    for name in ("free", fixed):
        camera = Camera(env.model, name, 64, 48)
        images = []
        for shoulder, elbow in ((0.0, 0.0), (np.pi / 2, 0.0), (np.pi, 0.0), (-np.pi / 2, 0.0), (0.0, 3.1)):
            env.reset(seed=0)
            env.data.qpos[:] = shoulder, elbow  # type: ignore[attr-defined]
            env.step(np.zeros(2))
            images.append(camera.image(env.data).astype(float))
        camera.close()
        moved = np.max([abs(a - b).max(axis=2) > 40 for a in images for b in images], axis=0)
        assert moved[1:-1, 1:-1].sum() > 50, "the arm is seen"
        assert not np.concatenate([moved[0], moved[-1], moved[:, 0], moved[:, -1]]).any(), name


def test_one_camera_after_another() -> None:
    if not can_render():
        pytest.skip("this machine cannot render without a display")
    env = make_env("arm_reach")
    env.reset(seed=0)
    images = []
    for _ in range(2):
        camera = Camera(env.model, "free", 64, 48)
        images.append(camera.image(env.data))
        camera.close()
    assert images[0].std() > 5 and (images[0] == images[1]).all()
