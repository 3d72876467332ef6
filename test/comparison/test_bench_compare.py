# SPDX-License-Identifier: Apache-2.0
"""What `spc bench compare` makes of the times of processes, which a stand-in invents."""

import os

import pytest
import yaml

from spc_core.comparison.bench_compare import AGAIN, CACHE, FIRST, REFERENCE, bench_compare
from spc_core.comparison.plan import Work, make_plan
from spc_core.method.config import ConfigError, to_dict
from spc_core.method.stacked import WORTH
from spc_ros.cli import main
from support.arm_dataset import write_arm_dataset
from support.stub_command import stub_command
from support.synthetic import tiny_config

UPDATES = 30


def test_parts_are_those_of_the_logs_and_the_whole_follows_from_them(tmp_path):
    dataset, size = write_arm_dataset(tmp_path / "arm", task_count=3, episodes=1), tmp_path / "tiny.yaml"
    size.write_text(yaml.safe_dump(to_dict(tiny_config(updates=WORTH))))
    written, caches, said, learnt = [], [], [], []

    before = os.environ.get(CACHE)

    def report(plan):
        caches.append(os.environ[CACHE])
        return lambda: written.append(plan.one_by_one)

    found = bench_compare(
        tmp_path, dataset, str(size), ["no_context", "oracle"], 2, UPDATES, 2, stub_command(tmp_path, UPDATES), report,
        (500, lambda run, updates: learnt.append((str(run), updates))), said.append, splits=["id"], episodes=1,
    )  # fmt: skip
    assert list(found.measured) == [REFERENCE, FIRST, AGAIN]
    assert said == [FIRST, REFERENCE, AGAIN, "votes"], "with nothing compiled first"
    assert not learnt, "as the methods have no votes"
    assert set(caches) == {str(tmp_path / "compiled")} and os.environ.get(CACHE) == before
    assert written == [False] * 5 + [True] * 5 + [False] * 5, "after each evaluation and at the end"
    for name, passed in found.measured.items():
        calls = (tmp_path / name / "calls.txt").read_text().splitlines()
        trained = {call for call in calls if call.startswith("train oracle")}
        alone = {f"train oracle seed-{seed}" for seed in (0, 1)}
        assert trained == (alone if name == REFERENCE else {"train oracle seed-0 seed-1"})
        # each of four runs: 10 s and 30 updates of half a second
        assert (passed.compile_s, passed.update_s, passed.votes_s) == pytest.approx((40, 60, 0))
        whole = found.whole[name]
        assert whole.update_s == pytest.approx(60 * WORTH / UPDATES) and whole.compile_s == passed.compile_s
        assert whole.wall_s / whole.process_s == pytest.approx(passed.wall_s / passed.process_s)
    ratio = found.whole[AGAIN].wall_s / found.whole[REFERENCE].wall_s
    assert found.numbers()["ratios"][AGAIN] == ratio and f"{ratio:.2f}\n\nbound by: processes: updates" in found.text()


def test_robots_of_the_reference_are_evaluated_one_by_one(tmp_path):
    plan = make_plan(write_arm_dataset(tmp_path / "arm", task_count=2, episodes=1), tmp_path / "out", ["spc"], [0])
    evaluation = Work("evaluate", tuple(plan.runs()))
    object.__setattr__(plan, "one_by_one", True)
    assert evaluation.arguments()[-1] == "--one-by-one" and "one_by_one" not in plan.settings()


@pytest.mark.parametrize("updates", [19, 500])
def test_so_few_or_so_many_updates_are_refused(tmp_path, updates):
    with pytest.raises(ConfigError, match=f"--updates has {updates}; use 20 to 499"):
        bench_compare(tmp_path, None, "quick", ["spc"], 1, updates, 1, [], lambda _: print, (500, print), print)


def test_a_benchmark_of_no_seeds_is_refused(capsys):
    assert main(["bench", "compare", "--seeds", "0"]) == 1
    assert "--seeds has 0; use a number of at least 1" in capsys.readouterr().err
