# SPDX-License-Identifier: Apache-2.0
"""The whole chain in lock-step over DDS: nothing lost, the same numbers as in one process, a reason when it breaks."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rclpy.duration import Duration
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.episode import EpisodeInfo
from spc_core.alignment.streaming import StreamingAligner, Transition
from spc_core.contract.contract import Contract, load_contract
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.system.config_files import find_config
from spc_core.tasks import find_task
from spc_core.trials.evaluate import run_in_process
from spc_core.trials.log import read_rows
from spc_core.trials.offline_data import behaviour_episodes
from spc_core.trials.protocol import EpisodeResult, Trial, in_order
from spc_ros.bags.reader import BagReader
from spc_ros.cli import main
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.node_parts.context_message import decode_context
from spc_ros.processes import NodeGroup, ProcessError
from spc_ros.trials import trial as trial_module
from spc_ros.trials.collect import collect
from spc_ros.trials.trial import run_trial
from support.cart_family import write_cart_family
from support.lacking import without_torch
from support.node_probe import Probe, own_domain
from support.random_checkpoint import trial_options, write_random_checkpoint

pytestmark = pytest.mark.timeout(300)
STEPS = 100


def transitions_of(path: str | Path, contract: Contract) -> list[Transition]:
    """A bag's transitions; its only cut may be the start."""
    assembler, reader = StreamingAligner(contract, PATIENCE_NS), ContractReader(contract)
    with BagReader(path) as bag:
        names = {bag.find_topic(topic, kind): topic for topic, kind in reader.types.items()}
        read = [reader.feed(assembler, names[topic], m, t) for topic, t, m in bag.messages(names)]
    steps = [step for some in read for step in some] + assembler.flush()
    assert [str(step.cut) for step in steps if step.transition is None] == ["start"]
    return [step.transition for step in steps if step.transition is not None]


def test_collection_is_what_the_behaviour_does_in_process(tmp_path: Path) -> None:
    task_ids, kinds = ["arm_payload/train/03", "arm_payload/train/11"], ["expert", "noisy"]
    reports: list[tuple[int, int]] = []
    paths = collect(
        "arm_payload", tmp_path, episodes=2, task_ids=task_ids, kinds=kinds, seed=1,
        environment=own_domain(), progress=lambda done, total, _: reports.append((done, total)),
    )  # fmt: skip
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]
    contract = load_contract(find_config("contracts", "arm_payload"))
    plan = [(task_id, number, kind) for number, kind in enumerate(kinds) for task_id in task_ids]
    for path, (task_id, number, kind) in zip(paths, plan, strict=True):
        with BagReader(path) as bag:
            custom = bag.info.custom_data
            counts = {topic: found.count for topic, found in bag.info.topics.items()}
            info = bag.last_episode()
        assert info is not None and info.truncated and info.task_id == custom["spc.task_id"] == task_id
        assert info.published["/joint_states"] == STEPS + 1 and info.published["/joint_commands"] == STEPS
        assert all(counts[topic] >= n for topic, n in info.published.items() if topic in counts)
        assert counts["/joint_commands"] <= STEPS + 1  # the last state may be answered, too
        assert custom["spc.behaviour"] == kind
        *_, alone = behaviour_episodes(find_task(task_id), number + 1, seed=1)
        assert alone.behaviour == kind and len(alone) == STEPS
        seen = transitions_of(path, contract)
        assert np.array_equal([t.observation for t in seen], alone.observations[:-1])
        assert np.array_equal([t.action for t in seen], alone.actions)
        assert np.array_equal([t.next_observation for t in seen], alone.observations[1:])
        np.testing.assert_allclose([t.reward for t in seen], alone.rewards, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "method"), [("arm_reach", "spc_paper"), ("arm_payload", "spc"), ("base_drive", "spc_paper")]
)
def test_trial_over_ros_equals_the_trial_in_process(tmp_path: Path, family: str, method: str) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", family, method=method)
    task_ids = [f"{family}/id/02", f"{family}/ood/05"]
    results = run_trial(
        trial_options(checkpoint, family, tmp_path / "out", task_ids=task_ids, episodes=2, few_shot_sizes=(130,)),
        environment=own_domain(),
    )
    trial = Trial([find_task(i) for i in task_ids], episodes=2, few_shot_sizes=(130,))
    alone = run_in_process(load_checkpoint(checkpoint), trial, family)

    def numbers(row: EpisodeResult) -> tuple:
        about = (row.task_id, row.protocol, row.k, row.seed, row.return_, row.steps)
        return (*about, row.context, row.context_count, row.uncertainty)

    assert [numbers(row) for row in results] == [numbers(row) for row in alone]
    assert len({tuple(row.context) for row in results}) > 4  # the context matters in this comparison
    assert all(len(row.uncertainty) == len(row.context) for row in results)
    bag_equals_live(results, checkpoint)


