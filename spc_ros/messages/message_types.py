# SPDX-License-Identifier: Apache-2.0
"""Message types: definitions of a bag, .msg files of the user, and the types of each ROS 2 distribution."""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rosbags.interfaces import MessageDefinitionFormat, Nodetype
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.base import TypesysError
from rosbags.typesys.store import Typestore

from spc_ros.messages.cdr_walk import KINDS
from spc_ros.messages.fields import MessageError

Types = Mapping[str, tuple[Any, Any]]  # constants and fields by type, as rosbags has them
SECTION = re.compile(r"^=+\n", re.MULTILINE)
ENUM = re.compile(r"\benum\s+(\w+)")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
INCLUDE = re.compile(r"^\s*#[^\n]*$", re.MULTILINE)
DISTROS = (Stores.ROS2_JAZZY, Stores.ROS2_LYRICAL, Stores.ROS2_KILTED, Stores.ROS2_IRON, Stores.ROS2_HUMBLE,
           Stores.ROS2_GALACTIC, Stores.ROS2_FOXY, Stores.ROS2_ELOQUENT, Stores.ROS2_DASHING)  # fmt: skip
READ = {*KINDS, "byte", "char", "string"}
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


def full_name(type_name: str) -> str:
    """`package/msg/Type`, also of `package/Type`."""
    package, _, name = type_name.partition("/")
    return f"{package}/msg/{name}" if name and "/" not in name else type_name


@functools.cache
def jazzy() -> Typestore:
    """The types of ROS 2 Jazzy, to write messages; do not register others in it."""
    return get_typestore(Stores.ROS2_JAZZY)


@functools.cache
def distro_types(store: Stores = Stores.ROS2_JAZZY) -> Typestore:
    """The types of a ROS 2 distribution, to read messages; do not register others in it."""
    found, readable = get_typestore(store), Typestore()
    readable.types, readable.fielddefs = found.types, dict(_readable(found.fielddefs))
    return readable


@functools.lru_cache(maxsize=256)
def parse(type_name: str, kind: MessageDefinitionFormat, text: str) -> Types:
    """The type and those within it, from the text that a recorder stored. Raises MessageError."""
    text = text.replace("\r\n", "\n")
    try:
        types = get_types_from_msg(text, type_name) if kind == MessageDefinitionFormat.MSG else _parse_idl(text)
        if type_name not in types:
            raise MessageError(f"it defines {', '.join(types) or 'nothing'}")
        if unknown := {kind for _, fields in types.values() for _, field in fields for kind in _kinds(field)} - READ:
            raise MessageError(f"it has fields of type {', '.join(sorted(unknown))}, which are not read here")
    except Exception as error:  # the parser raises anything
        what = "of a service" if "/srv/" in type_name else "of an action" if "/action/" in type_name else ""
        why = f"it is {what}, not a message's" if what else _one_line(error)[:120]
        raise MessageError(f"the bag's definition of {type_name} cannot be read ({why})") from None
    return _readable(types)


def _parse_idl(text: str) -> dict[str, Any]:
    """All parts of an IDL definition; an enum is a number of 32 bits."""
    text = COMMENT.sub("", text)
    if "@bit_bound" in text:
        raise MessageError("it has an enum or bitmask with @bit_bound")
    types: dict[str, Any] = {}
    for part in filter(str.strip, SECTION.split(text)):
        head, _, rest = part.partition("\n")
        types.update(get_types_from_idl(INCLUDE.sub("", rest if head.startswith("IDL: ") else part)))
    enums = set(ENUM.findall(text))

    def replaced(description: Any) -> Any:
        node, what = description
        if node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            return node, (replaced(what[0]), what[1])
        is_enum = node == Nodetype.NAME and what not in types and what.rpartition("/")[2] in enums
        return (Nodetype.BASE, ("uint32", 0)) if is_enum else description

    return {name: (constants, [(n, replaced(d)) for n, d in fields]) for name, (constants, fields) in types.items()}


def _readable(types: Mapping[str, Any]) -> Types:
    """The types with `byte` as ROS 2 has it, from 0 to 255; rosbags counts from -128."""

    def replaced(description: Any) -> Any:
        node, what = description
        if node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            return node, (replaced(what[0]), what[1])
        return (Nodetype.BASE, ("uint8", 0)) if node == Nodetype.BASE and what[0] == "byte" else description

    return {name: (constants, [(n, replaced(d)) for n, d in fields]) for name, (constants, fields) in types.items()}


def collect(type_name: str, *sources: Types) -> Types:
    """The type and all within it, each from the first source that has it; what none has is left out."""
    found: dict[str, tuple[Any, Any]] = {}
    wanted = [type_name]
    while wanted:
        name = wanted.pop()
        if name not in found and (source := next((source for source in sources if name in source), None)) is not None:
            found[name] = source[name]
            wanted += [part for _, field in source[name][1] for part in _named(field)]
    return found


def _named(description: Any) -> Iterator[str]:
    node, what = description
    if node == Nodetype.NAME:
        yield what
    elif node != Nodetype.BASE:
        yield from _named(what[0])


def _kinds(description: Any) -> Iterator[str]:
    node, what = description
    if node == Nodetype.BASE:
        yield what[0]
    elif node != Nodetype.NAME:
        yield from _kinds(what[0])
    elif what.endswith("/wstring"):  # the parser of .msg takes it for a message
        yield "wstring"


def fields_of(types: Types) -> dict[str, Any]:
    """The fields of each type; equal where serialised messages are."""
    return {name: [(field.lower(), description) for field, description in what[1]] for name, what in types.items()}


def make_store(types: Types) -> Typestore:
    """A store of these types, to read messages. Raises MessageError for types that do not go together."""
    named = {part for _, fields in types.values() for _, field in fields for part in _named(field)}
    if lacking := sorted(named - set(types)):
        raise MessageError(
            f"no definition of {', '.join(lacking)}, neither in the bag nor in ROS 2; give the folder of its package, "
            "with msg/*.msg (--types), or record again"
        )
    try:
        return _store(tuple((name, tuple(fields)) for name, (_, fields) in types.items()))
    except TypesysError as error:  # of a time or duration, which are the same in all of ROS 2
        raise MessageError(f"a definition is damaged ({_one_line(error)}); record again") from None


@functools.lru_cache(maxsize=256)
def _store(types: tuple[tuple[str, tuple[Any, ...]], ...]) -> Typestore:
    store = get_typestore(Stores.EMPTY)
    store.register({name: ([], list(fields)) for name, fields in types})
    return store
