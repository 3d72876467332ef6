# SPDX-License-Identifier: Apache-2.0
"""Losses of a training run: collected on their device, checked, and logged to log.csv and TensorBoard."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

LOSSES = ("consistency", "reward", "contrast", "v", "q", "actor")


class RunLog:
    """log.csv and TensorBoard; drops rows after `update`, from which the run resumes."""

    def __init__(self, out: Path, update: int) -> None:
        file = out / "log.csv"
        rows = list(csv.reader(file.read_text().splitlines())) if file.is_file() else []
        kept = [row for row in rows[1:] if len(row) == len(LOSSES) + 2 and int(row[0]) <= update]
        partial = out / ".log.csv.partial"
        with partial.open("w", newline="") as stream:
            csv.writer(stream).writerows([["update", "seconds", *LOSSES], *kept])
        partial.replace(file)
        self._stream = file.open("a", newline="")
        self._writer = csv.writer(self._stream)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=update + 1 if update else None)

    def write(self, update: int, seconds: float, means: dict[str, float]) -> None:
        """Write a line: mean losses since the last."""
        self._writer.writerow([update, f"{seconds:.3f}", *(f"{means.get(name, math.nan):.6g}" for name in LOSSES)])
        self._stream.flush()
        for name, value in means.items():
            self._board.add_scalar(f"loss/{name}", value, update)

    def write_scores(self, update: int, scores: Mapping[str, float]) -> None:
        """Returns on validation tasks, for TensorBoard alone; validation.jsonl has the numbers."""
        for name, value in scores.items():
            self._board.add_scalar(f"validation/{name}", value, update)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()
        self._board.close()


@dataclasses.dataclass(frozen=True)
class BadLoss:
    """A loss that is not finite."""

    update: int  # counted from 0
    name: str
    value: float


class LossWatch:
    """Keeps losses on their device, so that only a check waits for it, not each update."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}  # since the last means
        self._unchecked: list[tuple[int, str, Tensor]] = []  # since the last check

    def add(self, update: int, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            self._values.setdefault(name, []).append(loss)
            self._unchecked.append((update, name, loss))

    def first_bad(self) -> BadLoss | None:
        """The first loss since the last check that is NaN or infinite."""
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return None
        finite = torch.stack([loss for _, _, loss in unchecked]).isfinite()
        if bool(finite.all()):
            return None
        update, name, loss = unchecked[int(finite.logical_not().nonzero()[0])]
        return BadLoss(update, name, float(loss))

    def take_means(self) -> dict[str, float]:
        """Mean of each loss since the last call."""
        values, self._values = self._values, {}
        return {name: float(torch.stack(losses).mean()) for name, losses in values.items()}

    def state(self) -> dict[str, Tensor]:
        return {name: torch.stack(losses) for name, losses in self._values.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        self._values = {name: list(losses.unbind()) for name, losses in state.items()}
