# SPDX-License-Identifier: Apache-2.0
"""Mcap files written byte by byte, for what no recorder writes on purpose: overlaps, damage, missing indexes."""

from __future__ import annotations

import struct
import zlib

import lz4.frame
from backports import zstd

MAGIC = b"\x89MCAP0\r\n"
PACK = {"": bytes, "zstd": zstd.compress, "lz4": lz4.frame.compress}
STRING_TEXT = "string data"


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data


def record(opcode: int, data: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(data)) + data


def schema(key: int, name: str, definition: str = STRING_TEXT, encoding: str = "ros2msg") -> bytes:
    return record(3, struct.pack("<H", key) + text(name) + text(encoding) + text(definition))


def channel(key: int, schema_key: int, topic: str, form: str = "cdr") -> bytes:
    return record(4, struct.pack("<HH", key, schema_key) + text(topic) + text(form) + text(b""))


def message(key: int, log_ns: int, data: bytes) -> bytes:
    return record(5, struct.pack("<HIQQ", key, 0, log_ns, log_ns) + data)


class McapFile:
    """Grows by chunks and records; closed() is the file with a summary, `data` what an unclosed one would hold."""

    def __init__(self, head: bytes) -> None:
        """`head`: schemas and channels, repeated in the summary."""
        self.head = head
        self.data = MAGIC + record(1, text("ros2") + text("test"))
        self.indexes = b""
        self.counts: dict[int, int] = {}
        self.chunks: list[tuple[int, int]] = []  # offset, end

    def add(self, data: bytes) -> None:
        self.data += data

    def chunk(
        self, messages: list[tuple[int, int, bytes]], compression: str = "", crc: bool = True, index: bool = True
    ) -> None:
        """Messages: (channel, log_ns, data) in the order in which they lie in the chunk."""
        body, entries = b"", {}
        for key, log_ns, data in messages:
            entries.setdefault(key, []).append((log_ns, len(body)))
            body += message(key, log_ns, data)
            self.counts[key] = self.counts.get(key, 0) + 1
        times = [log_ns for _, log_ns, _ in messages]
        packed = PACK[compression](body)
        begin, check = len(self.data), zlib.crc32(body) if crc else 0
        head = struct.pack("<QQQI", min(times), max(times), len(body), check)
        self.data += record(6, head + text(compression) + struct.pack("<Q", len(packed)) + packed)
        end, offsets = len(self.data), {}
        for key, pairs in entries.items() if index else ():
            offsets[key] = len(self.data)
            array = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
            self.data += record(7, struct.pack("<H", key) + text(array))
        listed = b"".join(struct.pack("<HQ", *item) for item in offsets.items())
        self.indexes += record(
            8,
            struct.pack("<QQQQ", min(times), max(times), begin, end - begin)
            + text(listed)
            + struct.pack("<Q", len(self.data) - end)
            + text(compression)
            + struct.pack("<QQ", len(packed), len(body)),
        )
        self.chunks.append((begin, end))

    def closed(self, statistics: bool = True, summary: bool = True, crc: bool = True) -> bytes:
        data = self.data + record(0x0F, bytes(4))
        begin = len(data)
        if summary:
            data += self.head + self.indexes
            if statistics:
                counts = b"".join(struct.pack("<HQ", *item) for item in self.counts.items())
                numbers = (sum(self.counts.values()), 1, len(self.counts), 0, 0, len(self.chunks), 0, 2**62)
                data += record(0x0B, struct.pack("<QHIIIIQQ", *numbers) + text(counts))
        else:
            begin = 0
        foot = struct.pack("<BQQQ", 2, 20, begin, 0)
        check = zlib.crc32(data[begin:] + foot) if crc and summary else 0
        return data + foot + struct.pack("<I", check) + MAGIC
