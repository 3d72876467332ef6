# SPDX-License-Identifier: Apache-2.0
"""Checksums for a finished mcap file. Its writer leaves them at 0; then nobody can see a flipped bit in a number."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

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

CRC_PLACE = RECORD.size + CHUNK_HEAD.size - 8  # in a chunk record: behind start, end and size
FOOTER_PLACE = RECORD.size + 16  # in a footer: behind the starts of the summary and of its offsets


def write_checksums(file: Path) -> None:
    """Fill in the CRC of every chunk and of the summary. The file must be whole, as its writer closed it."""
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
