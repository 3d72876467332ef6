# SPDX-License-Identifier: Apache-2.0
"""Fused functions against the plain equations: equal numbers without sampling, else equal learning curves."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spc_core.data.packed import PackedDataset, load_dataset
from spc_core.data.sampler import Sampler
from spc_core.deploy.checkpoint import Checkpoint
from spc_core.method.agent import Agent, Learner
from spc_core.method.config import TrainConfig
from spc_core.method.fused import (
    COMPILE_SIZE,
    FusedEnsembleLinear,
    FusedLearner,
    FusedLinear,
    Mish,
    SampleAndCompare,
    StraightThroughCodes,
    compiled,
    exponential,
    fuse_,
    pool,
    random_bits,
    uniform,
)
from spc_core.method.iql import Critic
from spc_core.method.layers import FSQ, EnsembleNorm, mlp
from spc_core.method.losses import code_cross_entropy
from spc_core.method.world_model import ContextEncoder
from spc_core.tasks import tasks
from spc_core.training.train import data_stats
from spc_core.trials.evaluate import run_in_process
from spc_core.trials.protocol import Trial
from support.arm_dataset import write_arm_dataset
from support.method_options import configured
from support.synthetic import tiny_config

METHODS = [
    "spc_paper",
    "spc_continuous",
    "spc_simnorm",
    "spc_no_contrast",
    "focal",
    "dora",
    "csro",
    "unicorn_ss",
    "oracle",
]
OPTIONS = {
    "actor_average_rate": 0.1, "one_step_weight": 1.0, "imagined_share": 0.5, "action_gradient": 1.0, "late_from": 0.0,
}  # fmt: skip
WIDE = {  # wide enough for bfloat16 products
    "groups": 48, "context_dim": 5, "encoder_hidden": [96], "dynamics_hidden": [96], "context_hidden": [96],
    "policy_hidden": [96],
}  # fmt: skip


def test_mish_equals_the_library_in_value_and_slope_for_all_magnitudes():
    x = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([1e-20, -1e-20, 1e4, -1e4])]).requires_grad_()
    (slope,) = torch.autograd.grad(Mish()(x).sum(), x)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.mish(exact).sum(), exact)
    torch.testing.assert_close(Mish()(x).double(), F.mish(exact), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(slope.double(), expected, rtol=1e-5, atol=1e-7)


def test_straight_through_codes_are_gumbel_softmax_times_codebook():
    fsq = FSQ((5, 3))
    logits = torch.randn(6, 4, 15, dtype=torch.double, requires_grad=True)
    weight = torch.randn(6, 4, 2, dtype=torch.double)
    codebook = fsq.codebook.double()
    torch.manual_seed(3)
    reference = F.gumbel_softmax(logits, 1.0, hard=True) @ codebook
    (expected,) = torch.autograd.grad((reference * weight).sum(), logits)
    torch.manual_seed(3)  # the same noise as inside gumbel_softmax
    noise = -torch.empty_like(logits).exponential_().log()
    codes = StraightThroughCodes.apply((logits + noise).transpose(1, 2), codebook)
    (gradient,) = torch.autograd.grad((codes * weight).sum(), logits)
    torch.testing.assert_close(codes, reference)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampling_and_cross_entropy_together_equal_each_alone(temperature):
    """The same random bits as Gumbel noise: codes, losses and the gradient are those of the plain parts."""
    torch.manual_seed(0)
    logits = torch.randn(6, 15, 4, requires_grad=True)
    bits, indices = random_bits(logits), torch.randint(15, (6, 4))
    codebook, weight, share = FSQ((5, 3)).codebook, torch.randn(6, 4, 2), torch.rand(6)
    gumbel = -torch.log(-torch.log(uniform(bits)))
    plain_codes = StraightThroughCodes.apply((logits + gumbel) / temperature, codebook)
    plain_loss = code_cross_entropy(logits, indices)
    (expected,) = torch.autograd.grad((plain_codes * weight).sum() + (plain_loss * share).sum(), logits)
    codes, loss = SampleAndCompare.apply(logits, bits, indices, codebook, temperature)
    (gradient,) = torch.autograd.grad((codes * weight).sum() + (loss * share).sum(), logits)
    assert torch.equal(codes, plain_codes)
    torch.testing.assert_close(loss, plain_loss)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    codes, loss = SampleAndCompare.apply(logits, None, indices, codebook, temperature)
    assert codes is None, "the last step samples nothing"
    torch.testing.assert_close(loss, plain_loss)
    (expected,) = torch.autograd.grad((code_cross_entropy(logits, indices) * share).sum(), logits)
    torch.testing.assert_close(torch.autograd.grad((loss * share).sum(), logits)[0], expected, rtol=1e-4, atol=1e-6)


def test_without_a_compiler_functions_run_as_they_are(monkeypatch):
    def no_compiler(function, **_):
        def fused(*_):
            raise RuntimeError("g++: not found")

        return fused

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    monkeypatch.setattr(torch, "compile", no_compiler)
    x = torch.ones(COMPILE_SIZE)
    assert compiled(double, x[:10]) is double, "small ones are not compiled"
    with pytest.warns(UserWarning, match="double runs uncompiled, which is slower: g\\+\\+: not found"):
        assert compiled(double, x)(x).sum() == 2 * len(x)
    assert compiled(double, x) is double, "and warns once"


def test_noise_from_sixteen_bits_is_exponential():
    torch.manual_seed(0)
    noise = exponential(random_bits(torch.empty(400_003)))
    quantiles = torch.quantile(noise, torch.tensor([0.1, 0.5, 0.9, 0.99]))
    torch.testing.assert_close(quantiles, -torch.log1p(-torch.tensor([0.1, 0.5, 0.9, 0.99])), rtol=0.02, atol=0)
    assert noise.shape == (400_003,) and bool((noise > 0).all()) and len(noise.unique()) > 60_000


@pytest.mark.parametrize("precision", [False, True])
def test_contexts_without_their_padding_have_the_same_means(precision):
    encoder = ContextEncoder(2, 1, TrainConfig().model, precision)
    weight = (torch.rand(3, 4, 6) < 0.5).float()
    weight[0, 1] = 0
    transitions = torch.randn(3, 4, 6, 6)
    embeddings, z = encoder(transitions, weight)
    fast = encoder.embed(transitions[weight > 0])
    torch.testing.assert_close(encoder.votes(fast), embeddings)
    owner = (weight > 0).flatten(0, 1).nonzero()[:, 0]
    torch.testing.assert_close(pool(encoder, fast, owner, torch.ones(len(fast)), weight.sum(-1)), z)


def test_narrow_layers_are_never_rounded_and_keep_their_names_and_weights():
    torch.manual_seed(0)
    network, critic = mlp(100, (96,), 5), Critic(100, 5, (96,))
    plain = copy.deepcopy(network), copy.deepcopy(critic)
    for module, before in zip((network, critic), plain, strict=True):
        fuse_(module)
        assert [(n, v.tolist()) for n, v in module.state_dict().items()] == [
            (n, v.tolist()) for n, v in before.state_dict().items()
        ]
    assert [type(layer) for layer in network] == [FusedLinear, torch.nn.LayerNorm, Mish, FusedLinear]
    assert {type(layer) for layer in critic.q if hasattr(layer, "weight")} == {FusedEnsembleLinear, EnsembleNorm}
    x, hidden = torch.randn(7, 100), torch.randn(7, 96)
    torch.testing.assert_close(network(x), plain[0](x))
    torch.testing.assert_close(critic.q(x[:, :1].expand(7, 105)), plain[1].q(x[:, :1].expand(7, 105)))
    with torch.autocast("cpu", torch.bfloat16):
        assert network[0](x).dtype == torch.bfloat16 and plain[0][-1](hidden).dtype == torch.bfloat16
        assert network[-1](hidden).dtype == torch.float32
        assert critic.q[-1](hidden).dtype == torch.float32


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


@pytest.mark.parametrize(
    "method", [*METHODS, "spc_simnorm votes=precision policy_sees=both action_slope=model", "dora votes=precision"]
)
def test_one_update_in_full_precision_has_the_same_losses_and_moves_the_same_weights(data, method):
    loss = OPTIONS if "=" in method else {}
    config = tiny_config(method.split()[0], horizon=1, tasks_per_batch=6, precision="fp32", loss=loss)
    config = configured(method, config)  # one step: no code is drawn
    plain, fast = Learner(make_agent(data, config)), FusedLearner(make_agent(data, config))
    batch = Sampler(data, data_stats(data), config, 0).batch()
    for number in range(3):
        torch.manual_seed(number)
        losses = fast.update(batch, number)
        torch.manual_seed(number)  # csro's bound shuffles
        expected = plain.update(batch, number)
        assert losses.keys() == expected.keys()
        for name in losses:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)
    for (name, value), expected in zip(fast.agent.state_dict().items(), plain.agent.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-2, atol=2e-4, msg=name)


def learning(updates: int) -> dict[str, object]:
    return {"updates": updates, "tasks_per_batch": 6, "windows_per_task": 8, "contexts_per_task": 8, "model": WIDE}


def test_bfloat16_and_shared_noise_learn_like_the_plain_equations(data):
    """Loss curves of the second half, mean of three seeds: within three standard deviations and 5 % of plain ones."""

    def ends(kind: type[Learner], precision: str) -> dict[str, np.ndarray]:
        """Mean of each loss over the second half of training, (3,)."""
        configs = [tiny_config(seed=seed, precision=precision, **learning(120)) for seed in range(3)]
        runs = [curves(data, kind, config)[0] for config in configs]
        return {name: np.array([run[name][len(run[name]) // 2 :].mean() for run in runs]) for name in runs[0]}

    plain, fast = ends(Learner, "fp32"), ends(FusedLearner, "bf16")
    assert plain.keys() == fast.keys()
    for name, values in plain.items():
        near = 3 * values.std(ddof=1) + 0.05 * abs(values.mean())
        assert abs(fast[name].mean() - values.mean()) <= near, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_policies_of_the_fast_path_earn_as_much_as_those_of_the_plain_equations(data):
    chosen = tasks("arm_reach", "train")[:6]

    def mean_return(kind: type[Learner], config: TrainConfig) -> float:
        agent = curves(data, kind, config)[1].eval().requires_grad_(False)
        checkpoint = Checkpoint(agent, config, data.contract, data_stats(data), {}, torch.device("cpu"))
        rows = run_in_process(checkpoint, Trial(chosen, ["few_shot"], 2, few_shot_sizes=(50,)), "arm_reach")
        return float(np.mean([row.return_ for row in rows if row.scored]))

    plain = [mean_return(Learner, tiny_config(seed=s, precision="fp32", **learning(500))) for s in range(3)]
    fast = [mean_return(FusedLearner, tiny_config(seed=s, precision="bf16", **learning(500))) for s in range(3)]
    spread = max(plain) - min(plain) + 0.1 * abs(np.mean(plain))
    assert abs(np.mean(fast) - np.mean(plain)) <= spread, (plain, fast)
