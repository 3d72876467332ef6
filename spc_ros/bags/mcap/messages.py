# SPDX-License-Identifier: Apache-2.0
"""The messages in an unpacked chunk of an mcap file, by its message indexes or record by record."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator

import numpy as np

from spc_ros.bags.blocks import LATEST_NS, DamageError, Messages, join
from spc_ros.bags.mcap.records import MESSAGE, MESSAGE_INDEX, RECORD, ChunkHead, Directory, records

_message_head = np.dtype(
    [("opcode", "u1"), ("length", "<u8"), ("channel", "<u2"), ("sequence", "<u4"), ("log", "<u8"), ("publish", "<u8")]
)
HEAD_BYTES = _message_head.itemsize  # 31


def indexed_messages(chunk: np.ndarray, index: bytes, place_of: np.ndarray) -> Messages | None:
    """A chunk's messages in log order by its message indexes; None where these do not fit the chunk.

    place_of (65536,): place of each channel id in the list of channels, -1 for what is not wanted.
    """
    try:
        listed = [(channel, entries) for channel, entries in read_message_index(index) if place_of[channel] >= 0]
    except DamageError:
        return None
    if not listed:
        return join([])
    entries = np.concatenate([entries for _, entries in listed])
    ids = np.repeat([channel for channel, _ in listed], [len(entries) for _, entries in listed])
    offset = entries[:, 1]
    if int(offset.max()) > len(chunk) - HEAD_BYTES:
        return None
    offset = offset.astype(np.int64)
    if bool((np.diff(offset) <= 0).any()):
        order = np.argsort(offset, kind="stable")
        entries, ids, offset = entries[order], ids[order], offset[order]
    heads = np.ndarray((len(chunk) - HEAD_BYTES + 1,), _message_head, chunk, strides=(1,))[offset]
    length = heads["length"]
    fits = (heads["opcode"] == MESSAGE) & (heads["channel"] == ids) & (heads["log"] == entries[:, 0])
    fits &= (length >= HEAD_BYTES - RECORD.size) & (length <= len(chunk))
    end = offset + RECORD.size + length.astype(np.int64)
    if not fits.all() or bool((end[:-1] > offset[1:]).any()) or int(end[-1]) > len(chunk):
        return None
    log_ns = np.minimum(entries[:, 0], LATEST_NS).astype(np.int64)
    start = offset + HEAD_BYTES
    return Messages(place_of[ids], log_ns, start, end - start).in_log_order()


def read_message_index(index: bytes | memoryview) -> Iterator[tuple[int, np.ndarray]]:
    """(channel id, (N, 2) uint64: log time and place in the chunk) of the message indexes behind a chunk."""
    for opcode, begin, end in records(index):
        if opcode != MESSAGE_INDEX or end - begin < 6:
            raise DamageError("a message index is missing")
        channel, size = struct.unpack_from("<HI", index, begin)
        if size != end - begin - 6 or size % 16:
            raise DamageError("a message index is cut off")
        if size:
            yield channel, np.frombuffer(index, "<u8", size // 8, begin + 6).reshape(-1, 2)


def scan_messages(
    chunk: np.ndarray, place_of: np.ndarray, directory: Directory | None = None, whole: bool = True
) -> Messages:
    """A chunk's messages in log order, record by record; schemas and channels go to the directory.

    Raises DamageError in a `whole` chunk where the records end early.
    """
    data = chunk.data
    found = array("q")
    try:
        for opcode, begin, end in records(data):
            if opcode == MESSAGE:
                if end - begin < HEAD_BYTES - RECORD.size:
                    raise DamageError(f"a message is cut off at byte {begin}")
                channel, _, log_ns = struct.unpack_from("<HIQ", data, begin)
                if place_of[channel] >= 0:
                    start = begin + HEAD_BYTES - RECORD.size
                    found.extend((channel, min(log_ns, LATEST_NS), start, end - start))
            elif directory is not None:
                directory.read(opcode, data[begin:end])
    except DamageError:
        if whole:
            raise
    table = np.frombuffer(found, np.int64).reshape(-1, 4) if found else np.empty((0, 4), np.int64)
    return Messages(place_of[table[:, 0]], table[:, 1], table[:, 2], table[:, 3]).in_log_order()


def within_stated_time(messages: Messages, head: ChunkHead) -> Messages:
    """Of a chunk that is cut off, whose checksum says nothing: the messages with a time that can be."""
    return messages.pick((messages.log_ns >= head.start_ns) & (messages.log_ns <= head.end_ns))
