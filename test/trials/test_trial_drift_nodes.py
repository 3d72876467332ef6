# SPDX-License-Identifier: Apache-2.0
"""Over DDS, in lock-step: contexts of recordings, and the drift test, number for number as in one process."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from spc_core.alignment.episode import EpisodeInfo
from spc_core.contract.contract import load_contract
from spc_core.data.dataset import DatasetWriter
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.system.config_files import find_config
from spc_core.tasks import find_task
from spc_core.trials.drift import AFTER, BEFORE, read_drift, run_drift
from spc_core.trials.evaluate import run_in_process
from spc_core.trials.offline_data import behaviour_episodes
from spc_core.trials.protocol import Trial, in_order
from spc_core.trials.recordings import dataset_transitions
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.node_parts.topics import stream_qos
from spc_ros.processes import NodeGroup, ProcessError
from spc_ros.trials.trial import run_trial
from support.contracts import ARM_REACH
from support.node_probe import Probe, own_domain
from support.random_checkpoint import trial_options

pytestmark = pytest.mark.timeout(300)
TASKS = ["arm_reach/id/02", "arm_reach/ood/05"]


def dataset(folder: Path, task_ids: list[str]) -> Path:
    with DatasetWriter(folder, ARM_REACH) as writer:
        for task_id in task_ids:
            for episode in behaviour_episodes(find_task(task_id), 3, seed=1):
                writer.add_episode(task_id, find_task(task_id).params, episode)
    return folder


def test_offline_contexts_and_drift_over_ros_equal_those_in_process(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recordings = dataset(tmp_path / "dataset", TASKS)
    asked = trial_options(
        tiny_checkpoint, "arm_reach", tmp_path / "out", task_ids=TASKS, episodes=1, protocols=["no_context", "offline"],
        recordings=str(recordings), drift_tasks=2,
    )  # fmt: skip
    rows = run_trial(asked, environment=own_domain())
    trial = Trial([find_task(i) for i in TASKS], ["no_context", "offline"], episodes=1)
    loaded = load_checkpoint(tiny_checkpoint)
    recorded = functools.partial(dataset_transitions, recordings)
    alone = in_order(run_in_process(loaded, trial, "arm_reach", offline_transitions=recorded))
    numbers = [(r.task_id, r.protocol, r.return_, r.context, r.context_count) for r in rows]
    assert numbers == [(r.task_id, r.protocol, r.return_, r.context, r.context_count) for r in alone]
    assert {r.context_count for r in rows if r.protocol == "offline"} == {300}, "three episodes of a hundred steps"
    assert len({tuple(r.context) for r in rows if r.protocol == "offline"}) == 2

    runs = read_drift(tmp_path / "out" / "drift.jsonl")
    bags = [Path(run.bag) for run in runs]
    assert [dataclasses.replace(run, bag="") for run in runs] == run_drift(
        loaded, "arm_reach", [find_task(i) for i in TASKS]
    )  # fmt: skip
    for run, path in zip(runs, bags, strict=True):
        bag_tells_of_the_change(path, run.after, announced=run.strategy == "reset")
    drifted_bag_converts_up_to_the_change(bags[0], tmp_path / "converted")


def bag_tells_of_the_change(path: Path, task_id: str, announced: bool) -> None:
    with BagReader(path) as bag:
        info = EpisodeInfo.from_json(bag.info.custom_data["spc.episode"])
        assert bag.info.custom_data["spc.task_id"] == info.task_id != task_id
        topic = next(name for name in bag.info.topics if name.endswith("episode"))
        infos = [EpisodeInfo.from_json(msg.data) for _, _, msg in bag.messages([topic])]
    (change,) = info.changes
    period_ns = 20_000_000
    assert (change.t_ns - info.start_ns) // period_ns == BEFORE and change.task_id == task_id
    assert (info.end_ns - info.start_ns) // period_ns == BEFORE + AFTER and info.truncated
    counts = [len(i.changes) for i in infos if i.state == "running"]
    assert counts == ([0, 1] if announced else [0]) and change.announced == announced


def drifted_bag_converts_up_to_the_change(path: Path, out: Path) -> None:
    report = convert(ConvertOptions((path,), out, workers=1), progress=False)
    (bag,) = report.bags
    assert bag.transitions == BEFORE and "the task changed" in str(bag.as_dict()["cuts"])


def test_offline_without_recordings_of_a_task_says_which(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recordings = dataset(tmp_path / "dataset", TASKS[:1])
    refused = f"has no recordings of {TASKS[1]}, .*; it has {TASKS[0]}. Record and convert them"
    asked = trial_options(tiny_checkpoint, "arm_reach", tmp_path / "out", task_ids=TASKS, protocols=["offline"])
    with pytest.raises(ProcessError, match=refused):
        run_trial(dataclasses.replace(asked, recordings=str(recordings)))
    with pytest.raises(ProcessError, match="'offline' needs recordings of each task; give a dataset"):
        run_trial(asked)
    assert not (tmp_path / "out").exists(), "nothing was begun"
    other = load_contract(find_config("contracts", "arm_payload"))
    with pytest.raises(ValueError, match="converted by another contract"):
        list(dataset_transitions(recordings, TASKS[0], other))
    assert np.isfinite([t.reward for t in dataset_transitions(recordings, TASKS[0])]).all()


def test_the_task_changes_on_request(tmp_path: Path) -> None:
    """~/change in mid-episode: published at once on the topic `episode`, and not without an episode or a task."""
    environment = own_domain()
    with NodeGroup(tmp_path / "log", environment=environment) as nodes, Probe(environment) as probe:
        episode = probe.listen_episodes()
        probe.listen("joint_states", "sensor_msgs/msg/JointState", stream_qos(reliable=False))
        nodes.start("sim", {"mode": "realtime", "task_id": TASKS[0], "episode_steps": 100_000})
        nodes.wait_ready()
        refused = probe.call("sim/change", Trigger)
        assert not refused.success and "no episode is running" in refused.message
        assert probe.call("sim/reset", Trigger).success
        refused = probe.call("sim/change", Trigger)
        assert not refused.success and "first set the parameter change_task_id" in refused.message
        assert "not of the family" in set_change(probe, "arm_payload/id/00").reason
        assert set_change(probe, TASKS[1]).successful
        probe.until(lambda: len(probe.heard["joint_states"]) > 2, "the robot's first steps")
        assert probe.call("sim/change", Trigger).success
        probe.until(lambda: (info := episode()) is not None and info.changes, "news of the change")
        info = episode()
    assert info is not None and info.state == "running" and (info.task_id, info.task_now) == (TASKS[0], TASKS[1])
    (change,) = info.changes
    assert change.t_ns > info.start_ns and change.params == dict(find_task(TASKS[1]).params) and change.announced


def set_change(probe: Probe, task_id: str) -> SetParametersResult:
    request = SetParameters.Request(parameters=[Parameter("change_task_id", value=task_id).to_parameter_msg()])
    (result,) = probe.call("sim/set_parameters", SetParameters, request).results
    return result
