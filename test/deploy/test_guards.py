# SPDX-License-Identifier: Apache-2.0
"""The decisions behind the policy node's safety, without ROS: watch, stop, box, heartbeat, interventions, swap."""

import hashlib
import json
import math

import numpy as np
import pytest

from spc_core.alignment.faults import Fault, FaultKind
from spc_core.contract.contract import ContractError, load_contract, parse_contract
from spc_core.contract.sections import Loss, Safety
from spc_core.deploy.checkpoint_files import model_id
from spc_core.deploy.emergency_stop import EmergencyStop
from spc_core.deploy.guards import (
    FROM_CONTRACT,
    GuardError,
    Heartbeat,
    Mode,
    ObservationWatch,
    ReactionKind,
    StallWatch,
    WorkspaceBox,
    stricter_modes,
)
from spc_core.deploy.model_swap import BackgroundLoad, ModelSwitch, SwapError
from spc_core.deploy.safety import InterventionKind, InterventionLog, by_name
from spc_core.system.config_files import find_config
from support.contracts import ARM_REACH


def stale(topic, stream):
    return Fault(FaultKind.STALE, topic, stream)


HOLD, SAFE, DEACTIVATE = ReactionKind
A, B = stale("a", 0), stale("b", 1)
STATES, FORCE = stale("states", 0), stale("force", 1)


def test_watch_holds_then_is_safe_then_deactivates():
    watch = ObservationWatch(["a", "b"], [Mode(), Mode(0.1, 1.0)], silence_s=0.03)
    assert watch.check(5.0) is None, "nothing received yet"
    watch.good(10.0)
    assert watch.check(10.03) is None
    assert watch.bad(B, 10.04).kind == HOLD
    assert watch.bad(B, 10.13).kind == HOLD
    assert watch.bad(B, 10.15).kind == SAFE
    watch.bad(B, 11.03)
    reaction = watch.check(11.05)
    assert reaction is not None and (reaction.kind, reaction.reason) == (DEACTIVATE, f"{B}; so for 1 s")
    assert watch.check(11.05) is None, "reported once"
    watch.good(12.0)
    assert watch.bad(Fault(FaultKind.NOT_FINITE, "a", 0, "velocity"), 12.01).kind == SAFE, (
        "the first stream holds nothing"
    )


def test_watch_reports_silence_once():
    watch = ObservationWatch(["a"], [Mode(0.1)], silence_s=0.03)
    watch.good(1.0)
    assert [r and r.kind for r in map(watch.check, (1.02, 1.04, 1.05, 1.15, 1.16))] == [
        None,
        HOLD,
        None,
        SAFE,
        None,
    ]
    assert watch.silent
    watch.good(2.0)
    assert not watch.silent and watch.check(2.02) is None


def test_watch_is_idle_where_time_could_only_deactivate():
    watch = ObservationWatch(["a"], [Mode(0.1, 5.0)], silence_s=0.03)
    assert watch.idle, "nothing received"
    watch.good(1.0)
    assert not watch.idle, "silence may begin"
    watch.check(1.04)
    assert not watch.idle, "it holds, and will be safe"
    watch.check(1.15)
    assert watch.idle
    watch.bad(A, 1.2)
    assert not watch.idle


def test_modes_are_given_for_all_streams_or_for_each():
    free = [Loss(), Loss()]
    assert stricter_modes(free, [50.0], [0.0]) == [Mode(0.05), Mode(0.05)]
    assert stricter_modes(free, [50.0, 0.0], [2.0]) == [Mode(0.05, 2.0), Mode(0.0, 2.0)]
    with pytest.raises(GuardError, match="hold_ms is -2 for observation stream 1; give a number of at least 0, or -1"):
        stricter_modes(free, [0.0, -2.0], [0.0])
    with pytest.raises(GuardError, match="shorter than hold_ms 500"):
        stricter_modes(free, [500.0], [0.1])
    with pytest.raises(GuardError, match="hold_ms has 2 entries; give one, or one for each of the 3"):
        stricter_modes([Loss()] * 3, [1.0, 2.0], [0.0])


