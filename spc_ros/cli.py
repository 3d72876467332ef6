# SPDX-License-Identifier: Apache-2.0
"""`spc`: the chain from a robot or simulation to an adapted policy, stage by stage or in one go."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from tqdm import tqdm

from spc_core.contract import load_contract
from spc_core.method.config import load_config
from spc_core.whole_file import write_whole
from spc_ros.options import (
    Bench,
    BenchConvert,
    BenchLatency,
    BenchTrain,
    Collect,
    Compare,
    ContractInit,
    Convert,
    Demo,
    Describe,
    Doctor,
    Evaluate,
    Export,
    Relabel,
    Train,
    TrialArgs,
)

USAGE = """\
usage: spc <stage> [options]      (spc <stage> --help tells each stage's options)

  collect    record behaviour data of a simulated task family as bags, over ROS 2
  contract   propose a contract from a bag (spc contract init BAG)
  doctor     find what is wrong with bags before training does
  convert    turn bags into a dataset
  describe   tell what is in a dataset, in text or as a page with plots
  relabel    recompute a dataset's rewards under a new contract, without the bags
  export     write a dataset in another project's format, or a run as ONNX
  train      learn context encoder, world model and policy from a dataset
  evaluate   score a trained run on held-out tasks in this process, without ROS
  compare    train and evaluate several methods with several seeds, side by side, with statistics
  trial      score a trained run on held-out tasks over ROS 2, node by node
  bench      measure training updates, conversion or the nodes' latency on this machine
  demo       all of the above for two task families, with a report
"""


def collect(args: Collect) -> None:
    from spc_ros.trials.collect import collect as run

    with Bar(f"collect {args.family}", "episode") as bar:
        bags = run(
            args.family,
            args.out,
            args.episodes,
            args.split,
            seed=args.seed,
            storage=args.storage,
            progress=bar,
        )
    print(f"{len(bags)} bags in {args.out / 'bags'}")


def convert(args: Convert) -> None:
    from spc_ros.conversion.convert import convert as run

    contract = None if args.contract is None else load_contract(args.contract)
    report = run(
        args.bags, contract, args.out, args.overwrite, args.skip_bad, args.task, args.workers,
        task_from=args.task_from, manifest=args.manifest, definitions=args.types, engine=args.engine,
    )  # fmt: skip
    print(report.summary())


def describe(args: Describe) -> None:
    from spc_core.data.describe import describe as run

    description = run(args.dataset)
    print(description.text())
    if args.json is not None:
        write_whole(args.json, description.to_json())
    if args.html is not None:
        from spc_core.pages.describe_page import describe_page

        write_whole(args.html, describe_page(description))
        print(f"page: {args.html}")


def relabel(args: Relabel) -> None:
    from spc_core.data.relabel import relabel as run

    with Bar(f"relabel {args.dataset}", "episode") as bar:
        done = run(args.dataset, load_contract(args.contract), args.out, args.overwrite, bar)
    print(done.summary())


def export(args: Export) -> None:
    trained = any((folder / "weights.safetensors").is_file() for folder in (args.source, args.source / "checkpoint"))
    if args.format == "onnx" or (args.format == "auto" and trained):
        from spc_core.deploy.checkpoint import load_checkpoint
        from spc_core.deploy.deployed import model_id
        from spc_core.deploy.export_onnx import export_onnx

        checkpoint = load_checkpoint(args.source)
        print(f"for onnxruntime: {export_onnx(checkpoint, args.out, args.overwrite, model_id(args.source))}")
        return
    if trained:
        raise ValueError(f"{args.source}: is a training run; use --format onnx (lerobot is for datasets)")
    from spc_core.data.lerobot import export as run

    with Bar(f"export {args.source}", "episode") as bar:
        done = run(args.source, args.out, args.robot_type, args.overwrite, bar)
    print(done.summary())


def doctor(args: Doctor) -> int:
    from spc_ros.doctor.doctor import diagnose

    contract = None if args.contract is None else load_contract(args.contract)
    report = diagnose(args.bags, contract, args.thresholds, args.task, workers=args.workers)
    print(report.text())
    if args.json is not None:
        write_whole(args.json, json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")
    if args.html is not None:
        from spc_ros.doctor.doctor_page import page

        write_whole(args.html, page(report))
        print(f"page: {args.html}")
    return report.exit_code(args.strict)


def contract(args: ContractInit) -> None:
    from spc_ros.doctor.contract_init import propose

    text = propose(args.bag)
    if args.out is None:
        print(text, end="")
        return
    if args.out.exists():
        raise ValueError(f"{args.out}: exists already and is not overwritten; choose another --out")
    write_whole(args.out, text)
    print(f"{args.out}: fill in the reward, then: spc doctor {args.bag} --contract {args.out}")


def train(args: Train) -> None:
    from spc_core.training.distributed import leads
    from spc_core.training.train import train as run

    checkpoint = run(args.dataset, args.out, args.config, args.overwrite)
    if leads():
        print(f"checkpoint: {checkpoint}")


def evaluate(args: Evaluate) -> None:
    from spc_core.deploy.adaptation import Trial
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.method.planner import PlannerConfig
    from spc_core.tasks import tasks
    from spc_core.trials.evaluate import expert_returns, run_in_process, score, table
    from spc_core.trials.recordings import dataset_transitions

    if args.drift:
        _drift(args)
        return
    if args.json is None and "no_context" not in args.protocols:
        raise ValueError("--protocols lacks no_context, the zero of the table's scale; add it, or give --json")
    recorded = None if args.recordings is None else functools.partial(dataset_transitions, args.recordings)
    results = {}
    chosen = []
    for number, folder in enumerate(args.runs):
        checkpoint = load_checkpoint(folder)
        family = args.family or checkpoint.contract.name
        chosen = [task for split in args.splits for task in tasks(family, split)]
        trial = Trial(chosen, args.protocols, args.episodes, args.seed, args.few_shot_sizes)
        planning = PlannerConfig() if args.planning else None
        with Bar(f"evaluate {folder}", "episode") as bar:
            results[number] = run_in_process(checkpoint, trial, family, bar, planning, recorded)
    if args.json is not None:
        rows = [row.to_json() + "\n" for rows in results.values() for row in rows]
        write_whole(args.json, "".join(rows))
    if "no_context" not in args.protocols:
        print(f"no table, whose zero would be the protocol no_context; episodes: {args.json}")
        return
    print(table(score(results, expert_returns(chosen, range(args.seed, args.seed + args.episodes)))))


def _drift(args: Evaluate) -> None:
    """The drift test of each run; the splits' tasks change into one another."""
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.tasks import tasks
    from spc_core.trials.drift import drift_scores, drift_table, run_drift

    runs = []
    for folder in args.runs:
        checkpoint = load_checkpoint(folder)
        family = args.family or checkpoint.contract.name
        for split in args.splits:
            with Bar(f"drift {folder} {split}", "change") as bar:
                runs += run_drift(checkpoint, family, tasks(family, split), (args.seed,), bar, args.half_life)
    if args.json is not None:
        write_whole(args.json, "".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in runs))
    print(drift_table(drift_scores(runs)))


