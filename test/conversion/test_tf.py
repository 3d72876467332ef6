# SPDX-License-Identifier: Apache-2.0
"""Transforms of tf by the names of their frames, wherever they are in the messages: in bags and in nodes."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spc_core.alignment import PATIENCE_NS
from spc_core.alignment.streaming import StreamingAligner, Transition
from spc_core.contract.contract import Contract, ContractError
from spc_core.contract.frames import TF, no_transform
from spc_core.data.dataset import Episode
from spc_ros.conversion.bag_conversion import Job, convert_bag
from spc_ros.conversion.conversion_report import BagReport
from spc_ros.doctor.contract_init import propose
from spc_ros.doctor.doctor import diagnose
from spc_ros.messages.contract_reader import ContractReader
from spc_ros.messages.field_writer import FieldWriter
from spc_ros.messages.fields import MessageError, message_class
from support.contracts import action_section, make_contract, stream_section
from support.recorded_bags import (
    JOINT_STATE,
    PERIOD_NS,
    START_NS,
    STORE,
    VECTOR,
    Sample,
    joint_state,
    vector,
    write_bag,
)
from support.tf_messages import tf_message, transform

TICKS = 40
MS = 1_000_000
ODOM, MAP = "transforms.odom->base", "transforms.map->odom"
FIELDS = [f"{ODOM}.translation.x", f"{ODOM}.rotation.w", f"{MAP}.translation.y"]
ARM = "transforms.base->arm/mount.1.translation.z"


def tf(receive_ns: int, *transforms: Any, topic: str = "/tf") -> Sample:
    return Sample(topic, TF, receive_ns, tf_message(*transforms))


def odom(k: int, t_ns: int) -> Any:
    return transform("odom->base", t_ns, (k, 0, 0), 100 + k)


def log_of(missing: range = range(0), static: bool = False) -> list[Sample]:
    """The base's place at every tick; the map's at every second, alone or with it at either place; other frames too.

    Of the map, the stamp is 4 ms older than the base's, and its y is 200 + k.
    """
    found = []
    if static:
        other = transform("base->laser", START_NS - 10**9, (0, 0, 0))
        mount = transform("base->arm/mount.1", START_NS + 7_000 * MS, (0, 0, 0.25))  # in the future, by its stamp
        found = [tf(START_NS - 2 * MS, other, topic="/tf_static"), tf(START_NS - MS, mount, topic="/tf_static")]
    for k in range(TICKS + 1):
        t_ns = START_NS + k * PERIOD_NS
        wheel = transform("base->wheel", t_ns, (9, 9, 9))
        place = transform("map->odom", t_ns - 4 * MS, (0, 200 + k, 0))
        if k % 2 or k in missing:
            found.append(tf(t_ns + MS, wheel, odom(k, t_ns)))
        elif k % 4:
            found.append(tf(t_ns + MS, place, wheel, odom(k, t_ns)))
        else:
            found += [tf(t_ns - MS, place, wheel), tf(t_ns + MS, odom(k, t_ns))]
        if k < TICKS:
            found.append(Sample("/commands", VECTOR, t_ns + 3 * MS, vector(t_ns + 3 * MS, k / 9)))
            found.append(Sample("/reward", VECTOR, t_ns + 19 * MS, vector(t_ns + 19 * MS, float(k))))
    return sorted(found, key=lambda sample: sample.receive_ns)


def contract(*fields: Any, clock: str = "header", static: bool = False, max_age_s: float = 0.05) -> Contract:
    streams = [stream_section("tf", list(fields or FIELDS), TF, max_age_s)]
    streams += [stream_section("tf_static", [ARM], TF, math.inf)] if static else []
    return make_contract(
        observation=streams,
        action=action_section(["vector.x"], [9], [999], "commands", VECTOR),
        reward={"topic": "reward", "type": VECTOR, "field": "vector.x"},
        clock=clock,
    )


def convert(bag: Path, wanted: Contract) -> tuple[BagReport, list[Episode]]:
    report, entries = convert_bag(bag, Job(wanted, own_contract=True, task="t"))
    return report, [entry.episode for entry in entries]


def live(log: list[Sample], wanted: Contract, raw: bool) -> list[Transition]:
    """As a node has it: message by message, as an object or serialised."""
    reader, aligner = ContractReader(wanted), StreamingAligner(wanted, PATIENCE_NS)
    steps = []
    for sample in log:
        topic, receive_ns = sample.topic.lstrip("/"), sample.receive_ns
        if raw:
            data = bytes(STORE.serialize_cdr(sample.message, sample.type))
            found = (
                reader.live_samples(
                    topic,
                    data,
                    lambda t=receive_ns: t,
                    lambda data, kind=sample.type: STORE.deserialize_cdr(data, kind),
                )
                if reader.route(topic)
                else []
            )
            steps += [step for entry in found for step in aligner.push(*entry)]
        else:
            steps += reader.feed(aligner, topic, sample.message, receive_ns)
    return [step.transition for step in [*steps, *aligner.flush()] if step.transition is not None]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_transform_is_found_by_its_frames_wherever_it_is(tmp_path: Path, storage: str) -> None:
    bag = write_bag(tmp_path / "bag", log_of(), {}, storage)
    report, (episode,) = convert(bag, contract())
    assert [str(why) for _, why in report.cuts] == ["the recording ended"] and len(episode) == TICKS
    newest = [200 + k - k % 2 for k in range(TICKS + 1)]
    assert episode.observations.tolist() == [[k, 100 + k, y] for k, y in zip(range(TICKS + 1), newest, strict=True)]
    assert episode.times_ns.tolist() == [START_NS + k * PERIOD_NS for k in range(TICKS + 1)]
    assert episode.actions[:, 0].tolist() == [k / 9 for k in range(TICKS)]
    assert report.topics["tf"].count == TICKS + 1  # of the first field's transform


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "wanted",
    [
        contract(),
        contract(*reversed(FIELDS), max_age_s=0.1),
        contract(clock="receive"),
        contract(static=True),
        contract({"field": f"{ODOM}.rotation", "as": "yaw"}, FIELDS[2]),
    ],
    ids=["header", "the map first", "receive", "static", "yaw"],
)
def test_bag_and_node_agree_on_transforms(tmp_path: Path, wanted: Contract, raw: bool) -> None:
    log = log_of(missing=range(20, 26), static=len(wanted.observation) > 1)
    _, episodes = convert(write_bag(tmp_path / "bag", log, {}), wanted)
    found = live(log, wanted, raw)
    recorded = [row for episode in episodes for row in episode.observations[:-1].tolist()]
    assert len(found) == sum(map(len, episodes)) > 10
    assert [transition.observation.tolist() for transition in found] == recorded


def test_a_transform_is_as_old_as_its_own_stamp_says(tmp_path: Path) -> None:
    """The map's transform of tick 18 is 44 ms old at tick 20, and 64 ms at tick 21."""
    bag = write_bag(tmp_path / "bag", log_of(missing=range(19, 26)), {})
    report, (before, after) = convert(bag, contract())
    assert before.observations[-1].tolist() == [20, 120, 218]
    assert after.observations[0].tolist() == [26, 126, 226]
    assert str(report.cuts[0][1]) == "tf: transforms.map->odom.translation.y is not finite"


