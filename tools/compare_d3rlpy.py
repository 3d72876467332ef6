# SPDX-License-Identifier: Apache-2.0
"""Fitted Q evaluation by d3rlpy of the checkpoints of tools/check_assess.py, next to what `spc assess` says.

    python tools/compare_d3rlpy.py OUT/arm_reach [--tasks 3]

Runs in an environment of its own, since d3rlpy pins an older gymnasium: the torch of constraints.txt, `pip install
d3rlpy==2.8.1`, then `pip install -c constraints.txt safetensors pyyaml 'minari[arrow]' mujoco pillow`. The same command
resumes. Each task is evaluated by its own recordings, of the policy with the z that `assess` gives it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import d3rlpy  # type: ignore[import-not-found]
import numpy as np
import structlog  # type: ignore[import-not-found]
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

from check_assess import DISCOUNT, checkpoints, spearman  # noqa: E402

from spc_core.assessment.judged import Judged, load_judged  # noqa: E402
from spc_core.assessment.recordings import TaskRecording, load_recordings  # noqa: E402
from spc_core.system.atomic_files import write_atomic  # noqa: E402

KINDS = ("simulated", "assess", "second judge", "d3rlpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a family's folder of tools/check_assess.py")
    parser.add_argument("--checkpoints", nargs="+", default=[], help="by name; default: all")
    parser.add_argument("--tasks", type=int, default=3, help="held-out tasks, the first ones")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--target-every", type=int, default=20, help="updates; each target looks one step further")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"| checkpoint | {' | '.join(KINDS)} | s of CPU |\n" + "|---" * 6 + "|")
    rows = []
    for path in checkpoints(options.folder):
        judged = (options.folder / "judged" / f"{path.name}.json").exists()
        if judged and (not options.checkpoints or path.name in options.checkpoints):
            rows.append(compare(options, path))
    for kind in KINDS[1:]:
        print(f"{kind}: Spearman {spearman([row['simulated'] for row in rows], [row[kind] for row in rows]):.2f}")


def compare(options: argparse.Namespace, path: Path) -> dict[str, float]:
    """Reward of a step, later ones discounted, on the same tasks: simulated, by assess's two judges, and by d3rlpy."""
    value = json.loads((options.folder / "judged" / f"{path.name}.json").read_text())["value"]
    truth = json.loads((options.folder / "truth" / f"{path.name}.json").read_text())
    names = value["tasks"][: options.tasks]
    out = options.folder / "d3rlpy" / f"{path.name}-{options.updates}-{options.target_every}.json"
    if not out.exists() or not set(names) <= set(json.loads(out.read_text())["values"]):
        judged, began = load_judged(path), time.process_time()
        known = load_recordings(options.folder / "held_out", judged.checkpoint.contract, []).tasks
        found = {task.task_id: fitted(judged, task, options) for task in known if task.task_id in names}
        write_atomic(out, json.dumps({"values": found, "seconds": time.process_time() - began}))
    mine = json.loads(out.read_text())
    places = [value["tasks"].index(name) for name in names]
    found = {
        "simulated": [truth[name][1] for name in names],
        "assess": [value["policy_by_task"]["own"][place] for place in places],
        "second judge": [value["recorded"][place] + value["fitted_by_task"][place] for place in places],
        "d3rlpy": [mine["values"][name] for name in names],
    }
    cells = [f"{np.mean(one):.3f} ({', '.join(f'{each:.2f}' for each in one)})" for one in found.values()]
    print(f"| {path.name} | {' | '.join(cells)} | {mine['seconds']:.0f} |", flush=True)
    return {kind: float(np.mean(one)) for kind, one in found.items()}


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
