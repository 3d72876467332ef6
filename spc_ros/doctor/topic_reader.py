# SPDX-License-Identifier: Apache-2.0
"""One topic of a bag as arrays, and what is wrong with its messages, for the doctor."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from spc_core.contract.frames import TF, no_transform, pairs_of
from spc_core.doctor.diagnosis import Finding, Thresholds, TopicLog, message_spans
from spc_ros.bags.reader import BagReader
from spc_ros.conversion.clock_topic import Arrivals
from spc_ros.messages.cdr_layout import with_width
from spc_ros.messages.columns import LONGER, ColumnReader, RawColumn, Shape, Source
from spc_ros.messages.fields import JOINT_ARRAYS


class TopicReader:
    """Collects a topic of the bag, column by column."""

    def __init__(self, bag: BagReader, name: str, source: Source | None, known: Mapping[str, Any], number: int) -> None:
        """`name` is the bag's, `known` are attributes of the log, `number` is the source's in the contract.

        Without a source, all numbers of the messages are read. Raises MessageError.
        """
        self.name, self.source, self.known, self.number = name, source, known, number
        self.topic, self.type = source.topic if source else name, bag.info.topics[name].type
        self.recorded = bag.info.topics[name].count
        store = bag.typestore_of(name)
        self.columns = source.columns(store) if source else ColumnReader(store, self.type, None, self.topic)
        self.parts: list[tuple[np.ndarray, ...]] = []  # receive times, log indices, stamps, shapes; values
        self.made: np.ndarray | slice = np.s_[:]  # the messages that make a sample, after finish()

    def add(self, column: RawColumn) -> None:
        """Add the next messages; the column itself is not kept."""
        stamps, values, shapes = self.columns.read_all(column)
        self.parts.append((column.receive_ns.copy(), column.log_index, stamps, shapes, values))

    def finish(
        self, begin_ns: int, published: int, t: Thresholds, arrivals: Arrivals | None
    ) -> tuple[TopicLog, TopicLog, np.ndarray, list[Finding]]:
        """(log of the messages that make a sample, of all, their indices in the bag's log, their problems).

        `arrivals` of the contract's sources, which finish in their order.
        """
        parts, self.parts = self.parts, []
        shapes, fields, none = list(self.columns.shapes), self.columns.fields, np.empty(0, np.int64)
        receive_ns, log_index, stamp_ns, shape = (np.concatenate([none, *(p[i] for p in parts)]) for i in range(4))
        values = np.concatenate([np.empty((0, len(fields))), *(with_width(p[4], len(fields)) for p in parts)])
        is_tf = self.type == TF
        if is_tf and self.source is not None:
            stamp_ns = self.source.stamps(stamp_ns, values)
        clock_ns = None
        if arrivals is not None and self.source is not None:
            clock_ns = arrivals.times(self.number, self.source, log_index, receive_ns, stamp_ns)
        log = TopicLog(
            topic=self.topic,
            type=self.type,
            receive_ns=receive_ns,
            clock_ns=clock_ns if arrivals is not None and arrivals.simulated else None,
            stamp_ns=stamp_ns if self.columns.has_stamp or (is_tf and self.source is not None) else None,
            fields=fields,
            values=values,
            begin_ns=begin_ns,
            lost=max(0, published - len(receive_ns)),
            recorded=max(self.recorded, len(receive_ns)),
            decoded=len(receive_ns) - int(np.isin(shape, [i for i, s in enumerate(shapes) if s.problem]).sum()),
            absent=self.columns.absent(shape),
            **_joints(self.type, shapes, shape),
            **self.known,
        )
        problems = _problems(log, shapes, shape)
        newest = self.source.newest if self.source is not None else None
        if is_tf:
            problems += _frames(log, self.columns.joints)
        if newest is None or self.columns.error is not None or not len(log) or (log.absent is None and not is_tf):
            return log, log, log_index, problems
        newest.reset()
        shown = _first_fields(log, newest.width)  # without the stamps of transforms
        absent = np.zeros(shown.values.shape, bool) if shown.absent is None else shown.absent
        made, _, values = newest.complete(log.time_ns, log.values, log.absent)
        self.made = made
        whole = ~(np.isnan(values) & absent[made]).any(axis=1)
        made, values = made[whole], values[whole]
        if not len(values):
            return shown, log, log_index, problems
        kept: dict[str, Any] = {"receive_ns": receive_ns[made], "values": values, "absent": None}
        kept |= {"stamp_ns": stamp_ns[made]} if log.stamp_ns is not None else {}
        kept |= {"clock_ns": log.clock_ns[made]} if log.clock_ns is not None else {}
        samples = dataclasses.replace(shown, **kept, **_joints(self.type, shapes, shape[made]))
        return samples, log, log_index, [*problems, *([] if shown.absent is None else _spread(shown, made, t))]


def _first_fields(log: TopicLog, count: int) -> TopicLog:
    """The log with so many of its fields."""
    absent = None if log.absent is None else log.absent[:, :count]
    return dataclasses.replace(log, fields=log.fields[:count], values=log.values[:, :count], absent=absent)


def _frames(log: TopicLog, seen: Collection[str]) -> list[Finding]:
    """Which transforms the messages of tf hold, and which of those that the contract names none of them does."""
    missing = [pair for pair in pairs_of(log.fields) if pair not in seen]
    if missing and len(log):
        return [Finding("fail", log.topic, "fields", no_transform(missing, seen), 1.0)]
    listed = ", ".join(sorted(seen)) or "none"
    what = "transform" if len(seen) == 1 else "transforms"
    return [Finding("ok", log.topic, "frames", f"{len(seen)} {what}, as parent->child: {listed}")]


def _spread(log: TopicLog, made: np.ndarray, t: Thresholds) -> list[Finding]:
    """What to tell of messages that hold some of the fields each; `made` are those that make a whole sample."""
    assert log.absent is not None
    share = [f"{field} in {count}" for field, count in zip(log.fields, (~log.absent).sum(axis=0).tolist(), strict=True)]
    text = f"the {len(log)} messages hold some fields each ({', '.join(share)}); of each the newest value counts"
    findings = [Finding("ok", log.topic, "spread", text)]
    begun = np.arange(len(log)) >= np.argmin(log.absent, axis=0).max()  # each field was received before
    lacking: np.ndarray = ~log.absent[:, 0] & begun
    lacking[made] = False
    if lacking.any():
        names = [log.fields[i] for i in np.flatnonzero(log.absent[lacking].any(axis=0)).tolist()]
        text = (
            f"{lacking.sum()} messages lack {', '.join(names)}, last received longer ago than max_age_s, and make no "
            "sample; find out why that driver pauses, or make it a stream of its own"
        )
        bad = float(lacking.mean())
        severity = "fail" if bad > t.nan_share else "warn"
        findings.append(Finding(severity, log.topic, "joints", text, bad, message_spans(log, lacking)))
    return findings


def _joints(type_name: str, shapes: Sequence[Shape], shape: np.ndarray) -> dict[str, Any]:
    """`layouts` and `lengths` of a TopicLog: where joint names change, and the lengths of their arrays."""
    arrays = JOINT_ARRAYS.get(type_name, ())
    if not arrays or not shapes:
        return {}
    joints = list(dict.fromkeys(each.joints for each in shapes))
    whose = np.array([joints.index(each.joints) for each in shapes])[shape]
    layouts = tuple((int(i), joints[whose[i]]) for i in np.flatnonzero(np.diff(whose, prepend=-1)))
    lengths = np.array([each.lengths or (0,) * len(arrays) for each in shapes])[shape]
    points = max(each.points for each in shapes)
    return {"layouts": layouts, "lengths": {array: lengths[:, i] for i, array in enumerate(arrays)}, "points": points}


def _problems(log: TopicLog, shapes: Sequence[Shape], shape: np.ndarray) -> list[Finding]:
    """Problems of messages, and joints that none of them has."""
    problems: Counter[str] = Counter()
    longer = 0
    for each, count in zip(shapes, np.bincount(shape, minlength=len(shapes)).tolist(), strict=True):
        if each.problem:
            problems[each.problem] += count
        longer += count if each.surplus else 0
    joints = {joint for _, names in log.layouts for joint in names}
    never = sorted({field.partition(".")[2] for field in log.fields} - joints) if log.layouts else []
    if never:
        has = ", ".join(sorted(joints)) or "none"
        text = f"no message has the joint {', '.join(never)}; they have {has}; correct the contract or the driver"
        problems[text] = len(log)
    findings = [
        Finding("fail", log.topic, "fields", f"{text} ({bad} of {len(log)} messages)", bad / max(1, len(log)))
        for text, bad in problems.items()
    ]
    if longer:
        text = f"{longer} of {len(log)} messages are {LONGER.format(max(each.surplus for each in shapes))}"
        findings.append(Finding("warn", log.topic, "definition", text, longer / len(log)))
    return findings
