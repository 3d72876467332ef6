# SPDX-License-Identifier: Apache-2.0
"""The services of simulation_interfaces: the handlers on a simulation of lines, and all of them over ROS 2."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spc_core.alignment.episode import EpisodeInfo
from spc_ros.messages.fields import message_class, stamp_ns
from spc_ros.node_parts.command_publisher import CommandPublisher
from spc_ros.node_parts.topics import stream_qos
from spc_ros.processes import NodeGroup
from spc_ros.sim.control import Code, Feature, PlayState, Scope, SimControl, Steps
from support.contracts import ARM_REACH
from support.node_probe import Probe, own_domain
from support.paths import ROOT

STOPPED, PLAYING, PAUSED, QUITTING, NO_WORLD = range(5)  # as SimulationState.msg numbers them


class ToyPlayer:
    """Records all calls."""

    def __init__(self, state: PlayState, refusal: str = "") -> None:
        self.play_state, self.refusal = state, refusal
        self.did: list[Any] = []
        self.steps: Steps | None = None

    def play_episode(self, paused: bool | None) -> None:
        if self.refusal:
            raise ValueError(self.refusal)
        self.did.append(("episode", paused))
        self.play_state = PlayState.PAUSED if paused else PlayState.PLAYING

    def pause(self, paused: bool) -> None:
        self.did.append(("pause", paused))

    def stop(self) -> None:
        self.did.append("stop")

    def quit(self) -> None:
        self.did.append("quit")

    def step_paused(self, steps: Steps) -> None:
        if self.refusal:
            raise ValueError(self.refusal)
        self.steps = steps


def response() -> Any:
    return SimpleNamespace(
        result=SimpleNamespace(result=0, error_message=""),
        state=SimpleNamespace(state=0),
        features=SimpleNamespace(features=[], custom_info=""),
    )


@pytest.mark.parametrize(
    ("now", "wanted", "code", "did"),
    [
        (STOPPED, PLAYING, 1, [("episode", False)]),
        (STOPPED, PAUSED, 1, [("episode", True)]),
        (PLAYING, PAUSED, 1, [("pause", True)]),
        (PAUSED, PLAYING, 1, [("pause", False)]),
        (PAUSED, STOPPED, 1, ["stop"]),
        (PLAYING, QUITTING, 1, ["quit"]),
        (PLAYING, PLAYING, 101, []),
        (STOPPED, STOPPED, 101, []),
        (PLAYING, NO_WORLD, 0, []),
        (PLAYING, 77, 4, []),
    ],
)
def test_states_are_changed_as_asked(now: int, wanted: int, code: int, did: list) -> None:
    player = ToyPlayer(PlayState(now))
    answer = SimControl(player).set_state(SimpleNamespace(state=SimpleNamespace(state=wanted)), response())
    assert (answer.result.result, player.did) == (code, did)
    assert bool(answer.result.error_message) == (code != 1), "a refusal has a reason"


def test_an_episode_that_cannot_begin_is_a_failed_transition() -> None:
    control = SimControl(ToyPlayer(PlayState.STOPPED, "noise: no such field"))
    answer = control.set_state(SimpleNamespace(state=SimpleNamespace(state=PLAYING)), response())
    assert (answer.result.result, answer.result.error_message) == (102, "noise: no such field")
    answer = control.reset(SimpleNamespace(scope=0), response())
    assert (answer.result.result, answer.result.error_message) == (4, "noise: no such field")


@pytest.mark.parametrize(("scope", "code"), [(0, 1), (2, 1), (255, 1), (1, 0), (4, 0), (3, 0), (8, 0)])
def test_reset_supports_some_scopes(scope: int, code: int) -> None:
    player = ToyPlayer(PlayState.PAUSED)
    answer = SimControl(player).reset(SimpleNamespace(scope=scope), response())
    assert answer.result.result == code
    assert player.did == ([("episode", None)] if code else []), "what is paused stays paused"
    assert ("time" in answer.result.error_message) == (scope != 2), "time is not reset, which a full reset must report"


def test_steps_are_answered_when_they_are_done() -> None:
    player, answers = ToyPlayer(PlayState.PAUSED), []
    SimControl(player).step(SimpleNamespace(steps=2), response(), answers.append)
    assert player.steps is not None
    assert (player.steps.step(), answers) == (False, [])
    assert player.steps.step() and [a.result.result for a in answers] == [1]
    player.steps.give_up("too late")
    assert len(answers) == 1, "no second answer"


@pytest.mark.parametrize(
    ("state", "refusal", "steps", "reason"),
    [(PLAYING, "", 1, "pause a running episode first"), (STOPPED, "", 1, "pause a running episode first"),
     (PAUSED, "", 0, "steps is 0"), (PAUSED, "steps are under way already", 1, "steps are under way already")],
)  # fmt: skip
def test_steps_that_are_refused(state: int, refusal: str, steps: int, reason: str) -> None:
    answers: list[Any] = []
    SimControl(ToyPlayer(PlayState(state), refusal)).step(SimpleNamespace(steps=steps), response(), answers.append)
    assert [(a.result.result, reason in a.result.error_message) for a in answers] == [(4, True)]


def test_abandoned_steps_report_how_many_were_done() -> None:
    player, answers = ToyPlayer(PlayState.PAUSED), []
    SimControl(player).step(SimpleNamespace(steps=9), response(), answers.append)
    assert player.steps is not None and not player.steps.step()
    player.steps.give_up("the episode ended: time limit")
    assert answers[0].result.result == 4
    assert answers[0].result.error_message == "the episode ended: time limit, after 1 of 9 steps"


needs_package = pytest.mark.skipif(
    importlib.util.find_spec("simulation_interfaces") is None,
    reason="the package simulation_interfaces is not installed: its services are not tried over ROS 2",
)


@needs_package
def test_our_numbers_are_those_of_the_package() -> None:
    from simulation_interfaces.msg import Result, SimulationState, SimulatorFeatures
    from simulation_interfaces.srv import ResetSimulation, SetSimulationState

    for name, member in PlayState.__members__.items():
        assert getattr(SimulationState, f"STATE_{name}") == member
    for name, member in Feature.__members__.items():
        assert getattr(SimulatorFeatures, name) == member
    for name, member in Scope.__members__.items():
        assert getattr(ResetSimulation.Request, f"SCOPE_{name}") == member
    for name, member in Code.__members__.items():
        kind, prefix = (SetSimulationState.Response, "") if member > 100 else (Result, "RESULT_")
        assert getattr(kind, prefix + name) == member


class Remote:
    """A sim's services, as another program calls them."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def set_state(self, state: int) -> int:
        from simulation_interfaces.srv import SetSimulationState

        request = SetSimulationState.Request()
        request.state.state = state
        return self.probe.call("sim/set_simulation_state", SetSimulationState, request).result.result

    def state(self) -> int:
        from simulation_interfaces.srv import GetSimulationState

        answer = self.probe.call("sim/get_simulation_state", GetSimulationState)
        assert answer.result.result == 1
        return answer.state.state

    def step(self, steps: int) -> tuple[int, str]:
        from simulation_interfaces.srv import StepSimulation

        result = self.probe.call("sim/step_simulation", StepSimulation, StepSimulation.Request(steps=steps)).result
        return result.result, result.error_message

    def reset(self, scope: int) -> int:
        from simulation_interfaces.srv import ResetSimulation

        return self.probe.call(
            "sim/reset_simulation", ResetSimulation, ResetSimulation.Request(scope=scope)
        ).result.result


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodeGroup]:
    with NodeGroup(tmp_path / "log", environment=own_domain()) as group:
        yield group


