# SPDX-License-Identifier: Apache-2.0
"""Small images embedded in a page, without an imaging library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TRUE_COLOUR = 2


def png(image: np.ndarray) -> bytes:
    """(height, width, 3) uint8 as a PNG file. Raises ValueError for another shape."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image must be (height, width, 3) of uint8, got {image.shape} of {image.dtype}")
    height, width, _ = image.shape
    rows = np.concatenate((np.zeros((height, 1), np.uint8), image.reshape(height, -1)), axis=1)  # filter 0: none
    header = struct.pack(">IIBBBBB", width, height, 8, TRUE_COLOUR, 0, 0, 0)
    return (
        SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")
    )


def data_url(image: np.ndarray) -> str:
    """The image as a data URL for src."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
