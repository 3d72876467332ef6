# SPDX-License-Identifier: Apache-2.0
"""The method's maths: every loss against numbers worked out by hand, FSQ against an independent library."""

import math

import pytest
import torch
from torch.nn import functional as F
from vector_quantize_pytorch import FSQ as ReferenceFSQ

from spc_core.method.config import CONSISTENCY_OF, LossConfig, MethodConfig, ModelConfig, TrainConfig
from spc_core.method.consistency import SampleAndCompare, code_cross_entropy, simplex_cross_entropy
from spc_core.method.context_encoder import ClubBound, ContextEncoder, contrastive_loss, focal_loss
from spc_core.method.iql import actor_loss, bellman_loss, expectile_loss
from spc_core.method.latents import (
    Codes,
    SampledCodes,
    SimNorm,
    StraightThroughCodes,
    exponential_noise,
    random_bits,
    uniform,
)
from spc_core.method.layers import COMPILED_NUMBERS, FSQ, EnsembleNorm, Mish, compiled, ensemble_mlp, mlp
from spc_core.method.world_model import WorldModel, alive_steps, world_model_losses

SMALL = ModelConfig(
    groups=4, continuous_dim=16, encoder_hidden=(8,), dynamics_hidden=(8,), context_hidden=(8,), policy_hidden=(8,)
)


def make_model(observation_dim: int = 3, action_dim: int = 2, **method: object) -> WorldModel:
    torch.manual_seed(0)
    config = TrainConfig(model=SMALL, method=MethodConfig(**method))  # type: ignore[arg-type]
    return WorldModel(observation_dim, action_dim, 5, config)


