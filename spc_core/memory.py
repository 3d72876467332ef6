# SPDX-License-Identifier: Apache-2.0
"""How this process gets its memory."""

from __future__ import annotations

import ctypes

# glibc's mallopt, from malloc.h: which setting, and bytes
KEEP_FREED = ((-1, 2**31 - 1), (-2, 128 * 2**20), (-3, 32 * 2**20))  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Have freed tensors kept for the next ones, where the C library is glibc; elsewhere nothing happens.

    Else each update gets tens of thousands of fresh pages from the kernel, which costs it five to ten percent.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, size in KEEP_FREED:
            mallopt(setting, size)
