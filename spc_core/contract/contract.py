# SPDX-License-Identifier: Apache-2.0
"""Loading and checking of contracts: one YAML file per robot defines its observation, action and reward vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import yaml

from spc_core.contract.reward_rows import RewardFields
from spc_core.contract.reward_terms import build_terms
from spc_core.contract.rewards import REWARDS, RewardFunction
from spc_core.contract.section_readers import (
    CLOCKS,
    check_loss,
    read_actions,
    read_reward,
    read_safety,
    read_segments,
    read_stream,
)
from spc_core.contract.sections import (
    ActionVector,
    Loss,
    Reward,
    Safety,
    Segments,
    Stream,
)
from spc_core.contract.yaml_section import Section
from spc_core.system.yaml_text import load_yaml

TICK_TOLERANCE = 0.25  # share of a period by which a tick may be early or late relative to the last one


class ContractError(ValueError):
    """An invalid contract; the message names file, field, value and fix."""


@dataclasses.dataclass(frozen=True)
class Contract:
    """A robot's contract. Every dimension in the system is derived from here."""

    name: str
    rate_hz: float
    clock: str
    observation: tuple[Stream, ...]
    action: ActionVector
    reward: Reward
    task_key: str
    task_topic: str  # latched std_msgs/String with the task id; '' for none
    segments: Segments
    text: str = dataclasses.field(repr=False, compare=False)
    safety: Safety = dataclasses.field(default=Safety(), compare=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def period_ns(self) -> int:
        return round(1e9 / self.rate_hz)

    @property
    def tick_window_ns(self) -> tuple[int, int]:
        """Earliest and latest time from one tick to the next."""
        return round(self.period_ns * (1 - TICK_TOLERANCE)), round(self.period_ns * (1 + TICK_TOLERANCE))

    @property
    def hold_gap_ns(self) -> float:
        """A pause without observations, after which no earlier command holds: that of `segment: gap`, else none."""
        return max(self.segments.gap_s * 1e9, self.tick_window_ns[1] + 1)

    @property
    def observation_names(self) -> tuple[str, ...]:
        return tuple(f"{stream.topic}.{name}" for stream in self.observation for name in stream.names)

    @property
    def observation_dim(self) -> int:
        return sum(len(stream.names) for stream in self.observation)

    @property
    def action_dim(self) -> int:
        return len(self.action.fields)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The reaction to the loss of each observation stream: its own on_loss, with the section safety as default."""
        return tuple(stream.on_loss.over(self.safety.loss) for stream in self.observation)

    def reward_function(self) -> RewardFunction | None:
        """The reward function of a transition, or None if a topic provides the reward."""
        reward = self.reward
        if reward.topic is not None:
            return None
        fields = RewardFields(
            self.observation_names,
            tuple(limits for stream in self.observation for field in stream.observed for limits in field.ranges),
            self.action.fields, self.action.low, self.action.high, 1 / self.rate_hz,
        )  # fmt: skip
        if reward.function is not None:
            return RewardFunction(REWARDS[reward.function].build(fields, reward.weights))
        return RewardFunction(build_terms(reward.terms, fields))

    def differences(self, other: Contract) -> list[str]:
        """One line for each field in which two contracts differ, but for `qos`; empty if they are equivalent."""
        here, there = _flatten(load_yaml(self.text)), _flatten(load_yaml(other.text))
        keys = sorted(here.keys() | there.keys())
        return [f"{key}: {here.get(key, 'absent')} here, {there.get(key, 'absent')} there"
                for key in keys if here.get(key) != there.get(key) and "].qos." not in key]  # fmt: skip


def load_contract(path: str | Path) -> Contract:
    """Read and check a contract file. Raises ContractError with file, field, value and fix."""
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise ContractError(f"{path}: cannot be read ({error.strerror}); give the path of a contract YAML") from None
    return parse_contract(text, str(path))


def parse_contract(text: str, source: str) -> Contract:
    """Parse and check the text of a contract; `source` names it in errors."""
    try:
        root = load_yaml(text)
    except yaml.YAMLError as error:
        raise ContractError(f"{source}: not valid YAML: {error}") from None
    top = Section(root, source, error=ContractError)
    top.only("name", "rate_hz", "clock", "observation", "action", "reward", "task", "episode", "safety")
    clock = top.choice("clock", CLOCKS)
    task = top.section("task").only("key", "topic")
    contract = Contract(
        name=top.text("name"),
        rate_hz=top.positive("rate_hz"),
        clock=clock,
        observation=tuple(read_stream(section, clock) for section in top.sections("observation")),
        action=read_actions(top, clock),
        reward=read_reward(top.section("reward"), clock),
        task_key=task.text("key"),
        task_topic=task.text("topic") if "topic" in task.values else "",
        segments=read_segments(top.section("episode")),
        text=text,
    )
    if math.isinf(contract.observation[0].max_age_s):
        raise top.fail("observation[0].max_age_s", "is infinite, but the first stream defines the ticks; set a limit")
    names = contract.observation_names
    if "safety" in top.values:
        contract = dataclasses.replace(contract, safety=read_safety(top.section("safety"), names))
    for stream, section in zip(contract.observation, top.sections("observation"), strict=True):
        if "on_loss" in section.values:
            check_loss(section.section("on_loss"), stream.on_loss.over(contract.safety.loss))
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ContractError(f"{source}: observation lists {', '.join(repeated)} more than once; keep one")
    try:
        contract.reward_function()
    except ValueError as error:
        raise ContractError(f"{source}: {error}") from None
    return contract


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """{'a': [{'b': 1}]} becomes {'a[0].b': 1}, for comparing two contracts field by field."""
    if isinstance(value, dict):
        pairs = [(f"{path}.{k}" if path else str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        pairs = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for p, v in pairs for key, leaf in _flatten(v, p).items()}
