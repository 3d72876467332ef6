# SPDX-License-Identifier: Apache-2.0
"""Write a dataset in another project's format, or a run as ONNX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from spc_ros.progress_bar import Bar


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a dataset in another project's format, or a trained run for robots without torch.

    Unless a format is given, a dataset becomes a LeRobotDataset and a run becomes ONNX.

    examples:
      spc export dataset --out lerobot --robot-type my_arm
      spc export run --out onnx
    """

    source: tyro.conf.Positional[Path]  # dataset that `spc convert` wrote, or training run or checkpoint
    out: Path  # folder for the export
    format: Literal["auto", "lerobot", "onnx"] = "auto"  # lerobot: LeRobotDataset v3.0, without video
    robot_type: str = ""  # lerobot: name of the robot; default: the name of the dataset's contract
    overwrite: bool = False  # replace an earlier export


def run(options: Export) -> int:
    source = options.source
    trained = any((folder / "weights.safetensors").is_file() for folder in (source, source / "checkpoint"))
    if options.format == "onnx" or (options.format == "auto" and trained):
        from spc_core.deploy.checkpoint import load_checkpoint
        from spc_core.deploy.checkpoint_files import model_id
        from spc_core.deploy.onnx_checkpoint import export_onnx

        folder = export_onnx(load_checkpoint(source), options.out, options.overwrite, model_id(source))
        print(f"for onnxruntime: {folder}")
        return 0
    if trained:
        raise ValueError(f"{source}: is a training run; use --format onnx (lerobot is for datasets)")
    from spc_core.data.export.lerobot import export

    with Bar(f"export {source}", "episode") as bar:
        done = export(source, options.out, options.robot_type, options.overwrite, bar)
    print(done.summary())
    return 0
