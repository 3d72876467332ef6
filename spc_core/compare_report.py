# SPDX-License-Identifier: Apache-2.0
"""Writes what a comparison came to so far: table.json, table.md, compare.html and pictures."""

from __future__ import annotations

import json

from spc_core.compare_plan import Method, Plan
from spc_core.compare_table import MethodResults, References, Row, compare_rows, markdown, to_plain
from spc_core.evaluate import expert_returns
from spc_core.tasks import tasks

REFERENCE = "spc"  # the others are compared with it, or with the first method where it is missing


class CompareReport:
    """The report of a plan; write() as often as there is something new."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        tried = [task for split in plan.splits for task in tasks(plan.family, split)]
        ends = [expert_returns(tried, range(plan.episodes), told_mean=mean) for mean in (True, False)]
        self.references = References(*ends)
        names = [method.name for method in plan.methods]
        self.reference = REFERENCE if REFERENCE in names else names[0]
        self.rows: list[Row] = []  # of the finished runs, at the last write()

    def write(self) -> None:
        """Write all files from the finished runs; none while no run is finished."""
        methods = [self._results(method) for method in self.plan.methods]
        self.rows = compare_rows(methods, self.references, self.reference)
        if self.rows:
            self._replace("table.json", json.dumps(to_plain(self.rows), indent=1, allow_nan=False) + "\n")
            self._replace("table.md", self.text())

    def text(self) -> str:
        """The table for people."""
        return markdown(self.rows)

    def _results(self, method: Method) -> MethodResults:
        runs = {run.seed: run for run in self.plan.runs() if run.method == method and run.finished()}
        return MethodResults(
            method.name,
            method.fixed_context,
            {seed: run.episodes() for seed, run in runs.items()},
            {seed: float(run.metrics()["seconds"]) for seed, run in runs.items()},
        )

    def _replace(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        beside = self.plan.out / f".{name}.partial"
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.plan.out / name)
