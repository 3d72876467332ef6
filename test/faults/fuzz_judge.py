# SPDX-License-Identifier: Apache-2.0
"""Damages bags at random and judges what the converter makes of them; the doctor must bear them, too.

    PYTHONPATH=test python test/faults/fuzz_judge.py BEGIN END

Each case is one line of JSON: number, bag, damage, outcome, and what is wrong with it, if anything is. A process of
its own, so that nothing but a case can use its memory, and a crash below Python shows as its exit status.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from geometry_msgs.msg import Vector3Stamped
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import JointState

from faults.fuzz_bags import KINDS, STEPS, Kind, cdr, damage
from spc_core.contract.contract import parse_contract
from spc_core.data.dataset import Episode
from spc_core.doctor.diagnosis import Thresholds
from spc_ros.bags.files import BagError
from spc_ros.bags.reader import BagReader
from spc_ros.conversion import convert
from spc_ros.conversion.bag_conversion import Job
from spc_ros.doctor.bag_diagnosis import diagnose_bag
from spc_ros.doctor.trial_conversion import DoctorJob
from support.contracts import ARM_REACH
from support.recorded_bags import JOINT_STATE, PERIOD_NS, VECTOR, arm_samples

DEADLINE_S = 20  # a case takes 10 ms on a quiet machine
MEMORY_BYTES = 3 << 29  # address space of the process; numpy and rosbags alone reserve a third of it
MESSAGES = {JOINT_STATE: JointState, VECTOR: Vector3Stamped}
Raw = tuple[str, str, int, bytes]  # topic, type, receive_ns, CDR


class Hang(BaseException):
    """Not an Exception: nothing may take it for damage."""


def part_of(raw: Raw) -> tuple[int, bytes] | None:
    """(stamp, the numbers that the contract reads, as bytes) of a message; None where it has none."""
    topic, kind, _, data = raw
    if kind not in (JOINT_STATE, VECTOR) or not topic.endswith(("joint_states", "joint_commands", "reward")):
        return None
    try:
        found: Any = deserialize_message(data, MESSAGES[kind])  # what ROS 2 reads is a message
        if kind == VECTOR:
            numbers = [found.vector.x]
        else:
            arrays = (found.position, found.velocity) if topic.endswith("states") else (found.effort,)
            numbers = [array[list(found.name).index(joint)] for array in arrays for joint in ("shoulder", "elbow")]
    except Exception:  # not a message any more
        return None
    stamp = found.header.stamp
    return stamp.sec * 10**9 + stamp.nanosec, np.array(numbers, np.float64).tobytes()


Step = tuple[int, int, bytes, bytes, bytes, bytes]  # t_k, t_k+1, observation, action, reward, next observation


def steps_of(messages: list[Raw], clock: str) -> list[Step]:
    """The transitions of a whole bag, one state each period: straight from the definition."""
    streams: dict[str, list[tuple[int, bytes]]] = {"joint_states": [], "joint_commands": [], "reward": []}
    for raw in messages:
        if (part := part_of(raw)) is not None:
            streams[raw[0].rpartition("/")[2]].append((raw[2] if clock == "receive" else part[0], part[1]))
    states, commands, rewards = (sorted(stream) for stream in streams.values())
    found = []
    for (begin, before), (end, after) in zip(states, states[1:], strict=False):
        action = next((numbers for t, numbers in commands if begin < t <= end), None)
        reward = next((numbers for t, numbers in reversed(rewards) if begin < t <= end), None)
        if action is not None and reward is not None and abs(end - begin - PERIOD_NS) < PERIOD_NS // 4:
            found.append((begin, end, before, action, reward, after))
    return found


@dataclasses.dataclass(frozen=True)
class Original:
    """A bag before it is damaged."""

    kind: Kind
    path: Path
    messages: tuple[Raw, ...]
    steps: dict[str, list[Step]]  # by clock

    @classmethod
    def make(cls, kind: Kind, path: Path) -> Original:
        bag = kind.write(path)
        with BagReader(bag) as reader:
            messages = tuple(reader.raw_messages())
        if (bag / "metadata.yaml").is_file():
            with Reader(bag) as log:
                assert {(c.topic, c.msgtype, t, bytes(d)) for c, t, d in log.messages()} == set(messages)
        truth = list(messages)
        if kind.spread:  # the same steps as those of whole messages
            truth = [(s.topic, s.type, s.receive_ns, cdr(s)) for s in arm_samples(STEPS)]
        return cls(kind, bag, messages, {clock: steps_of(truth, clock) for clock in ("header", "receive")})


def contract(clock: str):
    """That of the arm, but a state is good for its own tick only: a lost one is never bridged by the one before."""
    text = ARM_REACH.text.replace("max_age_s: 0.05", "max_age_s: 0.01")
    return parse_contract(text.replace("clock: header", f"clock: {clock}"), "fuzz")


@dataclasses.dataclass(frozen=True)
class Verdict:
    case: int
    bag: str
    damage: str
    outcome: str  # see OUTCOMES
    said: str = ""  # the refusal, or the notes
    wrong: str = ""  # what must not be; empty for a good case


OUTCOMES = {
    "refused": "refused, with the bag and the reason",
    "whole": "every transition",
    "fewer": "some of the transitions, none wrong",
    "altered": "a number altered that no checksum covers",
    "realigned": "a stamp altered that no checksum covers",
    "failed": "something that must not be",
}


def judge(original: Original, bag: Path, how: str, case: int) -> Verdict:
    by_receive = original.kind.regular and case // len(KINDS) % 4 == 3
    clock = "receive" if by_receive else "header"
    kept: list = []
    keep = mock.patch.object(convert, "save_part", lambda part, *found: kept.extend(found[:2]))

    def verdict(outcome: str, said: str = "", wrong: str = "") -> Verdict:
        return Verdict(case, original.kind.name, how, "failed" if wrong else outcome, said, wrong)

    try:
        with deadline(), keep:
            job = Job(contract(clock), own_contract=True, task="t", definitions=original.kind.definitions)
            convert.convert_to_part((bag, Path("unused")), job)
            own = contract(clock) if case % 2 else None
            diagnose_bag(bag, DoctorJob(own, True, "t", Thresholds(), definitions=original.kind.definitions))
    except (Exception, Hang) as error:
        return verdict("failed", wrong=f"{type(error).__name__}: {error}")
    report, entries = kept
    if report.error:
        named = report.error.startswith(f"{bag}: ") and len(report.error) > len(f"{bag}: ")
        memory = "MemoryError" in report.error or "allocate" in report.error
        wrong = "" if named and not memory else "it names no bag" if not named else "it took too much memory"
        return verdict("refused", report.error.removeprefix(f"{bag}: "), wrong)
    found = [step for entry in entries for step in episode_steps(entry.episode)]
    true = Counter(original.steps[clock])
    wrong_steps = list((Counter(found) - true).elements())
    notes = [note for note in report.notes if not note.startswith("recorded under another contract")]
    said = "; ".join([*notes, *(str(why) for _, why in report.cuts), *report.dropped_ticks, *report.dropped_samples])
    said = said or renamed(original, bag)
    if not wrong_steps:
        return verdict("whole" if len(found) == len(original.steps[clock]) else "fewer", said)
    outcome, why = explained(original, bag, wrong_steps, most=1 if how.startswith("flip ") else None)
    return verdict(outcome, said, why)


def renamed(original: Original, bag: Path) -> str:
    """Topics that damage has called otherwise: to a reader without a checksum they are others."""
    if original.kind.checked:
        return ""
    with BagReader(bag) as reader:
        other = set(reader.info.topics) - {raw[0] for raw in original.messages}
    return f"another topic: {', '.join(sorted(other))}" if other else ""


def episode_steps(episode: Episode) -> Iterator[Step]:
    columns = episode.observations, episode.actions, episode.rewards
    states, actions, rewards = ([row.tobytes() for row in column] for column in columns)
    times = episode.times_ns.tolist()
    yield from zip(times[:-1], times[1:], states[:-1], actions, rewards, states[1:], strict=True)


def explained(original: Original, bag: Path, steps: list[Step], most: int | None) -> tuple[str, str]:
    """(outcome, what is wrong) of transitions that were never recorded.

    They are allowed only where altered bytes make them; in a plain file no more than `most` messages may be altered.
    """
    with BagReader(bag) as reader:
        messages = list(reader.raw_messages())
    altered = list((Counter(messages) - Counter(original.messages)).elements())
    if original.kind.checked or not altered:
        return "failed", f"{len(steps)} wrong transitions of {len(altered)} altered messages"
    true = [(raw[2], part_of(raw)) for raw in original.messages]
    times = {received for received, _ in true} | {part[0] for _, part in true if part}
    numbers = {part[1] for _, part in true if part}
    new = [(raw[2], part) for raw in altered if (part := part_of(raw))]
    if original.kind.plain and most is not None and len(new) > most:
        return "failed", f"{len(new)} messages altered, {most} bits"
    new_numbers = {part[1] for _, part in new}  # an altered one may be another message's
    restamped = any(received not in times or part[0] not in times for received, part in new)
    for step in steps:
        if strange := [part for part in step[2:] if part not in numbers and part not in new_numbers]:
            return "failed", f"numbers that are in no message: {np.frombuffer(strange[0])}"
        if not restamped and not any(part in new_numbers for part in step[2:]):
            return "failed", f"messages as they were recorded are paired wrongly at {step[0]}"
    return ("realigned" if restamped else "altered"), ""


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise Hang(f"more than {DEADLINE_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
    faulthandler.dump_traceback_later(2 * DEADLINE_S, exit=True)  # for what does not come back to Python
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def run(begin: int, end: int) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        originals = [Original.make(kind, Path(folder, f"kind{i}")) for i, kind in enumerate(KINDS)]
        for original in originals:
            whole = judge(original, original.path, "nothing", 0)
            assert whole.outcome == "whole", whole
        bag = Path(folder, "damaged")
        for case in range(begin, end):
            original = originals[case % len(originals)]
            shutil.copytree(original.path, bag)
            how = damage(bag, case, original.kind)
            try:
                verdict = judge(original, bag, how, case)
            except BagError as error:
                verdict = Verdict(case, original.kind.name, how, "failed", wrong=f"not read twice alike: {error}")
            print(json.dumps(dataclasses.asdict(verdict)), flush=True)
            shutil.rmtree(bag)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    run(int(sys.argv[1]), int(sys.argv[2]))
