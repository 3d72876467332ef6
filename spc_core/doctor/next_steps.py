# SPDX-License-Identifier: Apache-2.0
"""What to type next for each of the doctor's checks: a command, or a key of the contract."""

from __future__ import annotations

import shlex

WHERE = "spc doctor {bag}{given} --html doctor.html   # shows where in time"
PUBLISHERS = "ros2 topic info -v {topic}   # on the robot: lists its publishers and their QoS"
STAMPS = "ros2 topic echo {topic} --field header.stamp   # on the robot; without good stamps, clock: receive"
NEXT_STEPS = {
    "bag": "mcap recover FILE.mcap -o NEW.mcap, or ros2 bag reindex {bag}; then spc doctor NEW",
    "topic": "ros2 bag info {bag}   # then correct the contract; for a type without a definition, --types FOLDER",
    "fields": "spc contract init {bag} --out proposed.yaml   # lists the fields that there are",
    "conversion": "spc convert {bag}{given} --out dataset --skip-bad   # leaves it out, if it cannot be corrected",
    "task": "spc convert {bag}{given} --out dataset --task NAME   # or --task-from folder, or --manifest FILE",
    "contract": "spc convert {bag} --out dataset --contract FILE   # the one that is meant",
    "definition": "ros2 interface show TYPE   # on the robot; give its package's folder with --types",
    "rate": "ros2 topic hz {topic}   # on the robot; in the contract: rate_hz",
    "rate across bags": "spc convert BAGS --out dataset   # once for the bags of each set-up",
    "jitter": "ros2 topic hz {topic}   # on the robot: min, max and std dev of the interval",
    "gaps": "ros2 bag record --max-cache-size 1000000000 ...   # a larger cache; on the robot's own disk",
    "presence": "ros2 topic hz {topic}   # on the robot, before ros2 bag record is started",
    "lost": PUBLISHERS,
    "order": PUBLISHERS,
    "frozen stamps": STAMPS,
    "unset stamps": STAMPS,
    "clock jump": PUBLISHERS,
    "clock domains": "ros2 param get NODE use_sim_time   # of each node; in the contract: clock: receive",
    "delay": "ros2 topic delay {topic}   # on the robot",
    "drift": "chronyc tracking   # on the robot and on the recorder's machine",
    "not finite": "ros2 topic echo {topic}   # on the robot; " + WHERE,
    "constant": "in the contract: take the field out of 'fields'",
    "joints": PUBLISHERS,
    "empty array": "ros2 topic echo --once {topic}   # on the robot",
    "age at ticks": "in the contract: a larger max_age_s for {topic}, if the policy can live with older data",
    "limits": "in the contract: action: low and high; then spc doctor {bag} --contract FILE",
    "saturation": "in the contract: action: low and high; then spc doctor {bag} --contract FILE",
    "rate limit": "in the contract: action: max_rate; then spc doctor {bag} --contract FILE",
    "hold": "in the contract: action: hold; then spc doctor {bag} --contract FILE",
    "command lag": "spc contract init {bag} --out proposed.yaml   # proposes the stream that sets the ticks",
    "command delay": "spc bench latency   # what of it this software takes",
    "dropped ticks": WHERE,
    "jumps": WHERE,
    "episodes": "in the contract: the section 'episode', with segment: topic or gap; for stamps: clock",
    "short episodes": WHERE,
    "coverage of states": "spc describe dataset --html dataset.html   # what each task's data visit",
    "coverage of actions": "spc describe dataset --html dataset.html   # what each task's data visit",
}


def next_step(check: str, topic: str, bag: str, given: str = "") -> str:
    """The line for a finding of a check on a topic of a bag; `given` are the options that the doctor was given."""
    name = topic.partition(" (")[0]  # without the fields that tell two streams of one topic apart
    return NEXT_STEPS[check].format(topic=name or "TOPIC", bag=shlex.quote(bag) if bag else "BAGS", given=given)
