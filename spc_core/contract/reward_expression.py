# SPDX-License-Identifier: Apache-2.0
"""Arithmetic over the fields of a transition, from a text: a grammar of its own, and never evaluated as code.

    sum     = product {("+" | "-") product}
    product = sign {("*" | "/") sign}
    sign    = ["+" | "-"] sign | power
    power   = atom ["**" sign]
    atom    = number | name | "'" name "'" | function "(" sum {"," sum} ")" | "(" sum ")"

A name that holds other letters than those of a word and dots, such as the / of a topic, is in quotes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from spc_core.contract.reward_rows import PREVIOUS, RewardFields, Rows
from spc_core.system.config_files import suggest

MAX_LENGTH = 1000  # characters
MAX_PARTS = 100  # operators, functions, names and numbers: each is a level of calls at most
MAX_DEPTH = 30  # of brackets and signs
TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*(?:\.\w+)*)"
    r"|'(?P<single>[^']+)'|\"(?P<double>[^\"]+)\"|(?P<mark>\*\*|[-+*/(),]))"
)
WORD = re.compile(r"[^\W\d]\w*(\.\w+)*")
OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": np.power
}  # fmt: skip


def wrap(angle: np.ndarray) -> np.ndarray:
    """An angle in [-pi, pi), rad."""
    return np.mod(angle + math.pi, 2 * math.pi) - math.pi


FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], int, int]] = {  # with the fewest and most arguments
    "abs": (np.abs, 1, 1),
    "sqrt": (np.sqrt, 1, 1),
    "exp": (np.exp, 1, 1),
    "log": (np.log, 1, 1),
    "sin": (np.sin, 1, 1),
    "cos": (np.cos, 1, 1),
    "tanh": (np.tanh, 1, 1),
    "atan2": (np.arctan2, 2, 2),
    "wrap": (wrap, 1, 1),
    "min": (lambda *values: _chain(np.minimum, values), 2, MAX_PARTS),
    "max": (lambda *values: _chain(np.maximum, values), 2, MAX_PARTS),
}
ALLOWED = f"allowed are numbers, fields, dt, pi, + - * / ** ( ) and the functions {', '.join(FUNCTIONS)}"


class ExpressionError(ValueError):
    """A text that is not understood; the message names the column, the problem and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Expression:
    """A text of arithmetic as a function of N transitions."""

    compute: Callable[[Rows], np.ndarray]  # (N,)
    uses_previous: bool


Part = float | Callable[[Rows], np.ndarray]
"""A part of an expression: a constant, or a function of the rows."""


