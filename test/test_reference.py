# SPDX-License-Identifier: Apache-2.0
"""The fast update against the plain equations: the same numbers where nothing is drawn, else the same learning."""

import copy

import numpy as np
import pytest
import torch
from arm_dataset import write_arm_dataset
from synthetic import tiny_config

from spc_core.data.packed import PackedDataset, load_dataset
from spc_core.data.sampler import Sampler
from spc_core.deploy.checkpoint import Checkpoint
from spc_core.method.agent import Agent, Learner
from spc_core.method.config import TrainConfig
from spc_core.tasks import tasks
from spc_core.training.reference import ReferenceLearner
from spc_core.training.train import data_stats
from spc_core.trials.evaluate import run_in_process
from spc_core.trials.protocol import Trial

WIDE = {  # wide enough for bfloat16 products
    "groups": 48, "context_dim": 5, "encoder_hidden": [96], "dynamics_hidden": [96], "context_hidden": [96],
    "policy_hidden": [96],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PackedDataset:
    return load_dataset(write_arm_dataset(tmp_path_factory.mktemp("data") / "arm", task_count=6, episodes=9))


def make_agent(data: PackedDataset, config: TrainConfig) -> Agent:
    torch.manual_seed(config.seed)
    params = [task.params for task in data.tasks]
    return Agent(data.contract.observation_dim, data.contract.action_dim, params, config)


def curves(data: PackedDataset, kind: type[Learner], config: TrainConfig) -> tuple[dict[str, np.ndarray], Agent]:
    """Losses by name, one entry for each update that has them, and the trained agent."""
    learner = kind(make_agent(data, config))
    sampler = Sampler(data, data_stats(data), config, config.seed)
    losses: dict[str, list[float]] = {}
    for number in range(config.updates):
        for name, loss in learner.update(sampler.batch(), number).items():
            losses.setdefault(name, []).append(float(loss))
    return {name: np.array(values) for name, values in losses.items()}, learner.agent


@pytest.mark.parametrize("method", ["spc", "spc_continuous"])
def test_one_update_in_full_precision_has_the_same_losses_and_moves_the_same_weights(data, method):
    config = tiny_config(method, horizon=1, tasks_per_batch=6, precision="fp32")  # one step: no code is drawn
    fast = Learner(make_agent(data, config))
    plain = ReferenceLearner(copy.deepcopy(fast.agent))
    batch = Sampler(data, data_stats(data), config, 0).batch()
    for number in range(3):
        mine, theirs = fast.update(batch, number), plain.update(batch, number)
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    for (name, mine), theirs in zip(fast.agent.state_dict().items(), plain.agent.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-4, msg=name)


def learning(updates: int) -> dict[str, object]:
    return {"updates": updates, "tasks_per_batch": 6, "windows_per_task": 8, "contexts_per_task": 8, "model": WIDE}


def test_bfloat16_and_shared_noise_learn_as_the_plain_equations_do(data):
    """Loss curves of the second half: the fast path lies within three standard deviations and 5 % of plain seeds."""
    configs = [tiny_config(seed=seed, precision="fp32", **learning(120)) for seed in range(3)]
    plain = [curves(data, ReferenceLearner, config)[0] for config in configs]
    fast, _ = curves(data, Learner, tiny_config(seed=0, precision="bf16", **learning(120)))
    for name, values in fast.items():
        ends = [run[name][len(run[name]) // 2 :].mean() for run in plain]
        near = 3 * np.std(ends, ddof=1) + 0.05 * abs(np.mean(ends))
        assert abs(values[len(values) // 2 :].mean() - np.mean(ends)) <= near, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_policies_of_the_fast_path_earn_what_those_of_the_plain_equations_do(data):
    chosen = tasks("arm_reach", "train")[:6]

    def earned(kind: type[Learner], config: TrainConfig) -> float:
        agent = curves(data, kind, config)[1].eval().requires_grad_(False)
        checkpoint = Checkpoint(agent, config, data.contract, data_stats(data), {}, torch.device("cpu"))
        rows = run_in_process(checkpoint, Trial(chosen, ["few_shot"], 2, few_shot_sizes=(50,)), "arm_reach")
        return float(np.mean([row.return_ for row in rows if row.scored]))

    plain = [earned(ReferenceLearner, tiny_config(seed=s, precision="fp32", **learning(500))) for s in range(3)]
    fast = [earned(Learner, tiny_config(seed=s, precision="bf16", **learning(500))) for s in range(3)]
    spread = max(plain) - min(plain) + 0.1 * abs(np.mean(plain))
    assert abs(np.mean(fast) - np.mean(plain)) <= spread, (plain, fast)
