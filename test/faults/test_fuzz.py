# SPDX-License-Identifier: Apache-2.0
"""Random truncation, bit flips and other damage: a message or fewer transitions, never a crash, a hang or a lie."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from faults.fuzz_bags import KINDS, Kind, hand_made
from faults.fuzz_judge import OUTCOMES, Original, judge
from spc_core.alignment.episode import EpisodeInfo
from support.paths import ROOT, TEST_FOLDER
from support.recorded_bags import record_arm


def verdicts(begin: int, end: int) -> list[dict]:
    """What became of the cases, each in the one process that converts them all."""
    done = subprocess.run(
        [sys.executable, "-m", "faults.fuzz_judge", str(begin), str(end)],
        cwd=TEST_FOLDER,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended after case {found[-1:]}: {done.stderr[-2000:]}"
    return found


def table(found: list[dict]) -> str:
    """How many cases of each bag ended how."""
    counts = Counter((case["bag"], case["outcome"]) for case in found)
    lines = [f"{'':36}" + "".join(f"{outcome:>12}" for outcome in OUTCOMES)]
    for name in [*(kind.name for kind in KINDS), ""]:
        numbers = [sum(n for (bag, out), n in counts.items() if out == o and name in ("", bag)) for o in OUTCOMES]
        lines.append(f"{name or 'all':36}" + "".join(f"{number:12}" for number in numbers))
    return "\n".join(lines)


def check(begin: int, end: int) -> None:
    found = verdicts(begin, end)
    print(f"\n{table(found)}")
    assert [case["case"] for case in found] == list(range(begin, end))
    assert [case for case in found if case["outcome"] == "failed"] == []
    assert [case for case in found if case["outcome"] in ("refused", "fewer") and not case["said"]] == []
    altered = [case for case in found if case["outcome"] in ("altered", "realigned")]
    assert not {kind.name for kind in KINDS if kind.checked} & {case["bag"] for case in altered}
    assert len(altered) < 0.06 * len(found)  # most damage is found out where nothing is meant to find it
    for outcome in ("refused", "whole", "fewer"):
        assert sum(case["outcome"] == outcome for case in found) > 0.1 * len(found)


def test_damage_ends_in_a_message_or_in_true_transitions():
    check(0, 200)


@pytest.mark.slow
def test_much_damage_ends_in_a_message_or_in_true_transitions():
    check(0, 2000)


def test_a_lie_would_be_seen(tmp_path):
    """Another bag's numbers at the same times: wrong where a checksum would have told, altered where none could."""
    other = record_arm(tmp_path / "other", seed=1)
    for checked, outcome in ((True, "failed"), (False, "altered")):
        kind = Kind("x", lambda path, crc=checked: hand_made(path, "", crc), checked)
        original = Original.make(kind, tmp_path / outcome)
        assert judge(original, original.path, "nothing", 0).outcome == "whole"
        assert judge(original, other, "all of it", 0).outcome == outcome
        short = record_arm(tmp_path / f"short-{outcome}", steps=7)
        assert judge(original, short, "all after the seventh step", 0).outcome == "fewer"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_ns", "soon"),
        ("end_ns", None),
        ("end_ns", float("nan")),
        ("params", [1.0]),
        ("params", {"mass": "heavy"}),
        ("published", 7),
        ("reason", {}),
        ("terminated", "no"),
    ],
)
def test_episode_information_of_a_wrong_kind_is_refused(field, value):
    said = {"state": "ended", "task_id": "a", "params": {}, "episode": 1, "seed": 0, "start_ns": 0, field: value}
    with pytest.raises(ValueError, match=f"topic 'episode' has {field}: "):
        EpisodeInfo.from_json(json.dumps(said))
