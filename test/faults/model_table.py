# SPDX-License-Identifier: Apache-2.0
"""The rows about a new model at ~/swap, which cannot serve or fails on probation, and the whole table."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch

from faults.end_table import ENDS
from faults.node_table import FAULTS as LIVE
from faults.node_table import Fault, Inject
from faults.node_world import CONTRACT, PERIOD_S, RATE_HZ, World
from spc_core.deploy.deployable import Policy, load_deployed
from support.random_checkpoint import TINY, write_random_checkpoint


def changed(world: World, name: str, file: str, change: Callable[[str], str]) -> Path:
    """A copy of the world's checkpoint with one of its text files changed."""
    folder = shutil.copytree(world.checkpoint, world.folder / name, dirs_exist_ok=True)
    text = (folder / file).read_text()
    assert change(text) != text
    (folder / file).write_text(change(text))
    return folder


def shifted(text: str) -> str:
    """Statistics that make every action another one."""
    stats = json.loads(text)
    return json.dumps({**stats, "observation_mean": [value + 0.5 for value in stats["observation_mean"]]})


def cut_off(world: World) -> Path:
    """Half written, as by a copy that broke off."""
    folder = shutil.copytree(world.checkpoint, world.folder / "corrupt", dirs_exist_ok=True)
    (folder / "weights.safetensors").write_bytes((world.checkpoint / "weights.safetensors").read_bytes()[:1000])
    return folder


def other_contract(world: World) -> Path:
    return changed(world, "other", "contract.yaml", lambda text: text.replace(f"rate_hz: {RATE_HZ}", "rate_hz: 20"))


def not_finite(world: World) -> Path:
    folder = shutil.copytree(world.checkpoint, world.folder / "broken", dirs_exist_ok=True)
    weights = safetensors.torch.load_file(world.checkpoint / "weights.safetensors")
    spoiled = {key: value * float("nan") if key.startswith("actor") else value for key, value in weights.items()}
    safetensors.torch.save_file(spoiled, folder / "weights.safetensors")
    return folder


def too_slow(world: World) -> Path:
    """As many layers as make one action take 1.5 periods here."""
    folder = world.folder / "slow"
    if not folder.exists():
        few_s = _action_s(_deep(world.folder / "deep", 20))
        _deep(folder, round(20 * 1.5 * PERIOD_S / few_s))
    return folder


def _deep(folder: Path, layers: int) -> Path:
    model = dataclasses.replace(TINY, policy_hidden=(512,) * layers)
    return write_random_checkpoint(folder, "arm_reach", CONTRACT, model)


def _action_s(folder: Path) -> float:
    """The median time of an action."""
    checkpoint = load_deployed(folder)
    policy, times = Policy(checkpoint), []
    for _ in range(20):
        begin_s = time.perf_counter()
        policy.act(np.zeros(CONTRACT.observation_dim), np.zeros(5, np.float32))
        times.append(time.perf_counter() - begin_s)
    return float(np.median(times))


def swapped_for(make: Callable[[World], Path], state: str) -> Inject:
    def inject(world: World) -> float:
        folder = make(world)
        world.until(world.answers, world.tick)  # making it may have taken a while
        began_s = time.monotonic()
        world.swap(folder, state)
        world.run(5, world.tick)
        return began_s

    return inject


REFUSED = "Refused; the old model keeps acting."
MODELS = (
    Fault("a corrupt checkpoint at ~/swap", "Its weights are cut off.", REFUSED, swapped_for(cut_off, "refused"),
          "none", counted=("swaps refused",), swap="corrupt"),
    Fault("a missing checkpoint at ~/swap", "The folder does not exist.", REFUSED,
          swapped_for(lambda world: world.folder / "nowhere", "refused"), "none", counted=("swaps refused",),
          swap="not a checkpoint"),
    Fault("a checkpoint of another contract at ~/swap", "Its contract has another rate.",
          "Refused with the difference; the old model keeps acting.", swapped_for(other_contract, "refused"), "none",
          counted=("swaps refused",), swap=f"rate_hz: {RATE_HZ} here, 20 there"),
    Fault("a new model's action is not finite", "The weights of its actor are NaN.",
          "Rolled back in that tick: the previous model answers the same observation.",
          swapped_for(not_finite, "rolled back"), "none", counted=("rollback", "swaps rolled back"),
          said="not finite"),
)  # fmt: skip
SLOW_RATE_HZ = 200  # at lower rates, a model that is too slow is too large to be loaded in a test
TOO_SLOW = Fault(
    "a new model is too slow",
    "It has so many layers that an action takes longer than a period.",
    "Rolled back after that action, which is not sent: the previous model answers. Safe action if states stop.",
    swapped_for(too_slow, "rolled back"),
    "either",
    counted=("rollback", "swaps rolled back"),
    said="its action took",
)
FAULTS = (TOO_SLOW,) if RATE_HZ >= SLOW_RATE_HZ else (*LIVE, *MODELS, *ENDS)