def test_what_is_static_holds_for_all_time(tmp_path: Path) -> None:
    """One transform is stamped in the future, and both came before the first tick in two messages."""
    bag = write_bag(tmp_path / "bag", log_of(static=True), {})
    report, (episode,) = convert(bag, contract(static=True))
    assert len(episode) == TICKS
    assert set(episode.observations[:, 3].tolist()) == {0.25}
    wanted = make_contract(
        {"observation.1.fields": [ARM, "transforms.base->laser.translation.x"]}, base=contract(static=True)
    )
    report, (episode,) = convert(bag, wanted)  # the first message has the second field only
    assert len(episode) == TICKS and set(map(tuple, episode.observations[:, 3:].tolist())) == {(0.25, 0.0)}


def test_frames_that_are_not_there_are_refused_with_the_nearest(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", log_of(), {})
    told = (
        "topic 'tf': no message has the transform base->odom; the nearest: odom->base, .*; they have "
        "base->wheel, map->odom, odom->base; correct the frames in the contract"
    )
    wanted = contract("transforms.odom->base.translation.x", "transforms.base->odom.translation.x")
    with pytest.raises(MessageError, match=told):
        convert(bag, wanted)
    with pytest.raises(MessageError, match=told):
        live([*log_of(), tf(START_NS + 3_000 * MS, odom(99, START_NS + 3_000 * MS))], wanted, raw=False)
    report = diagnose([bag], wanted, task="t", progress=False)
    assert report.verdict == "fail"
    assert any("the nearest: odom->base" in finding.text for finding in report.findings)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (
            "transforms.0.transform.translation.x",
            "fields\\[0\\] is 'transforms.0.*by its place.*name the frames: trans",
        ),
        ("transforms.odom->base", "names no number of the transform; write transforms.<parent>-><child>.translation.x"),
        ("transforms.odom->base.transform.translation.x", None),
        ("transforms.odom.translation.x", "is not a field of tf; write transforms.<parent>-><child>.translation.x"),
        (
            "transforms.odom->base.rotation",
            "or the whole rotation: {field: transforms.odom->base.rotation, as: rotation_6d}",
        ),
        ({"field": "transforms.odom->base", "as": "yaw"}, "names no number of the transform"),
    ],
)
def test_a_field_that_is_no_transforms_number_is_refused(field: Any, told: str | None) -> None:
    if told is None:  # a child frame may have a name with dots, and is then looked for
        assert contract(field).observation[0].fields == (field,)
        return
    with pytest.raises(ContractError, match=told):
        contract(field)


