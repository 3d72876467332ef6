# SPDX-License-Identifier: Apache-2.0
"""What a contract says of safety: a box for the observation, and how long the last command may stand without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from spc_core.contract.yaml_section import Section
from spc_core.system.config_files import suggest

LOSS_KEYS = ("hold_ms", "deactivate_after_s")
LONGEST = {"hold_ms": 60_000.0, "deactivate_after_s": 86_400.0}


@dataclasses.dataclass(frozen=True)
class Loss:
    """What to do while a stream gives nothing good; None where the contract leaves it open."""

    hold_ms: float | None = None  # the last command stands for so long, then the safe action
    deactivate_after_s: float | None = None  # after so long the policy deactivates; 0: never

    def over(self, other: Loss) -> Loss:
        """What this one says, and the other where it is silent."""
        return Loss(
            other.hold_ms if self.hold_ms is None else self.hold_ms,
            other.deactivate_after_s if self.deactivate_after_s is None else self.deactivate_after_s,
        )


@dataclasses.dataclass(frozen=True)
class Safety:
    """The section `safety`; empty where the contract has none."""

    workspace: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)  # by observation field
    loss: Loss = Loss()  # of streams that say nothing of their own


def observed_column(names: Sequence[str], wanted: str) -> int:
    """Place of an observation field, given whole or without its topic. Raises ValueError: what is wrong, the fix."""
    found = [i for i, name in enumerate(names) if name == wanted or name.endswith(f".{wanted}")]
    if len(found) != 1:
        problem = "is not observed" if not found else "is observed more than once; write the topic before it"
        raise ValueError(f"{problem}{suggest(wanted, names)}; known: {', '.join(names)}")
    return found[0]


def parse_loss(section: Section) -> Loss:
    """hold_ms and deactivate_after_s of a section; other keys are the caller's."""
    given: dict[str, Any] = {}
    for key in LOSS_KEYS:
        if key in section.values:
            given[key] = section.number(key)
            if not 0 <= given[key] <= LONGEST[key]:
                raise section.fail(key, f"is {given[key]:g}; give a number from 0 to {LONGEST[key]:g}")
    return Loss(**given)


def check_loss(section: Section, loss: Loss) -> None:
    """Raises where the end would come before the hold is over."""
    if loss.hold_ms and loss.deactivate_after_s and loss.deactivate_after_s * 1e3 < loss.hold_ms:
        raise section.fail(
            "deactivate_after_s",
            f"is {loss.deactivate_after_s:g}, shorter than hold_ms {loss.hold_ms:g}; make it longer, or 0 for never",
        )


def parse_safety(section: Section, observed: Sequence[str]) -> Safety:
    """`observed` are the names of the observation's numbers."""
    section.only("workspace", *LOSS_KEYS)
    loss = parse_loss(section)
    check_loss(section, loss)
    if "workspace" not in section.values:
        return Safety(loss=loss)
    box = section.section("workspace")
    workspace: dict[str, tuple[float, float]] = {}
    places: dict[int, str] = {}
    for name in box.values:
        try:
            place = observed_column(observed, str(name))
        except ValueError as error:
            raise box.fail(str(name), str(error)) from None
        if place in places:
            raise box.fail(str(name), f"is the same field as {places[place]}; keep one")
        low, high = box.numbers(name, 2)
        if not low < high:
            raise box.fail(str(name), f"is [{low:g}, {high:g}]; the first must be below the second")
        places[place], workspace[str(name)] = str(name), (low, high)
    return Safety(workspace, loss)
