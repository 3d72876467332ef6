# SPDX-License-Identifier: Apache-2.0
"""What a robot is given to run: a checkpoint, which needs torch, or its export to ONNX, which does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spc_core.deploy.checkpoint import Checkpoint
    from spc_core.deploy.onnx_networks import OnnxCheckpoint

    Deployed = Checkpoint | OnnxCheckpoint
else:
    Deployed = object  # either of them, of which only one may be importable

ONNX_CARD = "export.json"  # the file that tells an exported folder from a checkpoint


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what is wrong and the fix."""


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


def checkpoint_folder(folder: Path) -> Path:
    """A checkpoint's folder, also when that of its training run is given."""
    return folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder


def weights_sha256(folder: str | Path) -> str:
    """Which weights a checkpoint, or a training run's folder, holds. Raises CheckpointError where there are none."""
    folder = Path(folder)
    inner = folder / "checkpoint"
    file = (inner if inner.is_dir() else folder) / "weights.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no checkpoint, weights.safetensors missing; give what `spc train` wrote")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def model_id(folder: str | Path) -> int:
    """A number in [1, 2**31) that tells models apart: from the bytes of weights, config, statistics and contract.

    An export to ONNX has the number of the checkpoint that it was made from.
    """
    card = Path(folder) / ONNX_CARD
    if card.is_file():
        return int(json.loads(card.read_text()).get("model_id", 0))
    digest = hashlib.sha256()
    for name in ("weights.safetensors", "config.yaml", "stats.json", "contract.yaml"):
        digest.update((checkpoint_folder(Path(folder)) / name).read_bytes())
    return int.from_bytes(digest.digest()[:4], "big") % (2**31 - 1) + 1
