# SPDX-License-Identifier: Apache-2.0
"""How this process gets its memory."""

from __future__ import annotations

import ctypes

# glibc's mallopt, from malloc.h: which setting, and bytes. Blocks from 16 MiB on still go back when they are freed,
# which costs nothing here and saves a tenth of the peak.
KEEP_FREED = ((-1, 2**31 - 1), (-3, 16 * 2**20))  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Have freed tensors kept for the next ones, where the C library is glibc; elsewhere nothing happens.

    Else each update gets tens of thousands of fresh pages from the kernel, which costs it five to ten percent.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, size in KEEP_FREED:
            mallopt(setting, size)