@pytest.mark.parametrize("levels", [(5, 3), (3, 3, 5), (7,)])
def test_fsq_equals_an_independent_implementation(levels):
    mine, theirs = FSQ(levels), ReferenceFSQ(list(levels))
    x = 3 * torch.randn(2000, 1, len(levels), generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    codes = mine(x)
    reference, indices = theirs(x)
    assert torch.equal(codes, reference)
    assert torch.equal(mine.indices(codes), indices.long())
    assert torch.equal(mine.codebook[mine.indices(codes)], codes)
    weight = torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((codes * weight).sum(), x)
    (expected,) = torch.autograd.grad((reference * weight).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_fsq_codes_of_the_paper():
    fsq = FSQ((5, 3))
    assert len(fsq.codebook) == 15
    assert sorted(set(fsq.codebook[:, 0].tolist())) == [-1, -0.5, 0, 0.5, 1]
    assert sorted(set(fsq.codebook[:, 1].tolist())) == [-1, 0, 1]
    with pytest.raises(ValueError, match="odd"):
        FSQ((4, 3))


def test_network_block_is_linear_norm_mish():
    network = mlp(3, (5,), 2)
    assert [type(layer).__name__ for layer in network] == ["Linear", "LayerNorm", "Mish", "Linear"]
    assert float(network[3].weight.detach().abs().max()) < 0.1 and not network[3].bias.any()
    x = torch.randn(4, 3)
    hidden = F.linear(x, network[0].weight)
    hidden = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    hidden = hidden * torch.tanh(torch.log1p(hidden.exp()))
    torch.testing.assert_close(network(x), F.linear(hidden, network[3].weight))


def test_mish_equals_the_library_in_value_and_slope_for_all_magnitudes():
    x = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([1e-20, -1e-20, 1e4, -1e4])]).requires_grad_()
    (slope,) = torch.autograd.grad(Mish()(x).sum(), x)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.mish(exact).sum(), exact)
    torch.testing.assert_close(Mish()(x).double(), F.mish(exact), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(slope.double(), expected, rtol=1e-5, atol=1e-7)


def test_ensemble_members_are_the_networks_side_by_side():
    ensemble = ensemble_mlp(2, 3, (5,), 1)
    for layer in ensemble:
        if isinstance(layer, EnsembleNorm):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    x = torch.randn(7, 3)
    for member in range(2):
        hidden = x @ ensemble[0].weight[member] + ensemble[0].bias[member]
        hidden = F.mish(F.layer_norm(hidden, (5,), ensemble[1].weight[member, 0], ensemble[1].bias[member, 0]))
        expected = hidden @ ensemble[3].weight[member] + ensemble[3].bias[member]
        torch.testing.assert_close(ensemble(x)[member], expected)


def test_context_is_the_mean_of_votes_over_those_with_weight():
    encoder = ContextEncoder(2, 1, SMALL)
    transitions = torch.randn(2, 3, 6)
    z = encoder(transitions, torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    votes = torch.tanh(encoder.network(transitions[0]))
    torch.testing.assert_close(z[0], (votes[0] + votes[2]) / 2)
    assert z[1].tolist() == [0] * 5, "the empty context is the prior"
    shuffled = encoder(transitions[:1, [2, 1, 0]], torch.tensor([[1.0, 0, 1]]))
    torch.testing.assert_close(shuffled[0], z[0])


def test_contrastive_loss_by_hand():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    # distances of z_0: 0, 1, 2; of z_1: 1, 0, sqrt 5; at temperature 0.5 they count double
    first = -math.log(1 / (1 + math.exp(-2) + math.exp(-4)))
    second = -math.log(1 / (1 + math.exp(-2) + math.exp(-2 * math.sqrt(5))))
    loss = contrastive_loss(z, means, torch.tensor([0, 1]), 0.5)
    assert float(loss) == pytest.approx((first + second) / 2, abs=2e-3)  # the floor under the root is 1e-3


def test_contrastive_loss_pulls_z_to_its_own_mean():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    z = torch.zeros(1, 2, requires_grad=True)
    contrastive_loss(z, means, torch.tensor([0]), 0.5).backward()
    assert z.grad is not None and float(z.grad[0, 0]) < -0.5 and float(z.grad[0, 1]) == 0


def test_focal_loss_by_hand():
    z = torch.tensor([[0.0, 0.0], [0.6, 0.8], [2.0, 0.0]])
    # tasks 0, 0, 1: the pair of task 0 is 1 apart; squared distances to the other task are 4 and 1.96 + 0.64 = 2.6
    loss = focal_loss(z, torch.tensor([0, 0, 1]))
    assert float(loss) == pytest.approx(1.0 + (1 / 4.1 + 1 / 2.7) / 2)
    assert float(focal_loss(z[:1], torch.tensor([0]))) == 0


def test_club_bound_is_high_where_actions_tell_the_vote_and_zero_where_not():
    """A guess that is right about x = vote: real pairs are exp(-d^2 / 2 s^2) likelier than shuffled ones."""
    club = ClubBound(1, ModelConfig(context_dim=1, context_hidden=()))
    with torch.no_grad():
        club.network[0].weight.copy_(torch.tensor([[1.0], [0.0]]))  # mean = x, log std = 0
    x = torch.tensor([[-1.0], [1.0]])
    assert float(club(x, x).detach()) == pytest.approx(0 - (-(2**2) / 2))
    assert float(club(x, torch.zeros(2, 1)).detach()) == 0


def test_code_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]]])  # one sample, three codes, two groups
    expected = (math.log(3) + math.log(math.exp(2) + 2) - 2) / 2
    assert code_cross_entropy(logits, torch.tensor([[1, 0]])).tolist() == pytest.approx([expected], rel=1e-6)


def test_simplex_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0]]])  # one sample, two groups of two
    target = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    expected = (-(0.5 * math.log(0.25) + 0.5 * math.log(0.75)) + math.log(2)) / 2
    assert simplex_cross_entropy(logits, target).tolist() == pytest.approx([expected], rel=1e-6)


@pytest.mark.parametrize(
    "kind, expected",
    [("mse", [0.5, 4.0]), ("cosine", [1.0, 0.0]), ("none", [0.0, 0.0])],
)
def test_comparisons_of_latents_by_hand(kind, expected):
    """(1, 0) against (0, 0) and at right angles to (0, 1); (2, 2) against (0, 0) and along (1, 1)."""
    model = make_model(latent="continuous", consistency=kind)
    predicted = torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    target = torch.zeros(2, 2) if kind == "mse" else torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    loss = model.consistency(model.latent, predicted, predicted, target, torch.zeros(2, 3))
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)


