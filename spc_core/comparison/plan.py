# SPDX-License-Identifier: Apache-2.0
"""The plan of a comparison of methods, and the progress of its runs, all stored in the folder OUT.

OUT/compare.json                    the plan; the folder resumes it, and refuses another one
OUT/<method>/seed-<s>/              a training run (spc_core/training/train.py), and
OUT/<method>/seed-<s>/episodes.jsonl    its evaluation, complete or absent
OUT/<method>/seed-<s>/*.log         output of the two processes; of seeds that train together, with the first
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spc_core.data.packed import load_dataset
from spc_core.method.config import ConfigError, TrainConfig, load_config, method_name, to_dict
from spc_core.method.stacked import stacks
from spc_core.system.atomic_files import write_atomic
from spc_core.system.config_files import suggest
from spc_core.tasks import SPLITS, FamilyError, find_family
from spc_core.trials.protocol import SIM_PROTOCOLS, EpisodeResult

PLAN_FILE, LOCK_FILE = "compare.json", ".lock"
WORKERS_FILE = ".workers"  # locked by processes on other machines
FIXED_PROTOCOL = "zero_shot"  # for methods whose context does not depend on the protocol
MACHINE_SETTINGS = ("seed", "device", "threads", "compile")  # set for each run, so not part of a method


@dataclasses.dataclass(frozen=True)
class Method:
    """A method's settings, and its name in folders and tables."""

    name: str
    source: str  # name or path, as given
    config: TrainConfig

    @property
    def fixed_context(self) -> bool:
        """Whether all protocols give the same context, since it is not learnt."""
        return self.config.method.context != "learnt"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every method with every seed, on one dataset and one set of trials."""

    dataset: Path
    out: Path
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    preset: str
    family: str
    dataset_sha256: str
    splits: tuple[str, ...]
    protocols: tuple[str, ...]
    few_shot_sizes: tuple[int, ...]
    episodes: int
    one_by_one: bool = False  # evaluate one robot after the other: slower, the same rows

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that early results already compare all methods."""
        return [Run(self, method, seed) for seed in self.seeds for method in self.methods]

    def settings(self) -> dict[str, Any]:
        """The settings that must stay the same in one folder."""
        same = ("family", "dataset_sha256", "splits", "protocols", "few_shot_sizes", "episodes")
        values = {key: getattr(self, key) for key in same}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@dataclasses.dataclass(frozen=True)
