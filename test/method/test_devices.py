# SPDX-License-Identifier: Apache-2.0
"""Every tensor of an update is made on its agent's device: here the agent is on the CPU, and the default is another.

What is made without a device lands on `meta`, which holds no numbers and does not mix with the CPU, as a GPU would not.
"""

import pytest
import torch

from spc_core.data.packed import load_dataset
from spc_core.data.sampler import Sampler, rows_for
from spc_core.method.agent import Agent, Learner
from spc_core.method.fused import FusedLearner
from spc_core.method.stacked import StackedLearner
from spc_core.system.config_files import find_config
from spc_core.training.train import data_stats
from support.synthetic import tiny_config, write_dataset

METHODS = sorted(file.stem for file in find_config("methods", "spc").parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data") / "point"))


def agent_of(data, config) -> Agent:
    torch.manual_seed(0)
    contract = data.contract
    return Agent(contract.observation_dim, contract.action_dim, [task.params for task in data.tasks], config)


def assert_on_cpu(*learners: Learner) -> None:
    for learner in learners:
        tensors = [*learner.agent.state_dict().values()]
        tensors += [v for o in learner.optimizers.values() for s in o.state.values() for v in s.values()]
        assert {tensor.device.type for tensor in tensors} == {"cpu"}


@pytest.mark.parametrize("method", METHODS)
def test_updates_make_no_tensor_elsewhere(method, data):
    config = tiny_config(method, contexts_per_task=2)
    sampler = Sampler(data, data_stats(data), config, 0)
    batches, rows = [sampler.batch() for _ in range(4)], rows_for([sampler])
    learners = [FusedLearner(agent_of(data, config), torch.Generator().manual_seed(seed)) for seed in range(3)]
    plain = Learner(agent_of(data, config))
    stack = StackedLearner(learners[1:], rows, compiles=False)
    with torch.device("meta"):
        for number in (0, 1):
            losses = [learners[0].update(batches[0], number), plain.update(batches[1], number)]
        for number in (0, 1):
            losses += stack.update(batches[2:], number)
        stack.share()
    assert all(loss.device.type == "cpu" and loss.isfinite() for found in losses for loss in found.values())
    assert_on_cpu(plain, *learners)