def compare(args: Compare) -> None:
    from spc_core.comparison.plan import make_plan
    from spc_core.comparison.report import CompareReport
    from spc_core.comparison.run import compare as run

    options = dataclasses.asdict(args)
    jobs = options.pop("jobs")
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; use at least 1")
    plan = make_plan(**options)
    report = CompareReport(plan)
    try:
        run(plan, jobs, [sys.executable, "-m", "spc_ros.cli"], report.write)
    finally:
        if report.rows:
            print(f"{report.text()}\ntable: {args.out / 'table.md'}\npage:  {args.out / 'compare.html'}")


def trial(args: TrialArgs) -> None:
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.deploy.deployed import checkpoint_folder
    from spc_core.tasks import families
    from spc_core.tasks.camera import CameraConfig
    from spc_core.trials.evaluate import score, table
    from spc_ros.trials.provenance import command_line
    from spc_ros.trials.trial import DRIFT_TASKS, STILLS_HZ, recordings_dataset, run_trial
    from spc_ros.trials.trial_report import report_trial

    name = args.family or load_checkpoint(args.run).contract.name
    family = name if name in families() or args.sim else ""
    same = ("splits", "tasks_per_split", "few_shot_sizes", "episodes", "seed", "device", "record", "protocols")
    same += ("shuffle", "operator", "sim", "time_limit_s", "terminated_topic")
    with Bar(f"trial {args.run}", "episode") as bar:
        rows = run_trial(
            args.run, family, args.out, **{option: getattr(args, option) for option in same}, task_ids=args.tasks,
            recordings=recordings_dataset(args.recordings, args.out), progress=bar,
            camera=CameraConfig(args.camera, STILLS_HZ) if args.camera else None,
            drift_tasks=DRIFT_TASKS if args.drift and args.sim else 0,
            contract=args.contract or ("" if family else str(checkpoint_folder(args.run) / "contract.yaml")),
        )  # fmt: skip
    print(f"episodes: {args.out / 'episodes.jsonl'}, bags: {args.out / 'bags'}")
    if "no_context" not in args.protocols:
        print("no table and no page, whose zero would be the protocol no_context")
        return
    run = report_trial(args.run, name, args.out, rows, command_line("trial", args))
    print(table(score(run.results, run.experts)))
    print(f"report: {args.out / 'report.html'}  (open it in a browser)")


