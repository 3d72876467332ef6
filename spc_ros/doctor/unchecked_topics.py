# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag the doctor's checks did not see, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from spc_core.contract.contract import Contract
from spc_core.doctor.topic_looks import Unchecked
from spc_ros.bags.reader import BagReader
from spc_ros.messages.simulated_time import CLOCK


def unchecked_topics(
    bag: BagReader,
    contract: Contract | None,
    checked: Collection[str],
    marks: Collection[str],
    failed: Mapping[str, str],
    empty: Mapping[str, int],
) -> list[Unchecked]:
    """`checked`, `marks`: the bag's names of topics with a log, and of those that mark episodes or tasks.

    `failed`: why a topic could not be read; `empty`: messages without a number in them that were decoded.
    """
    found = []
    for name, topic in bag.info.topics.items():
        if name not in checked:
            why = _why(bag, name, contract is not None, marks, failed, empty)
            found.append(Unchecked(name, topic.type, topic.count, why))
    found += [Unchecked(name, "", 0, f"not read: {why}") for name, why in failed.items() if name not in bag.info.topics]
    return found


def _why(
    bag: BagReader,
    name: str,
    has_contract: bool,
    marks: Collection[str],
    failed: Mapping[str, str],
    empty: Mapping[str, int],
) -> str:
    topic = bag.info.topics[name]
    if name in failed:
        return f"not decoded: {failed[name].removeprefix('not decoded, ')}"
    if name in empty:
        return f"decoded {empty[name]:,} of {max(topic.count, empty[name]):,}: no number in it"
    if name in marks:
        return "read: marks episodes or tasks"
    if not topic.count:
        return "holds no message"
    if has_contract:
        return "not read: not in the contract"
    if name in bag.left_out:
        return "not decoded: not serialised as CDR"
    return "not read: simulated time" if topic.type == CLOCK else "not decoded: of more than one type"
