# SPDX-License-Identifier: Apache-2.0
"""The section `reward` of a contract from its YAML: a topic, a function, named terms, or an expression."""

from __future__ import annotations

import math
import re
from typing import Any

from spc_core.contract.reward_terms import KINDS, SHAPES
from spc_core.contract.rewards import REWARDS
from spc_core.contract.sections import Reward, TermSpec
from spc_core.contract.yaml_section import Section

SOURCES = ("topic", "function", "terms", "expression")
MAX_TERMS = 50
UNFILLED_TARGET = "fill_in_the_target"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_computed_reward(section: Section) -> Reward | None:
    """The reward that is computed from transitions; None where it is a topic's."""
    if "fill_in_the_reward" in section.values:  # as `spc contract init` leaves it
        raise section.fail("fill_in_the_reward", "is a placeholder; replace it with a reward as the comments show")
    given = [key for key in SOURCES if key in section.values]
    if len(given) > 1:
        raise section.fail(given[1], f"is given beside {given[0]}; a reward has one source, keep one of them")
    if not given:
        section.only(*SOURCES, "type", "field", "clock")
        raise section.fail("topic", f"is missing; give one of: {', '.join(SOURCES)}")
    if given == ["topic"]:
        return None
    section.only(given[0], *(("weights",) if given == ["function"] else ()))
    if given == ["expression"]:
        return Reward(terms=(TermSpec("expression", "expression", f"{section.path}expression", 1.0,
                                      expression=section.text("expression")),))  # fmt: skip
    return _named_function(section) if given == ["function"] else Reward(terms=_terms(section.section("terms")))


def _named_function(section: Section) -> Reward:
    function = section.choice("function", tuple(REWARDS))
    known = REWARDS[function].weights
    weights = section.section("weights").only(*known) if "weights" in section.values else None
    given = {key: weights.number(key) for key in weights.values} if weights else {}
    return Reward(function=function, weights={**known, **given})


def _terms(section: Section) -> tuple[TermSpec, ...]:
    if not 1 <= len(section.values) <= MAX_TERMS:
        raise section.error(
            f"{section.source}: {section.path.rstrip('.')} has {len(section.values)} terms; give 1 to {MAX_TERMS}"
        )
    for name in section.values:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise section.fail(str(name), "is not a term's name; use letters, digits and _, beginning with a letter")
    return tuple(_term(section.section(name), name) for name in section.values)


def _term(section: Section, name: str) -> TermSpec:
    kind_name = section.choice("kind", tuple(KINDS))
    kind = KINDS[kind_name]
    section.only("kind", "weight", *kind.keys)
    for key in kind.required:
        section.get(key)
    weight = section.number("weight") if "weight" in section.values else 1.0
    if weight == 0.0:
        raise section.fail("weight", "is 0, so that the term pays nothing; give another number, or remove the term")
    of = _names(section, "of") if "of" in section.values else ()
    to = _targets(section, kind_name) if "to" in section.values else ()
    if to and len(to) != len(of):
        raise section.fail("to", f"has {len(to)} entries, but of has {len(of)}; give one for each")
    near, within = _within(section, kind_name) if "within" in section.values else (0.0, None)
    shape = section.choice("shape", tuple(SHAPES)) if "shape" in section.values else kind.shape
    return TermSpec(
        name=name,
        kind=kind_name,
        path=section.path.rstrip("."),
        weight=weight,
        of=of,
        to=to,
        scales=_scales(section, max(len(of), 1), per_field=kind_name not in ("effort", "smoothness")),
        shape=shape,
        angle=section.flag("angle") if "angle" in section.values else False,
        near=near,
        within=within,
        expression=section.text("value") if "value" in section.values else "",
    )


def _names(section: Section, key: str) -> tuple[str, ...]:
    return (section.text(key),) if isinstance(section.get(key), str) else section.texts(key)


def _targets(section: Section, kind: str) -> tuple[str | float, ...]:
    """Names of fields, or numbers; of tracking names alone."""
    value = section.get("to")
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise section.fail("to", "is an empty list; give a field or a number for each entry of of")
    return tuple(_target(section, entry, kind) for entry in entries)


def _target(section: Section, entry: Any, kind: str) -> str | float:
    if entry == UNFILLED_TARGET:  # as `spc contract init` leaves it
        raise section.fail("to", f"is a placeholder: where {', '.join(_names(section, 'of'))} shall be cannot be told "
                           "from a recording; write numbers, or observed fields")  # fmt: skip
    if isinstance(entry, str) and _says_number(entry):
        raise section.fail("to", f"is the text '{entry}' to YAML; write {float(entry)!r}")
    if isinstance(entry, str) and entry:
        return entry
    if kind == "tracking":
        raise section.fail("to", f"is {entry!r}, but tracking follows a field; name one, or use the kind distance")
    if isinstance(entry, (int, float)) and not isinstance(entry, bool) and math.isfinite(entry):
        return float(entry)
    raise section.fail("to", f"must be a field, a finite number, or a list of them, got {entry!r}")


def _scales(section: Section, count: int, per_field: bool) -> tuple[float, ...]:
    """A positive number for each field, from one for all or a list."""
    value = section.values.get("scale", 1.0)
    if isinstance(value, list) and per_field:
        scales, keys = section.numbers("scale", count), [f"scale[{i}]" for i in range(count)]
    else:
        scales, keys = (section.number("scale") if "scale" in section.values else 1.0,) * count, ["scale"] * count
    for key, scale in zip(keys, scales, strict=True):
        if not scale > 0:
            raise section.fail(key, f"is {scale:g}; it must be positive: the error that counts as 1")
    return scales


def _within(section: Section, kind: str) -> tuple[float, tuple[float, float] | None]:
    """A distance from `to`, or the band [low, high], in which either side may be infinite."""
    value = section.get("within")
    if kind == "success" and "to" in section.values:
        if isinstance(value, list):
            raise section.fail("within", f"is {value!r}, but with to it is a distance; give a number, or remove to")
        return section.positive("within"), None
    if not isinstance(value, list) or len(value) != 2 or not all(_is_number(entry) for entry in value):
        raise section.fail("within", f"must be a band [low, high], either of which may be .inf, got {value!r}")
    low, high = float(value[0]), float(value[1])
    if not low < high:
        raise section.fail("within", f"is [{low:g}, {high:g}], upside down; the first must be below the second")
    return 0.0, (low, high)


def _says_number(text: str) -> bool:
    """YAML reads 1e-3 as a text."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
