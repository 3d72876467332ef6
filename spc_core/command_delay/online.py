# SPDX-License-Identifier: Apache-2.0
"""Comparison of a running robot's command delay with that of its training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spc_core.command_delay.estimate import DelayEstimate, DelayEstimator, differs
from spc_core.contract.contract import Contract

PERIODS = 1.5  # allowed difference where no tolerance is given


class DelayWatch(DelayEstimator):
    """Warns when the command delay begins to differ from the training data's; in slices of work."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract)
        self.warning = ""  # how the delay differs from the data's; '' while it does not or is unknown
        self._period_ms = 1e3 / contract.rate_hz
        self._data: DelayEstimate | None = None

    def compare_with(self, data: DelayEstimate | None) -> None:
        """Set the delay of the model's training data; None if the checkpoint has none."""
        self._data = data

    def judge(self, tolerance_ms: float) -> str:
        """Compare with the data; returns the warning when it begins. A tolerance of 0 means PERIODS control periods."""
        before, self.warning = self.warning, ""
        if self._data is not None:
            self.warning = differs(self.estimate, self._data, tolerance_ms or PERIODS * self._period_ms)
        return self.warning if not before else ""

    def values(self) -> dict[str, object]:
        """For `/diagnostics`."""
        here, data = self.estimate, self._data
        known: dict[str, object] = {}
        if here.known:
            known = {"command delay ms": round(here.delay_ms, 1), "command delay +- ms": round(here.uncertainty_ms, 1)}
        if data is None:
            verdict = "not compared: the checkpoint does not hold the delay of its data; convert and train again"
        elif not data.known:
            verdict = f"not compared: in the data, {data}"
        else:
            verdict = "not known yet" if not here.known else "not the data's" if self.warning else "as in the data"
        data_text = data if data is not None and data.known else "not known"
        return {**known, "command delay": f"{here} ({here.told_from})" if here.known else f"unknown: {here}",
                "command delay of the data": data_text, "command delay verdict": verdict}  # fmt: skip


def delay_of_data(metrics: Mapping[str, Any]) -> DelayEstimate | None:
    """The delay in a checkpoint's metrics; None in older ones. Raises ValueError if it is damaged."""
    data = metrics.get("command_delay")
    return None if data is None else DelayEstimate.from_dict(data)
