# SPDX-License-Identifier: Apache-2.0
"""Which message goes into which bag, without ROS: early, late, missing, cut."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from spc_core.alignment.episode import EpisodeInfo
from spc_ros.bags.episode_bags import LONGEST_S, SETTLE_S, BagResult, EpisodeBags
from spc_ros.bags.reader import BagReader
from support.contracts import ARM_REACH

TOPICS = {"/clock": "rosgraph_msgs/msg/Clock", "/reward": "geometry_msgs/msg/Vector3Stamped"}
TOPICS["/episode"] = "std_msgs/msg/String"
S = 1_000_000_000


def info(number: int, state: str, start_s: int, end_s: int = 0, **published: int) -> EpisodeInfo:
    counts = {f"/{topic}": count for topic, count in published.items()}
    return EpisodeInfo(
        state, f"arm_reach/id/{number:02d}", {"angle": 0.5}, number, 3, start_s * S, end_s * S,
        truncated=state == "ended", reason="time limit" if state == "ended" else "", published=counts,
    )  # fmt: skip


class Bags:
    """EpisodeBags with everything at hand."""

    def __init__(self, directory: Path) -> None:
        self.results: list[BagResult] = []
        self.bags = EpisodeBags(directory, ARM_REACH, TOPICS, self.results.append, lambda work: work())

    def clock(self, t_s: float, now_s: float = 0.0) -> None:
        t_ns = round(t_s * S)
        data = b"\0\1\0\0" + struct.pack("<iI", *divmod(t_ns, S))
        self.bags.message("/clock", t_ns, t_ns, data, now_s)

    def say(self, announced: EpisodeInfo, now_s: float = 0.0) -> None:
        text = announced.to_json().encode() + b"\0"
        data = b"\0\1\0\0" + struct.pack("<I", len(text)) + text
        self.bags.episode(announced, announced.end_ns or announced.start_ns, data, now_s)

    def look(self, now_s: float) -> float:
        """Time, from now on, until a bag is closed."""
        begin_s, known = now_s, len(self.results)
        while len(self.results) == known and now_s - begin_s < 60:
            now_s += 0.05
            self.bags.poll(now_s)
        return now_s - begin_s

    def clocks(self, number: int) -> list[int]:
        """Seconds of the clock messages in a bag."""
        with BagReader(self.results[number].path) as bag:
            return [message.clock.sec for _, _, message in bag.messages(["/clock"])]


@pytest.fixture
def bags(tmp_path: Path) -> Iterator[Bags]:
    bags = Bags(tmp_path)
    yield bags
    bags.bags.close_all("the test ended")


def test_early_and_late_messages_find_their_bag(bags: Bags) -> None:
    for t_s in (3, 10, 11):  # 3 is from before; 10 and 11 are early
        bags.clock(t_s)
    bags.say(info(1, "running", 10))
    bags.clock(12)
    bags.say(info(1, "ended", 10, 13, clock=4))
    assert not bags.results
    bags.say(info(2, "running", 20))
    bags.clock(20)
    bags.clock(13)  # late, of the first episode
    assert [result.episode for result in bags.results] == [1]
    bags.say(info(2, "ended", 20, 20, clock=1))
    assert [bags.clocks(0), bags.clocks(1)] == [[10, 11, 12, 13], [20]]
    assert not bags.results[0].missing


def test_missing_messages_are_reported_once_nothing_comes(bags: Bags) -> None:
    bags.say(info(1, "running", 10))
    bags.clock(10)
    bags.say(info(1, "ended", 10, 12, clock=3, reward=2, never_recorded=9), now_s=100.0)
    assert SETTLE_S <= bags.look(100.0) <= SETTLE_S + 0.3
    assert bags.results[0].missing == {"/clock": 2, "/reward": 2}
    assert json.loads(bags.results[0].to_json())["missing"] == {"/clock": 2, "/reward": 2}


def test_a_recorder_that_gets_no_time_waits_for_what_has_come_meanwhile(bags: Bags) -> None:
    """A busy computer: when the process goes on, its timer comes before the messages."""
    bags.say(info(1, "running", 10))
    bags.say(info(1, "ended", 10, 12, clock=3), now_s=100.0)
    bags.bags.poll(160.0)
    for t_s in (10, 11, 12):
        bags.clock(t_s, now_s=160.0)
    assert not bags.results[0].missing and bags.clocks(0) == [10, 11, 12]


def test_as_long_as_messages_come_the_bag_stays_open_but_not_for_ever(bags: Bags) -> None:
    bags.say(info(1, "running", 10))
    bags.say(info(1, "ended", 10, 99, clock=1000), now_s=100.0)
    counted, now_s = 0, 100.0
    while not bags.results and now_s < 160:
        counted, now_s = counted + 1, now_s + 0.1
        bags.clock(10 + counted / 100, now_s)
    assert counted == bags.results[0].counts["/clock"] == 1000 - bags.results[0].missing["/clock"]
    assert LONGEST_S - 0.3 <= now_s - 100 <= LONGEST_S + 0.3


def test_custom_data_tells_the_end(bags: Bags) -> None:
    bags.bags.behaviour = "noisy"
    bags.say(info(1, "running", 10))
    bags.bags.behaviour = "expert"  # of a later recording
    bags.clock(10)
    bags.say(info(1, "ended", 10, 10, clock=1))
    with BagReader(bags.results[0].path) as bag:
        custom = bag.info.custom_data
        announced = EpisodeInfo.from_json(custom["spc.episode"])
        assert bag.last_episode() == announced
    assert (announced.state, announced.truncated, announced.published) == ("ended", True, {"/clock": 1})
    assert custom["spc.contract"] == ARM_REACH.text and custom["spc.contract_sha256"] == ARM_REACH.sha256
    assert (custom["spc.task_id"], custom["spc.seed"]) == ("arm_reach/id/01", "3")
    assert json.loads(custom["spc.task_params"]) == {"angle": 0.5} and custom["spc.behaviour"] == "noisy"


@pytest.mark.parametrize("stopped", [True, False])
def test_an_episode_without_end_is_cut(bags: Bags, stopped: bool) -> None:
    bags.say(info(1, "running", 10))
    bags.clock(10)
    if stopped:
        bags.bags.close_all("the recorder was stopped")
    else:
        bags.say(info(2, "running", 20))
    with BagReader(bags.results[0].path) as bag:
        announced = EpisodeInfo.from_json(bag.info.custom_data["spc.episode"])
    assert not announced.terminated and not announced.truncated
    assert announced.reason == bags.results[0].reason
    assert ("stopped" if stopped else "no end was announced") in announced.reason


def test_nothing_is_overwritten(bags: Bags) -> None:
    for _ in range(2):
        bags.say(info(1, "running", 10))
        bags.clock(10)
        bags.say(info(1, "ended", 10, 10, clock=1))
    names = [Path(result.path).name for result in bags.results]
    assert names == ["0001_arm-reach-id-01", "0001_arm-reach-id-01_2"]


def test_an_empty_recording_is_an_error_with_a_reason(bags: Bags) -> None:
    bags.bags.open(dataclasses.replace(info(1, "running", 10), task_id="?"))
    bags.bags.close_all("stopped")
    assert bags.results[0].path == "" and "nothing was received" in bags.results[0].reason