@pytest.mark.parametrize("family", ["arm_reach"])
def test_trial_killed_twice_goes_on_to_the_same_result(tmp_path: Path, monkeypatch, family: str) -> None:
    """SIGKILL of the trial node amid a zero-shot block, then amid a few-shot block: as if nothing had happened."""
    groups: list[NodeGroup] = []

    class Watched(NodeGroup):
        def __enter__(self) -> Watched:
            groups.append(self)
            return self

    monkeypatch.setattr(trial_module, "NodeGroup", Watched)
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", family)
    out, task_ids = tmp_path / "out", [f"{family}/id/02"]
    asked = trial_options(checkpoint, family, out, task_ids=task_ids, episodes=2, few_shot_sizes=(0, 130), seed=3)
    environment = own_domain()
    trial = Trial([find_task(i) for i in task_ids], episodes=2, few_shot_sizes=(0, 130), seed=3, shuffle=True)
    order = [block.key[1:] for block in trial.blocks()]
    kills = [2 * order.index(("zero_shot", 0)) + 1, 2 * order.index(("few_shot", 130)) + 1]
    for kill_at in sorted(kills):

        def kill(done: int, _total: int, _text: str, kill_at: int = kill_at) -> None:
            if done == kill_at:
                groups[-1].nodes["trial"].process.kill()

        with pytest.raises(ProcessError, match="node 'trial' failed"):
            run_trial(asked, environment=environment, progress=kill)
    with (out / "episodes.jsonl").open("a") as file:
        file.write('{"task_id": "arm_re')  # as a crash amid a line would leave it
    results = run_trial(asked, environment=environment)
    alone = in_order(run_in_process(load_checkpoint(checkpoint), trial, family))

    def numbers(row: EpisodeResult) -> tuple:
        return (row.protocol, row.k, row.episode, row.return_, row.context, row.context_count, row.success)

    assert [numbers(row) for row in results] == [numbers(row) for row in alone]
    assert {Path(row.bag).name for row in results} == {path.name for path in (out / "bags").iterdir()}
    redone = read_rows(out / "abandoned.jsonl")
    assert {row.block[1:] for row in redone} == {("few_shot", 130)}, "only the block whose context was lost"
    with pytest.raises(ProcessError, match=r"holds another trial;[\s\S]*seed: 3 there, 4 here"):
        run_trial(dataclasses.replace(asked, seed=4), environment=environment)


def bag_equals_live(results: list[EpisodeResult], checkpoint_path: Path) -> None:
    """A tracker that replays the bag of a zero-shot episode finds each context and uncertainty that was live."""
    checkpoint = load_checkpoint(checkpoint_path)
    row = next(row for row in results if row.protocol == "zero_shot")
    tracker = ContextTracker(checkpoint)
    expected = {}
    for transition in transitions_of(row.bag, checkpoint.contract):
        tracker.update(transition)
        expected[transition.t_ns + checkpoint.contract.period_ns] = (tracker.context, tracker.uncertainty)
    with BagReader(row.bag) as bag:
        readings = [decode_context(m) for _, _, m in bag.messages(["/context"])]
    live = {r.t_ns: (r.context, r.uncertainty) for r in readings}
    shared = sorted(expected.keys() & live.keys())
    assert len(shared) >= STEPS - 1
    assert all(np.array_equal(expected[t_ns], live[t_ns]) for t_ns in shared)


