# SPDX-License-Identifier: Apache-2.0
"""Relabelling: the same to the bit as converting the bags again, and refusals where it could not be."""

import json
import math

import numpy as np
import pytest

from spc_core.data.dataset import DatasetError
from spc_core.data.describe import describe
from spc_core.data.reader import read_episodes
from spc_core.data.relabel import preview, relabel
from spc_core.pages.describe_page import describe_page
from spc_ros.cli import main
from spc_ros.conversion.convert import ConversionError, convert
from spc_ros.conversion.convert_options import ConvertOptions
from support import recorded_bags
from support.contracts import make_contract, stream_section
from support.synthetic import write_dataset

STEPS = 12
REACH = {"function": "reach", "weights": {"distance": 2.0, "scale": 3.0, "effort": 0.5}}


def contract(changes=None, **sections):
    """An arm that sees a target; its reward comes on a topic unless `sections` has another."""
    joints = ["position.shoulder", "position.elbow"]
    observation = [stream_section("joint_states", joints), stream_section("target", joints, max_age_s=math.inf)]
    return make_contract(changes, observation=observation, **sections)


def reach(**weights):
    """REACH with other weights."""
    return {**REACH, "weights": {**REACH["weights"], **weights}}


def record(path, seed, cut_at=None, **info):
    """A bag with a target at (0.3, 0.4); joint_states are missing for five ticks at `cut_at`."""
    said = recorded_bags.episode_info(STEPS, **info)
    target = recorded_bags.joint_state(recorded_bags.START_NS, ["shoulder", "elbow"], position=[0.3, 0.4])
    samples = recorded_bags.arm_samples(STEPS, seed, said)
    if cut_at is not None:
        states = [i for i, sample in enumerate(samples) if sample.topic == "/joint_states"][cut_at : cut_at + 5]
        samples = [sample for i, sample in enumerate(samples) if i not in states]
    samples.insert(0, recorded_bags.Sample("/target", recorded_bags.JOINT_STATE, recorded_bags.RECEIVE_NS, target))
    return recorded_bags.write_bag(path, samples, recorded_bags.custom_data(contract(), said))


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """Three bags of two tasks: one truncated, one terminated, one with a gap that cuts it."""
    folder = tmp_path_factory.mktemp("bags")
    record(folder / "a", 0)
    record(folder / "b", 1, task="arm_reach/train/01", truncated=False, terminated=True)
    record(folder / "c", 2, cut_at=4)
    return folder


