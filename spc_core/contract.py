# SPDX-License-Identifier: Apache-2.0
"""The contract: what a robot says and obeys, as vectors. One YAML per robot, the same from bag to robot."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spc_core.rewards import REWARDS, RewardFunction

CLOCKS = ("header", "receive")
SEGMENTS = ("bag",)


class ContractError(ValueError):
    """A contract that cannot be used; the message names file, field, value and fix."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """One observed topic; its fields follow each other in the observation vector."""

    topic: str
    type: str
    fields: tuple[str, ...]
    max_age_s: float

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of the stream's part of the observation vector is called."""
        return self.fields

    @property
    def max_age_ns(self) -> int | None:
        """The oldest a sample may be at a tick, in nanoseconds; None where any age will do."""
        return None if math.isinf(self.max_age_s) else round(self.max_age_s * 1e9)


@dataclasses.dataclass(frozen=True)
class Action:
    """The commanded topic, with limits in the unit of its fields and `max_rate` in that unit per second."""

    topic: str
    type: str
    fields: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    safe: tuple[float, ...]
    max_rate: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Reward:
    """Either a field of a topic or a function of the registry with its weights."""

    topic: str | None = None
    type: str | None = None
    field: str | None = None
    function: str | None = None
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Contract:
    """A robot's contract. Every dimension in the system is derived from here."""

    name: str
    rate_hz: float
    clock: str
    observation: tuple[Stream, ...]
    action: Action
    reward: Reward
    task_key: str
    segment: str
    text: str = dataclasses.field(repr=False, compare=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def period_ns(self) -> int:
        return round(1e9 / self.rate_hz)

    @property
    def observation_names(self) -> tuple[str, ...]:
        return tuple(f"{stream.topic}.{name}" for stream in self.observation for name in stream.names)

    @property
    def observation_dim(self) -> int:
        return sum(len(stream.names) for stream in self.observation)

    @property
    def action_dim(self) -> int:
        return len(self.action.fields)

    def reward_function(self) -> RewardFunction | None:
        """The reward of a transition as a function, or None where a topic carries it."""
        if self.reward.function is None:
            return None
        scale = np.maximum(np.abs(self.action.low), np.abs(self.action.high))
        return REWARDS[self.reward.function].build(self.observation_names, scale, self.reward.weights)

    def differences(self, other: Contract) -> list[str]:
        """One line for each field in which two contracts disagree; empty when they mean the same."""
        mine, theirs = _flatten(yaml.safe_load(self.text)), _flatten(yaml.safe_load(other.text))
        keys = sorted(mine.keys() | theirs.keys())
        return [f"{key}: {mine.get(key, 'absent')} here, {theirs.get(key, 'absent')} there"
                for key in keys if mine.get(key) != theirs.get(key)]  # fmt: skip


def load_contract(path: str | Path) -> Contract:
    """Read and check a contract file. Raises ContractError with file, field, value and fix."""
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise ContractError(f"{path}: cannot be read ({error.strerror}); give the path of a contract YAML") from None
    return parse_contract(text, str(path))


def parse_contract(text: str, source: str) -> Contract:
    """Check a contract's text; `source` names it in errors."""
    try:
        root = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ContractError(f"{source}: not valid YAML: {error}") from None
    top = _Section(root, source, "")
    top.only("name", "rate_hz", "clock", "observation", "action", "reward", "task", "episode")
    contract = Contract(
        name=top.text("name"),
        rate_hz=top.positive("rate_hz"),
        clock=top.choice("clock", CLOCKS),
        observation=tuple(_stream(section) for section in top.sections("observation")),
        action=_action(top.section("action")),
        reward=_reward(top.section("reward")),
        task_key=_only(top.section("task"), "key").text("key"),
        segment=_only(top.section("episode"), "segment").choice("segment", SEGMENTS),
        text=text,
    )
    if math.isinf(contract.observation[0].max_age_s):
        raise top.fail("observation[0].max_age_s", "is infinite, but the first stream sets the ticks; give it a limit")
    names = contract.observation_names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ContractError(f"{source}: observation lists {', '.join(repeated)} more than once; keep one")
    try:
        contract.reward_function()
    except ValueError as error:
        raise ContractError(f"{source}: {error}") from None
    return contract


def find_config(kind: str, name: str) -> Path:
    """Path of a shipped file `config/<kind>/<name>.yaml`, or `name` itself when it is a path.

    Looks beside the source, then in the shared folder of a ROS install tree, then of the Python prefix.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return Path(name)
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    shared = [Path(prefix) / "share" / "spc_ros" for prefix in [*prefixes, sys.prefix]]
    folders = [root / "config" / kind for root in [Path(__file__).resolve().parents[1], *shared]]
    known: set[str] = set()
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
        known.update(file.stem for file in folder.glob("*.yaml"))
    raise ContractError(f"no {kind} file is called '{name}'{suggest(name, known)}; known: {', '.join(sorted(known))}")


def suggest(word: str, known: Any) -> str:
    """' (did you mean ...?)' when a known word is near, else nothing."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


class _Section:
    """A mapping of the YAML file that knows where it stands, so that each error names file and field."""

    def __init__(self, value: Any, source: str, path: str) -> None:
        self.source, self.path = source, path
        if not isinstance(value, dict):
            raise ContractError(f"{source}: {path.rstrip('.') or 'the file'} must be a mapping, got {value!r}")
        self.values = value

    def fail(self, key: str, problem: str) -> ContractError:
        return ContractError(f"{self.source}: {self.path}{key} {problem}")

    def only(self, *known: str) -> None:
        for key in self.values:
            if key not in known:
                raise self.fail(key, f"is not a contract field{suggest(key, known)}; known here: {', '.join(known)}")

    def get(self, key: str) -> Any:
        if key not in self.values:
            raise self.fail(key, "is missing; add it")
        return self.values[key]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(key, f"must be a text, got {value!r}")
        return value

    def positive(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self.fail(key, f"must be a positive number, got {value!r}")
        return float(value)

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        value = self.get(key)
        if value not in known:
            raise self.fail(key, f"is {value!r}{suggest(value, known)}; use one of: {', '.join(known)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
            raise self.fail(key, f"must be a list of texts with at least one entry, got {value!r}")
        return tuple(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.fail(key, f"must be a list of {count} numbers, one for each field, got {value!r}")
        entries = _Section({f"{key}[{i}]": v for i, v in enumerate(value)}, self.source, self.path)
        return tuple(entries.number(entry) for entry in entries.values)

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.fail(key, f"must be a finite number, got {value!r}")
        return float(value)

    def section(self, key: str) -> _Section:
        return _Section(self.get(key), self.source, f"{self.path}{key}.")

    def sections(self, key: str) -> list[_Section]:
        value = self.get(key)
        if not isinstance(value, list) or not value:
            raise self.fail(key, f"must be a list with at least one entry, got {value!r}")
        return [_Section(v, self.source, f"{self.path}{key}[{i}].") for i, v in enumerate(value)]


def _only(section: _Section, *known: str) -> _Section:
    section.only(*known)
    return section


def _message_type(section: _Section) -> str:
    value = section.text("type")
    if value.count("/") != 2 or "/msg/" not in value:
        raise section.fail("type", f"is '{value}'; write package/msg/Type, for example sensor_msgs/msg/JointState")
    return value


def _stream(section: _Section) -> Stream:
    section.only("topic", "type", "fields", "max_age_s")
    return Stream(section.text("topic"), _message_type(section), section.texts("fields"), section.positive("max_age_s"))


def _action(section: _Section) -> Action:
    section.only("topic", "type", "fields", "low", "high", "safe", "max_rate")
    fields = section.texts("fields")
    n = len(fields)
    action = Action(section.text("topic"), _message_type(section), fields, section.numbers("low", n),
                    section.numbers("high", n), section.numbers("safe", n), section.numbers("max_rate", n))  # fmt: skip
    for i, name in enumerate(fields):
        if not action.low[i] < action.high[i]:
            raise section.fail(f"low[{i}]", f"({name}) is {action.low[i]}, not below high {action.high[i]}")
        if not action.low[i] <= action.safe[i] <= action.high[i]:
            raise section.fail(
                f"safe[{i}]", f"({name}) is {action.safe[i]}, outside [{action.low[i]}, {action.high[i]}]"
            )
        if action.max_rate[i] <= 0:
            raise section.fail(f"max_rate[{i}]", f"({name}) must be positive, got {action.max_rate[i]}")
    return action


def _reward(section: _Section) -> Reward:
    if "function" not in section.values:
        section.only("topic", "type", "field")
        return Reward(topic=section.text("topic"), type=_message_type(section), field=section.text("field"))
    section.only("function", "weights")
    function = section.choice("function", tuple(REWARDS))
    known = REWARDS[function].weights
    weights = section.section("weights") if "weights" in section.values else _Section({}, section.source, "")
    weights.only(*known)
    return Reward(function=function, weights={**known, **{key: weights.number(key) for key in weights.values}})


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """{'a': [{'b': 1}]} becomes {'a[0].b': 1}, so that two contracts can be compared field by field."""
    if isinstance(value, dict):
        pairs = [(f"{path}.{k}" if path else str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        pairs = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for p, v in pairs for key, leaf in _flatten(v, p).items()}
