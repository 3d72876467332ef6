# SPDX-License-Identifier: Apache-2.0
"""Lock-step trials over and over with the same nodes: nothing may grow, be missed, be left, or come out otherwise.

    python test/soak.py --minutes 30 --out runs/soak

Writes `soak.json` (all samples and findings) and prints a table. Exit code 1 when something was found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spc_core.system.atomic_files import write_atomic
from spc_core.system.config_files import find_config
from spc_core.trials.log import read_rows
from spc_core.trials.protocol import in_order
from spc_ros.bags.reader import BagReader
from spc_ros.processes import PARENT_VARIABLE, NodeGroup, ProcessError
from support.node_probe import own_domain
from support.random_checkpoint import trial_options, write_random_checkpoint

FAMILY = "arm_reach"
TASKS = [f"{FAMILY}/id/02", f"{FAMILY}/ood/05"]
PLAN = {"task_ids": TASKS, "few_shot_sizes": [50], "seed": 3}
SETTLED = 1 / 2  # of the time; until then ROS fills histories, as that of /parameter_events with the last 1,000
KIB_PER_HOUR = 2048.0  # a node that grows by more leaks
JUDGED_S = 600.0  # in less time, a slope says nothing
SILENCE_S = 120.0
MISSED = re.compile(r"no answer|no service|refused|silent for|missing messages")


def soak(out: Path, duration_s: float, episodes: int = 2) -> dict[str, Any]:
    """Run trials for so long; returns samples, findings and a table's rows."""
    before = _segments()
    environment = {**own_domain(), "TMPDIR": str(out / "tmp")}
    (out / "tmp").mkdir(parents=True)
    checkpoint = write_random_checkpoint(out / "checkpoint", FAMILY)
    samples: dict[str, list[dict[str, float]]] = {}
    found, trials, bags = [], 0, 0
    first: list[tuple] = []
    with NodeGroup(out / "log", environment=environment, params_file=find_config("trial", "lockstep")) as nodes:
        _start(nodes, checkpoint, out)
        lasting, began_s = dict(nodes.nodes), time.monotonic()
        while not found and time.monotonic() - began_s < duration_s:
            rows, problems = _trial(nodes, checkpoint, out / "trial", episodes)
            first = first or rows
            found += problems
            pairs = zip(rows, first, strict=not problems)
            found += [f"trial {trials}: {row} instead of {same}" for row, same in pairs if row != same]
            count, unreadable = _read_bags(out / "bags")
            found += unreadable
            trials, bags = trials + 1, bags + count
            for name, node in lasting.items():
                now = sample(node.process.pid)
                samples.setdefault(name, []).append({"t_s": time.monotonic() - began_s, **now})
        if bags != trials * len(first):
            found.append(f"{bags} bags of {trials} trials with {len(first)} episodes each")
    found += [f"process {pid} outlived its parent: {text}" for pid, text in _children().items()]
    found += [f"left in the temporary folder: {path}" for path in sorted((out / "tmp").rglob("*"))]
    found += [f"left among the bags: {path}" for path in sorted((out / "bags").iterdir())]
    slopes = {name: judge(series, found, name) for name, series in samples.items()}
    left = sorted(_segments() - before)  # other programs of this machine may have made them
    return {"trials": trials, "bags": bags, "found": found, "slopes": slopes, "segments": left, "samples": samples}


def _start(nodes: NodeGroup, checkpoint: Path, out: Path) -> None:
    contract = str(find_config("contracts", FAMILY).resolve())
    agent = {"contract": contract, "checkpoint": str(checkpoint.resolve())}
    nodes.start("recorder", {"use_sim_time": True, "contract": contract, "directory": str(out / "bags")})
    nodes.start("context_encoder", agent)
    nodes.start("policy", agent)
    nodes.start("sim", {"family": FAMILY, "contract": contract})
    nodes.wait_ready(120.0)


