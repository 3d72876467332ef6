# SPDX-License-Identifier: Apache-2.0
"""An mcap file: its records, their fields, and its chunks. Every length is checked before use."""

from __future__ import annotations

import dataclasses
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import lz4.frame
import numpy as np
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat

from spc_ros.bags.blocks import LATEST_NS, Channel, DamageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\x89MCAP0\r\n"
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK = 0x02, 0x03, 0x04, 0x05, 0x06
MESSAGE_INDEX, CHUNK_INDEX, STATISTICS, METADATA, METADATA_INDEX = 0x07, 0x08, 0x0B, 0x0C, 0x0D
DATA_END, LAST_OPCODE = 0x0F, 0x0F
RECORD = struct.Struct("<BQ")  # opcode, length of the fields
CHUNK_HEAD = struct.Struct("<QQQII")  # start, end, uncompressed size, CRC, length of the compression's name
LONGEST_CHUNK_HEAD = RECORD.size + CHUNK_HEAD.size + 8 + 8  # the compression's name has four letters at most
FOOTER_BYTES = RECORD.size + 20 + len(MAGIC)
CHUNK_CAP = 1 << 30  # bytes that a chunk may claim to unpack to; recorders write megabytes
FORMATS = {
    "ros2msg": MessageDefinitionFormat.MSG,
    "ros2idl": MessageDefinitionFormat.IDL,
    "omgidl": MessageDefinitionFormat.IDL,
}
MESSAGE_HEAD = np.dtype(
    [("opcode", "u1"), ("length", "<u8"), ("channel", "<u2"), ("sequence", "<u4"), ("log", "<u8"), ("publish", "<u8")]
)
HEAD_BYTES = MESSAGE_HEAD.itemsize  # 31
NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, "")


def plausible(opcode: int) -> bool:
    return 0 < opcode <= LAST_OPCODE or opcode >= 0x80  # private opcodes from 0x80 on are skipped


