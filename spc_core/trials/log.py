# SPDX-License-Identifier: Apache-2.0
"""A trial's files, from which it resumes after a crash: its plan, and one line for each episode.

An episode is finished when its line is complete and its bag exists; any other episode is repeated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spc_core.system.atomic_files import write_atomic
from spc_core.trials.protocol import EpisodeResult, Trial, TrialError

EPISODES = "episodes.jsonl"
PLAN = "plan.json"
ABANDONED = "abandoned"  # .jsonl: rows of repeated episodes; folder: bags without a row


class TrialLog:
    """One trial's folder. open() first; then append() each row."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / EPISODES

    def open(self, trial: Trial, plan: Mapping[str, Any], recorded: bool) -> int:
        """Restore the finished rows into `trial`; returns their number.

        `plan` identifies the trial. `recorded`: a row without its bag does not count.
        Raises TrialError if the folder holds another trial.
        """
        self.compare(plan)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / PLAN, json.dumps(plan, indent=1, sort_keys=True) + "\n")
        rows = read_rows(self.path)
        lost = [row for row in rows if recorded and not row.aborted and not self.bag_of(row)]
        repeated = lost + trial.resume([row for row in rows if row not in lost])
        if repeated:
            with (self.folder / f"{ABANDONED}.jsonl").open("a") as file:
                file.writelines(row.to_json() + "\n" for row in repeated)
        write_atomic(self.path, "".join(row.to_json() + "\n" for row in trial.results))
        return len(trial.results)

    def append(self, row: EpisodeResult) -> None:
        """Add a line and flush it to disk."""
        with self.path.open("a") as file:
            file.write(row.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def bag_of(self, row: EpisodeResult) -> Path | None:
        """The present path of the row's bag, or None; a trial's folder may have been moved with its bags."""
        if not row.bag:
            return None
        candidates = (Path(row.bag), self.folder / "bags" / Path(row.bag).name)
        return next((path for path in candidates if path.exists()), None)

    def set_aside_orphan_bags(self, rows: Sequence[EpisodeResult]) -> list[Path]:
        """Move bags without a row, complete or not, to the folder `abandoned`. Call it only while nothing records."""
        bags, aside = self.folder / "bags", self.folder / ABANDONED
        named = {Path(row.bag).name for row in rows if row.bag}
        orphans = sorted(path for path in bags.iterdir() if path.name not in named) if bags.is_dir() else []
        moved = []
        for path in orphans:
            aside.mkdir(exist_ok=True)
            target, number = aside / path.name, 2
            while target.exists():
                target, number = aside / f"{path.name}_{number}", number + 1
            moved.append(path.rename(target))
        return moved

    def compare(self, plan: Mapping[str, Any]) -> None:
        """Raises TrialError if the folder holds another trial; changes nothing."""
        if not (self.folder / PLAN).is_file():
            if self.path.exists():
                raise TrialError(
                    f"{self.folder}: holds episodes of an unknown trial, without {PLAN}; choose another --out"
                )
            return
        plan = json.loads(json.dumps(plan))
        try:
            earlier = json.loads((self.folder / PLAN).read_text())
        except ValueError as error:
            raise TrialError(f"{self.folder / PLAN}: cannot be read ({error}); choose another --out") from None
        lines = [
            f"{name}: {earlier.get(name)!r:.200} there, {plan.get(name)!r:.200} here"
            for name in sorted({*plan, *earlier})
            if plan.get(name) != earlier.get(name)
        ]
        if lines:
            text = f"{self.folder}: holds another trial; choose another --out, or give the same options to resume:"
            raise TrialError("\n  ".join([text, *lines]))


def read_rows(path: str | Path) -> list[EpisodeResult]:
    """The rows of an episodes.jsonl, without a last line that a crash cut off.

    Raises TrialError naming any other line that cannot be read.
    """
    text = Path(path).read_text(errors="replace") if Path(path).exists() else ""
    lines = text.split("\n")[:-1]  # a line without a newline is incomplete
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(EpisodeResult.from_json(line))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise TrialError(f"{path}, line {number}: {error}; delete that line to repeat its episode") from None
    return rows
