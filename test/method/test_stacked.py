# SPDX-License-Identifier: Apache-2.0
"""A stack against its learners alone: losses, gradients, states that go on alone; and what is compiled."""

import copy
import dataclasses

import pytest
import torch

from spc_core.data.packed import load_dataset
from spc_core.data.sampler import Sampler
from spc_core.method.agent import Agent, Batch
from spc_core.method.config import TrainConfig, load_config
from spc_core.method.fused import FusedLearner
from spc_core.method.stacked import WORTH, StackedLearner, stacks
from spc_core.system.config_files import find_config
from spc_core.training.train import data_stats
from support.method_options import configured
from support.synthetic import tiny_config, write_dataset

METHODS = sorted(file.stem for file in find_config("methods", "spc").parent.glob("*.yaml"))
SEEDS = (3, 8)
OPTIONS = {  # shared by all methods
    "averaged actor": ("", {"actor_average_rate": 0.3}),
    "precision": ("votes=precision", {}),
    "sees both": ("policy_sees=both", {"action_gradient": 1.0, "late_from": 0.0}),
    "sees the observation": ("policy_sees=observation", {}),
    "imagined tasks": ("", {"one_step_weight": 1.0, "imagined_share": 0.9, "model_share": 0.3, "late_from": 0.0}),
    "ahead": ("action_slope=model", {"one_step_weight": 1.0, "action_gradient": 2.0, "late_from": 0.0}),
    "action gradient": ("", {"action_gradient": 2.0, "late_from": 0.0}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data") / "point"))


def learners_and_samplers(data, config: TrainConfig) -> tuple[list[FusedLearner], list[Sampler]]:
    learners, samplers = [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        contract = data.contract
        agent = Agent(contract.observation_dim, contract.action_dim, [task.params for task in data.tasks], config)
        if agent.context_encoder is not None:  # at 0 contrast has no direction, and Adam steps along rounding errors
            agent.task_means.uniform_(-1, 1)
        learners.append(FusedLearner(agent, torch.Generator().manual_seed(seed)))
        samplers.append(Sampler(data, data_stats(data), config, seed))
    return learners, samplers


def gradients(learner: FusedLearner) -> dict[str, torch.Tensor]:
    modules = {"agent": learner.agent} | ({"club": learner.club} if learner.club else {})
    named = [(f"{part}.{name}", p.grad) for part, module in modules.items() for name, p in module.named_parameters()]
    return {name: gradient for name, gradient in named if gradient is not None}


@pytest.mark.parametrize(
    "method, options",
    [(method, ("", {})) for method in METHODS] + [(m, o) for o in OPTIONS.values() for m in ("spc_paper", "csro")],
    ids=[*METHODS, *(f"{m}, {o}" for o in OPTIONS for m in ("spc_paper", "csro"))],
)
def test_losses_and_gradients_are_those_of_each_learner_alone(method, options, data):
    choices, loss = options
    config = configured(f"{method} {choices}", tiny_config(method, contexts_per_task=2, loss=loss))
    alone, samplers = learners_and_samplers(data, config)
    expected = [learner.update(sampler.batch(), 0) for learner, sampler in zip(alone, samplers, strict=True)]
    members, samplers = learners_and_samplers(data, config)
    stack = StackedLearner(members, compiles=False)
    found = stack.update([sampler.batch() for sampler in samplers], 0)
    for index, learner in enumerate(alone):
        torch.testing.assert_close(found[index], expected[index], rtol=1e-4, atol=1e-6)
        for name, gradient in gradients(learner).items():
            torch.testing.assert_close(stack._tensors[name].grad[index], gradient, rtol=1e-3, atol=1e-6, msg=name)
        for average in ("task_means", "average_actor.network.0.weight"):
            if average in learner.agent.state_dict():
                found_average, expected_average = (
                    a.state_dict()[average] for a in (members[index].agent, learner.agent)
                )
                torch.testing.assert_close(found_average, expected_average, rtol=1e-4, atol=1e-6)


def test_learners_go_on_alone_from_where_the_stack_was(data):
    """Weights, averages, optimisers and noise: three updates in a stack and three alone are six alone, in float64."""
    config = tiny_config("csro", contexts_per_task=2, loss={"actor_average_rate": 0.3})

    def run(stacked: int) -> list[dict[str, torch.Tensor]]:
        learners, samplers = learners_and_samplers(data, config)
        for learner in learners:
            learner.agent.double()
            (learner.club or learner.agent).double()
        stack = StackedLearner(learners, compiles=False) if stacked else None
        for number in range(6):
            batches = [in_double(sampler.batch()) for sampler in samplers]
            if stack is not None and number < stacked:
                stack.update(batches, number)
                stack.share()
            else:
                for learner, batch in zip(learners, batches, strict=True):
                    learner.update(batch, number)
        return [copy.deepcopy(learner.agent.state_dict()) for learner in learners]

    for found, expected in zip(run(stacked=3), run(stacked=0), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def in_double(batch: Batch) -> Batch:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return type(batch)(**{k: v.double() if v.is_floating_point() else v for k, v in fields.items()})


def test_what_is_compiled(monkeypatch):
    quick = load_config("quick", "spc_paper")
    assert stacks(quick, WORTH // quick.updates, "cpu") and not stacks(quick, 1, "cpu"), "one is done before it pays"
    assert stacks(load_config("quick", "spc_paper", compile="on"), 1, "cpu")
    assert not stacks(load_config("small", "spc_paper", compile="off"), 9, "cpu")
    assert not stacks(load_config("paper", "spc_paper", precision="fp32"), 5, "cpu"), "bound by its products"
    assert not stacks(load_config("paper", "spc_paper", precision="bf16", compile="on"), 5, "cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not stacks(quick, 9, "cpu") and stacks(quick, 9, "cuda"), "whose kernels need no C++ compiler"


def test_a_batch_that_does_not_fit_and_a_broken_compiler_run_uncompiled(data, monkeypatch):
    calls = []

    def no_compiler(function, **_):
        def fused(*_):
            calls.append(function)
            raise RuntimeError("g++: not found")

        return fused

    monkeypatch.setattr(torch, "compile", no_compiler)
    learners, samplers = learners_and_samplers(data, tiny_config("spc_paper"))
    batches = [sampler.batch() for sampler in samplers]
    StackedLearner(learners, rows=1).update(batches, 0)
    assert not calls, "contexts longer than those that are compiled for"
    stack = StackedLearner(learners, rows=1000)
    with pytest.warns(UserWarning, match="training goes on uncompiled, which is slower: g\\+\\+: not found"):
        stack.update(batches, 1)
    stack.update(batches, 2)
    assert len(calls) == 1, "and is not asked again"


class _Broken(torch.autograd.Function):
    """A compiled function whose backward pass is compiled later, and cannot be."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        raise RuntimeError("g++: killed")


def test_a_compiler_that_fails_half_way_leaves_the_update_of_no_compiler(data, monkeypatch):
    """It fails in the third update, and only in the backward pass."""
    calls = []

    def compiler(function, **_):
        def fused(*arguments):
            calls.append(function)
            totals, *rest = function(*arguments)
            return (totals if len(calls) < 3 else _Broken.apply(totals), *rest)

        return fused

    def losses(compiles):
        learners, samplers = learners_and_samplers(data, tiny_config("spc_paper"))
        stack = StackedLearner(learners, rows=64, compiles=compiles)
        return [stack.update([sampler.batch() for sampler in samplers], number) for number in range(4)]

    monkeypatch.setattr(torch, "compile", compiler)
    expected = losses(compiles=False)
    with pytest.warns(UserWarning, match="training goes on uncompiled, which is slower: g\\+\\+: killed") as said:
        found = losses(compiles=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(said) == 1 and len(calls) == 3, "said once, and not asked again"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiling took more than 300 s on a busy machine
@pytest.mark.parametrize("method", ["spc_paper", "spc"])
def test_compiled_losses_are_the_uncompiled_ones(method, data):
    """For real, with the compiler of this machine, with everything that begins late."""
    found = []
    for compiles in (False, True):
        learners, samplers = learners_and_samplers(data, tiny_config(method, loss={"late_from": 0.0}))
        stack = StackedLearner(learners, rows=64, compiles=compiles)
        found.append([stack.update([sampler.batch() for sampler in samplers], number) for number in range(2)])
        assert stack._compiles == compiles, "or the compiler failed half way"
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
