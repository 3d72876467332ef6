# SPDX-License-Identifier: Apache-2.0
"""The report of a study: summary.json for programs, and report.html for people, which opens offline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spc_core.deploy.latency_bins import quantile_us
from spc_core.pages.figures import FamilyRun
from spc_core.pages.report_page import page
from spc_core.pages.run_figures import SHARES, all_latency
from spc_core.system.atomic_files import write_atomic
from spc_core.system.json_values import without_nan
from spc_core.trials.drift import drift_scores
from spc_core.trials.protocol import protocol_label
from spc_core.trials.scores import score

__all__ = ["FamilyRun", "summarise", "write_report", "write_summary"]


def summarise(
    families: Sequence[FamilyRun],
    *,
    seed: int,
    wall_time_s: Mapping[str, float],
    versions: Mapping[str, str],
    figures: Mapping[str, float],
    setup: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Results for JSON, where a number that is not finite becomes None.

    `figures`: other measurements. `setup`: further facts needed to reproduce the study.
    families -> name -> splits -> split -> a list of scores with the fields of spc_core.trials.scores.Score.
    Raises ValueError if a family has no scored episode.
    """
    summary: dict[str, Any] = {"families": {}}
    for run in families:
        if not run.scored():
            raise ValueError(f"{run.family}: there is no scored episode to report; run its trial first")
        splits: dict[str, list[dict[str, Any]]] = {split: [] for split in run.splits()}
        for line in score(run.results, run.experts):
            entry = asdict(line)
            splits[entry.pop("split")].append(entry)
        summary["families"][run.family] = {
            "contract_sha256": run.contract_sha256,
            "training_seeds": list(run.results),
            "splits": splits,
            "interventions": interventions(run),
            "latency_us": {name: quantile_us(all_latency(run), share) for name, share in SHARES.items()},
            "drift": [asdict(line) for line in drift_scores(run.drift)],
        }
    summary |= {"seed": seed, "wall_time_s": wall_time_s, "versions": versions, "figures": figures}
    summary["setup"] = setup or {}
    return without_nan(summary)


def interventions(run: FamilyRun) -> dict[str, dict[str, int]]:
    """Interventions of the safety chain by protocol and kind, including collection episodes."""
    counts: dict[str, Counter[str]] = {}
    for row in (row for rows in run.results.values() for row in rows):
        kinds = {kind: int(number) for kind, number in row.interventions.items() if number}
        if kinds:
            counts.setdefault(protocol_label(row.protocol, row.k), Counter()).update(kinds)
    return {protocol: dict(kinds) for protocol, kinds in counts.items()}


def write_summary(path: str | Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json atomically."""
    write_atomic(path, json.dumps(summary, indent=1, allow_nan=False) + "\n")


def write_report(path: str | Path, families: Sequence[FamilyRun], summary: Mapping[str, Any]) -> None:
    """Write report.html atomically; `summary` is the result of summarise() for the same families."""
    write_atomic(path, page(families, summary))
