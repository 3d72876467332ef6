# SPDX-License-Identifier: Apache-2.0
"""Opens rosbag2 recordings (mcap, sqlite3) without ROS, intact or damaged, and yields their messages in log order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys.store import Typestore

from spc_core.alignment.episode import EpisodeInfo, tells_of_episode
from spc_core.contract.contract import Contract, parse_contract
from spc_core.system.config_files import suggest
from spc_ros.bags.blocks import DamageError, LogBlock, MessageSource, UnclosedError, merge, type_changes
from spc_ros.bags.compression import unpack_file, unpack_messages
from spc_ros.bags.files import PACKED, BagError, list_files, storage_of
from spc_ros.bags.mcap.storage import McapStorage
from spc_ros.bags.sqlite.storage import SqliteStorage
from spc_ros.bags.topic_types import TopicTypes
from spc_ros.messages.cdr_walk import read_message
from spc_ros.messages.columns import ColumnReader, RawColumn
from spc_ros.messages.fields import MessageError
from spc_ros.messages.message_types import full_name

EPISODE_TOPIC = "episode"
STRING = "std_msgs/msg/String"
RECOVER = "record again, or save what is whole with `mcap recover` (mcap) or `ros2 bag reindex` (sqlite3)"


@dataclasses.dataclass(frozen=True)
class Topic:
    """A recorded topic: its type ('' when it changes within the bag) and its number of messages."""

    type: str
    count: int


@dataclasses.dataclass(frozen=True)
class BagInfo:
    """A bag's metadata; `custom_data` is empty without metadata.yaml and after a reindex."""

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
    """One open bag with all its storage files; use it as a context manager. Raises BagError."""

    def __init__(self, path: str | Path, definitions: Mapping[str, str] | None = None) -> None:
        """`definitions`: text of .msg files by type name, for types that the bag does not define."""
        self.path = Path(path)
        self._stack = contextlib.ExitStack()
        self._parts: list[McapStorage | SqliteStorage] = []
        self._cost_read, self._cost, self._damaged_messages = 0, 1, 0
        with self._named_errors(), contextlib.ExitStack() as opened:
            files = list_files(self.path)
            self._losses: dict[str, None] = dict.fromkeys(files.losses)
            self._notes = files.notes
            self.size_bytes = sum(part.stat().st_size for part in files.parts)
            self._open_parts(files.parts, opened)
            channels = [channel for part in self._parts for channel in part.channels]
            self._channels = [dataclasses.replace(c, type=full_name(c.type)) for c in channels]
            self._counts: list[int] = [count for part in self._parts for count in part.counts]
            named = [part.distro for part in self._parts if part.distro]
            distro = next(iter([*named, files.distro]))
            self._types = TopicTypes(self._channels, definitions or {}, distro, self._misfits)
            self.info = self._info(storage_of(files.parts[0]), files.custom_data)
            self._check_serialization()
            if not self.info.message_count and self.losses:
                raise UnclosedError(f"no message can be read: {'; '.join(self.losses)}")
            if not self.info.message_count:
                raise BagError(f"{self.path}: holds no messages; check that the robot was publishing, or delete it")
            self._stack = opened.pop_all()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def losses(self) -> tuple[str, ...]:
        """Descriptions of losses and recoveries, empty for an intact bag; final once blocks() is exhausted."""
        several = len(self._parts) > 1
        found = [f"{part.path.name}: {loss}" if several else loss for part in self._parts for loss in part.losses]
        if self._damaged_messages:
            found.append(f"{self._damaged_messages:,} compressed messages are damaged and left out")
        return (*self._losses, *found)

    @property
    def bytes_read(self) -> int:
        """Progress of the latest blocks(), of `size_bytes`."""
        return self.size_bytes * self._cost_read // self._cost

    def blocks(self, topics: Iterable[str] = ()) -> Iterator[dict[str, RawColumn]]:
        """All messages of the named topics, or of all, in log order: consecutive blocks of some megabytes, by topic.

        A topic without a message in a block is absent from it.
        """
        with self._named_errors():
            for block in self._log_blocks(topics):
                yield block.columns()

    def raw_messages(self, topics: Iterable[str] = ()) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, receive_ns, CDR bytes) of the named topics, or of all, in log order."""
        with self._named_errors():
            for block in self._log_blocks(topics):
                yield from block.rows()

    def messages(self, topics: Iterable[str] = ()) -> Iterator[tuple[str, int, Any]]:
        """(topic, receive_ns, message) of the named topics, or of all, in log order."""
        wanted = set(topics)
        with self._named_errors():
            read = [c for c in self._channels if (c.topic in wanted or not wanted) and c.serialization == "cdr"]
            stores = {(c.topic, c.type): self._types.store(c.topic, c.type) for c in read}
            for topic, type_name, receive_ns, data in self.raw_messages(wanted):
                yield topic, receive_ns, read_message(stores[topic, type_name], type_name, data)[0]

    def typestore_of(self, topic: str) -> Typestore:
        """The types to read a topic of the bag with. Raises MessageError."""
        return self._types.store(topic, self.info.topics[topic].type)

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of the bag though nothing is lost; final once its topics are read."""
        return (*self._notes, *self._types.notes)

    def _misfits(self, topic: str, type_name: str, typestore: Typestore) -> int:
        """Messages of a topic that cannot be read with these types."""
        reader, count = ColumnReader(typestore, type_name, (), topic), 0
        for block in self.blocks([topic]):
            if topic in block and block[topic].type == type_name:
                count += reader.misfits(reader.read_all(block[topic])[2])
        return count

    def _log_blocks(self, names: Iterable[str]) -> Iterator[LogBlock]:
        """Raises DamageError where all messages are damaged."""
        names = set(names)
        keys = [(c.topic, c.type) for c in self._channels]
        wanted = [(c.topic in names or not names) and c.serialization == "cdr" for c in self._channels]
        topics = tuple(dict.fromkeys(key for key, is_wanted in zip(keys, wanted, strict=True) if is_wanted))
        index = {key: i for i, key in enumerate(topics)}
        topic_of = np.array([index.get(key, 0) for key in keys], np.uint16)
        many_types = len({topic for topic, _ in topics}) < len(topics)
        first = self._damaged_messages = 0
        for merged in merge(self._open_sources(wanted), self._advance):
            self._damaged_messages += len(merged[0])
            for messages, buffer in unpack_messages(*merged):
                self._damaged_messages -= len(messages)
                topic = topic_of[messages.channel]
                ends = type_changes(topic, topics) if many_types else []
                for begin, end in zip([0, *ends], [*ends, len(messages)], strict=True):
                    some = messages.pick(np.s_[begin:end])
                    yield LogBlock(topics, topic[begin:end], some, buffer, first)
                    first += len(some)
        if not first and (count := sum(n for n, w in zip(self._counts, wanted, strict=True) if w)):
            raise DamageError(f"all {count:,} messages are damaged: {'; '.join(self.losses)}")
        self._cost_read = self._cost

    def _open_sources(self, wanted: list[bool]) -> list[MessageSource]:
        """The sources of wanted channels in all parts; channels are numbered through all parts."""
        found: list[MessageSource] = []
        first = 0
        for part in self._parts:
            indices = [i for i in range(len(part.channels)) if wanted[first + i]]
            found += sorted(part.sources(indices, first), key=lambda source: source.rank)
            first += len(part.channels)
        for rank, source in enumerate(found):
            source.rank = rank
        self._cost_read, self._cost = 0, max(1, sum(source.cost for source in found))
        return found

    def _advance(self, cost: int) -> None:
        self._cost_read += cost

    def _open_parts(self, paths: Iterable[Path], stack: contextlib.ExitStack) -> None:
        """Open all parts. Raises DamageError only where none can be opened; others are noted as losses."""
        failed: list[tuple[Path, DamageError]] = []
        for path in paths:
            try:
                file = path
                if path.name.endswith(PACKED):
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spc-bag-"))
                    file, damage = unpack_file(path, folder)
                    if damage:
                        self._losses[f"{path.name}: damaged ({damage}); what could be unpacked is read"] = None
                part = (McapStorage if storage_of(file) == "mcap" else SqliteStorage)(file)
            except DamageError as error:
                failed.append((path, error))
                continue
            stack.callback(part.close)
            self._parts.append(part)
        if failed and not self._parts:
            raise failed[0][1]
        for path, error in failed:
            unclosed = "was not closed and " if isinstance(error, UnclosedError) else ""
            self._losses[f"{path.name}: {unclosed}cannot be read ({error})"] = None

    def _check_serialization(self) -> None:
        """Raises BagError where no topic is in CDR; notes topics that are not, and leaves them out."""
        recorded = [c for c, n in zip(self._channels, self._counts, strict=True) if n]
        foreign = {c.topic: c.serialization for c in recorded if c.serialization != "cdr"}
        if foreign and all(c.topic in foreign for c in recorded):
            forms = ", ".join(sorted(set(foreign.values())))
            raise BagError(f"{self.path}: serialised as '{forms}', not as 'cdr'; record with a middleware for CDR")
        self.left_out = frozenset(foreign)
        for topic, form in foreign.items():
            self._losses[f"topic {topic} is serialised as '{form}', not as 'cdr', and left out"] = None

    def find_topic(self, topic: str, type_name: str) -> str:
        """The bag's name of a contract's topic, which may lie within the robot's namespace.

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
        """A list with the bag's name of the latched topic `episode`, empty if none tells of episodes.

        Raises BagError where several do.
        """
        found = [name for name, text in self._called_episode.items() if text is None or tells_of_episode(text)]
        if len(found) > 1:
            raise BagError(f"{self.path}: {', '.join(found)} tell of episodes; record one robot per bag")
        return found

    def foreign_episode_topics(self) -> dict[str, str]:
        """Topics that are called `episode`, but do not tell of episodes; what they say first."""
        return {n: text for n, text in self._called_episode.items() if text is not None and not tells_of_episode(text)}

    @functools.cached_property
    def _called_episode(self) -> dict[str, str | None]:
        """The first text of each topic of strings called `episode`, in any namespace; None where it cannot be read."""
        exact = [name for name in self.info.topics if name.lstrip("/") == EPISODE_TOPIC]
        called = exact or [name for name in self.info.topics if name.endswith(f"/{EPISODE_TOPIC}")]
        names = [name for name in called if self.info.topics[name].type == STRING]
        if len(names) == 1 and "spc.episode" in self.info.custom_data:  # by our recorder, so there is no need to look
            return {names[0]: None}
        return {name: self._first_text(name) for name in names}

    def _first_text(self, topic: str) -> str | None:
        try:
            for block in self._log_blocks([topic]):
                for *_, data in block.rows():
                    return text_of(read_message(self.typestore_of(topic), STRING, data)[0], topic)
        except (ValueError, SerdeError):
            pass  # damaged; whoever reads the topic says how
        return None

    def last_episode(self) -> EpisodeInfo | None:
        """The latest message of the topic `episode` about an episode; None where there is none."""
        names = self.episode_topics()
        texts = [text_of(message, name) for name, _, message in self.messages(names)] if names else []
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
        for channel, count in zip(self._channels, self._counts, strict=True):
            before = topics.get(channel.topic, Topic(channel.type, 0))
            type_name = channel.type if channel.type == before.type else ""
            topics[channel.topic] = Topic(type_name, before.count + count)
        full = [part for part in self._parts if any(part.counts)]
        start_ns, end_ns = min((p.start_ns for p in full), default=0), max((p.end_ns for p in full), default=0)
        return BagInfo(self.path, storage, topics, custom_data, start_ns, max(0, end_ns - start_ns) / 1e9)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Add bag and fix to an error. Parsers raise any exception on damaged bytes, so all are caught."""
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
        problem = str(error) or type(error).__name__
        if isinstance(error, UnclosedError):
            return f"{self.path}: truncated, the recording was never closed ({problem}); {RECOVER}"
        return f"{self.path}: cannot be read ({problem}); {RECOVER}"


def contract_in(bags: Iterable[Path]) -> tuple[Contract | None, list[str]]:
    """(the contract of the first bag that stores one, errors of bags before it). Raises ContractError."""
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


def text_of(message: Any, topic: str) -> str:
    """The text of a std_msgs/String. Raises MessageError where the bag defines that type otherwise."""
    text = getattr(message, "data", None)
    if not isinstance(text, str):
        raise MessageError(f"topic '{topic}': the bag's definition of {STRING} has no text 'data'; it may be damaged")
    return text


def parse_episode(texts: Iterable[str], where: str) -> EpisodeInfo | None:
    """The last message of the topic `episode` about an episode. Raises BagError on foreign text."""
    found = None
    for text in texts:
        try:
            info = EpisodeInfo.from_json(text)
        except ValueError as error:
            raise BagError(f"{where}: {error}") from None
        found = found if info.state == "idle" else info
    return found
