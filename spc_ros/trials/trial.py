# SPDX-License-Identifier: Apache-2.0
"""Runs a few-shot trial of a checkpoint through the real chain of nodes: a sim in lock-step, or a robot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spc_core.system.config_files import find_config
from spc_core.tasks.camera import CameraConfig
from spc_core.trials.log import PLAN, TrialLog, read_rows
from spc_core.trials.options import TrialOptions, make_plan, make_trial
from spc_core.trials.protocol import EpisodeResult, TrialError, in_order
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.processes import NodeGroup, ProcessError, Progress
from spc_ros.trials.collect import require_new

DRIFT_TASKS = 6  # tried tasks that change into one another
STILLS_HZ = 2.0  # of the camera; rendering without a GPU takes longer than many ticks
EPISODE_TIMEOUT_S = 120.0  # far above what an episode takes; the nodes have tighter deadlines of their own
IMAGES = "camera/image_raw:sensor_msgs/msg/Image"  # extra topic of the recorder


def run_trial(
    options: TrialOptions,
    device: str = "cpu",
    camera: CameraConfig | None = None,
    environment: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> list[EpisodeResult]:
    """Rows of `<out>/episodes.jsonl`, in order; bags are in `<out>/bags`, logs in `<out>/log`.

    `camera`: the sim's, recorded with each bag. Called again with the same `out` it goes on where it was; another
    trial's folder is refused untouched. Raises ProcessError.
    """
    folder = Path(options.checkpoint).resolve()
    contract = str(find_config("contracts", options.contract or options.family).resolve())
    places = {"checkpoint": str(folder), "out": str(Path(options.out).resolve()), "contract": contract}
    asked = dataclasses.replace(options, **places)
    prepare(asked)
    agent = {"contract": contract, "checkpoint": str(folder), "device": device}
    params_file = find_config("trial", "lockstep" if asked.sim else "robot")
    with NodeGroup(Path(asked.out) / "log", environment=environment, params_file=params_file) as nodes:
        start_chain(nodes, asked, agent, camera)
        nodes.wait_ready(120.0)
        silence_s = EPISODE_TIMEOUT_S + (0.0 if asked.sim else asked.time_limit_s)
        nodes.drive("trial", {**asked.params(), "lockstep": asked.sim}, silence_s, progress)
    return in_order(read_rows(TrialLog(asked.out).path))


def prepare(asked: TrialOptions) -> None:
    """Refuse what cannot be done, then put bags of no row aside. Raises ProcessError, with the folder as it was."""
    out, log = Path(asked.out), TrialLog(asked.out)
    if not (out / PLAN).exists():
        require_new(out)
    try:
        log.compare(make_plan(asked, make_trial(asked)))
        log.set_aside_orphan_bags(read_rows(log.path))
    except (TrialError, ValueError) as error:
        raise ProcessError(str(error)) from None


def recordings_dataset(given: Path | None, out: Path) -> str:
    """The dataset of recordings for the protocol offline; bags are converted into one beside `out`, once."""
    if given is None:
        return ""
    if any(given.glob("*/*/data/metadata.json")):
        return str(given.resolve())
    made = out.with_name(f"{out.name}-recordings").resolve()
    if not made.exists():
        convert(ConvertOptions((given,), made))
    return str(made)


def start_chain(nodes: NodeGroup, asked: TrialOptions, agent: Mapping[str, Any], camera: CameraConfig | None) -> None:
    """Start all that the trial drives, without waiting."""
    seen = {} if camera is None else {name: value for name, value in vars(camera).items()}
    fewer = {"min_subscriptions": 3} if asked.sim and not asked.record else {}  # no recorder to wait for
    if asked.record:
        extra = ["context", IMAGES] if camera else ["context"]
        record = {"contract": agent["contract"], "directory": f"{asked.out}/bags", "extra_topics": extra}
        nodes.start("recorder", {"use_sim_time": asked.sim, **record})
    nodes.start("context_encoder", agent)
    nodes.start("policy", {**agent, **fewer})
    if asked.sim:
        nodes.start("sim", {"family": asked.family, "contract": agent["contract"], **seen, **fewer})
