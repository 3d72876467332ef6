# SPDX-License-Identifier: Apache-2.0
"""The delay from command to state: estimates online and from bags, their uncertainty, and comparison with the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spc_core.command_delay import estimate as delay_estimate
from spc_core.command_delay.correlogram import correlogram
from spc_core.command_delay.estimate import (
    BLOCK_ROWS,
    BLOCKS,
    MAX_KEPT,
    DelayEstimate,
    DelayEstimator,
    differs,
    merge_blocks,
    pooled_delay,
)
from spc_core.command_delay.online import DelayWatch, delay_of_data
from spc_core.contract.contract import load_contract
from spc_core.contract.sections import ACTION, observed
from spc_core.data.dataset import DatasetError
from spc_core.data.packed import load_dataset
from spc_core.deploy.checkpoint import load_checkpoint
from spc_core.deploy.deployable import Policy
from spc_core.deploy.safety import SafetyFilter
from spc_core.system.config_files import find_config
from spc_core.tasks import make_env, tasks
from spc_core.tasks.behaviour import Behaviour
from spc_core.tasks.disturbances import DisturbanceConfig
from spc_core.training.train import train
from spc_ros.conversion.convert import convert
from spc_ros.conversion.convert_options import ConvertOptions
from spc_ros.sim.simulation import Simulation
from support.arm_dataset import write_arm_dataset
from support.contracts import ARM_REACH
from support.paths import BAGS
from support.synthetic import tiny_config

ALLOWED_MS = 2.0  # error of the estimate in simulation
UNCLEAR = 200  # slices of work, more than are ever left


class Acting:
    """The simulated arm in lock-step, driven by a behaviour or by a policy with noise, watched as a node watches."""

    def __init__(self, family: str, delay_ms: float, watch, seed: int = 0) -> None:
        self.contract = load_contract(find_config("contracts", family))
        self.sim, self.watch, self.seed = Simulation(make_env(family), self.contract), watch, seed
        self.config = DisturbanceConfig(actuator_delay_ms=delay_ms)

    def episodes(self, count: int, act) -> None:
        """`act(observation, episode)` gives the command before the safety filter."""
        for episode in range(count):
            known = tasks(self.contract.name, "train")
            state = self.sim.reset(known[episode % len(known)], self.seed + episode, self.config)
            safety = SafetyFilter(self.contract)
            while self.sim.running:
                command = safety.apply(act(state.observation, episode))
                self._tell(state.t_ns, state.observation, command)
                state = self.sim.step(command)
                self.watch.work()
        self.watch.cut()
        for _ in range(UNCLEAR):
            self.watch.work()

    def _tell(self, t_ns: int, observation: np.ndarray, command: np.ndarray) -> None:
        column = 0
        for number, stream in enumerate(self.contract.observation):
            width = len(stream.names)
            self.watch.sample(observed(number), t_ns, observation[column : column + width])
            column += width
        self.watch.sample(ACTION, t_ns + 1, command)

    def behaving(self, kind: str):
        drivers = {}

        def act(observation: np.ndarray, episode: int) -> np.ndarray:
            if episode not in drivers:
                drivers[episode] = Behaviour(self.sim.env, kind, self.seed + episode)
            return drivers[episode].act(observation)

        return act


@pytest.mark.parametrize("delay_ms", [0, 20, 60])
@pytest.mark.parametrize(
    ("family", "kind"), [("arm_reach", "random"), ("arm_reach", "noisy"), ("arm_payload", "random")]
)
def test_a_delay_in_the_simulation_is_told(family: str, kind: str, delay_ms: int) -> None:
    estimator = DelayEstimator(load_contract(find_config("contracts", family)))
    acting = Acting(family, delay_ms, estimator)
    acting.episodes(8, acting.behaving(kind))
    estimate = estimator.estimate
    assert estimate.known, str(estimate)
    assert abs(estimate.delay_ms - delay_ms) <= max(ALLOWED_MS, estimate.uncertainty_ms), str(estimate)
    assert estimate.uncertainty_ms <= 4.0


@pytest.mark.parametrize("delay_ms", [0, 20, 60])
def test_a_policy_that_explores_tells_the_delay(delay_ms: int, tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    policy, rng = Policy(checkpoint), np.random.default_rng(0)
    z, high = np.zeros(checkpoint.config.model.context_dim, np.float32), np.array(ARM_REACH.action.high)
    watch = DelayWatch(ARM_REACH)
    watch.compare_with(DelayEstimate(0.0, 1.0, "the data"))
    Acting("arm_reach", delay_ms, watch).episodes(
        8, lambda o, _: 0.3 * policy.act(o, z) + 0.4 * high * rng.standard_normal(2)
    )
    assert watch.estimate.known and abs(watch.estimate.delay_ms - delay_ms) <= ALLOWED_MS
    assert bool(watch.judge(0.0)) == (delay_ms == 60), "1.5 periods are 30 ms"
    assert watch.judge(0.0) == "", "reported once"
    assert watch.values()["command delay verdict"] == ("not the data's" if delay_ms == 60 else "as in the data")


def test_without_excitation_nothing_is_told() -> None:
    for act in (
        lambda o, e: np.zeros(2),  # stands still
        lambda o, e: np.clip(-2.0 * o[:2] - 0.5 * o[2:], -1.5, 1.5),  # does what the state says, and nothing else
    ):
        watch = DelayWatch(ARM_REACH)
        watch.compare_with(DelayEstimate(0.0, 1.0, "the data"))
        Acting("arm_reach", 60, watch).episodes(6, act)
        assert not watch.estimate.known
        assert "unknown" in str(watch.values()["command delay"]) and watch.judge(0.0) == ""


def answering(delay_s: float, rows: int, seed: int, noise: float = 0.0) -> tuple:
    """Commands at 50 Hz and a velocity that takes up their torque `delay_s` later: (ns, u, ns, v)."""
    rng = np.random.default_rng(seed)
    u, fine = rng.normal(size=rows), 20
    at = np.arange(rows * fine)
    reached = np.maximum((at - round(delay_s * 1000)) // fine, 0)
    v = np.concatenate(([0.0], np.cumsum(u[reached])))[::fine][:rows] + noise * rng.normal(size=rows) * fine
    t_ns = np.arange(rows) * 20_000_000
    return t_ns, u[:, None], t_ns, v[:, None]


def test_how_sure_the_delay_is_covers_its_error() -> None:
    """Two standard errors are exceeded in about one case of twenty; of 12 seeds at most 3."""
    wrong, widths = 0, []
    for seed in range(12):
        blocks = []
        for block in range(6):
            c_ns, u, s_ns, v = answering(0.033, 170, 10 * seed + block, noise=0.6)
            blocks.append(correlogram(c_ns, u, ("u",), s_ns, v, ("v",)))
        estimate = delay_estimate.estimate_delay([blocks])
        assert estimate.known, str(estimate)
        wrong += abs(estimate.delay_ms - 33) > estimate.uncertainty_ms
        widths.append(estimate.uncertainty_ms)
    assert wrong <= 3 and 1.0 < np.median(widths) < 10.0


def test_memory_is_bounded_and_time_may_jump() -> None:
    estimator = DelayEstimator(ARM_REACH)
    rng = np.random.default_rng(0)
    u = rng.normal(size=(12 * BLOCK_ROWS, 2))
    state = np.zeros(4)
    for begin_ns in (10**12, 10**9):  # the second time the clock has jumped back
        for k, command in enumerate(u):
            t_ns = begin_ns + k * 20_000_000
            estimator.sample(observed(0), t_ns, state.copy())
            estimator.sample(ACTION, t_ns + 1, command)
            state[2:] += command
            state[:2] += 0.02 * state[2:]
            estimator.work()
        watched = estimator._streams[0]
        assert len(watched.blocks) == BLOCKS and len(watched.log) < BLOCK_ROWS
        assert len(estimator._command_log) <= MAX_KEPT and len(estimator._due) <= 6
        assert estimator.estimate.known and estimator.estimate.delay_ms <= 1.0
        estimator.estimate = DelayEstimate(why_not="asked again")


def test_the_difference_must_exceed_the_tolerance_and_what_is_uncertain() -> None:
    data = DelayEstimate(5.0, 3.0, "data")
    assert differs(DelayEstimate(25.0, 4.0, "v"), data, 20.0) == "", "not more than allowed"
    text = differs(DelayEstimate(26.0, 4.0, "v"), data, 20.0)
    assert "26.0 ms, give or take 4.0 ms here, 5.0 ms, give or take 3.0 ms in the data, allowed 20 ms apart" in text
    assert differs(DelayEstimate(9.0, 4.0, "v"), data, 1.0) == "", "4 apart, hypot(4, 3) = 5 uncertain"
    assert differs(DelayEstimate(11.0, 4.0, "v"), data, 1.0)
    assert differs(DelayEstimate(why_not="still"), data, 1.0) == ""


def test_bags_tell_the_delay_and_it_reaches_the_checkpoint(tmp_path: Path) -> None:
    bags = sorted((BAGS / "mcap").iterdir())[:6]
    report = convert(ConvertOptions(tuple(bags), tmp_path / "dataset", workers=1), progress=False)
    assert report.command_delay.known and report.command_delay.delay_ms <= 1.0
    assert "from command to state: 0.0 ms, give or take 1.0 ms" in report.summary()
    again = load_dataset(tmp_path / "dataset").command_delay
    assert again == report.command_delay.as_dict()
    train(tmp_path / "dataset", tmp_path / "run", tiny_config(updates=1))
    checkpoint = load_checkpoint(tmp_path / "run")
    assert delay_of_data(checkpoint.metrics) == report.command_delay
    metrics = {key: value for key, value in checkpoint.metrics.items() if key != "command_delay"}
    assert delay_of_data(metrics) is None
    old = DelayWatch(ARM_REACH)
    assert "not compared: the checkpoint does not hold" in str(old.values()["command delay verdict"])
    with pytest.raises(ValueError, match="command_delay is {'delay_ms': 3}"):
        delay_of_data({"command_delay": {"delay_ms": 3}})


def test_datasets_without_bags_do_not_tell(tmp_path: Path) -> None:
    assert load_dataset(write_arm_dataset(tmp_path / "made", task_count=1, episodes=1)).command_delay is None
    (tmp_path / "made" / "conversion.json").write_text("{")
    with pytest.raises(DatasetError, match=r"conversion\.json: damaged"):
        load_dataset(tmp_path / "made")


def test_blocks_of_many_bags_add_up_to_a_few() -> None:
    total: dict = {}
    for seed in range(3 * BLOCKS):
        c_ns, u, s_ns, v = answering(0.007, 120, seed)
        block = correlogram(c_ns, u, ("u",), s_ns, v, ("v",))
        assert block is not None
        merge_blocks(total, {0: [block]})
    assert len(total[0]) == BLOCKS and len({block.count for block in total[0]}) == 1
    assert pooled_delay(total).delay_ms == pytest.approx(7.0, abs=1.0)
