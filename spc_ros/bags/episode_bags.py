# SPDX-License-Identifier: Apache-2.0
"""Sorts a stream of raw messages into one bag per episode, and reports missing messages. No ROS.

Topics are not ordered among each other: messages of an episode may come before its `running` message and
after its `ended` message. So messages are assigned by stamp, recent ones are kept for a bag that may still open,
and a bag closes when it has everything published in its episode, or when nothing comes any more.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from spc_core.alignment.episode import EpisodeInfo
from spc_core.contract.contract import Contract
from spc_ros.bags.files import BagError
from spc_ros.bags.writer import BagWriter

SETTLE_S = 2.0  # longest wait for the next message of an ended episode
LONGEST_S = 10.0  # for all of them; who waits for the bag does so for service_timeout_s
LONGEST_STEP_S = 0.2  # counted between two looks: in a process that gets no time, messages wait as well
LONGEST_NAME = 80  # letters of a task in the name of its bag
PENDING = 2000  # messages kept for a bag that may still open


@dataclasses.dataclass(frozen=True)
class BagResult:
    """The result of one recording; published as JSON on `recorder/bags`."""

    path: str
    episode: int
    task_id: str
    counts: Mapping[str, int]
    missing: Mapping[str, int]  # published but not recorded, by topic
    reason: str  # why the episode ended, or why the recording did

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclasses.dataclass
class _Recording:
    writer: BagWriter
    info: EpisodeInfo
    behaviour: str
    ended: bool = False
    quiet_s: float = 0.0  # since its last message, once it has ended
    waited_s: float = 0.0  # since its end

    def missing(self) -> dict[str, int]:
        """Only topics that are recorded can be missing from the bag."""
        lacks = {t: n - self.writer.counts[t] for t, n in self.info.published.items() if t in self.writer.counts}
        return {topic: count for topic, count in lacks.items() if count > 0}

    def takes(self, t_ns: int) -> bool:
        return self.info.start_ns <= t_ns and (not self.ended or t_ns <= self.info.end_ns)


class EpisodeBags:
    """Writes the bags. `now_s` is a steady clock's time; `run(work)` may do the slow closing elsewhere."""

    def __init__(
        self,
        directory: Path,
        contract: Contract,
        topics: Mapping[str, str],
        on_closed: Callable[[BagResult], None],
        run: Callable[[Callable[[], None]], object],
        storage: str = "mcap",
        episode_topic: str = "/episode",
    ) -> None:
        """`topics` are full names with their types; `on_closed` is called from within `run`."""
        self.directory, self.contract, self.topics = directory, contract, topics
        self.storage, self.episode_topic = storage, episode_topic
        self.behaviour = ""  # the controller of the next recordings, if known
        self._on_closed = on_closed
        self._run = run if storage != "sqlite3" else lambda work: work()  # SQLite stays in the thread that opened it
        self._open: list[_Recording] = []  # at most the running one and those of ended episodes
        self.latched: dict[str, tuple[int, int, bytes]] = {}  # t_ns, receive_ns and message, by topic
        self._pending: deque[tuple[str, int, int, bytes]] = deque(maxlen=PENDING)
        self._looked_s = 0.0  # time of the last look at what has ended

    @property
    def recording(self) -> bool:
        return bool(self._open)

    def message(self, topic: str, t_ns: int, receive_ns: int, data: bytes, now_s: float, latched: bool = False) -> None:
        """Take a raw message; `t_ns` is its stamp, or `receive_ns` where it has none.

        The last message of a `latched` topic, or of one that holds, is also put at the start of each later bag.
        """
        if latched:
            self.latched[topic] = (t_ns, receive_ns, data)
        for bag in reversed(self._open):
            if bag.takes(t_ns):
                self._write(bag, topic, receive_ns, data)
                if bag.ended:
                    self.poll(now_s)
                    bag.quiet_s = 0.0
                return
        self._pending.append((topic, t_ns, receive_ns, data))

    def episode(self, info: EpisodeInfo, receive_ns: int, data: bytes, now_s: float) -> None:
        """Take a message of the topic `episode`, decoded and raw."""
        if info.state == "running":
            same = [bag for bag in self._open if (bag.info.episode, bag.info.start_ns) == (info.episode, info.start_ns)]
            if same:  # an update of a known episode, such as a change of task
                same[-1].info = info
                self._write(same[-1], self.episode_topic, receive_ns, data)
                return
            for bag in [bag for bag in self._open if not bag.ended]:
                self._close(bag, "the next episode started, no end was announced")
            try:
                self.open(info)
            except (ValueError, OSError) as error:
                self._report(BagResult("", info.episode, info.task_id, {}, {}, str(error)))
                return
            self._write(self._open[-1], self.episode_topic, receive_ns, data)
        elif info.state == "ended":
            for bag in list(self._open):
                if (bag.info.episode, bag.info.start_ns) == (info.episode, info.start_ns):
                    self._write(bag, self.episode_topic, receive_ns, data)
                    bag.info, bag.ended, self._looked_s = info, True, now_s
            self.poll(now_s)

    def open(self, info: EpisodeInfo) -> Path:
        """Start the recording of an episode with the messages that came early. Raises BagError or OSError."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", info.task_id)[:LONGEST_NAME].strip("-") or "unknown"
        base = self.directory / f"{info.episode:04d}_{slug}"
        path, number = base, 2
        while path.exists():
            path, number = base.with_name(f"{base.name}_{number}"), number + 1
        writer = BagWriter(path, self._custom_data(info, self.behaviour), self.storage)
        for topic, type_name in self.topics.items():
            writer.add_topic(topic, type_name, latched=topic == self.episode_topic or topic in self.latched)
        bag = _Recording(writer, info, self.behaviour)
        for topic, (t_ns, receive_ns, data) in self.latched.items():
            if not bag.takes(t_ns):  # else it is among the pending ones
                writer.write_raw(topic, max(receive_ns, info.start_ns - 1), data)
                writer.counts[topic] -= 1  # it was not published in this episode
        for topic, t_ns, receive_ns, data in self._pending:
            if bag.takes(t_ns):
                writer.write_raw(topic, receive_ns, data)
        self._pending.clear()
        self._open.append(bag)
        return path

    def poll(self, now_s: float) -> None:
        """Close the bags that are complete, or for which nothing came for SETTLE_S; call it several times a second."""
        step_s, self._looked_s = min(now_s - self._looked_s, LONGEST_STEP_S), now_s
        for bag in [bag for bag in self._open if bag.ended]:
            bag.quiet_s, bag.waited_s = bag.quiet_s + step_s, bag.waited_s + step_s
            if not bag.missing() or bag.quiet_s > SETTLE_S or bag.waited_s > LONGEST_S:
                self._close(bag, bag.info.reason)

    def close_all(self, reason: str) -> None:
        """Close what is open; an episode without an end is cut there."""
        for bag in list(self._open):
            self._close(bag, bag.info.reason if bag.ended else reason)

    def _write(self, bag: _Recording, topic: str, receive_ns: int, data: bytes) -> None:
        """Append; if the disk refuses, the recording ends and is reported. The next episode tries again."""
        try:
            bag.writer.write_raw(topic, receive_ns, data)
        except BagError as error:
            self._open.remove(bag)
            info = bag.info
            self._report(BagResult("", info.episode, info.task_id, dict(bag.writer.counts), {}, str(error)))

    def _report(self, result: BagResult) -> None:
        self._run(lambda: self._on_closed(result))

    def _close(self, bag: _Recording, reason: str) -> None:
        self._open.remove(bag)
        if bag.info.state != "ended":
            bag.info = dataclasses.replace(bag.info, state="ended", reason=reason)
        bag.writer.custom_data.update(self._custom_data(bag.info, bag.behaviour))
        info, missing, writer = bag.info, bag.missing(), bag.writer

        def finish() -> None:
            path, why = str(writer.path), reason
            try:
                writer.close()
            except (ValueError, OSError) as error:
                path, why = "", str(error)
            self._on_closed(BagResult(path, info.episode, info.task_id, dict(writer.counts), missing, why))

        self._run(finish)

    def _custom_data(self, info: EpisodeInfo, behaviour: str) -> dict[str, str]:
        return {
            "spc.task_id": info.task_id,
            "spc.task_params": json.dumps(dict(info.params), sort_keys=True),
            "spc.contract": self.contract.text,
            "spc.contract_sha256": self.contract.sha256,
            "spc.episode": info.to_json(),
            "spc.seed": str(info.seed),
            **({"spc.behaviour": behaviour} if behaviour else {}),
        }
