# SPDX-License-Identifier: Apache-2.0
"""Serialised messages of one topic, as they lie in a buffer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys.store import Typestore

from spc_ros.messages.cdr_walk import RepresentationError, read_message
from spc_ros.messages.fields import MessageError

DAMAGED = "the bytes are not a message of this type but damaged; record again, or cut these messages out of the bag"
FOREIGN = "is not read here; let its publisher use the data representation XCDR1, ROS 2's default, and record again"


@dataclasses.dataclass(frozen=True)
class RawColumn:
    """N messages of one topic and type in log order; message i is buffer[start[i] : start[i] + size[i]], CDR."""

    topic: str
    type: str
    receive_ns: np.ndarray  # (N,) int64, not decreasing
    log_index: np.ndarray  # (N,) int64, index in the log of all topics, increasing
    buffer: np.ndarray  # (bytes,) uint8
    start: np.ndarray  # (N,) int64
    size: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.receive_ns)

    def messages(self) -> Iterator[bytes]:
        """The messages one by one."""
        for begin, size in zip(self.start.tolist(), self.size.tolist(), strict=True):
            yield self.buffer[begin : begin + size].tobytes()


class BytesError(MessageError):
    """Bytes that are not a message of the topic's type; `problem` is the same for all like it."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(text, problem)
        self.problem = problem

    def __str__(self) -> str:
        return str(self.args[0])


def deserialize(typestore: Typestore, column: RawColumn, row: int, type_name: str, where: str) -> Any:
    """One message of a column. Raises BytesError for bytes of another type."""
    return read_row(typestore, column, row, type_name, where)[0]


def read_row(typestore: Typestore, column: RawColumn, row: int, type_name: str, where: str) -> tuple[Any, int]:
    """(one message of a column, its surplus as in read_message). Raises BytesError for bytes of another type."""
    begin = column.start[row]
    which = f"topic '{where}': message {column.log_index[row]} of the log, received at {column.receive_ns[row]} ns, "
    try:
        return read_message(typestore, type_name, column.buffer[begin : begin + column.size[row]].tobytes())
    except RepresentationError as error:
        problem = f"{error}, which {FOREIGN}"
        raise BytesError(f"{which}cannot be read: {problem}", problem) from None
    except SerdeError as error:
        text = f"is damaged: {str(error).rstrip('.')}; record again, or cut this message out of the bag"
        raise BytesError(which + text, DAMAGED) from None
