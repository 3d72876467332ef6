# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of faults: transforms at changing places, and an action of several topics."""

from __future__ import annotations

from faults.bag_injections import Adapt
from faults.bag_table import Fault, refusal
from faults.bag_world import MS, WORLD, Piece
from spc_core.contract.frames import TF
from support.contracts import action_section, stream_section
from support.recorded_bags import JOINT_STATE, Sample, joint_state
from support.tf_messages import tf_message, transform


def as_transforms(samples: list[Sample]) -> list[Sample]:
    """Force j becomes x of base->tool, at the first, second and third place of its message in turn."""
    found = []
    for sample in samples:
        if sample.topic == "/force":
            stamp = sample.message.header.stamp
            t_ns, x = stamp.sec * 10**9 + stamp.nanosec, sample.message.wrench.force.x
            entries = [transform("base->wheel", t_ns, (9, 9, 9)), transform("map->base", t_ns, (8, 8, 8))]
            entries.insert(int(x) // 5 % 3, transform("base->tool", t_ns, (x, 0, 0)))
            sample = Sample("/tf", TF, sample.receive_ns, tf_message(*entries))
        found.append(sample)
    return found


def observing(field: str) -> dict[str, object]:
    return {"observation": [WORLD["observation"][0], stream_section("tf", [field], TF, max_age_s=0.15)]}


def on_two_topics(*missing: int) -> Adapt:
    """Commands of the elbow come on a topic of their own, 2 ms after the shoulder's; some numbers are missing."""

    def split(samples: list[Sample]) -> list[Sample]:
        found = []
        for sample in samples:
            if sample.topic != "/joint_commands":
                found.append(sample)
                continue
            stamp = sample.message.header.stamp
            t_ns, (shoulder, elbow) = stamp.sec * 10**9 + stamp.nanosec, sample.message.effort.tolist()
            alone = joint_state(t_ns, ["shoulder"], effort=[shoulder])
            found.append(Sample("/joint_commands", JOINT_STATE, sample.receive_ns, alone))
            if int(shoulder) not in missing:
                later = joint_state(t_ns + 2 * MS, ["elbow"], effort=[elbow])
                found.append(Sample("/elbow_commands", JOINT_STATE, sample.receive_ns + 2 * MS, later))
        return sorted(found, key=lambda sample: sample.receive_ns)

    return split


SHOULDER = action_section(["effort.shoulder"], [2000], [1e6])
ELBOW = action_section(["effort.elbow"], [2000], [1e6], "elbow_commands")
TWO = {"action": [SHOULDER, ELBOW]}

SPREAD = (
    Fault("a transform changes its place", "Force is x of base->tool, at another place in each message of tf.",
          "Found by its frames.", adapt=as_transforms, contract=observing("transforms.base->tool.translation.x")),
    refusal("a transform by its place", "The contract observes transforms.0.", "Refused.",
            "is 'transforms.0.transform.translation.x', which goes by its place", adapt=as_transforms,
            contract=observing("transforms.0.transform.translation.x")),
    refusal("frames the wrong way round", "The contract observes tool->base, the bag has base->tool.", "Refused.",
            "no message has the transform tool->base; the nearest: base->tool", adapt=as_transforms,
            contract=observing("transforms.tool->base.translation.x")),
    refusal("a transform without a component", "The contract observes transforms.base->tool.", "Refused.",
            "names no number of the transform", adapt=as_transforms, contract=observing("transforms.base->tool")),
    Fault("two commanded topics", "The elbow has a topic of its own, and is commanded 2 ms after the shoulder.",
          "One action of both.", adapt=on_two_topics(), contract=TWO),
    Fault("one of two commanded topics is silent", "Command 7 of the elbow is missing.", "Cut there.",
          adapt=on_two_topics(7), contract=TWO, by_definition=False,
          pieces=(Piece(0, 7, "elbow_commands: no command in the period"), Piece(8, 20))),
    refusal("one topic twice in the action", "Both sections of the action name joint_commands.", "Refused.",
            "action[1].topic is joint_commands, as in action[0]; write all its fields in one section",
            contract={"action": [SHOULDER, {**ELBOW, "topic": "joint_commands"}]}),
    refusal("an action of no topics", "The action is an empty list.", "Refused.",
            "action must be a list with at least one entry", contract={"action": []}),
    refusal("limits of one topic are missing", "The second section of the action has no `low`.", "Refused.",
            "action[1].low is missing; add it",
            contract={"action": [SHOULDER, {k: v for k, v in ELBOW.items() if k != "low"}]}),
)  # fmt: skip