def records(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """(opcode, begin, end) of the records that fill `data`. Raises DamageError where they do not."""
    position = 0
    while position < len(data):
        if position + RECORD.size > len(data):
            raise DamageError(f"a record is cut off at byte {position}")
        opcode, length = RECORD.unpack_from(data, position)
        begin = position + RECORD.size
        position = begin + length
        if not plausible(opcode) or position > len(data):
            raise DamageError(f"no record at byte {begin - RECORD.size}")
        yield opcode, begin, position


class Fields:
    """Reads a record's fields one after another. Raises DamageError at its end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = bytes(data)
        self._position = 0

    def numbers(self, layout: str) -> tuple[int, ...]:
        layout = f"<{layout}"
        begin, self._position = self._position, self._position + struct.calcsize(layout)
        if self._position > len(self._data):
            raise DamageError("a record is shorter than its fields")
        return struct.unpack_from(layout, self._data, begin)

    def bytes(self) -> bytes:
        (size,) = self.numbers("I")
        begin, self._position = self._position, self._position + size
        if self._position > len(self._data):
            raise DamageError("a record is shorter than its fields")
        return self._data[begin : self._position]

    def text(self) -> str:
        try:
            return self.bytes().decode()
        except UnicodeDecodeError as error:
            raise DamageError(f"text that is not UTF-8 ({error})") from None


@dataclasses.dataclass
class ChunkEntry:
    """A chunk's position, and its messages as far as they are known without opening it."""

    offset: int
    length: int  # of the record, bytes
    start_ns: int
    end_ns: int
    index_length: int = 0  # bytes of the message indexes after it; 0: none that can be used
    counts: dict[int, int] | None = None  # messages by channel id; None: unknown
    complete: bool = True  # False: the file ends within it
    compressed: bool = False


class Directory:
    """Schemas and channels read so far, by id. Schemas of other encodings than ROS's need not be text."""

    def __init__(self) -> None:
        self._schemas: dict[int, tuple[str, MessageDefinition]] = {0: ("", NO_DEFINITION)}  # 0: a channel without
        self.channels: dict[int, Channel] = {}
        self.complete: set[int] = set()  # channels whose schema is known

    def read(self, opcode: int, data: bytes | memoryview) -> None:
        """Register a schema or channel; other records are ignored. Raises DamageError."""
        if opcode not in (SCHEMA, CHANNEL):
            return
        fields = Fields(data)
        if opcode == SCHEMA:
            (key,) = fields.numbers("H")
            name, encoding, content = fields.text(), fields.text(), fields.bytes()
            definition = NO_DEFINITION
            if encoding in FORMATS:  # its comments may be in any encoding
                definition = MessageDefinition(FORMATS[encoding], content.decode("utf-8", "replace"))
            if key:
                self._schemas.setdefault(key, (name, definition))
        else:
            key, schema = fields.numbers("HH")
            name, definition = self._schemas.get(schema, ("", NO_DEFINITION))
            if key not in self.complete:
                self.channels[key] = Channel(fields.text(), name, fields.text(), definition)
            if schema in self._schemas:
                self.complete.add(key)


@dataclasses.dataclass(frozen=True)
class ChunkHead:
    """The fields of a chunk record, consistent with each other."""

    start_ns: int
    end_ns: int
    size: int  # unpacked
    crc: int
    compression: str
    head_length: int  # bytes of the record before the data
    packed_size: int


def read_chunk_head(data: bytes) -> ChunkHead | None:
    """The head of the chunk record at the beginning of `data`; None where there is no plausible one."""
    if len(data) < RECORD.size + CHUNK_HEAD.size + 8:
        return None
    opcode, length = RECORD.unpack_from(data)
    start_ns, end_ns, size, crc, letters = CHUNK_HEAD.unpack_from(data, RECORD.size)
    head_length = RECORD.size + CHUNK_HEAD.size + letters + 8
    if opcode != CHUNK or letters > 4 or len(data) < head_length or size > CHUNK_CAP:
        return None
    compression = data[head_length - 8 - letters : head_length - 8].decode("latin-1")
    (packed_size,) = struct.unpack_from("<Q", data, head_length - 8)
    if length != head_length - RECORD.size + packed_size or (not compression and size != packed_size):
        return None
    return ChunkHead(min(start_ns, LATEST_NS), min(end_ns, LATEST_NS), size, crc, compression, head_length, packed_size)


def read_chunk_index(data: bytes | memoryview) -> ChunkEntry:
    fields = Fields(data)
    start_ns, end_ns, offset, length = fields.numbers("4Q")
    offsets = list(struct.iter_unpack("<HQ", complete_items(fields.bytes(), 10)))
    (index_length,) = fields.numbers("Q")
    compressed = bool(fields.bytes())
    times = min(start_ns, LATEST_NS), min(end_ns, LATEST_NS)
    entry = ChunkEntry(offset, length, *times, index_length, compressed=compressed)
    if offsets:
        starts = sorted((start, channel) for channel, start in offsets)
        ends = [*(start for start, _ in starts[1:]), offset + length + index_length]
        sizes = [end - start - RECORD.size - 6 for (start, _), end in zip(starts, ends, strict=True)]
        if starts[0][0] != offset + length or any(size < 0 or size % 16 for size in sizes):
            raise DamageError(f"the index of the chunk at byte {offset} contradicts itself")
        entry.counts = {channel: size // 16 for (_, channel), size in zip(starts, sizes, strict=True)}
    else:
        entry.index_length = 0
    return entry


def complete_items(data: bytes, size: int) -> bytes:
    if len(data) % size:
        raise DamageError(f"a list of {len(data)} bytes is cut off")
    return data


def read_statistics(data: bytes | memoryview) -> tuple[int, int, Mapping[int, int]]:
    """(start_ns, end_ns, messages by channel id)."""
    fields = Fields(data)
    _, _, _, _, _, _, start_ns, end_ns = fields.numbers("QHIIIIQQ")
    counts = {key: n for key, n in struct.iter_unpack("<HQ", complete_items(fields.bytes(), 10)) if n}
    return min(start_ns, LATEST_NS), min(end_ns, LATEST_NS), counts


def unpack(data: bytes | memoryview, compression: str, size: int | None, complete: bool = True) -> bytes:
    """Decompressed data of the stated `size`, None if unknown; of incomplete data, as much as possible.

    Raises DamageError.
    """
    if compression == "":
        result = bytes(data)
    elif compression in _DECOMPRESSORS:
        result = _decompress(_DECOMPRESSORS[compression], data, CHUNK_CAP if size is None else size, complete)
    else:
        raise DamageError(f"compressed as '{compression}'; only zstd and lz4 can be unpacked")
    if complete and len(result) != size and (size is not None or len(result) > CHUNK_CAP):
        raise DamageError(f"unpacks to {len(result)} bytes, not the {size} that it says")
    return result


_DECOMPRESSORS: Mapping[str, Callable] = {"zstd": zstd.ZstdDecompressor, "lz4": lz4.frame.LZ4FrameDecompressor}


def _decompress(start: Callable, data: bytes | memoryview, size: int, complete: bool) -> bytes:
    """All frames, at most one byte more than `size`: a few damaged bytes can claim gigabytes."""
    parts, left = [], size + 1
    try:
        while len(data) and left > 0:
            frame = start()
            parts.append(frame.decompress(data, left))
            left -= len(parts[-1])
            if not frame.eof:
                if complete:
                    raise DamageError("its compressed data ends early")
                break
            data = frame.unused_data or b""
    except (zstd.ZstdError, RuntimeError, EOFError) as error:  # lz4 raises RuntimeError
        if complete:
            raise DamageError(str(error)) from None
    return b"".join(parts) if len(parts) != 1 else parts[0]


def check_crc(data: bytes | np.ndarray, crc: int) -> None:
    if crc and zlib.crc32(data if isinstance(data, bytes) else data.data) != crc:
        raise DamageError("its checksum is wrong")


class McapFile:
    """One open file, to be closed. `losses` describe the parts that could not be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.losses: dict[str, None] = {}
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def read(self, offset: int, size: int) -> bytes:
        """Raises DamageError at the file's end."""
        data = os.pread(self.descriptor, size, offset) if 0 <= offset <= self.size - size else b""
        if len(data) != size:
            raise DamageError(f"{size} bytes at byte {offset} are not there")
        return data

    def read_into(self, buffer: np.ndarray, offset: int) -> None:
        """Fill the buffer. Raises DamageError at the file's end."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self.descriptor, [buffer[done:].data], offset + done)
            if not got:
                raise DamageError(f"{len(buffer)} bytes at byte {offset} are not there")
            done += got

    def chunk_head(self, entry: ChunkEntry) -> ChunkHead:
        """Raises DamageError where there is no such chunk."""
        if not 0 <= entry.offset < self.size:
            raise DamageError("the file ends before it")
        head = read_chunk_head(os.pread(self.descriptor, LONGEST_CHUNK_HEAD, entry.offset))
        if head is None or head.head_length + head.packed_size != entry.length:
            raise DamageError("no chunk is there")
        if entry.complete and entry.offset + entry.length > self.size:
            raise DamageError("the file ends within it")
        return head

    def unpack_chunk(self, entry: ChunkEntry, head: ChunkHead) -> bytes:
        """A chunk's contents, as much of them as the file holds. Raises DamageError."""
        begin = entry.offset + head.head_length
        packed = self.read(begin, min(head.packed_size, self.size - begin))
        data = unpack(packed, head.compression, head.size, entry.complete)
        if entry.complete:
            check_crc(data, head.crc)
        return data

    def lose_chunk(self, entry: ChunkEntry, error: DamageError) -> None:
        count = sum(entry.counts.values()) if entry.counts else 0
        messages = f" with {count:,} messages" if count else ""
        self.losses[f"the chunk at byte {entry.offset:,}{messages} is damaged and left out ({error})"] = None
