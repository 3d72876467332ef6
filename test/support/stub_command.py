# SPDX-License-Identifier: Apache-2.0
"""Stands in for the command line: it trains and evaluates in no time, notes its calls, and fails or dawdles by name."""

import sys
from pathlib import Path

STUB = """
import json, pathlib, sys, time
arguments = sys.argv[1:]
stage = arguments[0]
if stage == "train":
    method = pathlib.Path(arguments[arguments.index("--out") + 1])
    seeds = arguments[arguments.index("--seeds") + 1:arguments.index("--threads")]
    folders = [method / f"seed-{seed}" for seed in seeds]
else:
    folders = [pathlib.Path(arguments[1])]
    method = folders[0].parent
with open(method.parent / "calls.txt", "a") as calls:
    calls.write(f"{stage} {method.name} {' '.join(folder.name for folder in folders)}\\n")
if "slow" in str(method):
    time.sleep(60)
if "bad" in str(method):
    sys.exit("the data is made of cheese")
for where in folders:
    if stage == "train":
        (where / "checkpoint").mkdir(parents=True)
        metrics = {"update": UPDATES, "seconds": 60.0}
        (where / "checkpoint" / "metrics.json").write_text(json.dumps(metrics))
        rows = [f"{update},{10 + update / 2}" for update in (UPDATES // 10, UPDATES)]  # 10 s, and half a second each
        (where / "log.csv").write_text("\\n".join(["update,seconds", *rows]) + "\\n")
    else:
        pathlib.Path(arguments[arguments.index("--json") + 1]).write_text("")
"""


def stub_command(folder: Path, updates: int) -> list[str]:
    """The command line of a stand-in that trains `updates` updates."""
    file = folder / "stub.py"
    file.write_text(STUB.replace("UPDATES", str(updates)))
    return [sys.executable, str(file)]