def test_trial_ends_with_a_reason_when_the_sim_freezes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[NodeGroup] = []

    class Watched(NodeGroup):
        def __enter__(self) -> Watched:
            groups.append(self)
            return self

    def freeze_sim(done: int, _total: int, _text: str) -> None:
        if done == 2:
            groups[0].nodes["sim"].process.send_signal(signal.SIGSTOP)

    monkeypatch.setattr(trial_module, "NodeGroup", Watched)
    out = tmp_path / "out"
    with pytest.raises(ProcessError, match=r"node 'trial' failed[\s\S]*(silent for|no service|no answer)"):
        asked = trial_options(
            tiny_checkpoint, "arm_reach", out, episodes=50, protocols=["no_context"], silence_timeout_s=5.0
        )  # fmt: skip
        run_trial(asked, environment=own_domain(), progress=freeze_sim)
    rows = [EpisodeResult.from_json(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert 2 <= len(rows) < 50
    bags = sorted((out / "bags").iterdir())
    assert not [bag for bag in bags if bag.name.startswith(".")]
    for bag in bags:
        with BagReader(bag) as reader:
            assert reader.last_episode() is not None
    assert len(bags) >= len(rows)


def test_emergency_stop_pause_operator_and_abort_over_ros(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A stopped episode is done again; the operator's word starts and judges each one; abort ends it with a reason."""
    environment = own_domain()
    agent = {"checkpoint": str(tiny_checkpoint), "contract": "arm_reach", "min_subscriptions": 3}
    plan = {"out": str(tmp_path / "out"), "task_ids": ["arm_reach/id/00"], "protocols": ["zero_shot"], "episodes": 3}
    lockstep = find_config("trial", "lockstep")
    with NodeGroup(tmp_path / "log", environment=environment, params_file=lockstep) as nodes, Probe(environment) as ask:
        nodes.start("context_encoder", {"checkpoint": str(tiny_checkpoint), "contract": "arm_reach"})
        nodes.start("policy", agent)
        nodes.start("sim", {"min_subscriptions": 3})
        trial = nodes.start("trial", {**plan, "record": False, "operator": True})
        stop = ask.node.create_publisher(Bool, "emergency_stop", 10)
        nodes.wait_ready(60.0)
        ask.until(lambda: stop.get_subscription_count() == 2, "trial and policy hear the emergency stop")

        def lines() -> list[str]:
            return trial.log.read_text().splitlines()

        def printed(text: str, times: int = 1) -> None:
            ask.until(lambda: sum(text in line for line in lines()) >= times, f"'{text}' {times} times")

        printed("call continue")
        stop.publish(Bool(data=True))
        printed("release of the emergency stop")
        assert not ask.call("trial/continue", Trigger).success, "not while the stop is pressed"
        stop.publish(Bool(data=False))
        printed("call continue", 2)
        episode = ask.listen_episodes()
        assert ask.call("sim/pause", SetBool, SetBool.Request(data=True)).success
        assert ask.call("trial/continue", Trigger).success
        ask.until(lambda: (info := episode()) is not None and info.state == "running", "an episode")
        stop.publish(Bool(data=True))
        stop.publish(Bool(data=False))
        ask.until(lambda: stop.wait_for_all_acked(Duration(seconds=1.0)), "the stop was heard")
        assert ask.call("trial/pause", Trigger).message == "the trial pauses when this episode has ended"
        assert ask.call("sim/pause", SetBool, SetBool.Request(data=False)).success
        printed("aborted: emergency stop")
        printed("the trial is paused")
        assert ask.call("trial/resume", Trigger).success
        printed("call continue", 3)
        stop.publish(Bool(data=True))
        printed("release of the emergency stop", 2)
        stop.publish(Bool(data=False))
        printed("call continue", 4)
        assert ask.call("trial/continue", Trigger).success
        printed("call success")
        assert ask.call("trial/success", SetBool, SetBool.Request(data=True)).success
        printed('{"progress": [1, 3, ')
        assert ask.call("trial/abort", Trigger).success
        assert trial.wait(10.0) == 1 and any("aborted on request" in line for line in lines())
    rows = read_rows(tmp_path / "out" / "episodes.jsonl")
    assert [(r.episode, r.aborted, r.success, r.steps) for r in rows] == [
        (0, "emergency stop", None, STEPS), (0, "", True, STEPS),
    ]  # fmt: skip
    assert [row.interventions.get("emergency stop", 0) > 0 for row in rows] == [True, False], "not of the wait before"


def test_recorder_closes_its_bag_when_stopped(tmp_path: Path) -> None:
    family = write_cart_family(tmp_path / "cart", {"episode_s": 60.0})  # longer than the test
    environment = own_domain()
    with NodeGroup(tmp_path / "log", environment=environment) as nodes, Probe(environment) as probe:
        episode = probe.listen_episodes()
        nodes.start(
            "recorder", {"contract": str(family.with_name("contract.yaml")), "directory": str(tmp_path / "bags")}
        )
        nodes.start("sim", {"mode": "realtime", "family": str(family)})
        nodes.wait_ready()
        assert probe.call("sim/reset", Trigger).success
        probe.until(lambda: (info := episode()) is not None and info.state == "running", "a running episode")
        reading = len(probe.heard["episode"])
        probe.until(lambda: list((tmp_path / "bags").glob(".*recording*")), "an open bag")
        assert nodes.nodes["recorder"].stop() == 0
        assert len(probe.heard["episode"]) == reading, "the episode ended too early for this test"
    (path,) = (tmp_path / "bags").iterdir()
    with BagReader(path) as bag:
        info = EpisodeInfo.from_json(bag.info.custom_data["spc.episode"])
    assert not info.terminated and not info.truncated and "stopped" in info.reason


def test_a_robot_without_torch_runs_a_trial(tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", "point_robot", method="spc")
    exported, out = tmp_path / "exported", tmp_path / "trial"
    assert main(["export", str(checkpoint), "--format", "onnx", "--out", str(exported)]) == 0
    done = subprocess.run(
        [
            sys.executable, "-m", "spc_ros.cli", "trial", str(exported), "--out", str(out), "--tasks",
            "point_robot/id/00", "--few-shot-sizes", "40", "--episodes", "1", "--no-drift",
        ],
        env={**without_torch(tmp_path), **own_domain()}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "few_shot(40)" in done.stdout and "No module named 'torch'" not in done.stderr
    rows = read_rows(out / "episodes.jsonl")
    assert (out / "report.html").is_file() and len(rows) == 4
    trial = Trial([find_task("point_robot/id/00")], ["few_shot"], 1, few_shot_sizes=(40,))
    alone = run_in_process(load_checkpoint(checkpoint), trial, "point_robot")  # with torch, and the task belief
    z = next(row.context for row in rows if row.protocol == "few_shot")
    np.testing.assert_allclose(z, next(row.context for row in alone if row.protocol == "few_shot"), atol=1e-4)
