# SPDX-License-Identifier: Apache-2.0
"""Stages that try: a trial over ROS 2, measurements of this machine, and the whole chain as a demo."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from tqdm import tqdm

from spc_core.method.config import load_config
from spc_core.system.atomic_files import write_whole
from spc_ros.options import BenchConvert, BenchLatency, BenchTrain, Demo, TrialArgs
from spc_ros.stages.bar import Bar


def trial(args: TrialArgs) -> None:
    from spc_core.deploy.checkpoint import load_checkpoint
    from spc_core.deploy.checkpoint_files import checkpoint_folder
    from spc_core.tasks import families
    from spc_core.tasks.camera import CameraConfig
    from spc_core.trials.evaluate import score, table
    from spc_core.trials.options import TrialOptions
    from spc_ros.trials.provenance import command_line
    from spc_ros.trials.trial import DRIFT_TASKS, STILLS_HZ, recordings_dataset, run_trial
    from spc_ros.trials.trial_report import report_trial

    name = args.family or load_checkpoint(args.run).contract.name
    family = name if name in families() or args.sim else ""
    options = TrialOptions.of(
        args, family=family, checkpoint=str(args.run), task_ids=args.tasks,
        recordings=recordings_dataset(args.recordings, args.out),
        drift_tasks=DRIFT_TASKS if args.drift and args.sim else 0,
        contract=args.contract or ("" if family else str(checkpoint_folder(args.run) / "contract.yaml")),
    )  # fmt: skip
    camera = CameraConfig(args.camera, STILLS_HZ) if args.camera else None
    with Bar(f"trial {args.run}", "episode") as bar:
        rows = run_trial(options, args.device, camera, progress=bar)
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