def parse_expression(text: str, fields: RewardFields) -> Expression:
    """Raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"has {len(text)} characters; write at most {MAX_LENGTH}, or several terms")
    parser = _Parser(text, fields)
    part = parser.whole()
    if isinstance(part, int | float):
        raise ExpressionError(f"is {part:g} in every transition, since it names no field; name one")
    return Expression(part, parser.uses_previous)


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str  # number | name | quoted | mark | end
    text: str
    column: int  # from 1


class _Parser:
    def __init__(self, text: str, fields: RewardFields) -> None:
        self._fields, self._tokens = fields, _tokens(text)
        self._next, self._depth = 0, 0
        self.uses_previous = False

    def whole(self) -> Part:
        part = self._sum()
        if self._token.kind != "end":
            raise self._unexpected()
        return part

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *marks: str) -> _Token | None:
        """The next token if it is one of these marks, else None."""
        token = self._token
        if token.kind != "mark" or token.text not in marks:
            return None
        self._next += 1
        return token

    def _sum(self) -> Part:
        left = self._product()
        while mark := self._take("+", "-"):
            left = self._joined(mark, left, self._product())
        return left

    def _product(self) -> Part:
        left = self._sign()
        while mark := self._take("*", "/"):
            left = self._joined(mark, left, self._sign())
        return left

    def _sign(self) -> Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _fail(self._token.column, f"nested more than {MAX_DEPTH} levels deep; write several terms")
        mark = self._take("+", "-")
        if mark is None:
            part = self._power()
        else:
            part = self._sign()
            part = part if mark.text == "+" else _apply(mark, np.negative, part)
        self._depth -= 1
        return part

    def _power(self) -> Part:
        left = self._atom()
        mark = self._take("**")
        return left if mark is None else self._joined(mark, left, self._sign())

    def _joined(self, mark: _Token, left: Part, right: Part) -> Part:
        if mark.text == "/" and right == 0.0:
            raise _fail(mark.column, "divides by 0")
        return _apply(mark, OPERATORS[mark.text], left, right)

    def _atom(self) -> Part:
        token = self._token
        if self._take("("):
            return self._closed(self._sum())
        if token.kind in ("mark", "end"):
            raise self._unexpected()
        self._next += 1
        if token.kind == "number":
            return _finite(token, float(token.text))
        if token.kind == "name" and self._take("("):
            return self._call(token)
        if token.kind == "name" and token.text in (constants := {"pi": math.pi, "dt": self._fields.period_s}):
            return constants[token.text]
        return self._field(token)

    def _closed(self, part: Part) -> Part:
        if not self._take(")"):
            raise self._unexpected("expected )")
        return part

    def _call(self, name: _Token) -> Part:
        if name.text not in FUNCTIONS:
            problem = f"'{name.text}' is not a function{suggest(name.text, FUNCTIONS)}"
            raise _fail(name.column, f"{problem}; {ALLOWED}")
        function, least, most = FUNCTIONS[name.text]
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        if not self._take(")"):
            raise self._unexpected("expected , or )")
        if not least <= len(arguments) <= most:
            wanted = str(least) if least == most else f"at least {least}"
            raise _fail(name.column, f"{name.text} takes {wanted} arguments, got {len(arguments)}")
        return _apply(name, function, *arguments)

    def _field(self, token: _Token) -> Part:
        try:
            place = self._fields.find(token.text)
        except ValueError as error:
            special = any(not WORD.fullmatch(name) for name in (*self._fields.observed, *self._fields.commanded))
            quotes = "; write names with / or - in quotes" if special and token.kind == "name" else ""
            raise _fail(token.column, f"'{token.text}' {error}{quotes}; {ALLOWED}") from None
        self.uses_previous |= place.when == PREVIOUS
        return lambda rows: rows.column(place)

    def _unexpected(self, wanted: str = "") -> ExpressionError:
        token = self._token
        if token.kind == "end":
            return _fail(token.column, f"ends too early{f': {wanted}' if wanted else ''}")
        return _fail(token.column, f"'{token.text}' is not understood here{f', {wanted}' if wanted else ''}; {ALLOWED}")


def _tokens(text: str) -> list[_Token]:
    tokens, at, end = [], 0, len(text.rstrip())
    while at < end:
        found = TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise _fail(at + 1, f"'{text[at]}' is not understood; {ALLOWED}")
        kind = str(found.lastgroup)
        tokens.append(_Token("quoted" if kind in ("single", "double") else kind, found[kind], found.start(kind) + 1))
        at = found.end()
    if len(tokens) > MAX_PARTS:
        raise ExpressionError(f"has {len(tokens)} parts; write at most {MAX_PARTS}, or several terms")
    return [*tokens, _Token("end", "", end + 1)]


def _apply(token: _Token, function: Callable[..., np.ndarray], *parts: Part) -> Part:
    """A function of parts, computed at once where all of them are constant. Constants stay Python numbers."""
    if all(isinstance(part, int | float) for part in parts):
        with np.errstate(all="ignore"):
            return _finite(token, float(function(*(np.array([part]) for part in parts))[0]))
    return lambda rows: function(*(part if isinstance(part, int | float) else part(rows) for part in parts))


def _finite(token: _Token, value: float) -> float:
    if not math.isfinite(value):
        raise _fail(token.column, f"'{token.text}' gives {value}, which is not a finite number")
    return value


def _chain(function: Callable[..., np.ndarray], values: tuple[np.ndarray, ...]) -> np.ndarray:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result


def _fail(column: int, problem: str) -> ExpressionError:
    return ExpressionError(f"column {column}: {problem}")