def test_stop_topic_that_falls_silent():
    for loss, after in (("ignore", None), ("stop", "has been silent for more than 0.5 s")):
        stop = EmergencyStop()
        stop.configure(loss, 0.5, required=False)
        assert stop.reason(100.0) is None, "never received, so not lost"
        stop.receive(False, 100.0)
        assert stop.reason(100.5) is None
        reason = stop.reason(100.6)
        assert reason is None if after is None else reason is not None and after in reason
        stop.receive(True, 101.0)
        assert stop.reason(101.0) == "emergency stop"


LATCHED, VOLATILE = 0, 1


def test_a_press_counts_through_any_channel_and_a_release_where_nobody_else_pressed():
    stop = EmergencyStop()
    stop.receive(True, 1.0, channel=VOLATILE)
    stop.watch("emergency_stop", 2)
    stop.receive(False, 2.0, channel=VOLATILE)
    assert stop.pressed and "has 2 publishers, so one may not release the other's" in stop.reason(2.0)
    assert stop.watch("emergency_stop", 1)
    assert stop.pressed, "the one that is left may be the one that pressed"
    assert "the one that is left must release it" in stop.reason(2.0)
    stop.receive(True, 2.0, channel=LATCHED)
    assert stop.pressed and stop.reason(2.0) == "emergency stop"
    stop.receive(False, 3.0, channel=LATCHED)
    assert not stop.pressed and stop.reason(3.0) is None
    assert not stop.watch("emergency_stop", 1)


def test_a_restarted_device_releases_when_its_predecessor_is_gone():
    stop = EmergencyStop()
    stop.watch("emergency_stop", 1)
    stop.receive(True, 1.0, channel=LATCHED)
    stop.watch("emergency_stop", 2)
    stop.receive(False, 2.0, channel=LATCHED)
    assert stop.pressed
    assert stop.watch("emergency_stop", 1)
    stop.receive(False, 3.0, channel=LATCHED)  # its last word, asked for once more
    assert not stop.pressed


def test_a_channel_that_missed_the_release_does_not_hold_it_up():
    """A latched publisher: the volatile channel may have its press and not its release."""
    stop = EmergencyStop()
    stop.watch("emergency_stop", 1, deaf=[VOLATILE])
    stop.receive(True, 1.0, channel=VOLATILE)
    stop.receive(True, 1.0, channel=LATCHED)
    assert stop.pressed
    stop.receive(False, 2.0, channel=LATCHED)
    assert not stop.pressed
    stop.receive(True, 3.0, channel=VOLATILE)
    assert stop.pressed, "a press counts even there"


def test_a_release_waits_for_every_channel_that_hears_all():
    """Messages of one channel are in order; those of two are not."""
    stop = EmergencyStop()
    stop.watch("emergency_stop", 1)
    stop.receive(True, 1.0, channel=LATCHED)
    stop.receive(True, 1.0, channel=VOLATILE)
    stop.receive(False, 2.0, channel=LATCHED)
    assert stop.pressed
    stop.receive(False, 2.0, channel=VOLATILE)
    assert not stop.pressed


def test_topics_are_released_one_by_one_and_the_first_may_be_required():
    stop = EmergencyStop(("emergency_stop", "operator_stop"))
    stop.configure("ignore", 1.0, required=True)
    stop.receive(False, 1.0, "operator_stop")
    assert "no message on emergency_stop yet" in stop.reason(1.0)
    stop.receive(False, 1.0)
    assert stop.reason(1.0) is None
    stop.receive(True, 2.0, "operator_stop")
    stop.receive(False, 2.0)
    assert stop.reason(2.0) == "emergency stop: operator_stop"
    stop.watch("emergency_stop", 1, "emergency_stop is published as std_msgs/msg/String by /pad; publish it as Bool")
    stop.receive(False, 3.0, "operator_stop")
    assert stop.reason(3.0).startswith("emergency stop: emergency_stop is published as std_msgs/msg/String")


