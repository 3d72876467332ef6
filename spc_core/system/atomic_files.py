# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all: written under a hidden name beside, then renamed."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from pathlib import Path


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all; makes the folders above it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


class WholeFolder:
    """A folder that is filled at `path`, hidden beside `root`, until commit() gives it its name."""

    def __init__(self, root: str | Path, overwrite: bool, mark: str, what: str) -> None:
        """`mark` is a file that each `what` has: nothing else is overwritten.

        Raises FileExistsError where `root` is taken.
        """
        self.root, self._overwrite, self._mark, self._what = Path(root), overwrite, mark, what
        self._check_free()
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self._remove_orphans()
        self.path = Path(tempfile.mkdtemp(prefix=f".{self.root.name}.partial-{os.getpid()}-", dir=self.root.parent))
        self.open = True

    def commit(self) -> Path:
        """Put the folder at its place, instead of the old one where there is one. Raises FileExistsError."""
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
        """Throw away what was written; does nothing after commit()."""
        if self.open:
            self.open = False
            shutil.rmtree(self.path, ignore_errors=True)

    def _remove_orphans(self) -> None:
        """Remove what a killed process of this machine left of the same folder."""
        for left in self.root.parent.glob(f".{glob.escape(self.root.name)}.partial-*-*"):
            pid = left.name.split("-")[-2]
            if pid.isdigit() and not _runs(int(pid)):
                shutil.rmtree(left, ignore_errors=True)

    def _check_free(self) -> None:
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return
        if not self._overwrite:
            raise FileExistsError(
                f"{self.root}: exists already; choose another folder, or overwrite it with --overwrite"
            )
        if not (self.root / self._mark).is_file():
            raise FileExistsError(f"{self.root}: is not {self._what}, so it is not overwritten; choose another folder")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True