@pytest.fixture(scope="module")
def dataset(bags, tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "before"
    convert(ConvertOptions((bags,), root, workers=1), contract(), progress=False)
    return root


TERMS = {
    "near": {"kind": "distance", "of": "joint_states.position.elbow", "to": "target.position.elbow"},
    "smooth": {"kind": "smoothness", "shape": "absolute", "weight": 50},
    "arrived": {"kind": "success", "of": "joint_states.position.elbow", "within": [0.5, 1.0], "weight": 2},
}
INFINITE = {"expression": "1 / (action.effort.shoulder - 3)"}  # the fourth command of an episode is (3, -1)


def assert_same(one, other):
    """Every field of every episode, to the bit."""
    mine, theirs = (list(read_episodes(root)) for root in (one, other))
    assert len(mine) == len(theirs) > 0
    for (entry, episode), (entry_there, there) in zip(mine, theirs, strict=True):
        assert entry == entry_there
        for name, value in vars(episode).items():
            if isinstance(value, np.ndarray):
                assert value.dtype == getattr(there, name).dtype
                np.testing.assert_array_equal(value, getattr(there, name), err_msg=name)
            else:
                assert value == getattr(there, name), name


def test_relabelled_is_equal_to_the_bit_to_a_new_conversion(bags, dataset, tmp_path):
    for number, reward in enumerate((REACH, reach(effort=0.0))):
        new = contract({"action.safe": [1, 1], "action.low": [-40, -60]}, reward=reward)
        converted, relabelled = tmp_path / f"converted{number}", tmp_path / f"relabelled{number}"
        convert(ConvertOptions((bags,), converted, workers=1), new, progress=False)
        relabel(dataset, new, relabelled)
        assert_same(relabelled, converted)
        text = (relabelled / "contract.yaml").read_text()
        assert text == (converted / "contract.yaml").read_text() == new.text
    ends = {(episode.terminated, episode.truncated, bool(episode.cut)) for _, episode in read_episodes(relabelled)}
    assert ends == {(True, False, False), (False, True, False), (False, False, True)}


def test_terms_are_equal_to_the_bit_too_with_an_episodes_parts_behind_a_time_limit(bags, tmp_path):
    """The command before the limit is the one before; at the start of a bag, and behind a gap, nothing changed."""
    episode = {"segment": "bag", "limit_s": 0.08}  # four steps
    old, new = contract(episode=episode), contract(episode=episode, reward={"terms": TERMS})
    for name, with_contract in (("old", old), ("new", new)):
        convert(ConvertOptions((bags,), tmp_path / name, workers=1), with_contract, progress=False)
    relabel(tmp_path / "old", new, tmp_path / "relabelled")
    assert_same(tmp_path / "relabelled", tmp_path / "new")
    smooth = contract(episode=episode, reward={"terms": {"smooth": TERMS["smooth"]}})
    relabel(tmp_path / "old", smooth, tmp_path / "smooth")
    found = [e.rewards.tolist() for _, e in read_episodes(tmp_path / "smooth") if e.source == "b"]
    assert found == [[0, -1, -1, -1], [-1] * 4, [-1] * 4]  # commands rise by one, of 50
    cut = [e.rewards.tolist() for _, e in read_episodes(tmp_path / "smooth") if e.source == "c"]
    assert [rewards[0] for rewards in cut] == [0, -1, 0]  # the first is longer than the limit


def test_a_reward_that_is_not_finite_is_refused_with_its_term_and_place(bags, dataset, tmp_path):
    new = contract(reward=INFINITE)
    for use in (lambda: relabel(dataset, new, tmp_path / "out"), lambda: preview(dataset, new)):
        message = r"train/00', episode 0 \(.\): the reward's term 'expression' is not finite at step 3, 0\.06 s after"
        with pytest.raises(DatasetError, match=message):
            use()
    message = r"'expression' is not finite in the transition that ends at 0\.08 s \(tick 4, stamp \d+ ns\); guard div"
    with pytest.raises(ConversionError, match=message):
        convert(ConvertOptions((bags / "a",), tmp_path / "out", workers=1), new, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_preview_says_what_each_term_earns_and_writes_nothing(dataset, tmp_path, capsys):
    new = contract(reward={"terms": {**TERMS, "alive": {"kind": "alive", "weight": 0.5}}})
    found = preview(dataset, new)
    relabel(dataset, new, tmp_path / "out")
    after = [(entry.task_id, episode) for entry, episode in read_episodes(tmp_path / "out")]
    assert found.terms == ("near", "smooth", "arrived", "alive") and len(found.tasks) == 2
    for task in found.tasks:
        rewards = np.concatenate([e.rewards for name, e in after if name == task.task_id])
        elbows = np.concatenate([e.observations[1:, 1] for name, e in after if name == task.task_id])
        assert (task.transitions, task.mean) == (len(rewards), pytest.approx(rewards.mean()))
        inside = ((elbows >= 0.5) & (elbows <= 1)).mean()
        assert task.success == inside > 0 and task.per_step[2:] == pytest.approx((2 * inside, 0.5))
        assert task.per_step[0] == pytest.approx(-np.abs(elbows - 0.4).mean())
    assert found.notes() == ["term alive is 0.5 in every transition: nothing can be learnt from it"]
    described = describe(tmp_path / "out")
    assert [list(task.earned.values()) for task in described.tasks] == [list(task.per_step) for task in found.tasks]
    assert "What each term of the reward earned" in describe_page(described) and not describe(dataset).whole.earned
    (tmp_path / "new.yaml").write_text(new.text)
    before = sorted(tmp_path.iterdir())
    command = ["relabel", str(dataset), "--contract", str(tmp_path / "new.yaml")]
    assert main([*command, "--preview"]) == 0 and sorted(tmp_path.iterdir()) == before
    said = capsys.readouterr().out
    assert "nothing is written" in said and "arrived" in said and f"{found.whole.success:.1%}" in said
    assert main(command) == 1 and main([*command, "--preview", "--out", str(tmp_path / "x")]) == 1


def test_rewards_by_hand(dataset, tmp_path):
    """-2 tanh(3 |position' - target|) - 0.5 |a / 50|^2 at every step; the second command of a bag is (1, -1)."""
    relabel(dataset, contract(reward=REACH), tmp_path / "out")
    _, episode = next(read_episodes(tmp_path / "out"))
    after, action = episode.observations[2], episode.actions[1]
    assert action.tolist() == [1.0, -1.0] and after[2:].tolist() == [0.3, 0.4]
    distance = math.hypot(after[0] - 0.3, after[1] - 0.4)
    wanted = -2 * math.tanh(3 * distance) - 0.5 * (0.02**2 + 0.02**2)
    assert episode.rewards[1] == pytest.approx(wanted, rel=1e-12)


def test_where_it_came_from_is_written_down(dataset, tmp_path):
    first = contract(reward=REACH)
    second = contract(name="arm_near", reward=reach(distance=1.0))
    relabel(dataset, first, tmp_path / "first")
    done = relabel(tmp_path / "first", second, tmp_path / "second")
    before = [episode.rewards for _, episode in read_episodes(tmp_path / "first")]
    assert done.mean_before == pytest.approx(np.concatenate(before).mean())
    assert (done.episodes, done.transitions) == (len(before), len(np.concatenate(before)))
    origin = json.loads((tmp_path / "second" / "relabel.json").read_text())
    assert origin["dataset"] == "first" and origin["contract"]["sha256"] == second.sha256
    assert origin["before"]["dataset"] == "before" and origin["contract_before"]["sha256"] == first.sha256
    assert "reward.weights.distance: 2.0 here, 1.0 there" in origin["differences"]
    assert (tmp_path / "second" / "conversion.json").read_bytes() == (dataset / "conversion.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate_hz": 25}, "rate_hz: 50 here, 25 there"),
        ({"clock": "receive"}, "clock: header here, receive there"),
        ({"observation.0.max_age_s": 0.5}, r"observation\[0\].max_age_s: 0.05 here, 0.5 there"),
        ({"action.topic": "commands"}, "action.topic: joint_commands here, commands there"),
        ({"action.fields": ["effort.elbow", "effort.shoulder"]}, "action.fields: "),
    ],
)
def test_another_meaning_of_observations_or_actions_is_refused(dataset, tmp_path, change, message):
    with pytest.raises(DatasetError, match=f"(?s)convert the bags again.*{message}") as refused:
        relabel(dataset, contract(change, reward=REACH), tmp_path / "out")
    assert "reward" not in str(refused.value)  # what may differ is not held against it
    assert list(tmp_path.iterdir()) == []