def test_reconstruction_compares_the_decoded_prediction_with_the_observation():
    model = make_model(latent="continuous", consistency="reconstruction")
    for weight in model.consistency.parameters():
        torch.nn.init.zeros_(weight)  # decodes to zeros
    loss = model.consistency(model.latent, None, torch.randn(1, 16), None, torch.tensor([[3.0, 0.0, 0.0]]))
    assert loss.tolist() == pytest.approx([3.0])


def test_raw_dynamics_give_changes_in_their_own_unit():
    latent = make_model(latent="raw", consistency="mse").latent
    latent.scale.fill_(0.1)
    here = torch.ones(1, 3)
    assert torch.equal(latent.step(here, torch.full((1, 3), 2.0)), torch.full((1, 3), 1.2))
    torch.testing.assert_close(latent.difference(here + 0.1, here), torch.ones(1, 3))


def test_consistency_starts_at_the_logarithm_of_the_code_count():
    torch.manual_seed(0)
    model = WorldModel(3, 2, 5, TrainConfig())
    consistency, _ = world_model_losses(
        model, torch.randn(16, 6, 3), torch.zeros(16, 5, 2), torch.zeros(16, 5), torch.ones(16, 5), torch.zeros(16, 5),
        LossConfig(horizon_discount=1.0),
    )  # fmt: skip
    assert float(consistency.detach()) == pytest.approx(math.log(15), rel=0.02)


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
def test_draw_and_cross_entropy_together_equal_each_alone(temperature):
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


def test_without_a_compiler_functions_run_as_they_are(monkeypatch):
    def no_compiler(function, **_):
        def fused(*_):
            raise RuntimeError("g++: not found")

        return fused

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    monkeypatch.setattr(torch, "compile", no_compiler)
    x = torch.ones(COMPILED_NUMBERS)
    assert compiled(double, x[:10]) is double, "small ones are not compiled"
    with pytest.warns(UserWarning, match="double runs uncompiled, which is slower: g\\+\\+: not found"):
        assert compiled(double, x)(x).sum() == 2 * len(x)
    assert compiled(double, x) is double, "and it is said once"


def test_noise_from_sixteen_bits_is_exponential():
    torch.manual_seed(0)
    noise = exponential_noise(torch.empty(400_003))
    quantiles = torch.quantile(noise, torch.tensor([0.1, 0.5, 0.9, 0.99]))
    torch.testing.assert_close(quantiles, -torch.log1p(-torch.tensor([0.1, 0.5, 0.9, 0.99])), rtol=0.02, atol=0)
    assert noise.shape == (400_003,) and bool((noise > 0).all()) and len(noise.unique()) > 60_000


def test_code_samples_follow_the_softmax_of_the_logits():
    latent = SampledCodes(SMALL, 1.0)
    logits = torch.tensor([math.log(0.6), math.log(0.3), math.log(0.1), *[-40.0] * 12])
    head = logits[None, :, None].expand(5000, 15, 4).flatten(1)
    torch.manual_seed(0)
    share = torch.bincount(latent.indices(latent.step(head, head)).flatten(), minlength=15) / 20000
    torch.testing.assert_close(share[:3], torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)
    assert latent.indices(latent.likeliest(head)).unique().tolist() == [0]


CHOICES = [
    (latent, kind) for latent, kinds in CONSISTENCY_OF.items() for kind in kinds if (latent, kind) != ("raw", "none")
]


@pytest.mark.parametrize("latent, consistency", CHOICES)
def test_rollouts_stay_in_the_set_of_the_encoder_and_every_part_learns(latent, consistency):
    model = make_model(latent=latent, consistency=consistency)
    state = model.encode(torch.randn(8, 3))
    for _ in range(5):
        _assert_in_set(model.latent, state)
        head, _ = model.predict(state, torch.randn(8, 2), torch.randn(8, 5))
        _assert_in_set(model.latent, model.likeliest(state, head))
        state = model.latent.step(state, head)
    losses = world_model_losses(
        model, torch.randn(8, 4, 3), torch.randn(8, 3, 2), torch.randn(8, 3), torch.ones(8, 3), torch.randn(8, 5),
        LossConfig(),
    )  # fmt: skip
    sum(losses).backward()  # type: ignore[union-attr]
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    parts = {"dynamics", "reward"} | ({"encoder"} if latent != "raw" else set())
    assert parts <= {name.split(".")[0] for name in learnt}
    assert not any(name.startswith("target") for name in learnt)


