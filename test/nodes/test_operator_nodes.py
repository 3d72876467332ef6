# SPDX-License-Identifier: Apache-2.0
"""A trial on a robot that is no simulation: a human brings it to its start; the policy rests in between."""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from lifecycle_msgs.srv import GetState
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger

from spc_core.contract.contract import parse_contract
from spc_core.trials.log import read_rows
from spc_core.trials.protocol import EpisodeResult
from spc_ros.bags.reader import BagReader
from spc_ros.cli import main
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.messages.fields import set_stamp
from spc_ros.processes import ProcessError
from spc_ros.trials.trial import run_trial
from spc_ros.trials.trial_report import report_trial
from support.bare_robot import bare_robot
from support.contracts import ARM_REACH
from support.lacking import SIMULATOR, without
from support.node_probe import Probe, own_domain
from support.random_checkpoint import trial_options, write_random_checkpoint

pytestmark = pytest.mark.timeout(120)
LIMIT_S = 0.8


def test_a_robot_without_a_sim_is_tried_with_an_operator(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Three episodes: one ends by its time, one by the operator, one by the robot's own word."""
    environment, out = own_domain(), tmp_path / "out"
    rows: list[EpisodeResult] = []

    def trial() -> None:
        asked = trial_options(
            tiny_checkpoint, "", out, contract="arm_reach", task_ids=["bench/spring"], protocols=["no_context"],
            episodes=3, operator=True, sim=False, time_limit_s=LIMIT_S, terminated_topic="done",
        )  # fmt: skip
        rows.extend(run_trial(asked, environment=environment))

    period_s = ARM_REACH.period_ns / 1e9
    with bare_robot(environment, done_after=20) as robot, Probe(environment) as ask:
        thread = threading.Thread(target=trial)
        thread.start()
        try:
            episode, returns = ask.listen_episodes(), ask.heard["trial/return"]
            ask.listen("trial/return", "std_msgs/msg/Float64", 10)

            def state(name: str) -> bool:
                return (info := episode()) is not None and info.state == name

            def answered(name: str, kind: type, request: object = None) -> None:
                ask.until(lambda: ask.call(name, kind, request).success, name)

            for number in range(3):
                answered("trial/continue", Trigger)
                returns.clear()
                ask.until(lambda: state("running"), "an episode", 40.0)
                if number == 1:
                    ask.until(lambda: returns, "a transition, without which the episode would be repeated")
                    assert ask.call("trial/stop", Trigger).success
                ask.until(lambda: state("ended"), "its end")
                ask.until(lambda: resting(ask), "the policy at rest", 5.0)
                answered("trial/success", SetBool, SetBool.Request(data=number != 1))
                if number == 1:
                    robot.send_signal(signal.SIGUSR1)
        finally:
            thread.join(40.0)
    assert [(r.task_id, r.reason, r.success, r.aborted) for r in rows] == [
        ("bench/spring", "time limit", True, ""), ("bench/spring", "operator", False, ""),
        ("bench/spring", "task ended", True, ""),
    ]  # fmt: skip
    whole = LIMIT_S / period_s
    assert 0.5 * whole <= rows[0].steps <= whole + 1, "less what the policy needed to begin"
    assert rows[1].steps < rows[0].steps and 10 <= rows[2].steps <= 25
    page_and_bag(out, tiny_checkpoint, rows)


def test_the_robots_own_controller_is_the_scale_where_there_is_no_expert(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One episode of the policy, then one of a controller that commands the largest effort.

    The operator wants to go on before the robot is on.
    """
    environment, out = own_domain(), tmp_path / "out"
    rows: list[EpisodeResult] = []

    def trial() -> None:
        asked = trial_options(
            tiny_checkpoint, "", out, contract="arm_reach", task_ids=["bench/spring"], shuffle=False, episodes=1,
            protocols=["no_context", "baseline"], operator=True, sim=False, time_limit_s=2.0,
        )  # fmt: skip
        rows.extend(run_trial(asked, environment=environment))

    with Probe(environment) as ask, contextlib.ExitStack() as robot:
        thread = threading.Thread(target=trial)
        thread.start()
        try:
            episode = ask.listen_episodes()
            answered = functools.partial(agreed, ask)
            silent = (False, "the robot publishes no state; is it on?")
            ask.until(lambda: outcome(ask.call("trial/continue", Trigger)) == silent, "the robot is off", 60.0)
            robot.enter_context(bare_robot(environment, done_after=0))
            answered("trial/continue", Trigger)
            answered("trial/success", SetBool, SetBool.Request(data=True))
            commands = ask.node.create_publisher(JointState, ARM_REACH.action.parts[0].topic, 10)
            full = JointState(name=["shoulder", "elbow"], effort=list(ARM_REACH.action.high))

            def drive() -> None:
                set_stamp(full, ask.node.get_clock().now().nanoseconds)
                commands.publish(full)

            timer = ask.node.create_timer(ARM_REACH.period_ns / 1e9, drive)
            answered("trial/continue", Trigger)
            ask.until(lambda: (info := episode()) is not None and info.state == "running", "the episode", 40.0)
            assert resting(ask)
            answered("trial/success", SetBool, SetBool.Request(data=True))
            timer.cancel()
        finally:
            thread.join(40.0)
    assert [(row.protocol, row.aborted) for row in rows] == [("no_context", ""), ("baseline", "")]
    assert rows[1].steps > 20 and rows[1].interventions == {}
    report_trial(tiny_checkpoint, "bench", out, rows)
    assert "the robot's own controller drives, and the policy rests" in (out / "report.html").read_text()


@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_a_robot_outside_the_families_is_tried_without_a_simulator(tmp_path: Path, kind: str) -> None:
    """`spc trial` where neither MuJoCo nor Minari is installed, of an export without torch either."""
    contract = parse_contract(ARM_REACH.text.replace("name: arm_reach", "name: bench_arm"), "bench.yaml")
    run, out, environment = tmp_path / "run", tmp_path / "trial", own_domain()
    write_random_checkpoint(run, "arm_reach", contract)
    lacking = SIMULATOR
    if kind == "export":
        assert main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "export")]) == 0
        run, lacking = tmp_path / "export", (*SIMULATOR, "torch")
    command = [
        sys.executable, "-m", "spc_ros.cli", "trial", str(run), "--out", str(out), "--no-sim", "--operator",
        "--tasks", "light", "--protocols", "no_context", "--episodes", "1", "--time-limit-s", str(LIMIT_S),
    ]  # fmt: skip
    lean = {**without(tmp_path, *lacking), **environment}
    with (
        bare_robot(environment, done_after=0),
        Probe(environment) as ask,
        subprocess.Popen(command, env=lean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as trial,
    ):
        try:
            agreed(ask, "trial/continue", Trigger)
            agreed(ask, "trial/success", SetBool, SetBool.Request(data=True))
        finally:
            said = trial.communicate(timeout=40.0)[0]
    assert trial.returncode == 0, said
    (row,) = read_rows(out / "episodes.jsonl")
    assert (row.task_id, row.success, row.aborted) == ("light", True, "") and row.steps > 10
    assert "no_context" in said and (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no task family is named 'bench_arm', as the contract is; .*--family .*--no-sim --operator --tasks"),
        (["--no-sim"], "without a sim an operator must .*spc trial: --operator"),
        (["--no-sim", "--operator"], "neither a family nor a task is given; .*spc trial: --tasks"),
        (["--no-sim", "--operator", "--family", "arm_reech"], "unknown task family 'arm_reech' .did you mean"),
    ],
)
def test_a_trial_of_a_robot_says_what_it_lacks(tmp_path: Path, capsys, flags: list[str], message: str) -> None:
    contract = parse_contract(ARM_REACH.text.replace("name: arm_reach", "name: bench_arm"), "bench.yaml")
    run = write_random_checkpoint(tmp_path / "run", "arm_reach", contract)
    assert main(["trial", str(run), "--out", str(tmp_path / "out"), *flags]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def outcome(answer: Trigger.Response) -> tuple[bool, str]:
    return answer.success, answer.message


def agreed(ask: Probe, name: str, kind: type, request: object = None) -> None:
    ask.until(lambda: ask.call(name, kind, request).success, name, 60.0)


def test_the_sim_has_no_controller_of_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    asked = trial_options(tiny_checkpoint, "arm_reach", tmp_path / "out", protocols=["no_context", "baseline"])
    with pytest.raises(ProcessError, match="the sim has none: use --no-sim, or leave baseline out"):
        run_trial(asked)


def resting(ask: Probe) -> bool:
    return ask.call("policy/get_state", GetState).current_state.label == "inactive"


def page_and_bag(out: Path, checkpoint: Path, rows: list[EpisodeResult]) -> None:
    """The bag is one of a whole episode that converts, and the page needs no expert."""
    with BagReader(rows[0].bag) as bag:
        info = bag.last_episode()
    assert info is not None and info.truncated and info.seed == rows[0].seed
    assert (info.end_ns - info.start_ns) / 1e9 == pytest.approx(LIMIT_S, abs=0.2)
    report = convert(ConvertOptions((rows[0].bag,), out.parent / "dataset", workers=1), progress=False)
    assert abs(report.bags[0].transitions - rows[0].steps) <= 3
    commands = sum(rows[0].latency.values())
    assert rows[0].steps - 1 <= commands <= LIMIT_S * 1e9 / ARM_REACH.period_ns + 3, (
        "a command may come too late for one"
    )
    assert np.isfinite(rows[0].return_)
    run = report_trial(checkpoint, "bench", out, rows)
    text = (out / "report.html").read_text()
    assert run.real_time and "Measured in real time" in text and "brought to its start by a human" in text


def test_without_a_sim_somebody_must_be_there(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan = {"contract": "arm_reach", "sim": False}
    with pytest.raises(ProcessError, match="without a sim an operator must bring the robot to its start; set operator"):
        run_trial(trial_options(tiny_checkpoint, "", tmp_path / "out", task_ids=["a"], **plan))
    with pytest.raises(ProcessError, match="neither a family nor a task is given; set task_ids"):
        run_trial(trial_options(tiny_checkpoint, "", tmp_path / "out", operator=True, **plan))
    assert not (tmp_path / "out").exists()
