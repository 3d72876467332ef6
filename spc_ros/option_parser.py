# SPDX-License-Identifier: Apache-2.0
"""Parses arguments into a command's options: a dataclass whose comments, or metadata "help", are the help texts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from types import ModuleType, NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo


def parse_options(command: ModuleType, prog: str, arguments: Sequence[str]) -> Any:
    """The options that the command's `run` takes. Wrong usage and --help end the process, with exit codes 2 and 0.

    A command with a function `defaults(arguments)` has defaults that depend on its arguments.
    """
    kind = get_type_hints(command.run)["options"]
    defaults = {"default": command.defaults(arguments)} if hasattr(command, "defaults") else {}
    registry = ConstructorRegistry()
    registry.struct_rule(_Dataclasses())
    description = inspect.cleandoc(kind.__doc__)
    return tyro.cli(kind, prog=prog, args=list(arguments), description=description, registry=registry, **defaults)


class _Dataclasses:
    """tyro's rule for dataclasses, with clearer placeholders for values and without empty defaults."""

    def __init__(self) -> None:
        self._inside = False  # tyro's own rule is called by the function that called this one

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self._inside or not dataclasses.is_dataclass(info.type):
            return None
        self._inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            self._inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(map(_clearer, spec.fields)))


def _clearer(field: StructFieldSpec) -> StructFieldSpec:
    """PATH for a path or None, PATH [PATH ...] for positional paths, {a,b} for one of "", a and b."""
    kind = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
    inner = get_args(kind)
    hint = "" if field.default in (None, "", ()) else None
    metavar = None
    if NoneType in inner:
        metavar = inner[0].__name__.upper()
    elif get_origin(kind) is Literal:
        metavar = f"{{{','.join(filter(None, inner))}}}"
    elif get_origin(kind) is tuple and field.default is tyro.constructors.MISSING_NONPROP:
        metavar, hint = "{0} [{0} ...]".format(inner[0].__name__.upper()), "(required)"
    changed = Annotated[field.type, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]
    return dataclasses.replace(field, type=changed)
