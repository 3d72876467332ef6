# SPDX-License-Identifier: Apache-2.0
"""Opens rosbag2 recordings (mcap, sqlite3) without ROS and yields their messages in log order."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from spc_core.contract import suggest
from spc_core.episode import EpisodeInfo

_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # what yaml.safe_load uses, eight times as fast in C
EPISODE_TOPIC = "episode"
STORAGES = {".mcap": "mcap", ".db3": "sqlite3"}
RECOVER = "record again, or save what is whole with `mcap recover` (mcap) or `ros2 bag reindex` (sqlite3)"


class BagError(ValueError):
    """A bag that cannot be used; the message names the bag, what is wrong, and the fix."""


@dataclasses.dataclass(frozen=True)
class Topic:
    """A recorded topic: its type ('' when it changes within the bag) and its number of messages."""

    type: str
    count: int


@dataclasses.dataclass(frozen=True)
class BagInfo:
    """What a bag says about itself; `custom_data` is empty without metadata.yaml and after a reindex."""

    path: Path
    storage: str  # mcap | sqlite3 | compressed (whole files, by rosbag2)
    topics: Mapping[str, Topic]
    custom_data: Mapping[str, str]
    start_ns: int
    duration_s: float

    @property
    def message_count(self) -> int:
        return sum(topic.count for topic in self.topics.values())


def find_bags(paths: Iterable[str | Path]) -> list[Path]:
    """All bags at or below the paths, sorted. Hidden folders (unfinished recordings) are left out.

    A bag is a folder with metadata.yaml, a folder whose storage files are the parts of one recording, or a
    single storage file. Raises BagError for a path without any.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise BagError(f"{path}: no such file or folder; give bags or folders that contain bags")
        bags = _bags_below(path)
        if not bags:
            raise BagError(f"{path}: no bag here (no metadata.yaml, .mcap or .db3 at any depth)")
        found.update(dict.fromkeys(bags))
    return list(found)


def _bags_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in STORAGES else []
    if (path / "metadata.yaml").is_file():
        return [path]
    files = _storage_files(path)
    if files and len({re.sub(r"_\d+$", "", file.stem) for file in files}) == 1:
        return [path]
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [*files, *(bag for folder in folders for bag in _bags_below(folder))]


def _storage_files(folder: Path) -> list[Path]:
    """Storage files in a folder, parts in the order in which they were written."""
    files = [p for p in folder.iterdir() if p.suffix in STORAGES and not p.name.startswith(".")]
    return sorted(files, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p.name)])


def bag_sha256(path: Path) -> str:
    """Hash of a bag's storage files, which hold all its messages."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else _storage_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class BagReader:
    """One open bag; use it as a context manager. Raises BagError."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stack = contextlib.ExitStack()
        self._readers: list[Reader] = []
        self._custom_data: Mapping[str, str] = {}
        with self._named_errors():
            self._readers = [self._stack.enter_context(Reader(part)) for part in self._parts()]
            connections = [c for reader in self._readers for c in reader.connections]
            definitions = {(c.msgtype, c.msgdef.format, c.msgdef.data) for c in connections}
            self.typestore = _typestore(frozenset(definitions))
        self.info = self._info(connections)
        if not self.info.message_count:
            self.close()
            raise BagError(f"{self.path}: holds no messages; check that the robot was publishing, or delete it")

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def raw_messages(self, topics: Iterable[str] = ()) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, receive_ns, CDR bytes) of the named topics, or of all, in log order."""
        wanted = set(topics)
        with self._named_errors():
            for reader in self._readers:
                chosen = [c for c in reader.connections if not wanted or c.topic in wanted]
                for connection, receive_ns, data in reader.messages(chosen) if chosen else ():
                    yield connection.topic, connection.msgtype, receive_ns, data

    def messages(self, topics: Iterable[str] = ()) -> Iterator[tuple[str, int, Any]]:
        """(topic, receive_ns, message) of the named topics, or of all, in log order."""
        deserialize = self.typestore.deserialize_cdr
        with self._named_errors():
            for topic, type_name, receive_ns, data in self.raw_messages(topics):
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

    def _parts(self) -> list[Path]:
        """What rosbags is to open: the storage files, or the folder where it has to unpack them first.

        rosbags spends most of its time for a short bag on metadata.yaml, so libyaml reads it here.
        """
        if not self.path.exists():
            raise BagError(f"{self.path}: no such bag")
        if self.path.is_file():
            parts = [self.path]
        elif (self.path / "metadata.yaml").is_file():
            text = (self.path / "metadata.yaml").read_bytes()
            about = _SafeLoader(text).get_single_data()["rosbag2_bagfile_information"]
            self._custom_data = about.get("custom_data") or {}
            if (about.get("compression_mode") or "none").lower() != "none":
                return [self.path]
            parts = [self.path / Path(name).name for name in about["relative_file_paths"]]
        else:
            parts = _storage_files(self.path)
        if missing := [part.name for part in parts if not part.is_file()]:
            raise BagError(f"{self.path}: metadata.yaml names {', '.join(missing)}, not found; copy the whole folder")
        if not parts or any(part.suffix not in STORAGES for part in parts):
            raise BagError(f"{self.path}: not a bag; expected a folder with metadata.yaml, a .mcap or a .db3 file")
        return parts

    def _info(self, connections: list[Connection]) -> BagInfo:
        topics: dict[str, Topic] = {}
        for c in connections:
            before = topics.get(c.topic, Topic(c.msgtype, 0))
            topics[c.topic] = Topic(c.msgtype if c.msgtype == before.type else "", before.count + c.msgcount)
        start_ns = min(reader.start_time for reader in self._readers)
        end_ns = max(reader.end_time for reader in self._readers)
        files = [self.path] if self.path.is_file() else _storage_files(self.path)
        storage = STORAGES[files[0].suffix] if files else "compressed"
        duration_s = max(0, end_ns - start_ns) / 1e9
        return BagInfo(self.path, storage, topics, self._custom_data, start_ns, duration_s)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Give an error its bag and a fix. Damaged bytes make parsers raise anything, so all is caught."""
        try:
            yield
        except BagError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise BagError(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        what = str(error) or type(error).__name__
        unclosed = any(sign in what for sign in ("end magic", "footer", "Truncated", "seems to be empty"))
        if unclosed or (isinstance(error, OSError) and error.errno == errno.EINVAL):  # shorter than a footer
            return f"{self.path}: truncated, the recording was never closed ({what}); {RECOVER}"
        return f"{self.path}: cannot be read ({what}); {RECOVER}"


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


@functools.lru_cache(maxsize=64)
def _typestore(definitions: frozenset[tuple[str, MessageDefinitionFormat, str]]) -> Typestore:
    """Types as the bag defines them; those of ROS 2 Jazzy where it does not."""
    types = {}
    for type_name, kind, text in sorted(definitions, key=lambda d: d[0]):
        if kind == MessageDefinitionFormat.MSG:
            types.update(get_types_from_msg(text, type_name))
        elif kind == MessageDefinitionFormat.IDL:
            for part in text.split("=" * 80 + "\n") if text.startswith("=" * 80) else [text]:
                types.update(get_types_from_idl(part.split("\n", 1)[1] if part.startswith("IDL: ") else part))
    store = get_typestore(Stores.EMPTY)
    if any(kind == MessageDefinitionFormat.NONE for _, kind, _ in definitions):
        jazzy = get_typestore(Stores.ROS2_JAZZY).fielddefs
        types = {**jazzy, **types}
    store.register(types)
    return store
