# SPDX-License-Identifier: Apache-2.0
"""The losses since the last log line: their means, and the first that is not finite."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class BadLoss:
    """A loss that is not finite."""

    update: int  # counted from 0
    name: str
    value: float


class LossWatch:
    """Keeps losses on their device, so that an update need not wait for it; a check of them does."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}  # since the last log line
        self._unseen: list[tuple[int, str, Tensor]] = []  # since the last check

    def add(self, update: int, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            self._values.setdefault(name, []).append(loss)
            self._unseen.append((update, name, loss))

    def first_bad(self) -> BadLoss | None:
        """The first loss since the last check that is NaN or infinite."""
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return None
        finite = torch.stack([loss for _, _, loss in unseen]).isfinite()
        if bool(finite.all()):
            return None
        update, name, loss = unseen[int(finite.logical_not().nonzero()[0])]
        return BadLoss(update, name, float(loss))

    def means(self) -> dict[str, float]:
        """Mean of each loss since the last log line."""
        return {name: float(torch.stack(losses).mean()) for name, losses in self._values.items()}

    def clear(self) -> None:
        """A log line is written; the next begins."""
        self._values = {}

    def state(self) -> dict[str, Tensor]:
        return {name: torch.stack(losses) for name, losses in self._values.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        self._values = {name: list(losses.unbind()) for name, losses in state.items()}
