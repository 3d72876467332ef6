# SPDX-License-Identifier: Apache-2.0
"""The reward of a proposed contract: terms of its own over the chosen fields, and topics that may carry one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from spc_core.contract.reward_reader import UNFILLED_TARGET
from spc_core.contract.rewards import REWARDS
from spc_ros.bags.files import BagError
from spc_ros.doctor.contract_choices import round_up
from spc_ros.doctor.contract_design import Design
from spc_ros.doctor.field_choices import Choice
from spc_ros.doctor.recorded_robot import RecordedTopic
from spc_ros.doctor.topic_roles import GOAL_WORDS, REWARD_WORDS
from spc_ros.doctor.yaml_text import listed, number, word

UNFILLED = "fill_in_the_reward"
SOURCES = ("ask", "terms", "topic")
MOST = 3  # fields of the proposed distance
RATES = re.compile(r"(^|\.)(velocity|effort|twist|linear_acceleration|angular_velocity)(\.|$)")
LIVE = "the robot must publish it whenever a policy runs too, or the context encoder learns nothing"

Field = tuple[RecordedTopic, str]


def reward_lines(plan: Design, relative: Callable[[str], str], source: str) -> list[str]:
    """The section `reward`; of `source` ask each way in comments, and a line that is refused.

    Raises BagError where the source is a topic and none was recorded that looks like a reward.
    """
    terms, topics = _terms(plan, relative), _topics(plan, relative)
    if source == "terms":
        return ["# computed from each transition, in the bags and live; weights are yours: spc relabel --preview shows",
                "# what each term earns", "reward:", *terms]  # fmt: skip
    if source == "topic":
        rewards = [line for topic, line in topics if REWARD_WORDS.search(topic.topic)]
        if not rewards:
            names = ", ".join(topic.topic for topic in plan.robot.topics)
            raise BagError(f"{plan.robot.bags[0]}: no topic is called a reward; choose --reward terms, or write the "
                           f"topic yourself; recorded are {names}")  # fmt: skip
        return [f"{rewards[0]} # {LIVE}"]
    return [
        "# TODO: what is the robot to do? Replace the last line of this section by one of these; until then, it is",
        "# refused. Computed from each transition, in the bags and live, without a topic (docs/reward.md):",
        "# reward:",
        *(f"# {line}" for line in terms),
        f"# From a topic: {LIVE}.",
        *(f"# {line}" for _, line in topics),
        *([] if topics else ["# reward: {topic: reward, type: std_msgs/msg/Float64, field: data}"]),
        "# A function of this package:",
        *(f"# reward: {{function: {name}, weights: {{{_weights(entry.weights)}}}}}" for name, entry in REWARDS.items()),
        f"reward: {{{UNFILLED}: true}}",
    ]


def _weights(weights: object) -> str:
    return ", ".join(f"{key}: {value:g}" for key, value in dict(weights).items())  # type: ignore[call-overload]


def _topics(plan: Design, relative: Callable[[str], str]) -> list[tuple[RecordedTopic, str]]:
    """Recorded topics that may be the reward, those that are called so alone if there are any, with their line."""
    spare = [(entry.offer is not None, entry.topic) for entry in plan.left_out if entry.topic.logs]
    rewards = [topic for _, topic in spare if REWARD_WORDS.search(topic.topic) and topic.log.fields]
    found = (rewards or [topic for offered, topic in spare if offered])[:MOST]
    return [
        (t, f"reward: {{topic: {word(relative(t.topic))}, type: {t.type}, field: {word(t.log.fields[0])}}}")
        for t in found
    ]


def _terms(plan: Design, relative: Callable[[str], str]) -> list[str]:
    """Lines below `reward:`: nearness to a goal, then what makes motions gentle."""
    ours, goals = _pairs(plan)

    def names(fields: Sequence[Field]) -> str:
        return listed([f"{relative(topic.topic)}.{field}" for topic, field in fields])

    if goals:
        target, why = names(goals), "TODO: observe it, by removing the # above; its value before the step counts"
    else:
        ours = _places(plan)
        target, why = f"[{', '.join([UNFILLED_TARGET] * len(ours))}]", "TODO: numbers, or observed fields"
    lines = ["  terms:"]
    if ours:
        lines += [
            "    near:",
            "      kind: distance",
            f"      of: {names(ours)}",
            f"      to: {target} # {why}",
            f"      scale: {number(_half(ours))} # the error that costs 1; half of the range recorded",
        ]
    else:
        lines.append("    # near: {kind: distance, of: [TODO an observed field], to: [TODO a number], scale: 1.0}")
    lines += [
        "    effort: {kind: effort, weight: 0.01} # squares in shares of the limits; not for commanded positions",
        "    smooth: {kind: smoothness, weight: 0.01} # of changes from one command to the next",
    ]
    if ours:
        lines += [
            "    # arrived: # TODO: how near is there, and what is it worth in each step?",
            "    #   kind: success",
            f"    #   of: {names(ours)}",
            f"    #   to: {target}",
            f"    #   within: {number(round_up(_half(ours) / 10))}",
            "    #   weight: 10",
        ]
    return [*lines, "    # alive: {kind: alive, weight: 1.0} # where an episode ends when the robot falls"]


def _plain(found: Iterable[tuple[RecordedTopic, Choice]]) -> list[Field]:
    """The chosen numbers that are what the message holds."""
    return [(topic, field) for topic, choice in found for field in choice.fields if field not in choice.how]


def _pairs(plan: Design) -> tuple[list[Field], list[Field]]:
    """Fields of the state, and those of a goal's topic, which the proposal offers to observe, that end alike."""
    offers = [(e.topic, e.offer) for e in plan.left_out if e.offer is not None and GOAL_WORDS.search(e.topic.topic)]
    goals = [entry for entry in _plain(offers) if not RATES.search(entry[1])]
    states = _plain(plan.states)
    ours, theirs = [], []
    for goal in goals:
        mates = [state for state in states if _alike(state[1], goal[1])]
        if len(mates) == 1 and len(ours) < MOST:
            ours.append(mates[0])
            theirs.append(goal)
    return ours, theirs


def _alike(one: str, other: str) -> bool:
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _places(plan: Design) -> list[Field]:
    """The first fields that say where the robot is."""
    fields = _plain(plan.states)
    return [entry for entry in fields if not RATES.search(entry[1])][:MOST] or fields[:MOST]


def _half(fields: Sequence[Field]) -> float:
    """Half the range of the most mobile field."""
    spans = []
    for topic, field in fields:
        values = np.concatenate([*topic.by_bag(field), np.zeros(0)])
        values = values[np.isfinite(values)]
        spans.append(float(np.ptp(values)) / 2 if len(values) else 0.0)
    return round_up(max(spans)) or 1.0
