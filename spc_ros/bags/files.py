# SPDX-License-Identifier: Apache-2.0
"""Finds bags in folders, and the storage files that a bag consists of."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from spc_core.system.yaml_text import load_yaml

STORAGES = {".mcap": "mcap", ".db3": "sqlite3"}
PART = re.compile(r"(?P<name>.*?)(_(?P<number>\d+))?")  # of a recording up to Kilted: rec_0, rec_1
DATED_PART = re.compile(r"(?P<number>\d+)_(?P<name>.*)_\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d")  # from Lyrical on: 0_rec_DATE
PACKED = ".zstd"  # files compressed by rosbag2: x.mcap.zstd, x.db3.zstd


class BagError(ValueError):
    """A bag that cannot be used; the message names the bag, the problem and the fix."""


def storage_of(file: Path) -> str:
    """mcap or sqlite3, from the file's name, compressed or not; '' for other files."""
    name = file.name.removesuffix(PACKED)
    return STORAGES.get(Path(name).suffix, "")


def find_bags(paths: Iterable[str | Path]) -> list[Path]:
    """All bags at or below the paths, sorted. Hidden folders (unfinished recordings) are left out.

    A bag is a folder with metadata.yaml, a folder whose storage files are the parts of one recording, or a
    single storage file. Raises BagError for a path without any.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise BagError(f"{path}: no such file or folder; give bags or folders that contain bags")
        bags = _bags_below(path)
        if not bags:
            raise BagError(f"{path}: no bag here (no metadata.yaml, .mcap or .db3 at any depth)")
        found.update(dict.fromkeys(bags))
    return list(found)


def _bags_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if storage_of(path) else []
    if (path / "metadata.yaml").is_file():
        return [path]
    files = storage_files(path)
    if files and _one_recording(files):
        return [path]
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [*files, *(bag for folder in folders for bag in _bags_below(folder))]


def _one_recording(files: Iterable[Path]) -> bool:
    """Whether the names are those of the parts of one recording: one name, and each number once."""
    stems = [Path(file.name.removesuffix(PACKED)).stem for file in files]
    parts = [match for stem in stems if (match := DATED_PART.fullmatch(stem) or PART.fullmatch(stem))]
    names = {(match.re, match["name"]) for match in parts}
    return len(names) == 1 and len({match["number"] for match in parts}) == len(parts)


def storage_files(folder: Path) -> list[Path]:
    """Storage files in a folder, in the order of recording."""
    files = [p for p in folder.iterdir() if storage_of(p) and not p.name.startswith(".")]
    return sorted(files, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p.name)])


def stored_in(bag: Path) -> list[Path]:
    """The storage files of a bag, which may itself be one."""
    return [bag] if bag.is_file() else storage_files(bag)


def stored_bytes(bag: Path) -> int:
    """Size of a bag's storage files."""
    return sum(file.stat().st_size for file in stored_in(bag))


def bag_sha256(path: Path) -> str:
    """Hash of a bag's storage files, and so of all its messages."""
    digest = hashlib.sha256()
    for file in stored_in(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class BagFiles:
    """The storage files of one bag in the order of recording, and the contents of metadata.yaml."""

    parts: tuple[Path, ...]
    custom_data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    distro: str = ""  # of ROS 2, where the metadata names it


def list_files(path: Path) -> BagFiles:
    """The files of the bag at `path`. Raises BagError where there is none or where one is missing.

    An unusable metadata.yaml is only a loss if the storage files are next to it.
    """
    if not path.exists():
        raise BagError(f"{path}: no such bag")
    files = BagFiles((path,)) if path.is_file() else _folder_files(path)
    if missing := [part.name for part in files.parts if not part.is_file()]:
        raise BagError(f"{path}: metadata.yaml names {', '.join(missing)}, not found; copy the whole folder")
    if not files.parts or not all(map(storage_of, files.parts)):
        raise BagError(f"{path}: not a bag; expected a folder with metadata.yaml, a .mcap or a .db3 file")
    return files


def _folder_files(folder: Path) -> BagFiles:
    found = tuple(storage_files(folder))
    metadata = folder / "metadata.yaml"
    if not metadata.is_file():
        return BagFiles(found)
    try:
        return _renamed(_read_metadata(folder, metadata.read_bytes()), found)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, OSError) as error:
        why = " ".join(str(error).split())
        if not found:
            raise BagError(f"{folder}: metadata.yaml cannot be read ({why}) and no storage file is there") from error
        return BagFiles(found, {}, (f"metadata.yaml cannot be read ({why}); read the storage files beside it",))


def _renamed(files: BagFiles, found: tuple[Path, ...]) -> BagFiles:
    """The only file that is there for the only one that the metadata name, whatever its name."""
    if len(found) != 1 or len(files.parts) != 1 or files.parts[0].is_file():
        return files
    note = f"metadata.yaml names {files.parts[0].name}, which is not there; {found[0].name}, the only file, is read"
    return dataclasses.replace(files, parts=found, notes=(*files.notes, note))


def _read_metadata(folder: Path, text: bytes) -> BagFiles:
    """Versions 1 to 9, and later ones that keep these keys: up to version 3, paths begin with the folder's name."""
    found = load_yaml(text)
    about: Any = found.get("rosbag2_bagfile_information") if isinstance(found, dict) else None
    if not isinstance(about, dict):
        raise ValueError("no key rosbag2_bagfile_information")
    names = about.get("relative_file_paths")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"relative_file_paths is {names!r}, not a list of files")
    custom = about.get("custom_data") or {}
    if not isinstance(custom, dict):
        raise ValueError(f"custom_data is {custom!r}, not a mapping")
    formats = {about.get("compression_format") or "zstd"} - {"zstd"}
    if formats and (about.get("compression_mode") or "none").lower() != "none":
        raise BagError(f"{folder}: compressed as '{formats.pop()}'; only zstd can be unpacked, convert it first")
    parts = (folder / Path(name).name for name in dict.fromkeys(names))
    distro = str(about.get("ros_distro") or "")
    return BagFiles(tuple(parts), {str(key): str(value) for key, value in custom.items()}, distro=distro)
