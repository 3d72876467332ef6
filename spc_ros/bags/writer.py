# SPDX-License-Identifier: Apache-2.0
"""Writes a rosbag2 recording that appears at its final name only when complete."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from spc_ros.bags.files import BagError
from spc_ros.bags.mcap.records import (
    CHUNK,
    CHUNK_HEAD,
    FOOTER,
    LONGEST_CHUNK_HEAD,
    MAGIC,
    RECORD,
    read_chunk_head,
    unpack,
)
from spc_ros.messages.message_types import jazzy

PLUGINS = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
DISK_ERRORS = (OSError, sqlite3.Error)  # a full disk, with an exception of each storage
FOREVER = QosTime(9223372036, 854775807)
CRC_PLACE = RECORD.size + CHUNK_HEAD.size - 8  # in a chunk record: behind start, end and size
FOOTER_PLACE = RECORD.size + 16  # in a footer: behind the starts of the summary and of its offsets


class BagWriter:
    """A recording in progress: a hidden folder next to `path` until close() renames it.

    A killed process leaves that hidden folder and nothing at `path`; `mcap recover` saves an mcap in it up to
    its last megabyte. `counts` holds the messages written so far, by topic.
    """

    def __init__(self, path: str | Path, custom_data: Mapping[str, str], storage: str = "mcap") -> None:
        """`custom_data` may still be changed until close(). Raises BagError where `path` is taken."""
        self.path = Path(path)
        self.custom_data = dict(custom_data)
        self.counts: dict[str, int] = {}
        if storage not in PLUGINS:
            raise BagError(f"{self.path}: unknown storage '{storage}'; use one of: {', '.join(PLUGINS)}")
        if self.path.exists():
            raise BagError(f"{self.path}: exists already and is never overwritten; choose another name")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connections: dict[str, Connection] = {}
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.recording-", dir=self.path.parent))
        self._writer: Writer | None = Writer(
            self._folder / self.path.name, version=Writer.VERSION_LATEST, storage_plugin=PLUGINS[storage]
        )
        if storage == "mcap":
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            self._writer.open()
        except DISK_ERRORS as error:
            raise self._set_aside(error) from error

    def add_topic(
        self, topic: str, type_name: str, latched: bool = False, reliable: bool = True, depth: int = 10
    ) -> None:
        """Announce a topic with the QoS that its publisher offers. Raises BagError for an unknown type."""
        if topic in self._connections:
            raise BagError(f"{self.path}: topic '{topic}' was added before; add each topic once")
        definition, type_hash = _definition(type_name)
        self._connections[topic] = self._open_writer().add_connection(
            topic,
            type_name,
            msgdef=definition,
            rihs01=type_hash,
            offered_qos_profiles=[_qos(latched, reliable, 1 if latched else depth)],
        )
        self.counts[topic] = 0

    def write_raw(self, topic: str, receive_ns: int, data: bytes) -> None:
        """Append a message in CDR, as rclpy delivers it raw. Times may repeat or run backwards.

        Raises BagError when the disk is full; the recording ends and is set aside.
        """
        connection = self._connections.get(topic)
        if connection is None:
            known = ", ".join(self._connections) or "none"
            raise BagError(f"{self.path}: topic '{topic}' was never added; call add_topic first (known: {known})")
        try:
            self._open_writer().write(connection, receive_ns, data)
        except DISK_ERRORS as error:
            raise self._set_aside(error) from error
        self.counts[topic] += 1

    def close(self) -> Path:
        """Finish and rename the recording. Raises BagError, and leaves nothing, when it is empty."""
        writer = self._open_writer()
        if not sum(self.counts.values()):
            self.abort()
            topics = ", ".join(self.counts) or "none"
            raise BagError(f"{self.path}: nothing was received on the recorded topics ({topics}); no bag was written")
        for key, value in self.custom_data.items():
            writer.set_custom_data(key, value)
        try:
            writer.close()
            written = self._folder / self.path.name
            for file in written.iterdir():
                if file.suffix == ".mcap":
                    write_checksums(file)
                _flush_to_disk(file)
            self._writer = None
            if self.path.exists():
                raise BagError(f"{self.path}: appeared while recording; the recording stays in {written}")
            written.rename(self.path)
        except DISK_ERRORS as error:
            raise self._set_aside(error) from error
        self._folder.rmdir()
        return self.path

    def abort(self) -> None:
        """Discard the recording; does nothing after close()."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.abort()
            shutil.rmtree(self._folder)

    def _set_aside(self, error: Exception) -> BagError:
        """Close the files; the data on disk stays in a hidden folder with `broken` in its name."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(*DISK_ERRORS):
                writer.abort()
        aside = self._folder.with_name(self._folder.name.replace(".recording-", ".broken-"))
        with contextlib.suppress(OSError):
            self._folder = self._folder.rename(aside)
        return BagError(f"{self.path}: cannot be written ({error}); what was recorded is in {self._folder}")

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        if error_type is not None:
            self.abort()
        elif self._writer is not None:
            self.close()

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise BagError(f"{self.path}: the recording is closed; start a new one")
        return self._writer


def write_checksums(file: Path) -> None:
    """Fill in the CRC of every chunk and of the summary of an mcap file, as its writer closed it.

    The writer leaves them at 0, so that a flipped bit would go unnoticed.
    """
    with file.open("r+b") as stream:
        position = len(MAGIC)
        while True:
            stream.seek(position)
            record = stream.read(LONGEST_CHUNK_HEAD)
            opcode, length = RECORD.unpack_from(record)
            if opcode == FOOTER:
                break
            head = read_chunk_head(record) if opcode == CHUNK else None
            if head is not None and not head.crc:
                stream.seek(position + head.head_length)
                content = unpack(stream.read(head.packed_size), head.compression, head.size)
                stream.seek(position + CRC_PLACE)
                stream.write(struct.pack("<I", zlib.crc32(content)))
            position += RECORD.size + length
        (summary,) = struct.unpack_from("<Q", record, RECORD.size)
        if summary:
            stream.seek(summary)
            crc = zlib.crc32(stream.read(position + FOOTER_PLACE - summary))
            stream.seek(position + FOOTER_PLACE)
            stream.write(struct.pack("<I", crc))


def _flush_to_disk(file: Path) -> None:
    """Wait until the data is on the disk, as robots lose power without a shutdown."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


@functools.cache
def _definition(type_name: str) -> tuple[str, str]:
    """(message definition, type hash) of a ROS 2 Jazzy type."""
    store = jazzy()
    if type_name not in store.fielddefs:
        raise BagError(f"message type '{type_name}' is not part of ROS 2 Jazzy; record it with `ros2 bag record`")
    return store.generate_msgdef(type_name, ros_version=2)[0], store.hash_rihs01(type_name)


def _qos(latched: bool, reliable: bool, depth: int) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        FOREVER,
        FOREVER,
        QosLiveliness.AUTOMATIC,
        FOREVER,
        False,
    )
