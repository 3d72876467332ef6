# SPDX-License-Identifier: Apache-2.0
"""Runs a few-shot trial of a checkpoint through the nodes, with a sim in lock-step or a robot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spc_core.system.config_files import find_config
from spc_core.tasks import contract_file
from spc_core.trials.log import PLAN, TrialLog, read_rows
from spc_core.trials.options import TrialOptions, make_plan, make_trial
from spc_core.trials.protocol import EpisodeResult, TrialError, in_order
from spc_ros.processes import NodeGroup, ProcessError, Progress
from spc_ros.trials.collect import require_new

if TYPE_CHECKING:
    from spc_core.tasks.camera import CameraConfig  # which loads the simulator

DRIFT_TASKS = 6  # tasks that change into one another
STILLS_HZ = 2.0  # camera rate; rendering without a GPU takes longer than many ticks
EPISODE_TIMEOUT_S = 120.0  # far longer than an episode; the nodes have tighter deadlines
IMAGES = "camera/image_raw:sensor_msgs/msg/Image"  # extra topic of the recorder


def run_trial(
    options: TrialOptions,
    device: str = "cpu",
    camera: CameraConfig | None = None,
    environment: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> list[EpisodeResult]:
    """Rows of `<out>/episodes.jsonl`, in order; bags are in `<out>/bags`, logs in `<out>/log`.

    `camera`: the sim's, recorded with each bag. Called again with the same `out` it resumes; the folder of another
    trial is refused and stays unchanged. Raises ProcessError.
    """
    folder = Path(options.checkpoint).resolve()
    contract = str(contract_file(options.contract, options.family).resolve())
    paths = {"checkpoint": str(folder), "out": str(Path(options.out).resolve()), "contract": contract}
    options = dataclasses.replace(options, **paths)
    prepare(options)
    agent = {"contract": contract, "checkpoint": str(folder), "device": device}
    params_file = find_config("trial", "lockstep" if options.sim else "robot")
    with NodeGroup(Path(options.out) / "log", environment=environment, params_file=params_file) as nodes:
        start_chain(nodes, options, agent, camera)
        nodes.wait_ready(120.0)
        silence_s = EPISODE_TIMEOUT_S + (0.0 if options.sim else options.time_limit_s)
        nodes.drive("trial", {**options.params(), "lockstep": options.sim}, silence_s, progress)
    return in_order(read_rows(TrialLog(options.out).path))


def prepare(options: TrialOptions) -> None:
    """Check the options, then set orphan bags aside. Raises ProcessError and then changes nothing."""
    out, log = Path(options.out), TrialLog(options.out)
    if not (out / PLAN).exists():
        require_new(out)
    try:
        log.compare(make_plan(options, make_trial(options)))
        log.set_aside_orphan_bags(read_rows(log.path))
    except (TrialError, ValueError) as error:
        raise ProcessError(str(error)) from None


def recordings_dataset(recordings: Path | None, out: Path, contract: Path) -> str:
    """The dataset of recordings for the protocol offline; bags are converted once, into a folder next to `out`."""
    if recordings is None:
        return ""
    from spc_ros.conversion.recordings import convert_recordings, is_dataset  # loads Minari, which a robot may lack

    if is_dataset(recordings):
        return str(recordings.resolve())
    dataset = out.with_name(f"{out.name}-recordings").resolve()
    if not dataset.exists():
        convert_recordings([recordings], dataset, contract)
    return str(dataset)


def start_chain(nodes: NodeGroup, options: TrialOptions, agent: Mapping[str, Any], camera: CameraConfig | None) -> None:
    """Start all nodes that the trial drives, without waiting."""
    camera_params = {} if camera is None else {name: value for name, value in vars(camera).items()}
    subscriptions = {"min_subscriptions": 3} if options.sim and not options.record else {}  # no recorder to wait for
    if options.record:
        extra = ["context", IMAGES] if camera else ["context"]
        record = {"contract": agent["contract"], "directory": f"{options.out}/bags", "extra_topics": extra}
        nodes.start("recorder", {"use_sim_time": options.sim, **record})
    nodes.start("context_encoder", agent)
    nodes.start("policy", {**agent, **subscriptions})
    if options.sim:
        nodes.start("sim", {"family": options.family, "contract": agent["contract"], **camera_params, **subscriptions})
