# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint or an export, and identifiers computed from their bytes; needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

ONNX_CARD = "export.json"  # only an export has this file


class CheckpointError(ValueError):
    """An unusable checkpoint; the message names the file, the problem and the fix."""


def checkpoint_folder(folder: Path) -> Path:
    """The checkpoint's folder; `folder` may also be that of its training run."""
    return folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder


def no_checkpoint(folder: Path, missing: Sequence[str]) -> CheckpointError:
    """The refusal of a folder that lacks files of a checkpoint, with what to pass in its place."""
    seeds = sorted(folder.glob("seed-*"))
    if (folder / ONNX_CARD).is_file():
        fix = "this is an export to ONNX, so pass the run that it was made of"
    elif seeds:
        fix = f"it has runs of several seeds, so pass one of them, such as {seeds[0]}"
    else:
        fix = "pass the folder that `spc train` wrote"
    return CheckpointError(f"{folder}: not a checkpoint, {', '.join(missing)} missing; {fix}")


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 of the weights in a checkpoint's or training run's folder. Raises CheckpointError if there are none."""
    file = checkpoint_folder(Path(folder)) / "weights.safetensors"
    if not file.is_file():
        raise no_checkpoint(Path(folder), ["weights.safetensors"])
    return hashlib.sha256(file.read_bytes()).hexdigest()


def model_id(folder: str | Path) -> int:
    """A number in [1, 2**31) that identifies a model, from the bytes of its weights, config, statistics and contract.

    An export to ONNX has the number of its checkpoint.
    """
    card = Path(folder) / ONNX_CARD
    if card.is_file():
        return int(json.loads(card.read_text()).get("model_id", 0))
    digest = hashlib.sha256()
    for name in ("weights.safetensors", "config.yaml", "stats.json", "contract.yaml"):
        digest.update((checkpoint_folder(Path(folder)) / name).read_bytes())
    return int.from_bytes(digest.digest()[:4], "big") % (2**31 - 1) + 1
