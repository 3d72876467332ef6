# SPDX-License-Identifier: Apache-2.0
"""The complete chain: behaviour data over DDS, bags, dataset, training, trials over DDS, report.

Each stage runs the `spc` command that a user would type, in a separate process, and writes a folder:
OUT/<family>/{recordings,dataset,run-<seed>,trial-<seed>}. A finished stage is not run again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from spc_core.contract.contract import load_contract
from spc_core.method.config import ConfigError, build
from spc_core.pages.report import FamilyRun, summarise, write_report, write_summary
from spc_core.system.config_files import find_config
from spc_core.tasks import find_task, make_env
from spc_core.trials.drift import DRIFT, read_drift
from spc_core.trials.log import EPISODES, read_rows
from spc_core.trials.protocol import in_order
from spc_core.trials.scores import expert_returns, score, table
from spc_ros.trials.provenance import setup, versions

RECORD = "wall_time_s.json"  # of all finished stages; identifies a demo's folder


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo; `config/demo/<preset>.yaml` holds the differences."""

    families: tuple[str, ...] = ("arm_reach", "arm_payload", "point_robot")  # two arms, and one of the paper's families
    episodes: int = 30  # recorded for each training task
    train_preset: str = "quick"
    updates: int = 0  # in each training; 0: as in the preset
    train_seeds: int = 2
    few_shot_sizes: tuple[int, ...] = (25, 100, 200)
    trial_episodes: int = 2  # scored episodes of each task and protocol
    tasks_per_split: int = 10  # held-out tasks in a trial
    seed: int = 0


def load_demo_config(preset: str) -> DemoConfig:
    """Load a preset. Raises ConfigError or ContractError naming the problem."""
    path = find_config("demo", preset)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a demo config: {error}") from None
    return build(DemoConfig, values, str(path))


def demo(out: Path, preset: str, overwrite: bool) -> None:
    """Run all unfinished stages; prints a line for each, the table, and the path of the report."""
    config = load_demo_config(preset)
    if overwrite and out.exists():
        if any(out.iterdir()) and not (out / RECORD).is_file():
            raise ConfigError(f"{out}: is not a demo's folder, so it is not overwritten; choose another --out")
        shutil.rmtree(out)
    _Chain(out, config, f"spc demo --preset {preset} --out {out}").run()


