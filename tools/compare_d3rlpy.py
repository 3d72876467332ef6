# SPDX-License-Identifier: Apache-2.0
"""Fitted Q evaluation by d3rlpy of the checkpoints of tools/check_assess.py, next to what `spc assess` says.

    python tools/compare_d3rlpy.py OUT/arm_reach [--tasks 3] [--updates 5000]

Runs in an environment of its own, since d3rlpy pins an older gymnasium: `pip install d3rlpy==2.8.1`, then
`pip install -c constraints.txt safetensors pyyaml 'minari[arrow]' mujoco`, torch of constraints.txt before both. The
same command resumes. Each task is evaluated by its own recordings, of the policy with the z that `assess` gives it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import d3rlpy  # type: ignore[import-not-found]
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

from check_assess import DISCOUNT, checkpoints, spearman  # noqa: E402

from spc_core.assessment.judged import Judged, load_judged  # noqa: E402
from spc_core.assessment.recordings import TaskRecording, load_recordings  # noqa: E402
from spc_core.system.atomic_files import write_atomic  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a family's folder of tools/check_assess.py")
    parser.add_argument("--tasks", type=int, default=3, help="held-out tasks, of the first")
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--target-every", type=int, default=50, help="updates between two targets: steps looked ahead")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| checkpoint | simulated reward | assess | d3rlpy | its tasks | s |\n|---|---|---|---|---|---|")
    rows = [row for path in checkpoints(options.folder) if (row := compare(options, path)) is not None]
    for place, name in ((1, "assess"), (2, "d3rlpy")):
        print(f"{name}: Spearman {spearman([row[0] for row in rows], [row[place] for row in rows]):.2f}")


def compare(options: argparse.Namespace, path: Path) -> tuple[float, float, float] | None:
    """Simulated reward of a step, the value by assess, and by d3rlpy, on the same tasks; None: not judged yet."""
    said = options.folder / "judged" / f"{path.name}.json"
    if not said.exists():
        return None
    value, truth = json.loads(said.read_text())["value"], json.loads((options.folder / "truth" / said.name).read_text())
    names = value["tasks"][: options.tasks]
    out = options.folder / "d3rlpy" / f"{path.name}-{options.updates}-{options.target_every}.json"
    if not out.exists():
        judged, began = load_judged(path), time.perf_counter()
        known = load_recordings(options.folder / "held_out", judged.checkpoint.contract, []).tasks
        found = {task.task_id: fitted(judged, task, options) for task in known if task.task_id in names}
        write_atomic(out, json.dumps({"values": found, "seconds": time.perf_counter() - began}))
    mine = json.loads(out.read_text())
    own = value["policy_by_task"]["own"]
    row = (
        float(np.mean([truth[name][1] for name in names])),
        float(np.mean([own[value["tasks"].index(name)] for name in names])),
        float(np.mean([mine["values"][name] for name in names])),
    )
    each = ", ".join(f"{truth[name][1]:.2f} {mine['values'][name]:.2f}" for name in names)
    print(f"| {path.name} | {row[0]:.3f} | {row[1]:.3f} | {row[2]:.3f} | {each} | {mine['seconds']:.0f} |", flush=True)
    return row


class FixedPolicy:
    """What d3rlpy asks of an algorithm that it evaluates: actions of the policy with the z of one task."""

    def __init__(self, judged: Judged, z: np.ndarray) -> None:
        self.judged, self.z = judged, torch.from_numpy(z.astype(np.float32))
        self.impl = SimpleNamespace(predict_best_action=self.act)

    @torch.no_grad()
    def act(self, observations: torch.Tensor) -> torch.Tensor:
        return self.judged.checkpoint.agent.act(observations, self.z.expand(len(observations), -1))


def fitted(judged: Judged, task: TaskRecording, options: argparse.Namespace) -> float:
    """Reward of a step, discounted, as Q of the first observations says; observations and actions on unit scale."""
    stats, ends = judged.checkpoint.stats, np.zeros(len(task.rewards), bool)
    ends[task.last & ~task.terminated] = True
    seen = stats.observation(task.observations)
    dataset = d3rlpy.dataset.MDPDataset(
        seen, stats.action(task.actions), task.rewards, task.terminated.astype(np.float32), ends.astype(np.float32)
    )
    config = d3rlpy.ope.FQEConfig(
        learning_rate=options.learning_rate, gamma=DISCOUNT, target_update_interval=options.target_every
    )
    d3rlpy.seed(0)
    policy = FixedPolicy(judged, judged.own_z(task))
    fqe = d3rlpy.ope.FQE(algo=policy, config=config)
    fqe.fit(dataset, n_steps=options.updates, n_steps_per_epoch=options.updates, show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory())  # fmt: skip
    first = seen[task.starts]
    steps = options.updates / options.target_every
    weight = (1 - DISCOUNT**steps) / (1 - DISCOUNT)
    return float(fqe.predict_value(first, policy.act(torch.from_numpy(first)).numpy()).mean()) / weight


if __name__ == "__main__":
    main()
