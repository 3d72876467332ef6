# SPDX-License-Identifier: Apache-2.0
"""The row-at-a-time networks against the agent, their memory, and the latency benchmark."""

from __future__ import annotations

import copy
import dataclasses
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from spc_core.alignment.streaming import Transition
from spc_core.deploy.checkpoint import Checkpoint, load_checkpoint
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.deployable import Policy
from spc_core.deploy.networks.numpy_lanes import NumpyLanes
from spc_core.deploy.networks.numpy_rows import NumpyNetworks
from spc_core.deploy.networks.row_plan import row_plan
from spc_core.deploy.networks.torch_rows import TorchNetworks
from spc_core.method.agent import Agent
from spc_core.method.config import load_config
from spc_core.method.normalize import Stats
from spc_ros.cli import main
from support.method_options import configured
from support.random_checkpoint import TINY, write_random_checkpoint

METHODS = [
    "spc", "spc_paper", "spc_simnorm", "spc_continuous", "focal", "no_context",
    "spc_paper votes=precision policy_sees=both", "spc_paper policy_sees=observation",
]  # fmt: skip


def checkpoint_of(method: str, folder: Path) -> Checkpoint:
    """Random weights, and statistics far from zero and one, in which a missing normalisation would show."""
    base = load_checkpoint(write_random_checkpoint(folder / method, "arm_reach"))
    torch.manual_seed(2)
    config = dataclasses.replace(configured(method), model=dataclasses.replace(TINY, continuous_dim=16))
    agent = Agent(4, 2, [{}, {}], config).eval().requires_grad_(False)
    for weights in agent.parameters():
        weights.normal_(0, 0.5)
    mean = np.array([1000, -2, 0.5, 30], np.float32)
    spread, change = abs(mean) / 3 + 0.1, abs(mean) / 50
    stats = Stats(mean, spread, change, -3, 2.5, base.stats.action_low, base.stats.action_high)
    return dataclasses.replace(base, agent=agent, config=config, stats=stats)


def by_torch(checkpoint: Checkpoint) -> TorchNetworks:
    return TorchNetworks(checkpoint.agent, checkpoint.stats, checkpoint.device)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Checkpoint.networks, by_torch])
