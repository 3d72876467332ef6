# SPDX-License-Identifier: Apache-2.0
"""What a robot is given to run: a checkpoint, which needs torch, or its export to ONNX, which does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spc_core.deploy.checkpoint_files import ONNX_CARD, CheckpointError

if TYPE_CHECKING:
    from spc_core.deploy.checkpoint import Checkpoint
    from spc_core.deploy.onnx_networks import OnnxCheckpoint

    Deployed = Checkpoint | OnnxCheckpoint
else:
    Deployed = object  # either of them, of which only one may be importable


def load_deployed(folder: str | Path, device: str = "cpu", threads: int = 1) -> Deployed:
    """Load a folder by what it holds, ready to act, with so many CPU threads. Raises CheckpointError."""
    if (Path(folder) / ONNX_CARD).is_file():
        from spc_core.deploy.onnx_networks import load_onnx

        return load_onnx(folder, device, threads)
    try:
        import torch

        from spc_core.deploy.checkpoint import load_checkpoint
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {error.name}, which is not installed here; install it, or run "
            "`spc export RUN --format onnx --out FOLDER` where it is, and give FOLDER"
        ) from None
    torch.set_num_threads(threads)
    return load_checkpoint(folder, device)
