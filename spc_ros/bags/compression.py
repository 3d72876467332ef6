# SPDX-License-Identifier: Apache-2.0
"""Unpacks files and messages that rosbag2 compressed one by one with zstd."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spc_ros.bags.blocks import BLOCK_BYTES, DamageError, Messages
from spc_ros.bags.files import PACKED
from spc_ros.bags.mcap.records import unpack, zstd

ZSTD_MAGIC = bytes.fromhex("28b52ffd")  # begins a compressed message; CDR begins with a zero


def unpack_file(path: Path, folder: str) -> tuple[Path, str]:
    """(the unpacked file in the folder, the damage that ended it early or '')."""
    target = Path(folder, path.name.removesuffix(PACKED))
    with zstd.open(path, "rb") as source, target.open("wb") as out:
        try:
            while data := source.read1(1 << 20):
                out.write(data)
        except (zstd.ZstdError, EOFError) as error:
            return target, str(error)
    return target, ""


def unpack_messages(messages: Messages, buffer: np.ndarray) -> Iterator[tuple[Messages, np.ndarray]]:
    """A block with its compressed messages unpacked, in one or more parts; those that are damaged are left out."""
    packed = messages.size >= len(ZSTD_MAGIC)
    start = messages.start[packed]
    for i, letter in enumerate(ZSTD_MAGIC):
        packed[packed] = here = buffer[start + i] == letter
        start = start[here]
    if not packed.any():
        yield messages, buffer
        return
    view, data, kept, size = buffer.data, [], [], 0
    columns = (messages.start, messages.start + messages.size, packed)
    for i, (begin, end, is_packed) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        try:
            data.append(unpack(view[begin:end], "zstd", None) if is_packed else bytes(view[begin:end]))
        except DamageError:
            continue
        kept.append(i)
        size += len(data[-1])
        if size >= BLOCK_BYTES:
            yield _in_buffer(messages.pick(np.array(kept)), data)
            data, kept, size = [], [], 0
    if kept:
        yield _in_buffer(messages.pick(np.array(kept)), data)


def _in_buffer(messages: Messages, data: list[bytes]) -> tuple[Messages, np.ndarray]:
    size = np.fromiter(map(len, data), np.int64, len(data))
    unpacked = dataclasses.replace(messages, start=np.cumsum(size) - size, size=size)
    return unpacked, np.frombuffer(b"".join(data), np.uint8)