@needs_package
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("mode", "executor"), [("lockstep", "events"), ("lockstep", "single"), ("realtime", "events")])
def test_play_pause_step_reset_and_stop(nodes: NodeGroup, mode: str, executor: str) -> None:
    """Time passes only as asked; the steps' answer comes when they are done, while others act in between."""
    from simulation_interfaces.srv import GetSimulatorFeatures

    lockstep = mode == "lockstep"
    with Probe(dict(nodes.environment or {})) as probe:
        episode, stamps, answering = probe.listen_episodes(), [], [True]
        commands = CommandPublisher(probe.node, ARM_REACH, lockstep)

        def on_state(msg: Any) -> None:
            stamps.append(stamp_ns(msg))
            if answering[0]:
                commands.send(np.array([0.1, 0.0]), stamps[-1])

        stream = ARM_REACH.observation[0]
        qos = stream_qos(reliable=lockstep)
        probe.node.create_subscription(message_class(stream.type), stream.topic, on_state, qos)
        nodes.start("sim", {"mode": mode, "executor": executor, "auto_reset": False, "command_timeout_s": 1.0})
        nodes.wait_ready(60.0)
        remote = Remote(probe)
        features = probe.call("sim/get_simulator_features", GetSimulatorFeatures).features
        assert sorted(features.features) == [20, 22, 24, 25, 26, 31, 32] and "control period" in features.custom_info
        assert remote.state() == STOPPED and remote.step(1)[0] == 4

        assert remote.set_state(PAUSED) == 1 and remote.state() == PAUSED
        probe.until(lambda: (info := episode()) is not None and info.state == "running", "the episode")
        info = episode()
        assert info is not None
        probe.until(lambda: bool(stamps), "its first state")
        for steps in (1, 12):
            before = len(stamps)
            assert remote.step(steps) == (1, "")
            probe.until(lambda n=before + steps: len(stamps) >= n, "the states of the steps")
            assert remote.state() == PAUSED and len(stamps) == before + steps, "and not one more"
        assert stamps == [info.start_ns + k * ARM_REACH.period_ns for k in range(14)]

        assert remote.reset(1) == 0 and remote.reset(255) == 1 and remote.state() == PAUSED
        probe.until(lambda: len(stamps) == 15, "the first state of the next episode")
        assert stamps[-1] > stamps[-2] + ARM_REACH.period_ns
        if lockstep:
            probe.until(lambda: remote.step(1)[0] == 1, "a step")
            answering[0] = False
            code, why = remote.step(3)  # one command is there, or on its way
            assert (code, why) == (4, "no command within 1 s, after 1 of 3 steps")
            answering[0] = True
            commands.send(np.array([0.1, 0.0]), stamps[-1])
        code, why = remote.step(200)
        assert code == 4 and why.startswith("the episode ended: time limit, after "), why
        assert remote.state() == STOPPED and remote.set_state(STOPPED) == 101
        assert remote.reset(0) == 1 and remote.state() == PAUSED, "the episode that ended was stepped in pause"
        assert remote.set_state(STOPPED) == 1

        answering[0] = not lockstep  # else the episode would be over too soon
        assert remote.set_state(PLAYING) == 1 and remote.state() == PLAYING and remote.set_state(PLAYING) == 101
        assert remote.set_state(STOPPED) == 1
        probe.until(lambda: (info := episode()) is not None and info.state == "ended", "the end")
        info = episode()
        assert isinstance(info, EpisodeInfo) and info.truncated and info.reason == "stopped"
        assert remote.set_state(QUITTING) == 1
        process = nodes.nodes["sim"]
        assert process.wait(10.0) == 0


def test_without_the_package_there_is_one_line_and_no_service(nodes: NodeGroup, tmp_path: Path) -> None:
    """A module of that name without what is wanted, so that it holds where the package is installed too."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "simulation_interfaces.py").write_text("")
    nodes.environment = {**dict(nodes.environment or {}), "PYTHONPATH": f"{ROOT}:{hidden}"}
    nodes.start("sim", {"auto_reset": True})
    nodes.wait_ready(60.0)
    text = nodes.nodes["sim"].log.read_text()
    assert text.count("the package simulation_interfaces is not installed") == 1
