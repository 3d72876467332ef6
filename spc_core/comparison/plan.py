# SPDX-License-Identifier: Apache-2.0
"""What a comparison of methods consists of, and how far each of its runs is; all of it is in the folder OUT.

OUT/compare.json                    the plan; the same folder goes on with it, and refuses another one
OUT/<method>/seed-<s>/              a training run (spc_core/training/train.py), and
OUT/<method>/seed-<s>/episodes.jsonl    its evaluation, whole or not there
OUT/<method>/seed-<s>/*.log         what the two processes said
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spc_core.data.packed import load_dataset
from spc_core.method.config import ConfigError, TrainConfig, load_config, to_dict
from spc_core.system.atomic_files import write_whole
from spc_core.system.config_files import suggest
from spc_core.tasks import SPLITS, families
from spc_core.trials.protocol import PROTOCOLS, EpisodeResult

PLAN_FILE, LOCK_FILE = "compare.json", ".lock"
FIXED_PROTOCOL = "zero_shot"  # the one that methods are tried with whose context does not depend on the protocol
MACHINE_SETTINGS = ("seed", "device", "threads")  # set here for each run, so no part of a method


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of learning, and the name that it has in folders and tables."""

    name: str
    source: str  # name or path, as given
    config: TrainConfig

    @property
    def fixed_context(self) -> bool:
        """Whether all protocols give the same: what it knows of a task is not learnt."""
        return self.config.method.context != "learnt"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared: every method with every seed, on one dataset and one set of trials."""

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

    def runs(self) -> list[Run]:
        """All runs: the first seed of all methods, then the next, so that early results compare."""
        return [Run(self, method, seed) for seed in self.seeds for method in self.methods]

    def settings(self) -> dict[str, Any]:
        """What must not change between two calls in one folder."""
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
        """What the checkpoint says of its training; empty before there is one."""
        file = self.folder / "checkpoint" / "metrics.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def updates_done(self) -> int:
        """Updates so far, by checkpoint and log."""
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

    def next_stage(self) -> tuple[str, list[str]]:
        """What is to do next: the stage's name, and its arguments for the command line."""
        plan = self.plan
        if not self.trained():
            return "train", [
                "train", str(plan.dataset), "--out", str(self.folder), "--preset", plan.preset, "--method",
                self.method.source, "--seed", str(self.seed), "--threads", "1", "--device", "cpu",
            ]  # fmt: skip
        protocols = (FIXED_PROTOCOL,) if self.method.fixed_context else plan.protocols
        sizes = ["--few-shot-sizes", *map(str, plan.few_shot_sizes)] if "few_shot" in protocols else []
        return "evaluate", [
            "evaluate", str(self.folder), "--json", str(self.episodes_file), "--family", plan.family, "--splits",
            *plan.splits, "--protocols", *protocols, "--episodes", str(plan.episodes), *sizes,
        ]  # fmt: skip


def make_plan(
    dataset: Path,
    out: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    preset: str = "small",
    splits: Sequence[str] = ("id", "ood"),
    protocols: Sequence[str] = PROTOCOLS,
    few_shot_sizes: Sequence[int] = (100,),
    episodes: int = 3,
    family: str = "",
) -> Plan:
    """Check what is asked for, before anything is written. Raises ConfigError, ContractError or DatasetError."""
    _check_list("--methods", methods)
    _check_list("--seeds", seeds)
    _check_list("--splits", splits, SPLITS)
    _check_list("--protocols", protocols, PROTOCOLS)
    if "few_shot" in protocols:
        _check_list("--few-shot-sizes", few_shot_sizes)
    for what, values, least in (
        ("--episodes", [episodes], 1),
        ("--few-shot-sizes", few_shot_sizes, 1),
        ("--seeds", seeds, 0),
    ):
        if values and min(values) < least:
            raise ConfigError(f"{what} has {min(values)}; use numbers of at least {least}")
    chosen = [Method(Path(source).stem, source, load_config(preset, source)) for source in methods]
    _check_list("names of --methods", [method.name for method in chosen])
    if out.exists() and not (out / PLAN_FILE).is_file() and any(p.name != LOCK_FILE for p in out.iterdir()):
        raise ConfigError(f"{out}: holds something that is no comparison; choose another --out")
    data = load_dataset(dataset)  # and packs it, once, before several trainings want to
    family = family or data.contract.name
    _check_list("--family", [family], families())
    return Plan(
        dataset, out, tuple(chosen), tuple(seeds), preset, family, data.sha256, tuple(splits), tuple(protocols),
        tuple(few_shot_sizes) if "few_shot" in protocols else (), episodes,
    )  # fmt: skip


def _check_list(what: str, values: Sequence[Any], known: Sequence[str] = ()) -> None:
    if not values:
        raise ConfigError(f"{what} is empty; name at least one")
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{what} has '{twice[0]}' twice; name each once")
    for value in values:
        if known and value not in known:
            raise ConfigError(f"{what} has '{value}'{suggest(value, known)}; use any of: {', '.join(known)}")


def remember(plan: Plan) -> None:
    """Store the plan in its folder. Raises ConfigError, and stores nothing, where the folder holds another plan."""
    file = plan.out / PLAN_FILE
    mine = plan.settings() | {"seeds": list(plan.seeds), "methods": {m.name: _method_dict(m) for m in plan.methods}}
    if file.is_file():
        _check_same(plan.out, json.loads(file.read_text()), mine)
    write_whole(file, json.dumps({"dataset": str(plan.dataset), "preset": plan.preset, **mine}, indent=1) + "\n")


def _check_same(out: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    changed = [
        f"{key} was {theirs.get(key)}, is {value}"
        for key, value in mine.items()
        if key not in ("seeds", "methods") and value != theirs.get(key)
    ]
    for name, old in theirs["methods"].items():
        new = mine["methods"].get(name)
        if new is None:
            changed.append(f"method {name} is left out")
        elif new != old:
            keys = [key for key in new if new[key] != old.get(key)]
            changed.append(f"method {name} has another {', '.join(keys)}")
    changed += [f"seed {seed} is left out" for seed in theirs["seeds"] if seed not in mine["seeds"]]
    if changed:
        raise ConfigError(
            f"{out}: holds another comparison ({'; '.join(changed)}); methods and seeds may be added, nothing else may "
            "change: choose another --out"
        )


def _method_dict(method: Method) -> dict[str, Any]:
    return {key: value for key, value in to_dict(method.config).items() if key not in MACHINE_SETTINGS}
