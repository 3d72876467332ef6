# SPDX-License-Identifier: Apache-2.0
"""The message types of a bag's topics, each parsed when its topic is read: one that cannot be read spoils no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rosbags.interfaces import MessageDefinitionFormat
from rosbags.typesys import Stores
from rosbags.typesys.store import Typestore

from spc_ros.bags.blocks import Channel
from spc_ros.messages.fields import MessageError
from spc_ros.messages.message_types import DISTROS, Types, collect, distro_types, fields_of, make_store, parse

Misfits = Callable[[str, str, Typestore], int]
"""How many messages of (topic, type) cannot be read with a store."""


class TopicTypes:
    """A definition comes from the bag, else from the user, else from a distribution of ROS 2.

    That is the one which the bag names; else, or where that does not fit every message, the newest that does.
    """

    def __init__(self, channels: Sequence[Channel], given: Mapping[str, str], distro: str, misfits: Misfits) -> None:
        """`given`: text of .msg files by type name. `distro`: the name in the bag, or ''."""
        self._channels, self._distro, self._misfits = channels, distro.strip().lower(), misfits
        self._given_text = given
        self._stores: dict[tuple[str, str], Typestore] = {}
        self._used: dict[tuple[str, str], dict[str, None]] = {}  # types by (distribution, why)

    @property
    def notes(self) -> list[str]:
        """Which definitions were used that are not in the bag."""
        return [
            f"the bag does not define {', '.join(types)}; the definition of ROS 2 {distro.title()} is used, {why}"
            for (distro, why), types in self._used.items()
        ]

    def store(self, topic: str, type_name: str) -> Typestore:
        """The types to read a topic with. Raises MessageError."""
        key = topic, type_name
        if key not in self._stores:
            self._stores[key] = self._make(topic, type_name)
        return self._stores[key]

    def _make(self, topic: str, type_name: str) -> Typestore:
        own = [c for c in self._channels if c.topic == topic and c.type == type_name]
        if foreign := {c.serialization for c in own} - {"cdr"}:
            raise MessageError(f"topic '{topic}': serialised as '{foreign.pop()}', not as 'cdr', and left out")
        texts = self._defined(own) or self._defined([c for c in self._channels if c.type == type_name])
        try:
            found = [parse(type_name, *text) for text in texts]
        except MessageError as error:
            raise MessageError(f"topic '{topic}': not decoded, {error}") from None
        given = self._given()
        if not found and type_name not in given:
            return self._of_a_distro(topic, type_name, given)
        default = distro_types(self._named() or Stores.ROS2_JAZZY).fielddefs
        stored = [collect(type_name, types, given, default) for types in found or [given]]
        for other in stored[1:]:
            if fields_of(other) != fields_of(stored[0]):
                raise MessageError(
                    f"topic '{topic}': {type_name} has two definitions in this bag ({_difference(stored[0], other)}); "
                    f"convert the parts that were recorded with each apart"
                )
        return self._store_of(topic, stored[0])

    @staticmethod
    def _store_of(topic: str, types: Types) -> Typestore:
        try:
            return make_store(types)
        except MessageError as error:
            raise MessageError(f"topic '{topic}': not decoded, {error}") from None

    @staticmethod
    def _defined(channels: Sequence[Channel]) -> list[tuple[MessageDefinitionFormat, str]]:
        """The different definitions in the bag. An empty one of a known type is none: the recorder did not find it."""
        types = distro_types().fielddefs
        known = [(c.definition.format, c.definition.data) for c in channels if c.definition.data or c.type not in types]
        return [text for text in dict.fromkeys(known) if text[0] != MessageDefinitionFormat.NONE]

    def _given(self) -> Types:
        types: dict = {}
        for name, text in self._given_text.items():
            types = {**parse(name, MessageDefinitionFormat.MSG, text), **types}
        return types

    def _named(self) -> Stores | None:
        return next((store for store in DISTROS if _title(store) == self._distro), None)

    def _of_a_distro(self, topic: str, type_name: str, given: Types) -> Typestore:
        """Of distributions that define the type differently, the first that fits every message."""
        named = self._named()
        candidates: dict[Stores, Types] = {}
        for store in [*([named] if named else []), *(store for store in DISTROS if store != named)]:
            types = collect(type_name, given, distro_types(store).fielddefs)
            if type_name in types and all(fields_of(types) != fields_of(known) for known in candidates.values()):
                candidates[store] = types
        if not candidates:
            raise MessageError(
                f"topic '{topic}': no definition of the type '{type_name}', neither in the bag nor in ROS 2; give the "
                f"folder of its package, with msg/*.msg (--types), or record again"
            )
        stores = {store: self._store_of(topic, types) for store, types in candidates.items()}
        chosen, why = self._choose(topic, type_name, stores)
        if len(stores) > 1 or (named and named != Stores.ROS2_JAZZY):
            self._used.setdefault((_title(chosen), why), {})[type_name] = None
        return stores[chosen]

    def _choose(self, topic: str, type_name: str, stores: Mapping[Stores, Typestore]) -> tuple[Stores, str]:
        """(the distribution whose definition is used, why)."""
        first, named = next(iter(stores)), self._named()
        misfits: dict[Stores, int] = {}
        for store, types in stores.items():
            misfits[store] = self._misfits(topic, type_name, types) if len(stores) > 1 else 0
            if not misfits[store]:
                break
        chosen = min(misfits, key=lambda store: misfits[store])
        if misfits[chosen]:
            return chosen, f"which fits more messages of {topic} than any other, but not all"
        if chosen == first == named:
            return chosen, "which the bag names"
        besides = f"; that of {_title(named).title()}, which the bag names, does not" if named in misfits else ""
        return chosen, f"which fits every message{besides}"


def _title(store: Stores) -> str:
    return store.value.removeprefix("ros2_")


def _difference(one: Types, other: Types) -> str:
    a, b = fields_of(one), fields_of(other)
    name = next(name for name in [*a, *b] if a.get(name) != b.get(name))
    return f"{name}: {_listed(a.get(name))} and {_listed(b.get(name))}"


def _listed(fields: list | None) -> str:
    return ", ".join(name for name, _ in fields or []) or "nothing"
