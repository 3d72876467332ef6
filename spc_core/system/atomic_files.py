# SPDX-License-Identifier: Apache-2.0
"""Atomic writes of files and folders: under a hidden name in the same folder, then renamed."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from pathlib import Path


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file completely or not at all, and create its parent folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class AtomicFolder:
    """A folder filled at the hidden `path` next to `root`; commit() renames it to `root`."""

    def __init__(
        self, root: str | Path, overwrite: bool, marker: str, kind: str, error: type[Exception] = FileExistsError
    ) -> None:
        """Only a `root` that contains the file `marker`, as each `kind` of folder does, is overwritten.

        Raises `error` if `root` exists and may not be overwritten, as commit() does.
        """
        self.root, self._overwrite, self._marker, self._kind = Path(root), overwrite, marker, kind
        self._error = error
        self._check_free()
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self._remove_orphans()
        self.path = Path(tempfile.mkdtemp(prefix=f".{self.root.name}.partial-{os.getpid()}-", dir=self.root.parent))
        self.open = True

    def commit(self) -> Path:
        """Rename the folder to `root`, replacing an old one."""
        self._check_free()
        os.chmod(self.path, 0o755)  # mkdtemp's folders are private
        old = self.path.with_name(self.path.name.replace(".partial-", ".old-"))
        if self.root.exists():
            self.root.rename(old)
        self.path.rename(self.root)
        self.open = False
        shutil.rmtree(old, ignore_errors=True)
        return self.root

    def abort(self) -> None:
        """Discard the folder; does nothing after commit()."""
        if self.open:
            self.open = False
            shutil.rmtree(self.path, ignore_errors=True)

    def _remove_orphans(self) -> None:
        """Remove partial folders of killed processes on this machine."""
        for left in self.root.parent.glob(f".{glob.escape(self.root.name)}.partial-*-*"):
            pid = left.name.split("-")[-2]
            if pid.isdigit() and not _runs(int(pid)):
                shutil.rmtree(left, ignore_errors=True)

    def _check_free(self) -> None:
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return
        if not self._overwrite:
            raise self._error(f"{self.root}: exists already; choose another folder, or overwrite it with --overwrite")
        if not (self.root / self._marker).is_file():
            raise self._error(f"{self.root}: is not {self._kind}, so it is not overwritten; choose another folder")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True
