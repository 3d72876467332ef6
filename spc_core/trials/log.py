# SPDX-License-Identifier: Apache-2.0
"""What a trial leaves on disk, such that it can go on after a crash: its plan, and one line for each episode.

An episode counts as done when its line is whole and its bag is there; all else is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spc_core.system.atomic_files import write_whole
from spc_core.trials.protocol import EpisodeResult, Trial, TrialError

EPISODES = "episodes.jsonl"
PLAN = "plan.json"
ABANDONED = "abandoned"  # .jsonl: rows that were done again; folder: bags without a row


class TrialLog:
    """One trial's folder. open() first; then append() each row."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / EPISODES

    def open(self, trial: Trial, plan: Mapping[str, Any], recorded: bool) -> int:
        """Give `trial` what is done already; returns how many rows are kept.

        `plan` says which trial it is. `recorded`: a row without its bag does not count.
        Raises TrialError where the folder holds another trial.
        """
        plan = json.loads(json.dumps(plan))
        self.compare(plan)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / PLAN, json.dumps(plan, indent=1, sort_keys=True) + "\n")
        rows = read_rows(self.path)
        there = [bool(row.aborted or not recorded or self.bag_of(row)) for row in rows]
        again = [row for row, is_there in zip(rows, there, strict=True) if not is_there]
        again += trial.resume([row for row, is_there in zip(rows, there, strict=True) if is_there])
        if again:
            with (self.folder / f"{ABANDONED}.jsonl").open("a") as file:
                file.writelines(row.to_json() + "\n" for row in again)
        write_whole(self.path, "".join(row.to_json() + "\n" for row in trial.results))
        return len(trial.results)

    def append(self, row: EpisodeResult) -> None:
        """Add a line and bring it to the disk before anything else happens."""
        with self.path.open("a") as file:
            file.write(row.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def bag_of(self, row: EpisodeResult) -> Path | None:
        """Where the row's bag is now, or None; a trial's folder may have been moved with its bags."""
        if not row.bag:
            return None
        places = (Path(row.bag), self.folder / "bags" / Path(row.bag).name)
        return next((place for place in places if place.exists()), None)

    def put_aside_loose_bags(self, rows: Sequence[EpisodeResult]) -> list[Path]:
        """Move bags of no row, whole or half-written, to the folder `abandoned`. Only while nothing records."""
        bags, aside = self.folder / "bags", self.folder / ABANDONED
        named = {Path(row.bag).name for row in rows if row.bag}
        loose = sorted(path for path in bags.iterdir() if path.name not in named) if bags.is_dir() else []
        moved = []
        for path in loose:
            aside.mkdir(exist_ok=True)
            target, number = aside / path.name, 2
            while target.exists():
                target, number = aside / f"{path.name}_{number}", number + 1
            moved.append(path.rename(target))
        return moved

    def compare(self, plan: Mapping[str, Any]) -> None:
        """Raises TrialError where the folder holds another trial than this; changes nothing."""
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
            text = f"{self.folder}: holds another trial; choose another --out, or give the same options to go on:"
            raise TrialError("\n  ".join([text, *lines]))


def read_rows(path: str | Path) -> list[EpisodeResult]:
    """The rows of an episodes.jsonl. A last line that a crash cut off is left out.

    Raises TrialError that names a line in the midst which cannot be read.
    """
    text = Path(path).read_text(errors="replace") if Path(path).exists() else ""
    lines = text.split("\n")[:-1]  # what has no newline is half a line
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(EpisodeResult.from_json(line))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise TrialError(f"{path}, line {number}: {error}; delete that line to do its episode again") from None
    return rows
