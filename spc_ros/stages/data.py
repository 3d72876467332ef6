# SPDX-License-Identifier: Apache-2.0
"""Stages up to a dataset, and with one: bags are recorded, examined and converted; datasets told of and changed."""

from __future__ import annotations

import json

from spc_core.contract.contract import load_contract
from spc_core.system.atomic_files import write_whole
from spc_ros.options import Collect, ContractInit, Convert, Describe, Doctor, Export, Relabel
from spc_ros.stages.bar import Bar


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
        from spc_core.deploy.checkpoint_files import model_id
        from spc_core.deploy.onnx_checkpoint import export_onnx

        checkpoint = load_checkpoint(args.source)
        print(f"for onnxruntime: {export_onnx(checkpoint, args.out, args.overwrite, model_id(args.source))}")
        return
    if trained:
        raise ValueError(f"{args.source}: is a training run; use --format onnx (lerobot is for datasets)")
    from spc_core.data.export.lerobot import export as run

    with Bar(f"export {args.source}", "episode") as bar:
        done = run(args.source, args.out, args.robot_type, args.overwrite, bar)
    print(done.summary())
