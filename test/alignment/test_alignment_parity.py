# SPDX-License-Identifier: Apache-2.0
"""BatchAligner against its specification, StreamingAligner: equal to the last bit, on random logs."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import yaml

from spc_core.alignment import NO_TIME
from spc_core.alignment.batch.aligner import BatchAligner, Irregular, Ticks
from spc_core.alignment.batch.sampling import Samples
from spc_core.alignment.streaming import Step, StreamingAligner
from spc_core.contract.contract import Contract
from spc_core.contract.sections import REWARD, commanded, observed
from spc_core.contract.transforms import JUMP_NS
from support.contracts import action_section, make_contract, stream_section

MS = 1_000_000
PATIENCE = 100 * MS
VECTOR = "geometry_msgs/msg/Vector3Stamped"
XY = ["vector.x", "vector.y"]


def cart(target_age_s: float, force_age_s: float) -> Contract:
    observation = [
        stream_section("pose", XY, VECTOR),
        stream_section("target", ["vector.x"], VECTOR, target_age_s),
        stream_section("force", XY, VECTOR, force_age_s),
    ]
    return make_contract(observation=observation, action=action_section(XY, [9, 9], [99, 99], "push", VECTOR))


def reacher(target_age_s: float, joints: str = "ab", high: Sequence[float] = (9, 7)) -> Contract:
    """Its reward is a function of what it observes and commands."""
    positions, efforts = ([f"{field}.{joint}" for joint in joints] for field in ("position", "effort"))
    return make_contract(
        observation=[
            stream_section("joint_states", positions),
            stream_section("target", positions, max_age_s=target_age_s),
        ],
        action=action_section(efforts, list(high), [99] * len(joints), "push"),
        reward={"function": "reach", "weights": {"distance": 0.7, "scale": 1.3, "effort": 0.01}},
    )


def with_grip(contract: Contract) -> Contract:
    """Its action has two topics: that of the contract, and `grip`."""
    first = yaml.safe_load(contract.text)["action"]
    return make_contract(action=[first, action_section(["vector.z"], [4], [99], "grip", VECTOR)], base=contract)


def holding(contract: Contract, **episode: object) -> Contract:
    """The same with commands that hold until the next one; of several topics, those of the last one alone."""
    action = yaml.safe_load(contract.text)["action"]
    held = [*action[:-1], {**action[-1], "hold": True}] if isinstance(action, list) else {**action, "hold": True}
    return make_contract(action=held, base=contract, **({"episode": episode} if episode else {}))


CONTRACTS = [cart(0.05, 0.1), cart(math.inf, 0.06), cart(math.inf, math.inf), reacher(0.08), reacher(math.inf)]
CONTRACTS += [with_grip(cart(0.05, 0.1)), with_grip(cart(math.inf, 0.06))]
GAPS_S = (0.1, 0.2, 0.06, 0.1, 0.01, 0.1, 0.06)
HOLDING = [
    *(holding(contract) for contract in CONTRACTS),
    *(holding(contract, segment="gap", gap_s=gap_s) for contract, gap_s in zip(CONTRACTS, GAPS_S, strict=True)),
]


@dataclasses.dataclass(frozen=True)
class Log:
    """Messages in log order; streams are the observed ones, then commands, then rewards."""

    stream: np.ndarray  # (N,)
    t_ns: np.ndarray  # (N,)
    values: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.t_ns)


def widths(contract: Contract) -> list[int]:
    observed, parts = contract.observation, contract.action.parts
    return [*(len(stream.names) for stream in observed), *(len(part.fields) for part in parts), 1]


def one_by_one(contract: Contract, log: Log) -> Iterator[tuple[list[Step], StreamingAligner]]:
    """What the streaming aligner decides at each message, and at the end."""
    target = StreamingAligner(contract, PATIENCE)
    roles = [
        *map(observed, range(len(contract.observation))),
        *map(commanded, range(len(contract.action.parts))),
        REWARD,
    ]
    for stream, t_ns, values in zip(log.stream.tolist(), log.t_ns.tolist(), log.values, strict=True):
        yield target.push(roles[stream], t_ns, values), target
    yield target.flush(), target


def samples(log: Log, begin: int, end: int, contract: Contract) -> list[Samples]:
    """By stream; samples of one stamp that follow each other count as one message of a topic that has several uses."""
    again = (np.diff(log.t_ns, prepend=-1) == 0) & (np.diff(log.stream, prepend=0) > 0)
    order = 3 * np.cumsum(~again)
    result = []
    for stream, width in enumerate(widths(contract)):
        at = begin + np.flatnonzero(log.stream[begin:end] == stream)
        values = np.array([log.values[i] for i in at], np.float64).reshape(len(at), width)
        result.append(Samples(order[at], log.t_ns[at], values))
    return result


def in_blocks(contract: Contract, log: Log, edges: list[int]) -> Iterator[tuple[Ticks, BatchAligner]]:
    """What the batch aligner decides at each block, and at the end."""
    target = BatchAligner(contract, PATIENCE)
    for begin, end in zip([0, *edges], [*edges, len(log)], strict=True):
        *block, rewards = samples(log, begin, end, contract)
        yield target.push([*block, rewards] if len(rewards) else block), target
    yield target.flush(), target


def assert_same(ours: Ticks, theirs: Ticks) -> None:
    np.testing.assert_array_equal(ours.t_ns, theirs.t_ns)
    assert [ours.fault(i) for i in range(len(ours))] == [theirs.fault(i) for i in range(len(theirs))]
    np.testing.assert_array_equal(ours.has_transition, theirs.has_transition)
    np.testing.assert_array_equal(ours.lags_ns, theirs.lags_ns)
    for name in ("observations", "actions", "rewards"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == other.dtype == np.float64 and mine.shape == other.shape, name
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(other), err_msg=name)
        np.testing.assert_array_equal(np.nan_to_num(mine).view(np.int64), np.nan_to_num(other).view(np.int64), name)


def compare(contract: Contract, log: Log, edges: list[int]) -> Ticks:
    """Blocks decide the same ticks as single messages, each block all that are decided by its end."""
    single = list(one_by_one(contract, log))
    parts = [single[begin:end] for begin, end in zip([0, *edges], [*edges, len(log)], strict=True)]
    expected = [
        Ticks.from_steps([step for steps, _ in part for step in steps], contract) for part in [*parts, single[-1:]]
    ]
    blocks = list(in_blocks(contract, log, edges))
    for (ours, _), theirs in zip(blocks, expected, strict=True):
        assert_same(ours, theirs)
    assert blocks[-1][1].counts == single[-1][1].counts
    return Ticks.concatenate([ours for ours, _ in blocks])


def is_regular(contract: Contract, log: Log) -> bool:
    """No message comes later than patience, but those that repeat or are late within their topic, and those of any age.

    Where the clock jumps back this is checked again; a command or reward that shows the jump sets no time by itself.
    """
    horizon, newest, observed = NO_TIME, [NO_TIME] * len(widths(contract)), len(contract.observation)
    for stream, t_ns in zip(log.stream.tolist(), log.t_ns.tolist(), strict=True):
        if t_ns < newest[stream] - JUMP_NS:
            newest = [NO_TIME] * len(newest)
            horizon = t_ns if stream < observed else NO_TIME
        else:
            waited_for = stream >= observed or contract.observation[stream].max_age_ns is not None
            if waited_for and newest[stream] < t_ns < horizon - PATIENCE:
                return False
            horizon = max(horizon, t_ns)
        newest[stream] = max(newest[stream], t_ns)
    return True


def stamps(random: np.random.Generator, seconds: float, rates: list[int], trouble: float) -> np.ndarray:
    """Seconds of one stream; with trouble: jitter, drops, gaps, a late start, an early end, nothing."""

    def happens(share: float) -> bool:
        return random.random() < share * trouble

    rate = random.choice(rates)
    t = np.arange(0, seconds, 1 / rate) + random.uniform(0, 0.01)
    t += random.choice([0.0, 0.05, 0.3, 0.8]) * random.uniform(-0.5, 0.5, len(t)) / rate * happens(2)
    if happens(0.5):
        t = t[random.random(len(t)) > random.choice([0.02, 0.1, 0.4])]
    while happens(0.5):
        begin = random.uniform(0, seconds)
        t = t[(t < begin) | (t > begin + random.choice([0.03, 0.1, 0.5]))]
    if happens(0.1):
        t = t[t > random.uniform(0, seconds)]
    if happens(0.1):
        t = t[t < random.uniform(0, seconds)]
    return t if not happens(0.05) else t[:0]


def recording(random: np.random.Generator, contract: Contract, disorder: float) -> Log:
    """A log whose topics overtake each other by up to `disorder` times patience, those of any age by more.

    Some stamps repeat later on. With a coarse clock much happens at once, and exactly at the limits.
    """
    seconds, trouble = random.choice([0.05, 0.5, 1.5]), random.choice([0.0, 0.3, 1.0])
    mess = disorder * PATIENCE * random.choice([0.0, 0.1, 0.5, 1.0])
    grid_ns = random.choice([1, 1, 5 * MS])
    messages: list[tuple[float, int, int]] = []
    for stream in range(len(widths(contract)) - (contract.reward.topic is None)):
        rates = [50, 50, 50, 48, 52, 20, 100, 250, 1000] if stream == 0 else [10, 20, 50, 50, 50, 100, 500]
        part = stream - len(contract.observation)
        if 0 <= part < len(contract.action.parts) and contract.action.parts[part].hold:
            rates = [1, 4, 10, 30]
        t_ns = np.round(stamps(random, seconds, rates, trouble) * 1e9 / grid_ns).astype(np.int64) * grid_ns
        waited_for = stream >= len(contract.observation) or contract.observation[stream].max_age_ns is not None
        most = mess if waited_for else 3 * mess
        arrival = t_ns + np.round(random.uniform(0, most, len(t_ns)) / grid_ns) * grid_ns
        if random.random() < 0.7:
            arrival = np.maximum.accumulate(arrival)  # in order within the topic
        if random.random() < 0.3:
            arrival = np.minimum(np.ceil(arrival / 3e7) * 3e7, t_ns + most)  # in bursts
        messages += zip(arrival.tolist(), [stream] * len(t_ns), t_ns.tolist(), strict=True)
        for i in np.flatnonzero(random.random(len(t_ns)) < 0.02 * trouble):
            messages.append((arrival[i] + random.uniform(0, 3) * PATIENCE, stream, int(t_ns[i])))
    messages.sort(key=lambda message: message[0])
    values = [random.normal(size=widths(contract)[stream]) for _, stream, _ in messages]
    share = random.choice([0.0, 0.01, 0.1]) * trouble
    for value in values:
        value[random.random(len(value)) < share] = random.choice([np.nan, np.inf, -np.inf])
    columns = np.array([message[1:] for message in messages], np.int64).reshape(-1, 2)
    return Log(columns[:, 0], columns[:, 1], values)


def restarted(random: np.random.Generator, parts: list[Log]) -> Log:
    """Recordings one after the other whose clocks start again; a few messages may be swapped where they meet."""
    starts_ns = [5 * MS * int(random.integers(-600, 600)) for _ in parts]
    stream = np.concatenate([part.stream for part in parts])
    t_ns = np.concatenate([part.t_ns + start for part, start in zip(parts, starts_ns, strict=True)])
    values = [value for part in parts for value in part.values]
    order = np.arange(len(t_ns), dtype=np.float64)
    if random.random() < 0.3:
        order += random.uniform(-3, 3, len(order))
    order = np.argsort(order)
    return Log(stream[order], t_ns[order], [values[i] for i in order])


def some_edges(random: np.random.Generator, count: int) -> list[int]:
    return sorted(random.integers(0, count + 1, random.choice([0, 1, 4, 19])).tolist())


REASONS = {
    "", "start", "no message yet", "stale", "is not finite", "no command in the period", "push: not finite",
    "no reward in the period", "reward: not finite",
}  # fmt: skip


def seen(ticks: Ticks) -> set[str]:
    texts = {str(ticks.fault(i) or "") for i in range(len(ticks))}
    return {
        reason for reason in REASONS | {"clock jumped"} for text in texts if (reason in text if reason else not text)
    }


def seeds(few, all_of_them):
    """The first seeds, and the rest where minutes do not count."""
    rest = pytest.param(range(few, all_of_them), marks=pytest.mark.slow, id="more")
    return pytest.mark.parametrize("numbers", [pytest.param(range(few), id="some"), rest])


@seeds(100, 300)
def test_regular_logs_give_the_ticks_of_the_streaming_aligner(numbers):
    whole, reasons = 0, set()
    for seed in numbers:
        random, contract = np.random.default_rng(seed), CONTRACTS[seed % len(CONTRACTS)]
        log = recording(random, contract, 1.0)
        edges = some_edges(random, len(log)) if len(log) > 100 else list(range(len(log)))
        assert is_regular(contract, log)
        ticks = compare(contract, log, edges)
        whole += int(ticks.has_transition.sum())
        reasons |= seen(ticks)
    assert whole > 6 * len(numbers) and reasons == REASONS


@seeds(40, 100)
def test_logs_with_restarts_give_the_ticks_of_the_streaming_aligner(numbers):
    jumps, reasons = 0, set()
    for seed in numbers:
        random, contract = np.random.default_rng(seed), CONTRACTS[seed % len(CONTRACTS)]
        log = restarted(random, [recording(random, contract, 1.0) for _ in range(random.integers(2, 5))])
        edges = some_edges(random, len(log))
        if not is_regular(contract, log):
            with pytest.raises(Irregular):
                list(in_blocks(contract, log, edges))
            continue
        ticks = compare(contract, log, edges)
        jumps += sum("clock jumped back" in str(ticks.fault(i)) for i in range(len(ticks)))
        reasons |= seen(ticks)
    assert jumps > len(numbers) / 2 and reasons == REASONS | {"clock jumped"}


@seeds(40, 100)
def test_a_log_is_refused_where_it_is_irregular_and_nowhere_else(numbers):
    refused = 0
    for seed in numbers:
        random, contract = np.random.default_rng(seed), CONTRACTS[seed % len(CONTRACTS)]
        log = recording(random, contract, 2.5)
        edges = some_edges(random, len(log))
        if is_regular(contract, log):
            compare(contract, log, edges)
        else:
            refused += 1
            with pytest.raises(
                Irregular, match=r"^\w+: a message comes \d+\.\d{3} s after newer ones of other topics$"
            ):
                list(in_blocks(contract, log, edges))
    assert 0.2 < refused / len(numbers) < 0.8


@seeds(60, 200)
def test_commands_that_hold_give_the_ticks_of_the_streaming_aligner(numbers):
    held, sent, paused = 0, 0, 0
    for seed in numbers:
        random, contract = np.random.default_rng(seed), HOLDING[seed % len(HOLDING)]
        parts = [recording(random, contract, 1.0) for _ in range(random.integers(1, 4))]
        log = parts[0] if seed % 4 else restarted(random, parts)
        edges = some_edges(random, len(log)) if len(log) > 100 else list(range(len(log)))
        if not is_regular(contract, log):
            continue
        ticks = compare(contract, log, edges)
        whole = ticks.has_transition
        held += int((whole & (ticks.lags_ns == 0)).sum())
        sent += len(ticks.command_lags_ns)
        if contract.segments.by == "gap":
            anyway = compare(holding(contract, segment="bag"), log, edges).has_transition
            paused += int(anyway.sum() - whole.sum())
    assert held > 10 * len(numbers) and sent > len(numbers) and paused > len(numbers) / 10


PAID = {
    "near": {"kind": "distance", "of": ["joint_states.position.a", "joint_states.position.b"],
             "to": ["target.position.a", "target.position.b"], "shape": "exponential", "scale": 0.7},
    "smooth": {"kind": "smoothness", "weight": 0.3},
    "change": {"kind": "expression", "value": "tanh(action.effort.a - previous_action.effort.a) * dt"},
    "ratio": {"kind": "expression", "value": "1 / max(joint_states.position.b + 1.5, 0)"},  # infinite at times
    "root": {"kind": "expression", "value": "log(2 + joint_states.position.a)"},  # likewise
}  # fmt: skip


def test_terms_of_a_reward_give_the_ticks_of_the_streaming_aligner():
    """With the command before, over gaps and restarts, and where a term is not finite."""
    paid, infinite, contract = 0, set(), make_contract(base=reacher(0.08), reward={"terms": PAID})
    for seed in range(40):
        random = np.random.default_rng(seed)
        parts = [recording(random, contract, 1.0) for _ in range(1 + 2 * (seed % 4 == 0))]
        log = parts[0] if len(parts) == 1 else restarted(random, parts)
        if not is_regular(contract, log):
            continue
        ticks = compare(contract, log, some_edges(random, len(log)))
        paid += int(ticks.has_transition.sum())
        infinite |= {str(fault) for fault in ticks.faults if fault is not None and "reward" in str(fault)}
    assert paid > 200
    assert infinite == {"the reward's term 'ratio' is not finite", "the reward's term 'root' is not finite"}


def test_the_action_before_is_that_of_the_period_before_or_the_same():
    """A gap breaks it; a reward that is not finite does not."""
    change = {"value": "action.effort.a - previous_action.effort.a + 0 / (joint_states.position.a - 3)"}
    contract = make_contract(base=reacher(0.08), reward={"terms": {"change": {"kind": "expression", **change}}})
    messages = [(1, 0, [9, 9])]
    for k, (state, effort) in enumerate([(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 64)]):
        messages.append((0, 20 * k, [state, 0]))
        messages += [(1, 20 * k + 1, [9, 9])] + [(2, 20 * k + 1, [effort, 0])] * (k != 4)
    ticks = compare(contract, by_hand(contract, *messages), [5])
    assert [(str(ticks.fault(i) or ""), ticks.rewards[i]) for i in (1, 2, 4, 6)] == [
        ("", 0.0), ("", 1.0), ("", 4.0), ("", 0.0),
    ]  # fmt: skip
    assert str(ticks.fault(3)) == "the reward's term 'change' is not finite"
    assert str(ticks.fault(5)) == "push: no command in the period"


def summary(ticks: Ticks) -> list[tuple]:
    """(ms, o, a, r) of a tick where a transition ends, (ms, reason) of another."""
    return [
        (t / MS, str(ticks.fault(i))) if ticks.fault(i)
        else (t / MS, *(a[i].tolist() for a in (ticks.observations, ticks.actions, ticks.rewards)))
        for i, t in enumerate(ticks.t_ns.tolist())
    ]  # fmt: skip


def by_hand(contract: Contract, *messages: tuple[int, float, list[float]]) -> Log:
    """From (stream, ms, values) in log order."""
    stream, t_ms, values = zip(*messages, strict=True)
    return Log(np.array(stream), np.array([round(t * MS) for t in t_ms]), [np.array(v, np.float64) for v in values])


LATCHED = CONTRACTS[2]  # streams: 0 pose, 1 target and 2 force of any age, 3 push, 4 reward


def test_a_transition_pairs_an_observation_with_the_command_that_it_caused():
    log = by_hand(
        LATCHED, (1, 0, [7]), (2, 0, [8, 9]), (0, 0, [1, 2]), (3, 1, [5, 6]), (3, 2, [0, 0]), (4, 20, [-1]),
        (0, 20, [3, 4]), (0, 40, [5, 6]), (4, 40, [-2]), (0, 60, [np.nan, 6]), (0, 80, [1, 1]),
    )  # fmt: skip
    assert summary(compare(LATCHED, log, [3, 6])) == [
        (0, "start"),
        (20, [3, 4, 7, 8, 9], [5, 6], -1),
        (40, "push: no command in the period"),
        (60, "pose: vector.x is not finite"),
        (80, "start"),
    ]


def test_an_action_of_two_topics_is_complete_when_each_has_its_command():
    """Each by itself: its first command of the period counts, whichever topic comes first."""
    wanted = with_grip(LATCHED)  # streams: 3 push, 4 grip, 5 reward
    states = [(1, 0, [7]), (2, 0, [8, 9])]
    for k in range(6):
        states += [(5, 20 * k, [-k]), (0, 20 * k, [k, k])]
    commands = [
        (3, 1, [5, 6]), (4, 15, [1]), (3, 16, [0, 0]),  # the second push is too late
        (4, 22, [2]), (3, 38, [7, 8]),
        (3, 41, [1, 1]),  # no grip
        (4, 61, [3]),  # no push
        (3, 81, [9, 9]), (4, 82, [np.nan]),
    ]  # fmt: skip
    ticks = compare(wanted, by_hand(wanted, *sorted([*states, *commands], key=lambda entry: entry[1])), [])
    assert summary(ticks) == [
        (0, "start"),
        (20, [1, 1, 7, 8, 9], [5, 6, 1], -1),
        (40, [2, 2, 7, 8, 9], [7, 8, 2], -2),
        (60, "grip: no command in the period"),
        (80, "push: no command in the period"),
        (100, "grip: not finite"),
    ]
    assert ticks.lags_ns[1:3].tolist() == [15 * MS, 18 * MS]  # until the action is complete


def test_a_tick_shows_its_observation_even_where_no_transition_ends():
    log = by_hand(LATCHED, (1, 0, [7]), (2, 0, [8, 9]), (0, 0, [1, 2]), (0, 20, [3, 4]), (0, 200, [5, 6]))
    ticks = compare(LATCHED, log, [])
    assert summary(ticks) == [
        (0, "start"),
        (20, "push: no command in the period"),
        (40, "push: no command in the period"),
        (60, "push: no command in the period"),
        (80, "pose: stale, 60 ms old, allowed 50 ms"),
        (200, "start"),
    ]
    assert ticks.observations[:4, 0].tolist() == [1, 3, 3, 3] and ticks.observations[5, 0] == 5
    assert np.isnan(ticks.observations[4]).all() and np.isnan(ticks.actions).all() and np.isnan(ticks.rewards).all()


STILL = holding(LATCHED)
GAPPED = holding(LATCHED, segment="gap", gap_s=0.3)


def told(contract: Contract, *messages: tuple[int, float, list[float]]) -> list[tuple]:
    """(ms, command, lag in ms) of each tick where a transition ends, (ms, reason) of another; states at 50 Hz."""
    log = by_hand(contract, (1, 0, [7]), (2, 0, [8, 9]), *messages)
    ticks = compare(contract, log, [3, 6])
    return [
        (t / MS, str(ticks.fault(i))) if ticks.fault(i)
        else (t / MS, ticks.actions[i].tolist(), ticks.lags_ns[i] / MS)
        for i, t in enumerate(ticks.t_ns.tolist())
    ]  # fmt: skip


def states(*t_ms: float) -> list[tuple[int, float, list[float]]]:
    """States, each with a reward."""
    return [entry for t in t_ms for entry in ((4, t, [-1]), (0, t, [1, 2]))]


def test_a_command_holds_until_the_next_one_and_has_no_lag_where_it_holds():
    messages = [*states(0, 20), (3, 25, [5, 6]), *states(40, 60), (3, 61, [7, 8]), *states(80, 100)]
    assert told(STILL, *messages) == [
        (0, "start"),
        (20, "push: no command in the period"),
        (40, [5, 6], 5),
        (60, [5, 6], 0),
        (80, [7, 8], 1),
        (100, [7, 8], 0),
    ]


def test_a_command_holds_over_a_cut_and_not_over_a_clock_jump():
    messages = [
        *states(1000),
        (3, 1001, [5, 6]),
        *states(1020, 1200, 1220),
        *states(0, 20),
        (3, 21, [7, 8]),
        *states(40),
    ]
    assert told(STILL, *messages) == [
        (1000, "start"),
        (1020, [5, 6], 1),
        (1040, "reward: no reward in the period"),
        (1060, "reward: no reward in the period"),
        (1080, "pose: stale, 60 ms old, allowed 50 ms"),
        (1200, "start"),
        (1220, [5, 6], 0),
        (0, "clock jumped back by 1.220 s on reward"),
        (0, "target: no message yet"),
        (20, "target: no message yet"),
        (40, "target: no message yet"),
    ]  # fmt: skip


def test_a_command_holds_over_no_pause_by_which_the_contract_parts_episodes():
    messages = [*states(0), (3, 1, [5, 6]), *states(20, 40, 340, 360), (3, 361, [7, 8]), *states(380, 400)]
    assert told(GAPPED, *messages)[-5:] == [
        (100, "pose: stale, 60 ms old, allowed 50 ms"),
        (340, "start"),
        (360, [5, 6], 0),
        (380, [7, 8], 1),
        (400, [7, 8], 0),
    ]
    later = [(stream, t + 100 * (t > 40), values) for stream, t, values in messages]
    assert told(GAPPED, *later)[-5:] == [
        (100, "pose: stale, 60 ms old, allowed 50 ms"),
        (440, "start"),
        (460, "push: no command in the period"),
        (480, [7, 8], 1),
        (500, [7, 8], 0),
    ]


def test_a_command_that_is_not_finite_holds_too_and_cuts():
    messages = [*states(0), (3, 1, [5, np.nan]), *states(20, 40), (3, 41, [7, 8]), *states(60)]
    assert told(STILL, *messages)[1:] == [
        (20, "push: not finite"),
        (40, "push: not finite"),
        (60, [7, 8], 1),
    ]


def test_a_sample_of_any_age_counts_from_its_place_in_the_log_on():
    """Nothing waits for it: at 20 ms the target of 10 ms has not come yet."""
    log = by_hand(
        LATCHED, (1, 0, [7]), (2, 0, [8, 9]), (0, 0, [1, 2]), (3, 1, [5, 6]), (4, 20, [-1]), (0, 20, [3, 4]),
        (1, 10, [70]), (3, 21, [5, 6]), (4, 40, [-2]), (0, 40, [5, 6]),
    )  # fmt: skip
    assert compare(LATCHED, log, []).observations[:, 2].tolist() == [7, 7, 70]


def test_half_a_second_back_is_late_and_more_is_a_jump():
    start = [(1, 0, [7]), (2, 0, [8, 9])]
    late = compare(LATCHED, by_hand(LATCHED, *start, (0, 1000, [1, 2]), (0, 500, [3, 4])), [])
    assert summary(late) == [(1000, "start")]
    jump = compare(LATCHED, by_hand(LATCHED, *start, (0, 1000, [1, 2]), (0, 499.999999, [3, 4])), [])
    assert summary(jump) == [
        (1000, "start"),
        (499.999999, "clock jumped back by 0.500 s on pose"),
        (499.999999, "target: no message yet"),
    ]


def test_a_command_that_shows_a_jump_sets_no_time_for_other_topics():
    log = by_hand(LATCHED, (3, 9000, [1, 1]), (3, 1000, [1, 1]), (0, 0, [1, 2]), (4, 1, [0]), (0, 20, [1, 2]))
    assert summary(compare(LATCHED, log, [])) == [
        (1000, "clock jumped back by 8.000 s on push"),
        (0, "target: no message yet"),
        (20, "target: no message yet"),
    ]


def test_too_many_jumps_in_a_block_are_refused():
    log = by_hand(LATCHED, *[(0, t % 2 * 1000, [0, 0]) for t in range(300)])
    with pytest.raises(Irregular, match="clock jumped back more than 100 times, last on pose"):
        list(in_blocks(LATCHED, log, []))
    compare(LATCHED, log, [100, 200])


def test_an_empty_bag_has_no_ticks():
    log = Log(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    assert len(compare(LATCHED, log, [])) == 0 and len(compare(LATCHED, log, [0, 0])) == 0


def test_blocks_that_make_no_sense_are_refused():
    pose, nothing = Samples(np.array([5]), np.array([0]), np.zeros((1, 2))), [Samples.empty(n) for n in (1, 2, 2)]
    target = BatchAligner(LATCHED, PATIENCE)
    with pytest.raises(ValueError, match="samples of 3 streams, expected 5, the reward last"):
        target.push([pose, *nothing[:2]])
    target.push([pose, *nothing[:3]])
    with pytest.raises(ValueError, match="from before the last one; push blocks in log order"):
        target.push([dataclasses.replace(pose, log_index=np.array([4])), *nothing[:3]])


@pytest.mark.parametrize("silent", [None, 0, 1, 2, 3, 4], ids=["none", "pose", "target", "force", "push", "reward"])
@pytest.mark.parametrize("contract", [CONTRACTS[0], LATCHED], ids=["limited", "latched"])
def test_what_is_kept_does_not_grow_with_the_bag(contract, silent):
    target, per_block = BatchAligner(contract, PATIENCE), 100
    kept = []
    for block in range(30):
        t_ns = (block * per_block + np.arange(per_block)) * 10 * MS
        each = [
            Samples.empty(width)
            if stream == silent
            else Samples((block * per_block + np.arange(per_block)) * 5 + stream, t_ns, np.ones((per_block, width)))
            for stream, width in enumerate(widths(contract))
        ]
        target.push(each)
        kept.append(target.kept)
    assert kept[9] == kept[29] < 5 * 15  # what 100 ms of patience hold back, and one of each


def test_the_reward_of_many_transitions_is_that_of_each_to_the_bit():
    """With joints enough for np.sum to add in another order; whatever the layout in memory."""
    many = reacher(1.0, joints="abcdefghijk", high=range(3, 14))
    reward = make_contract({"action.low": [-9] * 11}, base=many).reward_function()
    assert reward is not None
    random = np.random.default_rng(0)
    before, action, after = (random.normal(size=(1000, n)) for n in (22, 11, 22))
    single = np.array([float(reward(*row)) for row in zip(before, action, after, strict=True)])
    for layout in (np.ascontiguousarray, np.asfortranarray):
        np.testing.assert_array_equal(reward(layout(before), layout(action), layout(after)), single)
    folded = reward(before.reshape(10, 100, 22), action.reshape(10, 100, 11), after.reshape(10, 100, 22))
    np.testing.assert_array_equal(folded, single.reshape(10, 100))
    distance = np.linalg.norm(after[:, :11] - before[:, 11:], axis=1)
    effort = np.sum((action / np.maximum(9, range(3, 14))) ** 2, axis=1)
    np.testing.assert_allclose(single, -0.7 * np.tanh(1.3 * distance) - 0.01 * effort, rtol=1e-13)
