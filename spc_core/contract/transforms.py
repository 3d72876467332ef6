# SPDX-License-Identifier: Apache-2.0
"""Named transforms of observed fields, shared by bag columns and live messages.

A field is read, scaled and shifted, transformed, then clipped; bitwise the same row by row or in bulk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

QUATERNION = (".x", ".y", ".z", ".w")
JUMP_NS = 500_000_000  # a stamp this far before its predecessor is a clock jump, less is a late message


@dataclasses.dataclass(frozen=True)
class Transform:
    """Input and output suffixes of a field's path, and the function on (N, R) rows."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    apply: Callable[[np.ndarray], np.ndarray]
    limits: tuple[float, float] = (-math.inf, math.inf)  # of each output


def _rotation_matrix(q: np.ndarray) -> np.ndarray:
    """(N, 4) quaternions x, y, z, w to (N, 3, 3). Normalised first; length 0 gives NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.sqrt(q[:, 0] ** 2 + q[:, 1] ** 2 + q[:, 2] ** 2 + q[:, 3] ** 2)
        x, y, z, w = (np.ascontiguousarray(q[:, i]) / norm for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _rotation_6d(q: np.ndarray) -> np.ndarray:
    """First and second column of the rotation matrix, which are continuous. Source: Zhou et al. 2019."""
    return _rotation_matrix(q)[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)


def _yaw(q: np.ndarray) -> np.ndarray:
    """Rotation about z in (-pi, pi], rad."""
    matrix = _rotation_matrix(q)
    return np.arctan2(np.ascontiguousarray(matrix[:, 1, 0]), np.ascontiguousarray(matrix[:, 0, 0]))[:, None]


def _wrap(angle: np.ndarray) -> np.ndarray:
    """Angle in [-pi, pi), rad."""
    return np.mod(angle + math.pi, 2 * math.pi) - math.pi


def _sin_cos(angle: np.ndarray) -> np.ndarray:
    angle = np.ascontiguousarray(angle)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


TRANSFORMS: Mapping[str, Transform] = {
    "rotation_6d": Transform(QUATERNION, tuple(f".rotation_6d.{i}" for i in range(6)), _rotation_6d, (-1, 1)),
    "yaw": Transform(QUATERNION, (".yaw",), _yaw, (-math.pi, math.pi)),
    "wrap": Transform(("",), ("",), _wrap, (-math.pi, math.pi)),
    "sin_cos": Transform(("",), (".sin", ".cos"), _sin_cos, (-1, 1)),
    "derivative": Transform(("",), (".derivative",), lambda rate: rate),  # in time: FieldTransforms computes it
}


@dataclasses.dataclass(frozen=True)
class Field:
    """One observed field: its path in the message and its processing."""

    path: str
    kind: str = ""  # a name in TRANSFORMS; empty: the number itself
    scale: float = 1.0
    offset: float = 0.0
    clip: tuple[float, float] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Paths of the numbers to read."""
        return tuple(f"{self.path}{end}" for end in TRANSFORMS[self.kind].inputs) if self.kind else (self.path,)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the resulting numbers."""
        return tuple(f"{self.path}{end}" for end in TRANSFORMS[self.kind].outputs) if self.kind else (self.path,)

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The lowest and the highest value of each resulting number, as far as the transform tells."""
        low, high = TRANSFORMS[self.kind].limits if self.kind else (-math.inf, math.inf)
        if self.clip is not None:
            low, high = (min(max(edge, self.clip[0]), self.clip[1]) for edge in (low, high))
        return ((low, high),) * len(self.outputs)

    @property
    def is_plain(self) -> bool:
        return not self.kind and self.scale == 1.0 and self.offset == 0.0 and self.clip is None


class FieldTransforms:
    """A stream's fields from raw numbers (N, R) to its part of the observation (N, O).

    Only `derivative` has state, the last sample. It is per second, and NaN, which cuts the episode, for the first
    sample and after a pause of more than `max_age_s`.
    """

    def __init__(self, fields: Sequence[Field], max_age_s: float) -> None:
        self.fields = tuple(fields)
        self.is_plain = all(field.is_plain for field in fields)
        self._longest_ns = max_age_s * 1e9
        ends = np.cumsum([0, *(len(field.inputs) for field in fields)])
        self._columns = [slice(begin, end) for begin, end in zip(ends[:-1], ends[1:], strict=True)]
        rates = [c for field, c in zip(fields, self._columns, strict=True) if field.kind == "derivative"]
        self._rates = np.array([c.start for c in rates], dtype=np.intp)
        self._last_ns: int | None = None
        self._last = np.empty(0)

    @property
    def clipped(self) -> np.ndarray:
        """(R,) bool: raw numbers of which infinity too becomes a number."""
        inputs = [np.full(len(field.inputs), field.clip is not None and not field.kind) for field in self.fields]
        return np.concatenate(inputs)

    @property
    def width(self) -> int:
        """Output numbers per row."""
        return sum(len(field.outputs) for field in self.fields)

    def reset(self) -> None:
        """Forget the last sample."""
        self._last_ns = None

    def __call__(self, t_ns: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(N,) stamps in order of arrival and (N, R) numbers to (N, O)."""
        if self.is_plain:
            return values
        scales = np.concatenate([np.full(len(field.inputs), field.scale) for field in self.fields])
        offsets = np.concatenate([np.full(len(field.inputs), field.offset) for field in self.fields])
        values = values * scales + offsets
        if len(self._rates):
            values[:, self._rates] = self._derivative(t_ns, values[:, self._rates])
        parts = []
        for field, columns in zip(self.fields, self._columns, strict=True):
            part = TRANSFORMS[field.kind].apply(values[:, columns]) if field.kind else values[:, columns]
            parts.append(part if field.clip is None else np.clip(part, *field.clip))
        return np.concatenate(parts, axis=1)

    def _derivative(self, t_ns: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Change per second since the previous sample. A late sample gives NaN and is ignored afterwards."""
        times = t_ns if self._last_ns is None else np.concatenate([[self._last_ns], t_ns])
        if len(t_ns) and (np.diff(times) > 0).all():
            rows = x if self._last_ns is None else np.concatenate([self._last[None], x])
            rate = self._quotient(np.diff(times), np.diff(rows, axis=0))
            first = np.full((len(t_ns) - len(rate), x.shape[1]), np.nan)  # one row if there is no previous sample
            self._last_ns, self._last = int(t_ns[-1]), x[-1].copy()
            return np.concatenate([first, rate])
        rate = np.full_like(x, np.nan)
        for i, t in enumerate(t_ns.tolist()):
            if self._last_ns is not None and -JUMP_NS <= t - self._last_ns <= 0:
                continue
            if self._last_ns is not None and t > self._last_ns:
                rate[i] = self._quotient(np.array([t - self._last_ns]), (x[i] - self._last)[None])[0]
            self._last_ns, self._last = t, x[i].copy()
        return rate

    def _quotient(self, elapsed_ns: np.ndarray, change: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            rate = change / (elapsed_ns / 1e9)[:, None]
        rate[elapsed_ns > self._longest_ns] = np.nan
        return rate
