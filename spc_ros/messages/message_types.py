# SPDX-License-Identifier: Apache-2.0
"""Message types: from a bag, from the user's .msg files, and otherwise those of ROS 2 Jazzy."""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from rosbags.interfaces import MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from spc_ros.messages.fields import MessageError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def read_definitions(paths: Iterable[str | Path]) -> dict[str, str]:
    """Text of message definitions by type name, from package folders (with msg/*.msg) or single .msg files.

    The package's name is that in package.xml, else the folder's. Raises MessageError.
    """
    found: dict[str, str] = {}
    for path in map(Path, paths):
        if path.suffix == ".msg" and path.is_file():
            files = [path]
        elif path.is_dir():
            files = sorted(path.glob("*.msg" if path.name == "msg" else "msg/*.msg"))
        else:
            raise MessageError(f"{path}: no such package folder or .msg file; give the folder that contains msg/")
        if not files:
            raise MessageError(f"{path}: no .msg file here; give the package folder that contains msg/")
        for file in files:
            name = f"{_package_of(file)}/msg/{file.stem}"
            text = _checked_text(file, name)
            if found.setdefault(name, text) != text:
                raise MessageError(f"{file}: '{name}' is given twice with different text; give one of them")
    return found


def _package_of(file: Path) -> str:
    folder = file.resolve().parent
    folder = folder.parent if folder.name == "msg" else folder
    manifest = folder / "package.xml"
    name = folder.name
    if manifest.is_file():
        try:
            name = (ElementTree.parse(manifest).getroot().findtext("name") or "").strip()
        except ElementTree.ParseError as error:
            raise MessageError(f"{manifest}: cannot be read ({error}); correct it or remove it") from None
    if not _NAME.fullmatch(name):
        raise MessageError(f"{manifest if manifest.is_file() else folder}: '{name}' is not a valid ROS package name")
    return name


def _checked_text(file: Path, name: str) -> str:
    if not _NAME.fullmatch(file.stem):
        raise MessageError(f"{file}: '{file.stem}' is not a valid message name; name the file after the type")
    try:
        text = file.read_text("utf-8")
        get_types_from_msg(text, name)
    except Exception as error:  # the parser raises anything
        raise MessageError(f"{file}: not a message definition ({_one_line(error)})") from error
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def jazzy() -> Typestore:
    """The types of ROS 2 Jazzy; do not register others in it."""
    return get_typestore(Stores.ROS2_JAZZY)


Definitions = frozenset[tuple[str, MessageDefinitionFormat, str]]


@functools.lru_cache(maxsize=64)
def build_typestore(stored: Definitions, given: frozenset[tuple[str, str]] = frozenset()) -> Typestore:
    """Types from the bag, else from the user, else those of ROS 2 Jazzy. Raises MessageError."""
    types = {}
    for type_name, kind, text in sorted(stored, key=lambda d: (d[0], d[2])):
        parsed = _parse(type_name, kind, text)
        if type_name in types and type_name in parsed and types[type_name][1] != parsed[type_name][1]:
            raise MessageError(f"type '{type_name}' has two definitions in one bag; convert its parts apart")
        types = {**parsed, **types}
    if given or any(kind == MessageDefinitionFormat.NONE for _, kind, _ in stored):
        for type_name, text in sorted(given):
            types = {**_parse(type_name, MessageDefinitionFormat.MSG, text), **types}
        types = {**jazzy().fielddefs, **types}
    store = get_typestore(Stores.EMPTY)
    store.register(types)
    return store


def _parse(type_name: str, kind: MessageDefinitionFormat, text: str) -> dict:
    if kind == MessageDefinitionFormat.MSG:
        return dict(get_types_from_msg(text, type_name))
    types: dict = {}
    if kind == MessageDefinitionFormat.IDL:
        for part in filter(str.strip, text.split("=" * 80 + "\n")):
            types.update(get_types_from_idl(part.split("\n", 1)[1] if part.startswith("IDL: ") else part))
    return types
