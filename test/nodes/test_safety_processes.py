# SPDX-License-Identifier: Apache-2.0
"""Between real processes: a command delay that the data did not have, and what the contract says of lost streams."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from std_srvs.srv import Trigger

from spc_core.command_delay.estimate import DelayEstimate
from spc_core.contract.contract import Contract, parse_contract
from spc_core.system.config_files import find_config
from spc_ros.node_parts.contract_topics import StatePublishers
from spc_ros.node_parts.topics import latched_qos
from spc_ros.processes import NodeGroup
from support.node_probe import Probe
from support.random_checkpoint import write_random_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def values(status) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


@pytest.mark.parametrize("delay_ms", [0.0, 60.0])
def test_a_delay_that_the_data_did_not_have_is_a_warning(
    nodes: NodeGroup, probe: Probe, tmp_path: Path, delay_ms: float
) -> None:
    """Simulation, behaviour and context encoder in lock-step, where a command acts at once but for the delay."""
    checkpoint = write_random_checkpoint(tmp_path / "reach", "arm_reach")
    metrics = json.loads((checkpoint / "metrics.json").read_text())
    metrics["command_delay"] = DelayEstimate(0.0, 1.0, "the data").as_dict()
    (checkpoint / "metrics.json").write_text(json.dumps(metrics))
    probe.listen("command_delay", "std_msgs/msg/Float64MultiArray", latched_qos())
    probe.listen("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", 10)
    nodes.start("behaviour", {"kind": "random", "seed": 3})
    nodes.start("context_encoder", {"checkpoint": str(checkpoint), "lockstep": True, "use_sim_time": True})
    one = {"episode_steps": 1_000_000}  # the behaviour's noise begins anew in each, and would only repeat itself
    nodes.start("sim", {"auto_reset": True, "min_subscriptions": 2, "actuator_delay_ms": delay_ms, **one})
    nodes.wait_ready(60.0)

    def told() -> list:
        found = [status for array in probe.heard["/diagnostics"] for status in array.status]
        return [s for s in found if s.name == "/context_encoder" and "command delay ms" in values(s)]

    probe.until(lambda: told() and len(probe.heard["command_delay"]) >= 2, "an estimate", 90.0)
    count = len(told())
    probe.until(lambda: len(told()) > count, "diagnostics of it", 60.0)  # it cannot be told from every stretch
    message, status = probe.heard["command_delay"][-1], told()[-1]
    assert [dim.label for dim in message.layout.dim] == ["delay_ms", "uncertainty_ms"]
    assert abs(message.data[0] - delay_ms) <= 3.0 and 1.0 <= message.data[1] <= 4.0
    log = (tmp_path / "log" / "context_encoder.log").read_text()
    text = "make the chain from command to state as fast as it was"
    warned = sum(text in line and "state: " not in line for line in log.splitlines())  # each state is logged, too
    if delay_ms:
        assert status.level == b"\x01" and "in the data, allowed 30 ms apart" in status.message and warned == 1
        assert values(status)["command delay verdict"] == "not the data's"
    else:
        assert status.level == b"\x00" and warned == 0
        assert values(status)["command delay verdict"] == "as in the data"


HOLD_S = 1.0


def test_a_stream_may_be_silent_while_the_others_are_fine(nodes: NodeGroup, probe: Probe, tmp_path: Path) -> None:
    """The contract lets `target` be silent for HOLD_S; the joint states have no such word, so none when they fail."""
    text = find_config("contracts", "arm_payload").read_text()
    said = f"  - topic: target\n    on_loss: {{hold_ms: {1e3 * HOLD_S:g}}}\n"
    contract = parse_contract(text.replace("  - topic: target\n", said), "held.yaml")
    checkpoint = write_random_checkpoint(tmp_path / "held", "arm_payload", contract)
    commands = probe.listen_commands(contract)
    probe.listen("interventions", "std_msgs/msg/String", latched_qos(depth=100))
    nodes.start("policy", {"checkpoint": str(checkpoint), "silence_timeout_s": 0.5})
    nodes.wait_ready(60.0)
    robot, safe = Robot(probe, contract), list(contract.action.safe)

    def news(kind: str, topic: str) -> int:
        told = [json.loads(msg.data) for msg in probe.heard["interventions"]]
        return sum(word["kind"] == kind and word["reason"].startswith(f"{topic}:") for word in told)

    def acts() -> None:
        count = len(commands())
        robot.until(lambda: sum(c != safe for c in commands()[count:]) >= 5, "commands")

    acts()
    robot.until(lambda: news("hold", "target"), "the hold", lost=TARGET)
    began_s, count = time.monotonic(), len(commands())
    robot.until(lambda: commands()[-1] == safe, "the safe action", lost=TARGET)
    held_s = time.monotonic() - began_s
    assert HOLD_S - 0.1 <= held_s <= HOLD_S + 1.0, "0.1 s: the news and the command take other ways"
    assert all(command == safe for command in commands()[count:]), "the last command stood"
    acts()
    holds = news("hold", "target")
    robot.until(lambda: news("hold", "target") > holds, "the next hold", lost=TARGET)
    began_s, broken = time.monotonic(), np.full(contract.observation_dim, np.nan)
    robot.until(lambda: commands()[-1] == safe, "the safe action", lost=TARGET, values=broken)
    assert time.monotonic() - began_s < HOLD_S / 2, "not the hold of another stream"
    probe.until(lambda: news("fault", "joint_states"), "the reason")
    counts = json.loads(probe.call("policy/report", Trigger).message)
    assert counts["hold"] >= 10


TARGET = (0,)  # of the messages of a tick; the stream that sets the ticks comes last


class Robot:
    """The payload arm at 50 Hz by this machine's clock; messages can be left out."""

    def __init__(self, probe: Probe, contract: Contract) -> None:
        self._probe, self._contract = probe, contract
        self._out = StatePublishers(probe.node, contract, reliable=False)
        self._next_s = time.monotonic()

    def until(self, done, what: str, lost: tuple[int, ...] = (), values: np.ndarray | None = None) -> None:
        """Go on publishing until `done()`; fails the test after a while."""
        deadline_s = time.monotonic() + 20.0
        state = np.full(self._contract.observation_dim, 0.1) if values is None else values
        while not done():
            now_s = time.monotonic()
            assert now_s < deadline_s, f"{what}: not within 20 s"
            if now_s >= self._next_s:
                self._out.publish(time.time_ns(), state, None, lost)
                self._next_s = max(self._next_s + self._contract.period_ns / 1e9, now_s)
            self._probe.executor.spin_once(timeout_sec=0.005)