def test_workspace_names_the_field():
    box = WorkspaceBox(ARM_REACH, ["velocity.elbow", "joint_states.position.shoulder"], [-1, 0], [1, 2])
    assert box.reason(np.array([0.0, 9.0, 9.0, 1.0])) is None
    assert box.reason(np.array([2.5, 0.0, 0.0, 0.0])) == (
        "workspace: joint_states.position.shoulder is 2.5, allowed [0, 2]"
    )
    with pytest.raises(GuardError, match="wrist is not observed"):
        WorkspaceBox(ARM_REACH, ["wrist"], [0], [1])
    with pytest.raises(GuardError, match="low 1 is not below high 1"):
        WorkspaceBox(ARM_REACH, ["position.elbow"], [1], [1])
    with pytest.raises(GuardError, match="has 1 entries, workspace_low 2"):
        WorkspaceBox(ARM_REACH, ["position.elbow"], [1, 2], [1])


def test_heartbeat():
    heartbeat = Heartbeat("the clock stands", 0.2)
    assert heartbeat.reason(9.0) is None
    heartbeat.update(5, 10.0)
    heartbeat.update(5, 10.1)
    assert heartbeat.reason(10.2) is None and heartbeat.reason(10.3) == "the clock stands for more than 0.2 s"
    heartbeat.update(6, 10.3)
    assert heartbeat.reason(10.4) is None


def test_interventions_are_published_at_their_onset_and_each_second():
    log = InterventionLog()
    published = [log.add(InterventionKind.LIMIT, f"at {k}", k, k * 0.0625) for k in range(40)]
    assert [k for k, text in enumerate(published) if text] == [0, 16, 32]
    assert json.loads(published[16] or "") == {"kind": "limit", "reason": "at 16", "t_ns": 16, "count": 17}
    assert log.add(InterventionKind.FAULT, "stale", 7, 2.45) is not None, "another kind has its own onset"
    assert log.add(InterventionKind.LIMIT, "again", 8, 2.9) is not None, "a new onset"
    assert by_name(log.counts) == {"limit": 41, "fault": 1} and (log.last_reason, log.last_ns) == ("again", 8)


def test_a_new_model_waits_for_its_context_and_proves_itself():
    switch = ModelSwitch("old", 1, probation_ticks=2, deadline_s=0.02)
    switch.offer("new", 2)
    assert not switch.take(1) and switch.model == "old", "z is the old model's"
    assert switch.take(2) and switch.model == "new" and not switch.take(2)
    assert switch.check(np.zeros(2), 0.01) is None and switch.check(np.zeros(2), 0.01) is None
    assert switch.check(np.array([math.nan]), 9.0) is None and switch.model == "new", "probation is over"
    switch.offer("third", 3)
    assert switch.take(None), "no encoder sends a context"


@pytest.mark.parametrize(
    ("action", "took_s", "why"), [([math.nan], 0.0, "not finite"), ([0.0], 0.03, "took 30.0 ms, allowed 20.0 ms")]
)
def test_a_failing_model_is_rolled_back(action, took_s, why):
    switch = ModelSwitch("old", 1, probation_ticks=2, deadline_s=0.02)
    switch.offer("new", 2)
    switch.take(2)
    reason = switch.check(np.array(action), took_s)
    assert reason is not None and why in reason
    assert (switch.model, switch.model_id) == ("old", 1)
    assert switch.check(np.array(action), took_s) is None, "the old one is not checked"


def wait(load: BackgroundLoad):
    while (loaded := load.poll()) is None:
        pass
    return loaded


