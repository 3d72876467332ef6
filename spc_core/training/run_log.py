# SPDX-License-Identifier: Apache-2.0
"""Losses of a training run: collected on their device, checked, and logged to log.csv and TensorBoard."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

LOSSES = ("consistency", "reward", "contrast", "v", "q", "actor")


class RunLog:
    """log.csv and TensorBoard; drops rows after `update`, from which the run resumes."""

    def __init__(self, out: Path, update: int, scores: Sequence[str] = ()) -> None:
        """`scores`: columns for those of checkpoints, beside those that the file has already."""
        self._file = out / "log.csv"
        names, rows = self._read()
        self._names = list(dict.fromkeys(["update", "seconds", *LOSSES, *names, *scores]))
        self._stream = self._rewrite([row for row in rows if int(row["update"]) <= update])
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=update + 1 if update else None)

    def write(self, update: int, seconds: float, means: dict[str, float]) -> None:
        """Write a line: mean losses since the last."""
        losses = {name: f"{means.get(name, math.nan):.6g}" for name in LOSSES}
        self._writer.writerow({"update": update, "seconds": f"{seconds:.3f}", **losses})
        self._stream.flush()
        for name, value in means.items():
            self._board.add_scalar(f"loss/{name}", value, update)

    def write_scores(self, update: int, scores: Mapping[str, float]) -> None:
        """Scores of a checkpoint, in the line of its update: earlier ones than the last, since scoring takes a while.

        They are means over few tasks, and validation.jsonl has the numbers in full.
        """
        for name, value in scores.items():
            self._board.add_scalar(f"validation/{name}", value, update)
        rows = {int(row["update"]): row for row in self._read()[1]}
        rows[update] = rows.get(update, {"update": str(update)}) | {name: f"{v:.6g}" for name, v in scores.items()}
        self._stream.close()
        self._stream = self._rewrite([rows[number] for number in sorted(rows)])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Names of the columns and whole rows; a full disk may leave half a row."""
        if not self._file.is_file():
            return [], []
        names, *rows = list(csv.reader(self._file.read_text().splitlines())) or [[]]
        return names, [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> TextIO:
        partial = self._file.with_name(f".{self._file.name}.partial")
        with partial.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self._names)
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self._file)
        stream = self._file.open("a", newline="")
        self._writer = csv.DictWriter(stream, self._names)
        return stream

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
