# SPDX-License-Identifier: Apache-2.0
"""The options of each stage of `spc`: typed dataclasses, whose comments are the help texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from spc_core.doctor.diagnosis import Thresholds
from spc_core.method.config import TrainConfig
from spc_core.trials.options import TrialSettings
from spc_core.trials.protocol import LIVE_PROTOCOLS, PROTOCOLS

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Collect:
    """Record behaviour data of a simulated task family as mcap bags, through sim, behaviour and recorder nodes."""

    family: tyro.conf.Positional[str]  # task family: arm_reach or arm_payload
    out: Path  # folder for bags/ and log/
    episodes: int = 30  # of each task; expert, noisy and random drivers take turns
    split: str = "train"  # tasks to record: train, val, id or ood
    seed: int = 0  # every episode's seed follows from this
    storage: str = "mcap"  # mcap or sqlite3


@dataclasses.dataclass(frozen=True)
class Convert:
    """Turn bags into a dataset: decoded by the contract, causally aligned, one Minari dataset for each task."""

    bags: tyro.conf.Positional[tuple[Path, ...]]  # bags, or folders that hold bags at any depth
    out: Path  # the dataset's folder
    contract: Path | None = None  # contract file; default: the one that the bags carry
    task: str | None = None  # task id of bags that do not name it
    task_from: Literal["", "folder"] = ""  # folder: the folder that a bag lies in names its task
    manifest: Path | None = None  # YAML with tasks, parameters and labels of bags; see docs/bags.md
    types: tuple[Path, ...] = ()  # .msg files, or packages with msg/, of types that the bags do not define
    overwrite: bool = False  # replace an existing dataset
    skip_bad: bool = False  # leave out bags that cannot be read, instead of refusing all
    workers: int | None = None  # processes; default: one for each processor
    engine: Literal["processes", "ray"] = "processes"  # ray: on a Ray cluster, with bags and out on a shared disk


@dataclasses.dataclass(frozen=True)
class Relabel:
    """Recompute a dataset's rewards under a new contract, without its bags. Observations and actions stay."""

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    contract: Path  # the new contract, whose reward is a function
    out: Path  # the new dataset's folder
    overwrite: bool = False  # replace an existing dataset


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a dataset in another project's format, or a trained run for robots without torch.

    The format is by default what fits the source: lerobot for a dataset, onnx for a run.
    """

    source: tyro.conf.Positional[Path]  # dataset that `spc convert` wrote, or training run or checkpoint
    out: Path  # folder for the export
    format: Literal["auto", "lerobot", "onnx"] = "auto"  # lerobot: LeRobotDataset v3.0, without video
    robot_type: str = ""  # lerobot: name of the robot; default: the name of the dataset's contract
    overwrite: bool = False  # replace an earlier export


@dataclasses.dataclass(frozen=True)
class Describe:
    """Tell what is in a dataset: tasks, episodes, ends, returns, and how much of its spaces it covers."""

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    html: Path | None = None  # also write a self-contained page with plots here
    json: Path | None = None  # also write the numbers here


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Find what is wrong with bags before training does: rates, gaps, clocks, values, delays, coverage, cuts.

    Exit codes: 0 ok or warnings, 3 warnings with --strict, 4 failures (1: could not run). See docs/doctor.md.
    """

    bags: tyro.conf.Positional[tuple[Path, ...]]  # bags, or folders that hold bags at any depth
    contract: Path | None = None  # contract file; default: the one that the bags carry; without, topics alone
    task: str | None = None  # task id of all these bags, for bags that do not name it
    json: Path | None = None  # also write all numbers and findings here
    html: Path | None = None  # also write a page here that shows where in time the trouble is
    workers: int | None = None  # processes; default: one for each core
    strict: bool = False  # warnings fail too, with exit code 3
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)


@dataclasses.dataclass(frozen=True)
class ContractInit:
    """Propose a contract for a robot from one of its bags; what is left to fill in is the reward."""

    what: tyro.conf.Positional[Literal["init"]]  # what to do
    bag: tyro.conf.Positional[Path]  # a bag of normal operation
    out: Path | None = None  # file to write; default: print it