def test_a_reward_topic_is_refused_with_its_name(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"is the topic 'score'.*convert the bags again with `spc convert"):
        relabel(dataset, contract({"reward.topic": "score"}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_actions_outside_new_limits_are_named(dataset, tmp_path):
    """Commands are k = 0, 1, 2, ... for the shoulder: the first beyond 4 is at step 5, or later in a cut bag."""
    new = contract({"action.high": [4, 50]}, reward=REACH)
    message = r"train/00', episode 0 \(.*\): action effort.shoulder is 5 at step 5, outside the new limits \[-50, 4\]"
    with pytest.raises(DatasetError, match=message):
        relabel(dataset, new, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_command_line(dataset, tmp_path, capsys):
    (tmp_path / "new.yaml").write_text(contract(reward=REACH).text)
    command = ["relabel", str(dataset), "--contract", str(tmp_path / "new.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "4 episodes" in (said := capsys.readouterr().out) and "reward.function: absent here, reach there" in said
    assert main(command) == 1
    assert "overwrite it with --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    other = write_dataset(tmp_path / "other", task_count=1)
    assert main(["relabel", str(other), *command[2:4], "--out", str(tmp_path / "never")]) == 1
    assert "convert the bags again" in capsys.readouterr().err and not (tmp_path / "never").exists()
