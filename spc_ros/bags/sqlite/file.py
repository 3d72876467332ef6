# SPDX-License-Identifier: Apache-2.0
"""Opens a SQLite file that may be damaged or still in use, without changing it; no statement runs forever."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import apsw

from spc_ros.bags.blocks import DamageError, UnclosedError

MAGIC = b"SQLite format 3\0"
HEAD_BYTES = 100
STEPS = 100_000  # of SQLite's virtual machine between checks for an endless statement
STEPS_PER_BYTE = 16  # a pass over all rows needs about one


class SqliteFile:
    """One open database, to be closed. Raises DamageError where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.losses: dict[str, None] = {}
        self._stack = contextlib.ExitStack()
        self._steps = 0
        with self.closed_on_failure():
            self._connection = self._connect()

    def close(self) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Close the file when a constructor fails, as no caller can. SQLite's errors become DamageError."""
        try:
            yield
        except apsw.Error as error:
            self.close()
            raise DamageError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _connect(self) -> apsw.Connection:
        """Read-only; of a copy where there is an unmerged log next to it, or where its last page is cut off."""
        with self.path.open("rb") as stream:
            begin = stream.read(HEAD_BYTES)
        logs = [self.path.with_name(self.path.name + end) for end in ("-wal", "-journal")]
        logs = [log for log in logs if log.is_file() and log.stat().st_size]
        if begin[: len(MAGIC)] != MAGIC[: len(begin)]:
            raise DamageError("file is not a database")
        if len(begin) < HEAD_BYTES and not logs:
            raise UnclosedError("the file ends within its head" if begin else "the file seems to be empty")
        uri = f"{self.path.resolve().as_uri()}?immutable=1"
        complete = self._page_bytes(begin)
        if logs or complete != self.size:
            uri = self._copy(logs, complete).as_uri()
        access = apsw.SQLITE_OPEN_READONLY if uri.endswith("immutable=1") else apsw.SQLITE_OPEN_READWRITE
        connection = apsw.Connection(uri, flags=access | apsw.SQLITE_OPEN_URI)
        self._stack.callback(connection.close)
        connection.set_progress_handler(self._is_endless, STEPS)
        connection.execute("PRAGMA cell_size_check = ON")  # detects damaged pages
        try:
            connection.execute("SELECT name FROM sqlite_master").fetchall()
        except apsw.Error:
            connection.execute("PRAGMA writable_schema = ON")  # otherwise SQLite refuses a file without its last pages
        return connection

    def _is_endless(self) -> bool:
        """Whether a statement takes longer than reading all rows could: damaged pages can form a loop."""
        self._steps += STEPS
        return self._steps > 50 * STEPS + STEPS_PER_BYTE * self.size

    def execute(self, query: str, values: Sequence[int] = ()) -> apsw.Cursor:
        """Run one statement; its cursor is valid until the next one. Raises apsw.Error."""
        self._steps = 0
        return self._connection.execute(query, values)

    def _page_bytes(self, begin: bytes) -> int:
        """Bytes of complete pages: SQLite would read the rest of an incomplete page as zeros."""
        if len(begin) < HEAD_BYTES:
            return self.size
        page = int.from_bytes(begin[16:18], "big")
        page = 65536 if page == 1 else page
        if page < 512 or page & (page - 1):
            raise DamageError(f"its head says that pages have {page} bytes")
        missing = page * int.from_bytes(begin[28:32], "big") - self.size
        if missing > 0 and begin[24:28] == begin[92:96]:  # otherwise an old SQLite did not maintain the page count
            self.losses[f"the file is cut off: {missing:,} of its {self.size + missing:,} bytes are missing"] = None
        return self.size - self.size % page

    def _copy(self, logs: list[Path], complete: int) -> Path:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="spc-bag-"))
        for file in (self.path, *logs):
            shutil.copyfile(file, Path(folder, file.name))
        copy = Path(folder, self.path.name)
        if logs:
            names = " and ".join(log.name for log in logs)
            self.losses[f"recording was not closed: what {names} still held is read too"] = None
        os.truncate(copy, complete)
        return copy