class Run:
    """One method with one seed."""

    plan: Plan
    method: Method
    seed: int

    def __str__(self) -> str:
        return f"{self.method.name} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.plan.out / self.method.name / f"seed-{self.seed}"

    @property
    def episodes_file(self) -> Path:
        return self.folder / "episodes.jsonl"

    def metrics(self) -> dict[str, Any]:
        """The checkpoint's metrics; empty before there is one."""
        file = self.folder / "checkpoint" / "metrics.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def updates_done(self) -> int:
        """Finished updates, by checkpoint and log."""
        log = self.folder / "log.csv"
        rows = log.read_text().splitlines()[1:] if log.is_file() else []
        logged = rows[-1].split(",")[0] if rows else ""
        done = max(int(logged) if logged.isdigit() else 0, self.metrics().get("update", 0))
        return min(done, self.method.config.updates)

    def trained(self) -> bool:
        return self.metrics().get("update", 0) == self.method.config.updates

    def finished(self) -> bool:
        return self.trained() and self.episodes_file.is_file()

    def episodes(self) -> list[EpisodeResult]:
        """The evaluation's rows."""
        return [EpisodeResult.from_json(line) for line in self.episodes_file.read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Work:
    """What one process does: it trains some seeds of a method, or evaluates one."""

    stage: str  # train | evaluate
    runs: tuple[Run, ...]

    def __str__(self) -> str:
        seeds = " ".join(str(run.seed) for run in self.runs)
        return f"{self.runs[0].method.name} seed{'s' * (len(self.runs) > 1)} {seeds}"

    def done(self) -> bool:
        return all(run.trained() if self.stage == "train" else run.finished() for run in self.runs)

    def arguments(self) -> list[str]:
        """For the command line."""
        run = self.runs[0]
        plan, method = run.plan, run.method
        if self.stage == "train":
            return [
                "train", str(plan.dataset), "--out", str(run.folder.parent), "--preset", plan.preset, "--method",
                method.source, "--seeds", *(str(run.seed) for run in self.runs), "--threads", "1", "--device", "cpu",
            ]  # fmt: skip
        protocols = (FIXED_PROTOCOL,) if method.fixed_context else plan.protocols
        sizes = ["--few-shot-sizes", *map(str, plan.few_shot_sizes)] if "few_shot" in protocols else []
        return [
            "evaluate", str(run.folder), "--json", str(run.episodes_file), "--family", plan.family, "--splits",
            *plan.splits, "--protocols", *protocols, "--episodes", str(plan.episodes), *sizes,
            *(["--one-by-one"] if plan.one_by_one else []),
        ]  # fmt: skip


def works(runs: Sequence[Run], jobs: int) -> list[Work]:
    """What is left to do for runs: evaluations, and trainings that keep `jobs` processes busy.

    The seeds of a method train together where that is faster, in as few processes as there are jobs for.
    """
    evaluations = [Work("evaluate", (run,)) for run in runs if run.trained() and not run.finished()]
    waiting: dict[Method, list[Run]] = {}
    for run in runs:
        if not run.trained():
            waiting.setdefault(run.method, []).append(run)
    shares = -(-jobs // max(len(waiting), 1))  # processes for each method
    trainings = []
    for method, own in waiting.items():
        size = -(-len(own) // shares)
        size = size if stacks(method.config, size, "cpu") else 1
        trainings += [own[first : first + size] for first in range(0, len(own), size)]
    trainings.sort(key=lambda group: runs.index(group[0]))
    return evaluations + [Work("train", tuple(group)) for group in trainings]


def make_plan(
    dataset: Path,
    out: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    preset: str = "small",
    splits: Sequence[str] = ("id", "ood"),
    protocols: Sequence[str] = SIM_PROTOCOLS,
    few_shot_sizes: Sequence[int] = (100,),
    episodes: int = 3,
    family: str = "",
) -> Plan:
    """Check all options before anything is written. Raises ConfigError, ContractError or DatasetError."""
    _check_list("--methods", methods)
    _check_list("--seeds", seeds)
    _check_list("--splits", splits, SPLITS)
    _check_list("--protocols", protocols, SIM_PROTOCOLS)
    if "few_shot" in protocols:
        _check_list("--few-shot-sizes", few_shot_sizes)
    for flag, values, minimum in (
        ("--episodes", [episodes], 1),
        ("--few-shot-sizes", few_shot_sizes, 1),
        ("--seeds", seeds, 0),
    ):
        if values and min(values) < minimum:
            raise ConfigError(f"{flag} has {min(values)}; use numbers of at least {minimum}")
    chosen = [Method(method_name(source), source, load_config(preset, source)) for source in methods]
    _check_list("names of --methods", [method.name for method in chosen])
    if (
        out.exists()
        and not (out / PLAN_FILE).is_file()
        and any(p.name not in (LOCK_FILE, WORKERS_FILE) for p in out.iterdir())
    ):
        raise ConfigError(f"{out}: holds files that are not a comparison; choose another --out")
    data = load_dataset(dataset)  # also packs it, once, before several trainings start
    try:
        family = find_family(family or data.contract.name).reference
    except FamilyError as error:
        raise ConfigError(f"--family: {error}") from None
    return Plan(
        dataset, out, tuple(chosen), tuple(seeds), preset, family, data.sha256, tuple(splits), tuple(protocols),
        tuple(few_shot_sizes) if "few_shot" in protocols else (), episodes,
    )  # fmt: skip


def _check_list(name: str, values: Sequence[Any], known: Sequence[str] = ()) -> None:
    if not values:
        raise ConfigError(f"{name} is empty; name at least one")
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise ConfigError(f"{name} has '{repeated[0]}' twice; name each once")
    for value in values:
        if known and value not in known:
            raise ConfigError(f"{name} has '{value}'{suggest(value, known)}; use any of: {', '.join(known)}")


def store_plan(plan: Plan) -> None:
    """Store the plan in its folder. Raises ConfigError, and stores nothing, if the folder holds another plan."""
    file = plan.out / PLAN_FILE
    settings = plan.settings() | {"seeds": list(plan.seeds), "methods": {m.name: _method_dict(m) for m in plan.methods}}
    if file.is_file():
        _check_same(plan.out, json.loads(file.read_text()), settings)
    write_atomic(file, json.dumps({"dataset": str(plan.dataset), "preset": plan.preset, **settings}, indent=1) + "\n")


def _check_same(out: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    changed = [
        f"{key} was {stored.get(key)}, is {value}"
        for key, value in settings.items()
        if key not in ("seeds", "methods") and value != stored.get(key)
    ]
    for name, old in stored["methods"].items():
        new = settings["methods"].get(name)
        if new is None:
            changed.append(f"method {name} is left out")
        elif new != old:
            keys = [key for key in new if new[key] != old.get(key)]
            changed.append(f"method {name} has another {', '.join(keys)}")
    changed += [f"seed {seed} is left out" for seed in stored["seeds"] if seed not in settings["seeds"]]
    if changed:
        raise ConfigError(
            f"{out}: holds another comparison ({'; '.join(changed)}); only methods and seeds may be added; "
            "choose another --out"
        )


def _method_dict(method: Method) -> dict[str, Any]:
    return {key: value for key, value in to_dict(method.config).items() if key not in MACHINE_SETTINGS}
