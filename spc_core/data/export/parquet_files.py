# SPDX-License-Identifier: Apache-2.0
"""A table in several parquet files, chunk-000/file-000.parquet and on, written piece by piece."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

NAME = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


class ParquetFiles:
    """Files below `folder`; a new one is begun before a file would outgrow `limit_bytes`."""

    def __init__(self, folder: Path, schema: pa.Schema, limit_bytes: int, chunk_files: int) -> None:
        """`chunk_files`: how many files a chunk has at most."""
        self._folder, self._schema = folder, schema
        self._limit_bytes, self._chunk_files = limit_bytes, chunk_files
        self._number = -1
        self._rows = 0  # in the open file
        self._stream: BinaryIO | None = None
        self._writer: pq.ParquetWriter | None = None

    def place(self, rows: int) -> tuple[int, int]:
        """The chunk and file of the next `rows` rows, by the mean size of those before."""
        if self._stream is None or self._outgrows(self._stream.tell(), rows):
            self._open_next()
        return divmod(self._number, self._chunk_files)

    def write(self, table: pa.Table) -> None:
        """Write a table of the schema's columns as one row group, in the file that place() chose."""
        assert self._writer is not None, "place() comes first"
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._rows += table.num_rows

    def _outgrows(self, size_bytes: int, rows: int) -> bool:
        return self._rows > 0 and size_bytes * (1 + rows / self._rows) >= self._limit_bytes

    def close(self) -> None:
        if self._writer is not None and self._stream is not None:
            self._writer.close()
            self._stream.close()
        self._writer = self._stream = None

    def _open_next(self) -> None:
        self.close()
        self._number += 1
        chunk, number = divmod(self._number, self._chunk_files)
        path = self._folder / NAME.format(chunk_index=chunk, file_index=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("wb")
        self._writer = pq.ParquetWriter(self._stream, self._schema, compression="snappy")
        self._rows = 0

    def __enter__(self) -> ParquetFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
