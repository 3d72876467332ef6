# SPDX-License-Identifier: Apache-2.0
"""Writes the finished runs of a comparison as table.json, table.md, compare.html and SVG files."""

from __future__ import annotations

import dataclasses
import json

from spc_core.comparison.plan import Method, Plan
from spc_core.comparison.table import MethodResults, References, Row, compare_rows, markdown
from spc_core.pages.comparison_page import compare_page
from spc_core.pages.comparison_panels import headline_keys, improvement_picture, score_picture
from spc_core.pages.comparison_svg import dot_intervals
from spc_core.system.atomic_files import write_atomic
from spc_core.system.json_values import without_nan
from spc_core.tasks import find_family
from spc_core.trials.scores import expert_returns

PICTURES = (score_picture, improvement_picture)
REFERENCE = "spc"  # the method to compare with; without it, the first one


class CompareReport:
    """The report of a plan; call write() after each finished run."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.family = plan, find_family(plan.family)
        tried = [task for split in plan.splits for task in self.family.tasks[split]]
        ends = [expert_returns(tried, range(plan.episodes), informed=informed) for informed in (False, True)]
        self.references = References(*ends)
        names = [method.name for method in plan.methods]
        self.reference = REFERENCE if REFERENCE in names else names[0]
        self.rows: list[Row] = []  # of the finished runs, at the last write()

    def write(self) -> None:
        """Write all files from the finished runs; nothing before a run is finished."""
        methods = [self._results(method) for method in self.plan.methods]
        self.rows = compare_rows(methods, self.references, self.reference)
        if self.rows:
            table = without_nan([dataclasses.asdict(row) for row in self.rows])
            write_atomic(self.plan.out / "table.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
            write_atomic(self.plan.out / "table.md", self.text())
            for picture in (pictures(self.rows, headline_keys(self.rows)) for pictures in PICTURES):
                if picture.panels:
                    write_atomic(self.plan.out / f"{picture.name}.svg", dot_intervals(picture))
            write_atomic(self.plan.out / "compare.html", compare_page(self.rows, self.family.name, self._settings()))

    def text(self) -> str:
        """The table as Markdown."""
        return markdown(self.rows)

    def _settings(self) -> list[tuple[str, str]]:
        plan = self.plan
        seeds = " ".join(map(str, plan.seeds))
        return [
            ("dataset, SHA-256", plan.dataset_sha256),
            ("preset", plan.preset),
            ("methods", " ".join(method.source for method in plan.methods)),
            ("training seeds", seeds),
            ("scored episodes of each task and protocol", str(plan.episodes)),
            ("runs finished", f"{sum(run.finished() for run in plan.runs())} of {len(plan.runs())}"),
        ]

    def _results(self, method: Method) -> MethodResults:
        runs = {run.seed: run for run in self.plan.runs() if run.method == method and run.finished()}
        return MethodResults(
            method.name,
            method.fixed_context,
            {seed: run.episodes() for seed, run in runs.items()},
            {seed: float(run.metrics()["seconds"]) for seed, run in runs.items()},
        )