def test_one_model_loads_at_a_time_and_its_error_is_reported():
    load: BackgroundLoad[int] = BackgroundLoad()
    assert load.poll() is None
    load.begin(lambda: 1 // 0)
    with pytest.raises(SwapError, match="being loaded already"):
        load.begin(lambda: 1)
    assert wait(load).problem.startswith("ZeroDivisionError")
    load.begin(lambda: int("x"))
    assert wait(load).problem.startswith("invalid literal")
    load.begin(lambda: 7)
    assert wait(load).model == 7 and load.poll() is None


def test_model_id_follows_the_bytes(tmp_path):
    for name in ("weights.safetensors", "config.yaml", "stats.json", "contract.yaml"):
        (tmp_path / name).write_text(name)
    first = model_id(tmp_path)
    assert 0 < first < 2**31 and model_id(tmp_path) == first
    (tmp_path / "stats.json").write_text("other")
    assert model_id(tmp_path) != first


def test_a_hold_of_one_stream_does_not_cover_another():
    watch = ObservationWatch(["states", "force"], [Mode(), Mode(0.1, 2.0)], silence_s=0.03)
    watch.good(1.0)
    assert watch.bad(FORCE, 1.02).kind == HOLD
    both = watch.bad(STATES, 1.04, also=[FORCE])
    assert (both.kind, both.reason) == (SAFE, str(STATES)), "the first stream holds nothing"
    assert watch.bad(FORCE, 1.06).kind == HOLD, "the states are fine again"
    assert watch.bad(FORCE, 1.13).kind == SAFE, "0.11 s after its first fault"


def test_alternating_failures_do_not_hold_forever():
    watch = ObservationWatch(["a", "b"], [Mode(0.1), Mode(0.1)], silence_s=1.0)
    watch.good(1.0)
    kinds = [watch.bad((A, B)[k % 2], 1.0 + 0.0625 * k).kind for k in range(4)]
    assert kinds == [HOLD, HOLD, SAFE, SAFE]


def test_a_stream_that_fails_during_anothers_hold_ends_it():
    watch = ObservationWatch(["states", "force"], [Mode(0.5), Mode()], silence_s=0.03)
    watch.good(1.0)
    assert [r and r.kind for r in (watch.check(1.02), watch.check(1.04))] == [None, HOLD]
    assert watch.worse([], 1.05) is None and watch.worse([STATES], 1.06) is None, "known already"
    worse = watch.worse([STATES, FORCE], 1.08)
    assert worse is not None and (worse.kind, worse.reason) == (SAFE, str(FORCE))
    assert watch.worse([FORCE], 1.10) is None, "reported once"


SAFETY = """
safety:
  workspace: {joint_states.position.elbow: [-0.5, 0.5], velocity.shoulder: [-3, 3]}
  hold_ms: 40
  deactivate_after_s: 5
"""


def safe_contract(safety=SAFETY, on_loss="{hold_ms: 100}"):
    """The payload arm with a section safety, and its stream `target` with its own mode."""
    text = find_config("contracts", "arm_payload").read_text()
    head, target, tail = text.partition("  - topic: target\n")
    return parse_contract(f"{head}{target}    on_loss: {on_loss}\n{tail}{safety}", "robot.yaml")


def test_a_contract_sets_the_mode_of_each_stream():
    contract = safe_contract()
    unset = [FROM_CONTRACT]
    assert stricter_modes(contract.losses, unset, unset) == [Mode(0.04, 5.0), Mode(0.1, 5.0)]
    assert stricter_modes(contract.losses, [20.0], [FROM_CONTRACT, 1.0]) == [Mode(0.02, 5.0), Mode(0.02, 1.0)]
    assert stricter_modes(ARM_REACH.losses, unset, unset) == [Mode()]
    assert stricter_modes(ARM_REACH.losses, [50.0], [2.0]) == [Mode(0.05, 2.0)], "the contract leaves it open"
    never = safe_contract("", "{deactivate_after_s: 0}")
    assert stricter_modes(never.losses, unset, [FROM_CONTRACT, 3.0])[1] == Mode(0.0, 3.0)
    with pytest.raises(GuardError, match=r"hold_ms is 60 for observation stream 0, looser than the contract's 40"):
        stricter_modes(contract.losses, [60.0], unset)
    with pytest.raises(GuardError, match=r"deactivate_after_s is 0 .* looser than the contract's 5"):
        stricter_modes(contract.losses, unset, [0.0])
    with pytest.raises(GuardError, match="hold_ms has 3 entries; give one, or one for each of the 2"):
        stricter_modes(contract.losses, [0.0, 0.0, 0.0], unset)


def test_parameters_can_only_narrow_the_contracts_box():
    contract = safe_contract()
    inside = np.array([0.0, 0.4, 0.0, 0.0, 0.0, 0.0])
    for fields, low, high in (((), (), ()), (["joint_states.position.elbow"], [-2.0], [2.0])):
        box = WorkspaceBox(contract, fields, low, high)
        assert box.reason(inside) is None
        assert (
            box.reason(inside + [0, 0.2, 0, 0, 0, 0])
            == "workspace: joint_states.position.elbow is 0.6, allowed [-0.5, 0.5]"
        )
    box = WorkspaceBox(contract, ["joint_states.position.elbow"], [-0.3], [0.3])
    assert box.reason(inside) == "workspace: joint_states.position.elbow is 0.4, allowed [-0.3, 0.3]"


@pytest.mark.parametrize(
    ("safety", "on_loss", "problem"),
    [
        ("safety: {hold: 3}", "{}", r"safety\.hold is not a known field \(did you mean 'hold_ms'"),
        ("safety: {hold_ms: -1}", "{}", r"safety\.hold_ms is -1; give a number from 0 to 60000"),
        ("safety: {hold_ms: 500, deactivate_after_s: 0.1}", "{}", r"deactivate_after_s is 0\.1, shorter than hold_ms"),
        ("safety: {deactivate_after_s: 0.2}", "{hold_ms: 300}", r"on_loss\.deactivate_after_s is 0\.2, shorter"),
        ("", "{deactivate_s: 3}", r"observation\[1\]\.on_loss\.deactivate_s is not a known field \(did you mean"),
        ("safety: {workspace: {position.wrist: [0, 1]}}", "{}", r"safety\.workspace\.position\.wrist is not observed"),
        ("safety: {workspace: {position.elbow: [0, 1]}}", "{}", r"elbow is observed more than once; write the topic"),
        ("safety: {workspace: {velocity.elbow: [1, 1]}}", "{}", r"\[1, 1\]; the first must be below the second"),
        ("safety: {workspace: {velocity.elbow: 1}}", "{}", r"must be a list of 2 numbers"),
        (
            "safety: {workspace: {velocity.elbow: [0, 1], joint_states.velocity.elbow: [0, 2]}}",
            "{}",
            r"is the same field as velocity\.elbow; keep one",
        ),
    ],
)
def test_an_invalid_safety_section_is_refused(safety, on_loss, problem):
    with pytest.raises(ContractError, match=rf"^robot\.yaml: .*{problem}"):
        safe_contract(safety, on_loss)


def test_a_contract_without_the_section_is_unchanged():
    assert ARM_REACH.safety == Safety() and ARM_REACH.losses == (Loss(),)
    assert ARM_REACH.sha256 == hashlib.sha256(find_config("contracts", "arm_reach").read_bytes()).hexdigest()
    assert any(
        line.startswith("safety") for line in ARM_REACH.differences(parse_contract(ARM_REACH.text + SAFETY, "x"))
    )
    plain, safe = load_contract(find_config("contracts", "arm_payload")), safe_contract()
    assert safe.observation == plain.observation and safe == plain, "a dataset of one can be relabelled with the other"


def test_messages_count_as_old_for_a_while_after_a_stall() -> None:
    stall = StallWatch(0.06, 0.02)
    assert not any(stall.is_stalled(t) for t in (10.0, 10.05, 10.10))
    assert [stall.is_stalled(t) for t in (10.2, 10.219, 10.221, 10.25)] == [True, True, False, False]
    assert not stall.is_stalled(10.35, 0.1) and stall.is_stalled(10.5, 0.1), "it had paused, but not this long"
