# SPDX-License-Identifier: Apache-2.0
"""Scores checkpoints of a training run in a separate process, so that updates do not wait. judges.py says how.

RUN/.snapshots/<update>/   checkpoints without a score yet
RUN/validation.jsonl       a line for each score: update, the judge's columns, tasks, judge, seconds
RUN/best/                  the checkpoint with the best score of this judge so far

`python -m spc_core.training.validation SNAPSHOT RESULTS JUDGE` scores one; it ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spc_core.training.judges import Judge, Simulation, from_json, to_json

NICENESS = 10  # of the process: it uses only time that training leaves


class Validator:
    """Scores snapshots one at a time, and keeps the best. A context manager, which ends its process."""

    def __init__(self, out: Path, judge: Judge, on_score: Callable[[int, dict[str, float]], None]) -> None:
        """`on_score` is called once with each score: the update and the judge's columns."""
        self.out, self.judge, self._on_score = out, judge, on_score
        self._snapshots, self._results, self._best = out / ".snapshots", out / "validation.jsonl", out / "best"
        self._process: subprocess.Popen[bytes] | None = None
        self._update = 0  # the update that the process scores
        self._warned = False  # about skipped evaluations
        self._recover()

    def offer(self, update: int, save: Callable[[Path], None]) -> None:
        """Start to score the weights of this update, which `save` writes, unless another is being scored."""
        if (row := self.score(update)) is not None:  # a resumed run repeats updates, with the same weights
            self._report(row)
            return
        if self._process is not None:
            if not self._warned:
                tqdm.write(f"update {update} is not evaluated: update {self._update} still is. Raise evaluate_every.")
            self._warned = True
            return
        self._start(update, save)

    def poll(self) -> None:
        """Collect the score of a finished process, without waiting."""
        if self._process is not None and self._process.poll() is not None:
            self._collect()

    def finish(self, update: int, save: Callable[[Path], None], stopped: list[int]) -> bool:
        """Wait for the present score, then score the last update; False if stopped before that is done."""
        self._wait(stopped)
        if self.score(update) is None and not stopped:
            self._start(update, save)
            self._wait(stopped)
        return not stopped

    def scores(self) -> list[dict[str, Any]]:
        """The lines of validation.jsonl by this judge."""
        lines = self._results.read_text().splitlines() if self._results.is_file() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]  # a full disk may leave half a line
        return [row for row in rows if row.get("judge", Simulation.name) == self.judge.name]  # older lines name none

    def score(self, update: int) -> dict[str, Any] | None:
        """The line of an update."""
        return next((row for row in self.scores() if row["update"] == update), None)

    def _start(self, update: int, save: Callable[[Path], None]) -> None:
        snapshot = self._snapshots / str(update)
        save(snapshot)
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "spc_core.training.validation", str(snapshot), str(self._results)]
        with (self.out / "validation.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, to_json(self.judge)],
                stdin=subprocess.PIPE,  # closes however this process ends
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only this process
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(paths),
                    "OMP_NUM_THREADS": "1",
                    "CUDA_VISIBLE_DEVICES": "",  # the GPU is for training
                },
            )
        self._update = update

    def _wait(self, stopped: list[int]) -> None:
        """Show progress until the process is done or this one is stopped."""
        process = self._process
        if process is None or process.stdout is None:
            return
        with tqdm(desc=f"evaluate update {self._update}", unit=self.judge.unit) as bar:
            while not stopped:
                if select.select([process.stdout], [], [], 0.2)[0]:
                    line = process.stdout.readline().split()
                    if not line:
                        process.wait()
                        self._collect()
                        return
                    bar.total = int(line[1])
                    bar.update(int(line[0]) - bar.n)

    def _collect(self) -> None:
        """After the end of the process, promote its snapshot or delete it."""
        assert self._process is not None
        code, snapshot = self._process.wait(), self._snapshots / str(self._update)
        self.close()
        if code:
            log = self.out / "validation.log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
            tqdm.write(f"update {self._update} could not be evaluated: {last[0]} (see {log}); training continues")
        self._keep_if_best(snapshot)

    def _keep_if_best(self, snapshot: Path) -> None:
        """Make a snapshot RUN/best if its score is the best; else delete it."""
        row = self.score(int(snapshot.name))
        if row is not None:
            self._report(row)
            if not self._best.exists():
                snapshot.rename(self._best)
                return
            aside = self._snapshots / str(json.loads((self._best / "metrics.json").read_text())["update"])
            best = self.score(int(aside.name))
            if aside != snapshot and (best is None or self.judge.rank(row) > self.judge.rank(best)):
                self._best.rename(aside)  # under its number: after a kill here, the next start compares both again
                snapshot.rename(self._best)
                snapshot = aside
        shutil.rmtree(snapshot, ignore_errors=True)

    def _report(self, row: dict[str, Any]) -> None:
        self._on_score(row["update"], {name: row[name] for name in self.judge.columns})

    def _recover(self) -> None:
        """Handle snapshots of a killed process: one with a score may be the best, others are deleted."""
        for snapshot in sorted(self._snapshots.iterdir()) if self._snapshots.is_dir() else []:
            if snapshot.name.isdecimal():
                self._keep_if_best(snapshot)
            else:
                shutil.rmtree(snapshot)

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Validator:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
        shutil.rmtree(self._snapshots, ignore_errors=True)


def main(arguments: list[str]) -> None:
    """Score one snapshot, and append its line to the results: snapshot folder, results file, judge as JSON."""
    snapshot, results, judge = Path(arguments[0]), Path(arguments[1]), from_json(arguments[2])
    os.nice(NICENESS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    began = time.monotonic()
    scores = judge.score(snapshot, lambda done, total, _: print(done, total, flush=True))
    row = {"update": int(snapshot.name), **scores, "judge": judge.name, "seconds": round(time.monotonic() - began, 1)}
    with results.open("ab", buffering=0) as stream:  # one write: the line is there or not
        stream.write((json.dumps(row) + "\n").encode())


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would outlive the interpreter
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