def test_static_transforms_with_an_age_and_commands_of_tf_are_refused() -> None:
    with pytest.raises(
        ContractError, match=r"observation\[1\].max_age_s is 0.1, but what is on tf_static .* never ages; write .inf"
    ):
        make_contract({"observation.1.max_age_s": 0.1}, base=contract(static=True))
    with pytest.raises(ContractError, match="moves nothing; give the topic of commands"):
        make_contract(action=action_section([FIELDS[0]], [1], [1], "tf", TF))


def test_what_nodes_cannot_do_with_tf_is_said() -> None:
    with pytest.raises(MessageError, match="the simulation publishes no transforms"):
        FieldWriter(TF, FIELDS, "tf")
    if importlib.util.find_spec("tf2_msgs") is None:
        with pytest.raises(MessageError, match="'tf2_msgs/msg/TFMessage' is not installed here.*install tf2_msgs"):
            message_class(TF)


def test_the_doctor_lists_the_frames(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", log_of(static=True), {})
    for wanted in (None, contract(static=True)):
        report = diagnose([bag], wanted, task="t", progress=False)
        texts = {finding.topic.lstrip("/"): finding.text for finding in report.findings if finding.check == "frames"}
        assert texts == {
            "tf": "3 transforms, as parent->child: base->wheel, map->odom, odom->base",
            "tf_static": "2 transforms, as parent->child: base->arm/mount.1, base->laser",
        }
        assert not [finding for finding in report.findings if finding.severity == "fail"], report.findings


def test_a_proposal_tells_how_to_observe_transforms(tmp_path: Path) -> None:
    states = [
        Sample("/joint_states", JOINT_STATE, t_ns, joint_state(t_ns, ["j"], position=[t_ns % 7]))
        for t_ns in range(START_NS, START_NS + TICKS * PERIOD_NS, PERIOD_NS)
    ]
    text = propose(write_bag(tmp_path / "bag", [*log_of(), *states], {}))
    told = "# tf (TFMessage): 3 transforms, as parent->child: base->wheel, map->odom, odom->base; to observe one, "
    assert f"{told}write it by its frames: transforms.base->wheel.translation.x" in text


def test_a_reward_may_be_a_transforms_number(tmp_path: Path) -> None:
    """The newest in (t_k, t_k+1]: that with the stamp of the next tick."""
    wanted = make_contract(reward={"topic": "tf", "type": TF, "field": FIELDS[0]}, base=contract())
    log = log_of()
    _, (episode,) = convert(write_bag(tmp_path / "bag", log, {}), wanted)
    assert episode.rewards.tolist() == [k + 1.0 for k in range(TICKS)]
    assert np.array_equal([transition.reward for transition in live(log, wanted, raw=False)], episode.rewards)


def test_a_transform_over_several_steps_is_refused_with_the_steps():
    seen = ["base->tool", "map->odom", "odom->base", "loop->loop"]
    assert no_transform(["map->tool"], seen) == (
        "no message has the transform map->tool; trees are not composed: observe each on the way, "
        "map->odom, odom->base, base->tool"
    )
    assert "on the way" not in no_transform(["tool->map"], seen) + no_transform(["map->loop"], seen)
