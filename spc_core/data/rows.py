# SPDX-License-Identifier: Apache-2.0
"""Rows of arrays on disk, whatever the arrays' size: memory does not grow with the dataset."""

from __future__ import annotations

import os
import weakref

import numpy as np

from spc_core.data.packed import PackedDataset

RESIDENT_BYTES = 512 * 2**20  # of a dataset that may stay in this process's memory


class Rows:
    """Rows of an array (N, ...): from memory, or read from its file each time.

    Pages of a memory-mapped file count as this process's memory from their first use on. Giving them back costs more
    than reading: a page fault maps 16 pages, and each is unmapped again. So a large file is read, not mapped.
    """

    def __init__(self, array: np.ndarray, resident: bool) -> None:
        self._array = array.view(np.ndarray)  # indexing a np.memmap costs more
        self._descriptor = -1
        if not resident and isinstance(array, np.memmap) and array.filename is not None:
            self._offset, self._row_bytes = array.offset, array.strides[0]
            self._descriptor = os.open(array.filename, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # the next rows are not the next to be read

    @property
    def resident(self) -> bool:
        return self._descriptor < 0

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the rows (...) as an array (..., *shape of a row)."""
        if self.resident:
            return self._array.take(rows, axis=0)
        flat = rows.ravel()
        begin = np.flatnonzero(np.diff(flat, prepend=-2) != 1)  # of each run of consecutive rows: one read
        sizes = np.diff(begin, append=len(flat)) * self._row_bytes
        places = flat[begin] * self._row_bytes + self._offset
        pread, file = os.pread, self._descriptor
        data = bytearray().join([pread(file, n, at) for n, at in zip(sizes.tolist(), places.tolist(), strict=True)])
        return np.frombuffer(data, self._array.dtype).reshape(*rows.shape, *self._array.shape[1:])


def rows_of(data: PackedDataset) -> tuple[Rows, Rows, Rows, Rows]:
    """Observations, actions, rewards and terminal flags; the smallest stay in memory while RESIDENT_BYTES last."""
    arrays = (data.observations, data.actions, data.rewards, data.terminated)
    left, readers = RESIDENT_BYTES, {}
    for place, array in sorted(enumerate(arrays), key=lambda pair: pair[1].nbytes):
        left -= array.nbytes
        readers[place] = Rows(array, resident=left >= 0)
    return readers[0], readers[1], readers[2], readers[3]