def _trial(nodes: NodeGroup, checkpoint: Path, out: Path, episodes: int) -> tuple[list[tuple], list[str]]:
    """(what each episode came to, problems) of one trial by a trial node of its own."""
    contract = str(find_config("contracts", FAMILY).resolve())
    asked = trial_options(checkpoint, FAMILY, out, contract=contract, episodes=episodes, **PLAN)
    node = nodes.start("trial", asked.params())
    try:
        code = node.wait_while_printing(SILENCE_S)
        nodes.nodes.pop("trial")
        nodes.check()
    except ProcessError as error:
        return [], [str(error)]
    said = [line for line in node.log.read_text().splitlines() if MISSED.search(line)]
    rows = in_order(read_rows(out / "episodes.jsonl"))
    shutil.rmtree(out)
    table = [(r.task_id, r.protocol, r.k, r.episode, r.return_, r.steps, tuple(r.context), r.aborted) for r in rows]
    return table, said if code == 0 else [f"a trial ended with code {code}{node.tail()}", *said]


def _read_bags(folder: Path) -> tuple[int, list[str]]:
    """How many bags were read to their end, and deleted; and what is wrong with the others."""
    problems, count = [], 0
    for path in sorted(folder.iterdir()):
        with BagReader(path) as bag:
            messages = sum(1 for _ in bag.messages())
            info = bag.last_episode()
        if info is None or not messages or not (info.terminated or info.truncated):
            problems.append(f"bag {path}: {messages} messages, episode {info}")
            continue
        shutil.rmtree(path)
        count += 1
    return count, problems


def sample(pid: int) -> dict[str, float]:
    """Memory of its own, open files and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory_kib": float(status["RssAnon"].split()[0]),
        "threads": float(status["Threads"]),
        "files": float(len(os.listdir(f"/proc/{pid}/fd"))),
    }


def judge(series: Sequence[Mapping[str, float]], found: list[str], name: str) -> dict[str, float]:
    """What a node gained per hour once settled; adds to `found` what is too much."""
    settled = series[int(len(series) * SETTLED) :]
    if len(settled) < 3:
        return {}
    times_s = np.array([each["t_s"] for each in settled])
    slopes = {
        key: float(np.polyfit(times_s, [each[key] for each in settled], 1)[0] * 3600)
        for key in ("memory_kib", "threads", "files")
    }
    if times_s[-1] - times_s[0] > JUDGED_S * (1 - SETTLED) and slopes["memory_kib"] > KIB_PER_HOUR:
        found.append(f"{name}: memory grows by {slopes['memory_kib']:.0f} KiB per hour")
    for key in ("threads", "files"):
        gained = settled[-1][key] - settled[0][key]
        if gained > 2:
            found.append(f"{name}: {gained:.0f} more {key} at the end")
    return slopes


def _children() -> dict[int, str]:
    """Nodes that this process started, directly or not, and that still run."""
    mark = f"{PARENT_VARIABLE}={os.getpid()}".encode()
    alive = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                alive[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile, or another user's
            continue
    return alive


def _segments() -> set[str]:
    """Shared memory of Fast DDS."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("fastrtps_")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SPC_SOAK_MINUTES", "30")))
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="a new folder")
    parser.add_argument("--episodes", type=int, default=2, help="of each block; more: fewer trial nodes come and go")
    args = parser.parse_args()
    result = soak(args.out.resolve(), args.minutes * 60, args.episodes)
    write_atomic(args.out / "soak.json", json.dumps(result, indent=1) + "\n")
    print(f"{result['trials']} trials, {result['bags']} bags, all tables equal: {not result['found']}")
    print("| node | memory at the end | KiB per hour | threads | files |\n|---|---|---|---|---|")
    for name, series in result["samples"].items():
        last, slope = series[-1], result["slopes"][name].get("memory_kib", float("nan"))
        memory = f"{last['memory_kib'] / 1024:.1f} MiB"
        print(f"| {name} | {memory} | {slope:+.0f} | {last['threads']:.0f} | {last['files']:.0f} |")
    for text in result["found"]:
        print(f"found: {text}")
    return 1 if result["found"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
