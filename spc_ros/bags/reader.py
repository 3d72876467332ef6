# SPDX-License-Identifier: Apache-2.0
"""Opens rosbag2 recordings (mcap, sqlite3) without ROS, whole or damaged, and yields their messages in log order."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spc_core.alignment.episode import EpisodeInfo
from spc_core.contract.contract import Contract, parse_contract
from spc_core.system.config_files import suggest
from spc_ros.bags.blocks import UnclosedError
from spc_ros.bags.files import BagError, bag_sha256, find_bags, list_files, storage_of
from spc_ros.bags.log import BagLog
from spc_ros.messages.columns import RawColumn
from spc_ros.messages.fields import MessageError
from spc_ros.messages.message_types import build_typestore, read_definitions

__all__ = ["BagError", "BagInfo", "BagReader", "Topic", "bag_sha256", "find_bags", "parse_episode", "read_definitions"]

EPISODE_TOPIC = "episode"
RECOVER = "record again, or save what is whole with `mcap recover` (mcap) or `ros2 bag reindex` (sqlite3)"


@dataclasses.dataclass(frozen=True)
class Topic:
    """A recorded topic: its type ('' when it changes within the bag) and its number of messages."""

    type: str
    count: int


@dataclasses.dataclass(frozen=True)
class BagInfo:
    """What a bag says about itself; `custom_data` is empty without metadata.yaml and after a reindex."""

    path: Path
    storage: str  # mcap | sqlite3
    topics: Mapping[str, Topic]
    custom_data: Mapping[str, str]
    start_ns: int
    duration_s: float

    @property
    def message_count(self) -> int:
        return sum(topic.count for topic in self.topics.values())


class BagReader:
    """One open bag; use it as a context manager. Raises BagError."""

    def __init__(self, path: str | Path, definitions: Mapping[str, str] | None = None) -> None:
        """`definitions`: text of .msg files by type name, for types that the bag does not define."""
        self.path = Path(path)
        self._stack = contextlib.ExitStack()
        with self._named_errors():
            files = list_files(self.path)
            self._log = self._stack.enter_context(contextlib.closing(BagLog(self.path, files)))
            self.size_bytes = self._log.size_bytes
            stored = frozenset((c.type, c.definition.format, c.definition.data) for c in self._log.channels)
            try:
                self.typestore = build_typestore(stored, frozenset((definitions or {}).items()))
            except MessageError as error:
                raise BagError(str(error)) from None
            self.info = self._info(storage_of(files.parts[0]), files.custom_data)
            self._log.check_serialization()
            if not self.info.message_count and self.losses:
                raise UnclosedError(f"no message can be read: {'; '.join(self.losses)}")
            if not self.info.message_count:
                raise BagError(f"{self.path}: holds no messages; check that the robot was publishing, or delete it")

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def losses(self) -> tuple[str, ...]:
        """What was lost or had to be recovered, empty for a whole bag; complete when blocks() is through."""
        return self._log.losses()

    @property
    def bytes_read(self) -> int:
        """How far the latest blocks() has come, of `size_bytes`."""
        return self._log.bytes_read()

    def blocks(self, topics: Iterable[str] = ()) -> Iterator[dict[str, RawColumn]]:
        """All messages of the named topics, or of all, in log order: consecutive blocks of some megabytes, by topic.

        A topic without a message in a block is absent from it.
        """
        with self._named_errors():
            for block in self._log.blocks(topics):
                yield block.columns()

    def raw_messages(self, topics: Iterable[str] = ()) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, receive_ns, CDR bytes) of the named topics, or of all, in log order."""
        with self._named_errors():
            for block in self._log.blocks(topics):
                yield from block.messages()

    def messages(self, topics: Iterable[str] = ()) -> Iterator[tuple[str, int, Any]]:
        """(topic, receive_ns, message) of the named topics, or of all, in log order."""
        deserialize = self.typestore.deserialize_cdr
        with self._named_errors():
            for topic, type_name, receive_ns, data in self.raw_messages(topics):
                if type_name not in self.typestore.fielddefs:
                    raise BagError(
                        f"{self.path}: type '{type_name}' of topic '{topic}' is defined neither in the bag nor in "
                        f"ROS 2 Jazzy; give the folder of its package, with msg/*.msg"
                    )
                yield topic, receive_ns, deserialize(data, type_name)

    def find_topic(self, topic: str, type_name: str) -> str:
        """The bag's name of a contract's topic: the same, or the same within the robot's namespace.

        Raises BagError when it is missing, ambiguous, or of another type.
        """
        name = self._match(topic)
        if name is None:
            known = self.info.topics
            hint = suggest(topic, [t.lstrip("/") for t in known])
            raise BagError(f"{self.path}: has no topic '{topic}'{hint}; it has: {', '.join(known) or 'none'}")
        found = self.info.topics[name].type
        if found != type_name:
            raise BagError(
                f"{self.path}: topic '{name}' is {found or 'of more than one type'}, the contract says "
                f"{type_name}; correct the contract's type and fields"
            )
        return name

    def episode_topics(self) -> list[str]:
        """The bag's name of the latched topic `episode`, in a list that is empty where the bag has none."""
        name = self._match(EPISODE_TOPIC)
        return [name] if name and self.info.topics[name].type == "std_msgs/msg/String" else []

    def last_episode(self) -> EpisodeInfo | None:
        """The newest word of the topic `episode` about an episode; None where the bag has none."""
        names = self.episode_topics()
        texts = [message.data for _, _, message in self.messages(names)] if names else []
        return parse_episode(texts, str(self.path))

    def _match(self, topic: str) -> str | None:
        names = [t for t in self.info.topics if t.lstrip("/") == topic.lstrip("/")]
        names = names or [t for t in self.info.topics if not topic.startswith("/") and t.endswith(f"/{topic}")]
        if len(names) > 1:
            raise BagError(
                f"{self.path}: topic '{topic}' could be any of {', '.join(names)}; record one robot per bag "
                f"or write the full topic name in the contract"
            )
        return names[0] if names else None

    def _info(self, storage: str, custom_data: Mapping[str, str]) -> BagInfo:
        topics: dict[str, Topic] = {}
        for channel, count in zip(self._log.channels, self._log.counts, strict=True):
            before = topics.get(channel.topic, Topic(channel.type, 0))
            type_name = channel.type if channel.type == before.type else ""
            topics[channel.topic] = Topic(type_name, before.count + count)
        start_ns, end_ns = self._log.span_ns()
        return BagInfo(self.path, storage, topics, custom_data, start_ns, max(0, end_ns - start_ns) / 1e9)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Give an error its bag and a fix. Damaged bytes make parsers raise anything, so all is caught."""
        try:
            yield
        except (BagError, MessageError) as error:
            self.close()
            if isinstance(error, BagError) and str(error).startswith(f"{self.path}: "):
                raise
            raise BagError(f"{self.path}: {error}") from error
        except Exception as error:
            self.close()
            raise BagError(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        what = str(error) or type(error).__name__
        if isinstance(error, UnclosedError):
            return f"{self.path}: truncated, the recording was never closed ({what}); {RECOVER}"
        return f"{self.path}: cannot be read ({what}); {RECOVER}"


def contract_in(bags: Iterable[Path]) -> tuple[Contract | None, list[str]]:
    """(the contract that the first bag with one carries, errors of bags before it). Raises ContractError."""
    unreadable = []
    for path in bags:
        try:
            with BagReader(path) as bag:
                text = bag.info.custom_data.get("spc.contract")
        except BagError as error:
            unreadable.append(str(error))
            continue
        if text:
            return parse_contract(text, f"{path} custom_data spc.contract"), unreadable
    return None, unreadable


def parse_episode(texts: Iterable[str], where: str) -> EpisodeInfo | None:
    """The last message of the topic `episode` that tells of an episode. Raises BagError on foreign text."""
    found = None
    for text in texts:
        try:
            info = EpisodeInfo.from_json(text)
        except ValueError as error:
            raise BagError(f"{where}: {error}") from None
        found = found if info.state == "idle" else info
    return found