class _Chain:
    """The stages of one demo and their durations."""

    def __init__(self, out: Path, config: DemoConfig, command: str) -> None:
        self.out, self.config, self.command = out, config, command
        self.seeds = range(config.seed, config.seed + config.train_seeds)
        self.wall_time_s: dict[str, float] = {}
        # a separate domain on this machine, isolated from other robots
        self.environment = {
            "ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID", str(random.SystemRandom().randrange(1, 100))),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }

    def run(self) -> None:
        config, out, count = self.config, self.out, len(self.config.families)
        for number, family in enumerate(config.families, 1):
            folder = out / family
            with self._stage(f"collect {family}", f"record behaviour data over DDS ({number}/{count})"):
                options = ("--episodes", config.episodes, "--seed", config.seed)
                self._spc(folder / "recordings", "collect", family, *options)
            with self._stage(f"convert {family}", f"turn bags into a dataset ({number}/{count})"):
                self._spc(folder / "dataset", "convert", folder / "recordings" / "bags")
        with self._stage("train", f"{count} families x {len(self.seeds)} seeds"):
            self._in_parallel(self._train, [(family, seed) for seed in self.seeds for family in config.families])
        for number, family in enumerate(config.families, 1):
            with self._stage(f"trial {family}", f"few-shot trials over DDS ({number}/{count})"):
                for seed in self.seeds:
                    self._trial(family, seed)
        self._report()

    def _train(self, family: str, seed: int, bar: int) -> None:
        folder, config = self.out / family, self.config
        more = ["--updates", config.updates] if config.updates else []
        self._spc(
            folder / f"run-{seed}", "train", folder / "dataset", "--preset", config.train_preset, "--seed", seed,
            "--threads", 1, "--device", "cpu", *more, resumes=True, bar=bar,
        )  # fmt: skip

    def _trial(self, family: str, seed: int) -> None:
        folder, config = self.out / family, self.config
        self._spc(
            folder / f"trial-{seed}", "trial", folder / f"run-{seed}", "--splits", "id", "ood", "--few-shot-sizes",
            *config.few_shot_sizes, "--episodes", config.trial_episodes, "--tasks-per-split", config.tasks_per_split,
            resumes=True,
        )  # fmt: skip

    def _in_parallel(self, work: Callable[..., None], jobs: Sequence[tuple[Any, ...]]) -> None:
        """Run one job per processor at a time: small networks are fastest with one thread."""
        stop = threading.Event()  # set by an error or Ctrl-C: further jobs do not start

        def guarded(*arguments: Any) -> None:
            if stop.is_set():
                return
            try:
                work(*arguments)
            except BaseException:
                stop.set()
                raise

        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for future in as_completed([pool.submit(guarded, *job, bar) for bar, job in enumerate(jobs)]):
                future.result()
        finally:
            stop.set()
            pool.shutdown()

    def _spc(self, folder: Path, stage: str, *arguments: object, resumes: bool = False, bar: int = 0) -> None:
        """Run `spc STAGE ARGUMENTS --out FOLDER` unless finished; deletes an incomplete folder unless it `resumes`."""
        done = folder.with_name(f"{folder.name}.done")
        if done.is_file():
            return
        if not resumes:
            shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "spc_ros.cli", stage, *map(str, arguments), "--out", str(folder)]
        quiet = {} if sys.stderr.isatty() else {"TQDM_MININTERVAL": "20"}  # a log file needs no live bar
        environment = {**os.environ, **self.environment, "TQDM_POSITION": str(bar), **quiet}
        log = folder.with_name(f"{folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            code = subprocess.run(command, env=environment, stdout=output).returncode
        if code == 130:
            raise KeyboardInterrupt(f"stopped in: spc {stage}; run the same command to resume")
        if code != 0:
            raise RuntimeError(f"failed with exit code {code}: spc {' '.join(command[3:])}")
        done.touch()

    @contextmanager
    def _stage(self, name: str, purpose: str) -> Iterator[None]:
        """Print a line before and after, and store the wall time; that of a finished stage is kept."""
        self.out.mkdir(parents=True, exist_ok=True)
        record = self.out / RECORD
        known = json.loads(record.read_text()) if record.is_file() else {}
        record.write_text(json.dumps(known))
        print(f"{name}: {purpose}", flush=True)
        began = time.monotonic()
        yield
        self.wall_time_s[name] = max(known.get(name, 0.0), round(time.monotonic() - began, 1))
        record.write_text(json.dumps({**known, **self.wall_time_s}))
        print(f"{name}: done in {self.wall_time_s[name]:.0f} s", flush=True)

    def _report(self) -> None:
        runs = [self._family_run(family) for family in self.config.families]
        figures = {f"{run.family} lock-step, times real time": self._speed(run) for run in runs}
        summary = summarise(
            runs, seed=self.config.seed, wall_time_s=self.wall_time_s, versions=versions(), figures=figures,
            setup=setup(self.command),
        )  # fmt: skip
        write_summary(self.out / "summary.json", summary)
        write_report(self.out / "report.html", runs, summary)
        for run in runs:
            print(f"\n{run.family}\n{table(score(run.results, run.experts))}")
        print("\n" + "\n".join(f"{name}: {value:.1f}" for name, value in figures.items()))
        print(f"total: {sum(self.wall_time_s.values()):.0f} s")
        print(f"summary: {self.out / 'summary.json'}\nreport:  {self.out / 'report.html'}  (open it in a browser)")

    def _family_run(self, family: str) -> FamilyRun:
        folder = self.out / family
        results = {seed: in_order(read_rows(folder / f"trial-{seed}" / EPISODES)) for seed in self.seeds}
        tried = [find_task(task_id) for task_id in dict.fromkeys(row.task_id for row in results[self.seeds[0]])]
        contract = load_contract(find_config("contracts", family))
        return FamilyRun(
            family=family,
            contract_sha256=contract.sha256,
            results=results,
            experts=expert_returns(tried, range(self.config.trial_episodes)),
            logs={seed: folder / f"run-{seed}" / "log.csv" for seed in self.seeds},
            rate_hz=contract.rate_hz,
            drift=[change for seed in self.seeds for change in read_drift(folder / f"trial-{seed}" / DRIFT)],
        )

    def _speed(self, run: FamilyRun) -> float:
        """Median of simulated seconds per real second of an episode, from reset to end, including the recorder."""
        rows = [row for rows in run.results.values() for row in rows]
        return statistics.median(row.steps / make_env(run.family).control_hz / row.seconds for row in rows)