@dataclasses.dataclass(frozen=True)
class Train:
    """Train on a dataset. The same command goes on with a run that was interrupted.

    OUT/checkpoint is the last state; with evaluate-every set, OUT/best is the best on validation tasks. For several
    processes that share each batch: torchrun --nproc-per-node N -m spc_ros.cli train ...
    """

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    out: Path  # the run's folder
    preset: str = "small"  # small, quick, paper, or a YAML file with any of the settings below
    method: str = ""  # spc, a rival or ablation of config/methods, or a YAML file; empty: as the preset says
    overwrite: bool = False  # start anew, even if the folder holds a run
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score trained runs on held-out tasks in this process, without ROS: the same table as `spc trial` gives."""

    runs: tyro.conf.Positional[tuple[Path, ...]]  # training runs or checkpoints of one family, one per seed
    family: str = ""  # task family; default: the name of the checkpoint's contract
    splits: tuple[str, ...] = ("id", "ood")  # held-out tasks: id, ood; val to choose settings by
    protocols: tuple[str, ...] = LIVE_PROTOCOLS  # any of no_context, zero_shot, few_shot, offline
    few_shot_sizes: tuple[int, ...] = (25, 100, 200)  # transitions collected before a few-shot episode
    episodes: int = 3  # scored episodes of each task and protocol
    seed: int = 0  # seed of the first scored episode
    planning: bool = False  # plan with the world model instead of asking the actor
    drift: bool = False  # instead: change the task in mid-episode, and tell how fast the context follows
    half_life: float = 0.0  # with --drift: also a context whose transitions count half after so many newer ones
    recordings: Path | None = None  # for offline: a dataset; default: behaviour data made here
    json: Path | None = None  # also write the episodes here, one JSON line each


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train and evaluate methods side by side on one dataset. The same command goes on where it was interrupted."""

    dataset: tyro.conf.Positional[Path]  # folder that `spc convert` wrote
    out: Path  # folder for all runs, the table and the page
    methods: tuple[str, ...] = ("spc", "focal", "no_context", "oracle")  # of config/methods, or YAML files
    seeds: tuple[int, ...] = (0, 1, 2)  # training seeds
    preset: str = "small"  # small, paper, or a YAML file
    family: str = ""  # task family; default: the name of the dataset's contract
    splits: tuple[str, ...] = ("id", "ood")  # held-out tasks: id, ood (or train)
    protocols: tuple[str, ...] = PROTOCOLS  # any of no_context, zero_shot, few_shot, offline
    few_shot_sizes: tuple[int, ...] = (100,)  # transitions collected before a few-shot episode
    episodes: int = 3  # scored episodes of each task and protocol
    jobs: int = 2  # processes at a time, each with one thread


def with_help(kind: type[T]) -> type[T]:
    """A dataclass whose fields show the help text of their metadata."""
    types = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if text := field.metadata.get("help"):
            kind.__annotations__[field.name] = Annotated[types[field.name], tyro.conf.arg(help=text)]
    return kind


@with_help
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialArgs(TrialSettings):
    """Score a trained run on held-out tasks over ROS 2: sim or a robot, context encoder, policy, recorder, trial.

    The same command goes on with a trial that was interrupted, from what is in its folder.
    """

    run: tyro.conf.Positional[Path]  # training run or checkpoint
    out: Path  # folder for episodes.jsonl, bags/, log/ and report.html
    family: str = ""  # task family; default: the name of the checkpoint's contract
    tasks: tuple[str, ...] = ()  # task ids, instead of splits; with --no-sim any names
    splits: tuple[str, ...] = ("id", "ood")  # held-out tasks: id, ood; val to choose settings by
    few_shot_sizes: tuple[int, ...] = (25, 100, 200)  # transitions collected before a few-shot episode
    recordings: Path | None = None  # for offline: a dataset, or bags, with recordings of each task
    device: str = "cpu"  # of the networks: cpu, cuda or auto
    camera: str = ""  # the sim's: a camera of the model, or free; its stills stand on the page. Empty: none
    drift: bool = True  # add the drift test, where the sim changes its task in mid-episode


@dataclasses.dataclass(frozen=True)
class BenchTrain:
    """How long updates take here, against plain equations and a matrix product in the same run."""

    size: str = "paper"  # preset: paper, small, or a YAML file
    method: str = "spc"  # of config/methods, or a YAML file
    device: str = "auto"  # cpu, cuda, cuda:<n> or auto
    threads: int = 2  # CPU threads
    precision: str = "auto"  # of matrix products: fp32, bf16, or auto
    rounds: int = 3  # measurements of each number
    baseline: bool = True  # measure the plain equations too
    json: Path | None = None  # also write the numbers here


@dataclasses.dataclass(frozen=True)
class BenchConvert:
    """How fast bags become a dataset here, against rosbags reading the same bag in the same run."""

    messages: int = 100_000  # JointState messages of 340 bytes in the bag
    storages: tuple[str, ...] = ("mcap", "sqlite3")  # mcap: in chunks compressed with zstd
    rates_hz: tuple[float, ...] = (500.0, 50.0)  # of the ticks; the messages come at 500 Hz
    rounds: int = 3  # measurements of each number
    folder: Path | None = None  # for the bag and the dataset, which are deleted; default: the system's
    json: Path | None = None  # also write the numbers here


@dataclasses.dataclass(frozen=True)
class BenchLatency:
    """How long after a state its command comes, over ROS 2, against a bare relay node in the same run."""

    rate_hz: float = 200.0  # of the states
    seconds: float = 10.0  # for each controller: relay, policy of two sizes, policy with context encoder
    sustained_hz: float = 500.0  # of a second measurement: relay and policy, without a pause
    sustained_s: float = 60.0  # its time for each of the two; 0: leave it out
    json: Path | None = None  # also write the numbers here


Bench = (
    Annotated[BenchTrain, tyro.conf.subcommand("train")]
    | Annotated[BenchConvert, tyro.conf.subcommand("convert")]
    | Annotated[BenchLatency, tyro.conf.subcommand("latency")]
)


@dataclasses.dataclass(frozen=True)
class Demo:
    """The whole chain for two task families: collect, convert, train, trial, report."""

    out: Path = Path("runs/demo")  # folder for everything; a finished stage is not run again
    preset: str = "demo"  # demo, or smoke (a minute, learns nothing)
    overwrite: bool = False  # start anew


OPTIONS: dict[str, Any] = {
    "collect": Collect,
    "contract": ContractInit,
    "doctor": Doctor,
    "convert": Convert,
    "describe": Describe,
    "relabel": Relabel,
    "export": Export,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "trial": TrialArgs,
    "bench": Bench,
    "demo": Demo,
}