def _assert_in_set(latent, state: torch.Tensor) -> None:
    if isinstance(latent, Codes):
        codes = set(map(tuple, latent.fsq.codebook.tolist()))
        assert set(map(tuple, state.reshape(-1, 2).tolist())) <= codes
    elif isinstance(latent, SimNorm):
        groups = state.unflatten(-1, (-1, latent.size))
        torch.testing.assert_close(groups.sum(-1), torch.ones(groups.shape[:-1]))
        assert bool((groups >= 0).all())


def test_world_model_losses_weigh_steps_and_roll_out_open_loop():
    """With a reward head that always says 0 and dynamics that say 'all alike', both sums are known."""
    model = make_model(1, 1)
    for head in (model.dynamics, model.reward):
        torch.nn.init.zeros_(head[-1].weight)
    rewards = torch.tensor([[1.0, 2.0]])
    consistency, reward = world_model_losses(
        model, torch.zeros(1, 3, 1), torch.zeros(1, 2, 1), rewards, torch.ones(1, 2), torch.zeros(1, 5),
        LossConfig(horizon_discount=0.5),
    )  # fmt: skip
    assert float(reward.detach()) == pytest.approx((1.0 + 0.5 * 4.0) / 2)
    assert float(consistency.detach()) == pytest.approx((1.0 + 0.5) / 2 * math.log(15), rel=1e-5)


def test_terminal_rewards_are_learnt_and_later_steps_are_not():
    alive = alive_steps(torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]))
    assert alive.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    model = make_model(1, 1)
    torch.nn.init.zeros_(model.reward[-1].weight)
    rewards = torch.tensor([[1.0, 2.0, 100.0, 100.0]])
    _, reward = world_model_losses(
        model, torch.zeros(1, 5, 1), torch.zeros(1, 4, 1), rewards, alive[:1], torch.zeros(1, 5),
        LossConfig(horizon_discount=1.0),
    )  # fmt: skip
    assert float(reward.detach()) == pytest.approx((1.0 + 4.0) / 4)


def test_one_step_prediction_starts_from_the_real_observation():
    """Raw latents, dynamics that say 'no change': open loop compares with s_0, one step with each s_t."""
    model = make_model(1, 1, latent="raw", consistency="mse")
    torch.nn.init.zeros_(model.dynamics[-1].weight)
    observations = torch.tensor([[[0.0], [1.0], [3.0]]])
    rest = (
        torch.zeros(1, 2, 1),
        torch.zeros(1, 2),
        torch.ones(1, 2),
        torch.zeros(1, 5),
        LossConfig(horizon_discount=1),
    )
    open_loop, _ = world_model_losses(model, observations, *rest)
    one_step, _ = world_model_losses(model, observations, *rest, open_loop=False)
    assert float(open_loop.detach()) == pytest.approx((1 + 9) / 2)
    assert float(one_step.detach()) == pytest.approx((1 + 4) / 2)


def test_expectile_loss_by_hand():
    assert float(expectile_loss(torch.tensor([1.0, -2.0]), 0.8)) == pytest.approx((0.8 * 1 + 0.2 * 4) / 2)


def test_bellman_loss_by_hand_stops_at_terminals_only():
    q = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    loss = bellman_loss(q, torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 9.0]), 0.9)
    # targets 0.5 + 0.9 = 1.4 and 0.5: ((1 - 1.4)^2 + 0.25) / 2 + ((2 - 1.4)^2 + 0.25) / 2
    assert float(loss) == pytest.approx((0.16 + 0.25) / 2 + (0.36 + 0.25) / 2)


def test_actor_loss_by_hand_with_clipped_weight():
    mean, log_std = torch.tensor([[0.0], [0.5]]), torch.tensor([[0.0], [math.log(0.5)]])
    action, advantage = torch.tensor([[1.0], [0.5]]), torch.tensor([0.1, 5.0])
    half_log_tau = 0.5 * math.log(2 * math.pi)
    first = math.exp(0.3) * (-0.5 - half_log_tau)
    second = 100 * (-math.log(0.5) - half_log_tau)  # exp(15) is cut to 100
    assert float(actor_loss(mean, log_std, action, advantage, 3.0, 100.0)) == pytest.approx(-(first + second) / 2)