def test_rows_at_a_time_equal_the_agent(kind, method: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(method, tmp_path)
    agent, stats, networks = checkpoint.agent, checkpoint.stats, kind(checkpoint)
    random = np.random.default_rng(3)
    seen = []
    for _ in range(20):
        observation, next_observation = stats.observation_mean + stats.observation_std * random.normal(size=(2, 4))
        action, z = random.uniform(-3, 3, 2), random.normal(size=agent.context_dim)
        row = torch.from_numpy(stats.observation(observation))
        expected = stats.action_units(agent.act(row, torch.from_numpy(z).float()).numpy())
        np.testing.assert_allclose(networks.act(observation, z), expected, atol=1e-5)
        seen.append(expected)
        assert networks.has_encoder == (agent.context_encoder is not None)
        if agent.context_encoder is not None:
            given = torch.from_numpy(stats.transition(observation, action, -1.0, next_observation))
            embedding = networks.embed(Transition(0, observation, action, -1.0, next_observation))
            np.testing.assert_allclose(embedding, agent.context_encoder.embed(given).numpy(), atol=1e-5)
    assert isinstance(checkpoint.networks(), NumpyNetworks), "a CPU does not need torch"
    assert np.ptp(seen, axis=0).min() > 0.1, "an actor that never moves would agree with anything"


@pytest.mark.parametrize("kind", [Checkpoint.networks, by_torch])
def test_results_are_not_overwritten_by_the_next(kind, tmp_path: Path) -> None:
    networks = kind(checkpoint_of("spc_paper", tmp_path))
    z = np.zeros(networks.context_dim)
    first = networks.act(np.array([900.0, 0, 1, 0]), z)
    kept = first.copy()
    assert not np.array_equal(networks.act(np.array([1100.0, -3, 0, 60]), z), kept)
    np.testing.assert_array_equal(first, kept)
    one, other = np.array([900.0, 0, 1, 0]), np.array([1100.0, -3, 0, 60])
    first = networks.embed(Transition(0, one, np.zeros(2), 0.0, other))
    kept = first.copy()
    assert not np.array_equal(networks.embed(Transition(0, other, np.ones(2), 1.0, one)), kept)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("size", ["tiny", "paper"])
@pytest.mark.parametrize("method", ["spc", "spc_paper", "spc_simnorm", "spc_continuous", "focal", "no_context"])
def test_rows_of_many_robots_equal_those_of_one_to_the_bit(method: str, size: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(method, tmp_path)
    if size == "paper":  # products in parts, whose weights leave the processor's cache
        agent = Agent(4, 2, [{}, {}], load_config("paper", method)).eval().requires_grad_(False)
        for weights in agent.parameters():
            weights.normal_(0, 0.3)
        checkpoint = dataclasses.replace(checkpoint, agent=agent)
    plan, stats, random = row_plan(checkpoint.agent, checkpoint.stats), checkpoint.stats, np.random.default_rng(3)
    one, many = NumpyNetworks(plan), NumpyLanes(plan)
    for count in (1, 2, 33):
        observations = stats.observation_mean + 3 * stats.observation_std * random.normal(size=(count, 4))
        contexts = random.normal(size=(count, one.context_dim)).astype(np.float32)
        alone = [one.act(*row) for row in zip(observations, contexts, strict=True)]
        np.testing.assert_array_equal(many.act(observations, contexts), alone)
        if one.has_encoder:
            actions, after = random.uniform(-9, 9, (count, 2)), observations + random.normal(size=(count, 4))
            rows = zip(observations, actions, random.normal(size=count), after, strict=True)
            seen = [Transition(0, before, action, float(reward), next_) for before, action, reward, next_ in rows]
            np.testing.assert_array_equal(many.embed(seen), [one.embed(transition) for transition in seen])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("method", ["spc", "spc_paper", "spc_continuous", "focal"])
def test_a_gpu_equals_the_cpu(method: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(method, tmp_path)
    here = by_torch(checkpoint)
    device = torch.device("cuda")
    there = by_torch(dataclasses.replace(checkpoint, agent=copy.deepcopy(checkpoint.agent).to(device), device=device))
    random = np.random.default_rng(3)
    for _ in range(20):
        observation, next_observation = 100 * random.normal(size=(2, 4))
        z = random.normal(size=here.context_dim)
        np.testing.assert_allclose(there.act(observation, z), here.act(observation, z), atol=1e-3)
        transition = Transition(0, observation, random.uniform(-3, 3, 2), -1.0, next_observation)
        np.testing.assert_allclose(there.embed(transition), here.embed(transition), atol=1e-3)


def test_large_and_broken_inputs_raise_no_warning(tmp_path: Path) -> None:
    """Warnings are errors here; NaN passes through, for the safety filter to see."""
    networks = checkpoint_of("spc_continuous", tmp_path).networks()
    z = np.zeros(networks.context_dim)
    assert np.isfinite(networks.act(np.full(4, 1e6), z)).all()
    assert np.isnan(networks.act(np.array([np.nan, 0, 0, 0]), z)).all()


def test_gains_whose_exponential_would_overflow(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("spc_continuous", tmp_path)
    for module in [*checkpoint.agent.world_model.encoder, *checkpoint.agent.actor.network]:
        if isinstance(module, torch.nn.LayerNorm):
            module.weight *= 100
    networks, z = checkpoint.networks(), np.zeros(checkpoint.agent.context_dim)
    for observation in checkpoint.stats.observation_mean + np.array([[100.0, -1, 0, 3], [-500, 0, 1, 9]]):
        row = torch.from_numpy(checkpoint.stats.observation(observation))
        expected = checkpoint.stats.action_units(checkpoint.agent.act(row, torch.from_numpy(z).float()).numpy())
        np.testing.assert_allclose(networks.act(observation, z), expected, atol=1e-4)


def test_memory_does_not_grow_with_ticks_or_history(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_random_checkpoint(tmp_path / "reach", "arm_reach"))
    policy, tracker = Policy(checkpoint), ContextTracker(checkpoint)
    transition = Transition(0, np.full(4, 0.1), np.zeros(2), -0.5, np.full(4, 0.2))

    def ticks(count: int) -> None:
        for _ in range(count):
            tracker.update(transition)
            policy.act(transition.observation, tracker.context)

    ticks(100)
    tracemalloc.start()
    try:
        ticks(100)
        before = tracemalloc.get_traced_memory()[0]
        ticks(1000)
        assert tracemalloc.get_traced_memory()[0] - before < 2_000, "bytes after 1000 ticks"
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(180)
def test_bench_measures_every_controller(tmp_path: Path, capsys) -> None:
    out = tmp_path / "latency.json"
    assert (
        main(["bench", "latency", "--rate-hz", "50", "--seconds", "0.4", "--sustained-s", "0", "--json", str(out)]) == 0
    )
    report = json.loads(out.read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["relay", "policy small", "policy paper", "policy paper, encoder", "both in one process"]
    for row in rows.values():
        assert 0 < row["ticks"] <= 20 and 0 < row["median_us"] <= row["p99_us"] <= row["worst_us"]
        assert 0 <= row["missed_in_time"] <= row["missed"] and row["cpu_us"] > 0
        assert row["median_ratio"] == pytest.approx(row["median_us"] / rows["relay"]["median_us"])
    assert set(report["update_us"]) == {"10", "10000"} and min(report["update_us"].values()) > 0
    assert "policy paper, encoder" in capsys.readouterr().out
