# SPDX-License-Identifier: Apache-2.0
"""Packaging for colcon and pip. Paths stay relative: colcon runs this file from its build folder too."""

from glob import glob
from os.path import dirname, isfile, join

from setuptools import find_packages, setup

SHARE = "share/spc_ros"
MESSAGES = ["sensor", "std", "geometry", "nav", "trajectory", "diagnostic", "rosgraph", "lifecycle"]


def share_tree(folder: str) -> list[tuple[str, list[str]]]:
    """One data_files entry per folder below `folder`, which keeps the tree as it is."""
    files = sorted(path for path in glob(f"{folder}/**", recursive=True) if isfile(path))
    return [(join(SHARE, where), [f for f in files if dirname(f) == where]) for where in sorted({*map(dirname, files)})]


def ros_wheels(distro: str) -> list[str]:
    """A runnable rclpy from PyPI, for machines without a ROS installation. One distro per environment."""
    names = ["rclpy", "std-srvs", "rmw-fastrtps-cpp", *(f"{name}-msgs" for name in MESSAGES)]
    return [f"ros-{distro}-{name}" for name in names]


setup(
    name="spc_ros",
    version="0.1.0",
    description="Task-conditioned offline reinforcement learning from ROS 2 bags",
    license="Apache-2.0",
    maintainer="spc_ros maintainers",
    maintainer_email="maintainers@spc-ros.invalid",
    packages=find_packages(include=["spc_core", "spc_core.*", "spc_ros", "spc_ros.*"]),
    package_data={"spc_core.tasks": ["*.xml", "agents/*.safetensors"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/spc_ros"]),
        (SHARE, ["package.xml"]),
        (join(SHARE, "launch"), sorted(glob("launch/*.launch.py"))),
        *share_tree("config"),
        # Node executables are data, not console scripts: pip would put names like `sim` in bin, and a console
        # script's shebang is the Python that ran colcon, not that of the active virtual environment.
        ("lib/spc_ros", sorted(glob("scripts/*"))),
    ],
    entry_points={"console_scripts": ["spc = spc_ros.cli:main"]},
    zip_safe=False,  # tasks/*.xml are opened by path
    python_requires=">=3.10",
    install_requires=[
        "numpy",
        "pyyaml",
        "torch",
        "safetensors",
        "rosbags",
        "apsw",
        "lz4",
        "backports.zstd; python_version < '3.14'",
    ],  # what a robot needs; rosbags: recorder
    extras_require={
        "sim": ["mujoco", "gymnasium"],
        "video": ["imageio-ffmpeg", "pillow"],  # mp4, GIF
        "ros-jazzy": ros_wheels("jazzy"),
        "ros-kilted": ros_wheels("kilted"),
        "ray": ["ray"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],  # onnx to export; a robot needs onnxruntime alone
        "train": ["minari[arrow]", "pillow", "gymnasium", "tqdm", "tensorboard", "tyro", "plotly"],
        "test": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ray",
            "onnx",
            "onnxruntime",
            "imageio-ffmpeg",
            "vector-quantize-pytorch",
            "ruff",
            "pyright[nodejs]",
            "setuptools<80",  # 80 dropped `develop --editable`, without which --symlink-install copies
            "colcon-core",
            "colcon-defaults",
            "colcon-package-selection",
            "colcon-python-setup-py",
            "colcon-ros",
        ],
    },
)