def bench(args: BenchTrain | BenchConvert | BenchLatency) -> None:
    if isinstance(args, BenchTrain):
        text, numbers = _bench_train(args)
    else:
        text, numbers = _bench_convert(args) if isinstance(args, BenchConvert) else _bench_latency(args)
    print(text)
    if args.json is not None:
        write_whole(args.json, json.dumps(numbers, indent=1) + "\n")


def _bench_train(args: BenchTrain) -> tuple[str, Any]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of its own steps
    from spc_core.training.bench_train import bench_train

    config = load_config(args.size, args.method, device=args.device, threads=args.threads, precision=args.precision)
    with tqdm(desc="bench", bar_format="{desc}", leave=False, disable=None) as bar:
        report = bench_train(
            config, args.size, args.rounds, args.baseline, lambda text: bar.set_description_str(f"bench: {text}")
        )
    return report.text(), {**dataclasses.asdict(report), "ratio": report.ratio}


def _bench_convert(args: BenchConvert) -> tuple[str, Any]:
    from spc_ros.conversion.bench_convert import bench_convert

    with tqdm(desc="bench", bar_format="{desc}", leave=False, disable=None) as bar:
        reports = bench_convert(
            args.messages, args.storages, args.rates_hz, args.rounds, args.folder,
            lambda text: bar.set_description_str(f"bench: {text}"),
        )  # fmt: skip
    return "\n\n".join(report.text() for report in reports), [dataclasses.asdict(report) for report in reports]


def _bench_latency(args: BenchLatency) -> tuple[str, Any]:
    from spc_ros.trials.bench_latency import bench_latency

    with tqdm(desc="bench", bar_format="{desc}", leave=False, disable=None) as bar:
        report = bench_latency(
            args.rate_hz, args.seconds, args.sustained_hz, args.sustained_s,
            lambda text: bar.set_description_str(f"bench: {text}"),
        )  # fmt: skip
    return report.text(), dataclasses.asdict(report)


def demo(args: Demo) -> None:
    from spc_ros.trials.demo import demo as run

    run(args.out, args.preset, args.overwrite)


class Bar:
    """A progress bar that is called with (done, total, text), from any thread."""

    def __init__(self, title: str, unit: str) -> None:
        self._bar = tqdm(desc=title, unit=unit)

    def __call__(self, done: int, total: int, text: str) -> None:
        self._bar.total = total
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()


STAGES: dict[str, tuple[Any, Callable[[Any], int | None]]] = {  # a number that a stage returns is its exit code
    "collect": (Collect, collect),
    "contract": (ContractInit, contract),
    "doctor": (Doctor, doctor),
    "convert": (Convert, convert),
    "describe": (Describe, describe),
    "relabel": (Relabel, relabel),
    "export": (Export, export),
    "train": (Train, train),
    "evaluate": (Evaluate, evaluate),
    "compare": (Compare, compare),
    "trial": (TrialArgs, trial),
    "bench": (Bench, bench),
    "demo": (Demo, demo),
}


def _given(arguments: Sequence[str], flag: str, default: str) -> str:
    """The last value given to a flag, as `--flag value` or `--flag=value`."""
    values = [default]
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else following)
    return values[-1]


def parse(stage: str, arguments: Sequence[str]) -> Any:
    """The stage's options; preset and method of `train` give the defaults of its settings."""
    kind = STAGES[stage][0]
    options: dict[str, Any] = {}
    if kind is Train:
        preset, method = _given(arguments, "--preset", "small"), _given(arguments, "--method", "")
        config = load_config(preset, method)
        options["default"] = Train(tyro.MISSING, tyro.MISSING, preset=preset, method=method, config=config)
    return tyro.cli(
        kind, prog=f"spc {stage}", args=list(arguments), description=getattr(kind, "__doc__", None), **options
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage. Exit codes: 0 done, 1 refused or failed with a message, 2 wrong usage, 130 interrupted.

    A stage may have codes of its own beside these, as `doctor` has.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    stage, *rest = arguments
    if stage not in STAGES:
        print(f"spc: there is no stage '{stage}'\n\n{USAGE}", file=sys.stderr, end="")
        return 2
    try:
        return STAGES[stage][1](parse(stage, rest)) or 0
    except KeyboardInterrupt as interrupt:
        print(f"spc {stage}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except (
        ValueError,
        RuntimeError,
        OSError,
    ) as error:  # all our refusals; a bug is shown in full by the traceback
        if type(error) in (ValueError, RuntimeError) and not str(error):
            raise
        print(f"spc {stage}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
