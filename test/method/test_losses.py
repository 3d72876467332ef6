# SPDX-License-Identifier: Apache-2.0
"""The method's maths: every loss against numbers worked out by hand, FSQ against an independent library."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import FSQ as ReferenceFSQ

from spc_core.method.agent import Agent, Batch, Learner
from spc_core.method.config import CONSISTENCY_OF, LossConfig, MethodConfig, ModelConfig, TrainConfig
from spc_core.method.fused import FusedLearner
from spc_core.method.iql import actor_loss, bellman_loss, bellman_target, expectile_loss
from spc_core.method.latents import FSQLatent, SimNorm
from spc_core.method.layers import FSQ, EnsembleNorm, ensemble_mlp, mlp
from spc_core.method.losses import (
    ClubBound,
    code_cross_entropy,
    contrastive_loss,
    focal_loss,
    simplex_cross_entropy,
    step_mask,
)
from spc_core.method.world_model import ContextEncoder, WorldModel

SMALL = ModelConfig(
    groups=4, continuous_dim=16, encoder_hidden=(8,), dynamics_hidden=(8,), context_hidden=(8,), policy_hidden=(8,)
)


def make_model(observation_dim: int = 3, action_dim: int = 2, **method: object) -> WorldModel:
    torch.manual_seed(0)
    config = TrainConfig(model=SMALL, method=MethodConfig(**method))  # type: ignore[arg-type]
    return WorldModel(observation_dim, action_dim, 5, config)


both_learners = pytest.mark.parametrize("kind", [Learner, FusedLearner])


def make_learner(kind: type[Learner], dims: tuple[int, int], discount: float = 1.0, **method: object) -> Learner:
    torch.manual_seed(0)
    loss = LossConfig(horizon_discount=discount)
    config = TrainConfig(model=SMALL, loss=loss, method=MethodConfig(**method))  # type: ignore[arg-type]
    return kind(Agent(*dims, [{}], config))


def model_losses(
    learner: Learner, observations: Tensor, actions: Tensor, rewards: Tensor, terminated: Tensor | None = None
) -> tuple[float, float]:
    """Consistency and reward loss of an update on B windows of one task, without context: z = 0."""
    windows, transition = len(rewards), 2 * observations.shape[-1] + actions.shape[-1] + 1
    batch = Batch(
        observations[None], actions[None], rewards[None],
        (torch.zeros_like(rewards) if terminated is None else terminated)[None], torch.ones_like(rewards)[None],
        context=torch.zeros(1, 1, 1, transition), context_weight=torch.zeros(1, 1, 1),
        task=torch.zeros(1, dtype=torch.long), context_of=torch.zeros(windows, dtype=torch.long),
    )  # fmt: skip
    losses = learner._update_model(batch)
    return float(losses["consistency"]), float(losses["reward"])


@pytest.mark.parametrize("levels", [(5, 3), (3, 3, 5), (7,)])
def test_fsq_equals_an_independent_implementation(levels):
    fsq, reference_fsq = FSQ(levels), ReferenceFSQ(list(levels))
    x = 3 * torch.randn(2000, 1, len(levels), generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    codes = fsq(x)
    reference, indices = reference_fsq(x)
    assert torch.equal(codes, reference)
    assert torch.equal(fsq.indices(codes), indices.long())
    assert torch.equal(fsq.codebook[fsq.indices(codes)], codes)
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


def test_ensemble_members_are_independent_networks():
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


def test_context_is_the_mean_of_embeddings_over_those_with_weight():
    encoder = ContextEncoder(2, 1, SMALL)
    transitions = torch.randn(2, 3, 6)
    embeddings, z = encoder(transitions, torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    expected = torch.tanh(encoder.network(transitions[0]))[[0, 2]]
    torch.testing.assert_close(embeddings, expected)
    torch.testing.assert_close(z[0], expected.mean(0))
    assert z[1].tolist() == [0] * 5, "the empty context is the prior"
    _, shuffled = encoder(transitions[:1, [2, 1, 0]], torch.tensor([[1.0, 0, 1]]))
    torch.testing.assert_close(shuffled[0], z[0])


def test_votes_count_by_their_precision():
    """Two votes of weights 1 and 3: three quarters of the way from the first to the second."""
    encoder = ContextEncoder(2, 1, SMALL, precision=True)
    fresh = encoder.embed(torch.zeros(1, 6))
    torch.testing.assert_close(fresh[:, 5:], torch.ones(1, 5), rtol=1e-4, atol=0)  # at first all weigh the same
    embeddings = torch.tensor([[0.2, 1.0], [0.6, 3.0], [9.0, 9.0]])
    sums = encoder.summands(embeddings)[:2].sum(0)
    torch.testing.assert_close(encoder.mean(sums[None], torch.tensor([2.0])), torch.tensor([[0.5]]))
    transitions, mask = torch.randn(2, 3, 6), torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    for weights in encoder.parameters():
        torch.nn.init.normal_(weights)
    raw = encoder.network(transitions[0])[[0, 2]]
    vote, weight = torch.tanh(raw[:, :5]), F.softplus(raw[:, 5:] + 0.5413)
    votes, z = encoder(transitions, mask)
    torch.testing.assert_close(votes, vote)
    torch.testing.assert_close(z[0], (vote * weight).sum(0) / weight.sum(0))
    assert z[1].tolist() == [0] * 5, "the empty context is the prior"
    z.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_contrastive_loss_by_hand():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    # distances of z_0: 0, 1, 2; of z_1: 1, 0, sqrt 5; at temperature 0.5 they count double
    first = -math.log(1 / (1 + math.exp(-2) + math.exp(-4)))
    second = -math.log(1 / (1 + math.exp(-2) + math.exp(-2 * math.sqrt(5))))
    loss = contrastive_loss(z, means, torch.tensor([0, 1]), 0.5, torch.ones(2))
    assert float(loss) == pytest.approx((first + second) / 2, abs=2e-3)  # the floor under the root is 1e-3


def test_contrastive_loss_pulls_z_to_its_own_mean():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    z = torch.zeros(1, 2, requires_grad=True)
    contrastive_loss(z, means, torch.tensor([0]), 0.5, torch.ones(1)).backward()
    assert z.grad is not None and float(z.grad[0, 0]) < -0.5 and float(z.grad[0, 1]) == 0


def test_focal_loss_by_hand():
    z = torch.tensor([[0.0, 0.0], [0.6, 0.8], [2.0, 0.0]])
    # tasks 0, 0, 1: the pair of task 0 is 1 apart; squared distances to the other task are 4 and 1.96 + 0.64 = 2.6
    all_known = torch.ones(3, dtype=torch.bool)
    loss = focal_loss(z, torch.tensor([0, 0, 1]), all_known)
    assert float(loss) == pytest.approx(1.0 + (1 / 4.1 + 1 / 2.7) / 2)
    assert float(focal_loss(z[:1], torch.tensor([0]), all_known[:1])) == 0
    some = torch.tensor([True, False, True])
    assert float(focal_loss(z, torch.tensor([0, 0, 1]), some)) == pytest.approx(1 / 4.1), "the second tells nothing"


def test_club_bound_is_high_where_actions_predict_the_embedding_and_zero_where_not():
    """A prediction that is right about x = embedding: real pairs are exp(-d^2 / 2 s^2) likelier than shuffled ones."""
    club = ClubBound(1, ModelConfig(context_dim=1, context_hidden=()))
    with torch.no_grad():
        club.network[0].weight.copy_(torch.tensor([[1.0], [0.0]]))  # mean = x, log std = 0
    x = torch.tensor([[-1.0], [1.0]])
    real, one = torch.ones(2), torch.tensor(1)
    assert float(club(x, x, real, one).detach()) == pytest.approx(0 - (-(2**2) / 2))
    assert float(club(x, torch.zeros(2, 1), real, one).detach()) == 0
    padded = torch.cat([x, torch.full((3, 1), 9.0)])
    padding = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    assert float(club(padded, padded, padding, one).detach()) == pytest.approx(2.0), "padding does not count"


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


def test_raw_dynamics_predict_scaled_changes():
    latent = make_model(latent="raw", consistency="mse").latent
    latent.scale.fill_(0.1)
    latents = torch.ones(1, 3)
    assert torch.equal(latent.step(latents, torch.full((1, 3), 2.0)), torch.full((1, 3), 1.2))
    torch.testing.assert_close(latent.difference(latents + 0.1, latents), torch.ones(1, 3))


@both_learners
def test_consistency_starts_at_the_logarithm_of_the_code_count(kind):
    torch.manual_seed(0)
    learner = kind(Agent(3, 2, [{}], TrainConfig(loss=LossConfig(horizon_discount=1.0))))
    consistency, _ = model_losses(learner, torch.randn(16, 6, 3), torch.zeros(16, 5, 2), torch.zeros(16, 5))
    assert consistency == pytest.approx(math.log(15), rel=0.02)


@pytest.mark.parametrize("kind", [Learner, FusedLearner])
def test_code_samples_follow_the_softmax_of_the_logits(kind):
    torch.manual_seed(0)
    learner = make_learner(kind, (3, 2))
    latent = learner.agent.world_model.latent
    logits = torch.tensor([math.log(0.6), math.log(0.3), math.log(0.1), *[-40.0] * 12])
    output = logits[None, :, None].expand(5000, 15, 4).flatten(1)
    share = torch.bincount(latent.indices(learner._next_latent(output, output)).flatten(), minlength=15) / 20000
    torch.testing.assert_close(share[:3], torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)
    assert latent.indices(latent.mode(output, output)).unique().tolist() == [0]


CHOICES = [
    (latent, kind) for latent, kinds in CONSISTENCY_OF.items() for kind in kinds if (latent, kind) != ("raw", "none")
]


@both_learners
@pytest.mark.parametrize("latent, consistency", CHOICES)
def test_rollouts_stay_in_the_set_of_the_encoder_and_every_part_learns(latent, consistency, kind):
    learner = make_learner(kind, (3, 2), latent=latent, consistency=consistency)
    model = learner.agent.world_model
    state = model.encode(torch.randn(8, 3))
    for _ in range(5):
        _assert_in_set(model.latent, state)
        output, _ = model.predict(state, torch.randn(8, 2), torch.randn(8, 5))
        _assert_in_set(model.latent, model.mode(state, output))
        state = model.latent.step(state, output)
    model_losses(learner, torch.randn(8, 4, 3), torch.randn(8, 3, 2), torch.randn(8, 3))
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    parts = {"dynamics", "reward"} | ({"encoder"} if latent != "raw" else set())
    assert parts <= {name.split(".")[0] for name in learnt}
    assert not any(name.startswith("target") for name in learnt)


def _assert_in_set(latent, state: torch.Tensor) -> None:
    if isinstance(latent, FSQLatent):
        codes = set(map(tuple, latent.fsq.codebook.tolist()))
        assert set(map(tuple, state.reshape(-1, 2).tolist())) <= codes
    elif isinstance(latent, SimNorm):
        groups = state.unflatten(-1, (-1, latent.size))
        torch.testing.assert_close(groups.sum(-1), torch.ones(groups.shape[:-1]))
        assert bool((groups >= 0).all())


@both_learners
def test_model_losses_weigh_steps_and_roll_out_open_loop(kind):
    """With rewards predicted as 0 and dynamics that predict 'all alike', both sums are known."""
    learner = make_learner(kind, (1, 1), discount=0.5)
    for network in (learner.agent.world_model.dynamics, learner.agent.world_model.reward):
        torch.nn.init.zeros_(network[-1].weight)
    rewards = torch.tensor([[1.0, 2.0]])
    consistency, reward = model_losses(learner, torch.zeros(1, 3, 1), torch.zeros(1, 2, 1), rewards)
    assert reward == pytest.approx((1.0 + 0.5 * 4.0) / 2)
    assert consistency == pytest.approx((1.0 + 0.5) / 2 * math.log(15), rel=1e-5)


@both_learners
def test_rewards_are_learnt_up_to_the_terminal_step(kind):
    terminated = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    assert step_mask(terminated).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    learner = make_learner(kind, (1, 1))
    torch.nn.init.zeros_(learner.agent.world_model.reward[-1].weight)
    rewards = torch.tensor([[1.0, 2.0, 100.0, 100.0]])
    _, reward = model_losses(learner, torch.zeros(1, 5, 1), torch.zeros(1, 4, 1), rewards, terminated[:1])
    assert reward == pytest.approx((1.0 + 4.0) / 4)


@both_learners
@pytest.mark.parametrize("open_loop, expected", [(True, (1 + 9) / 2), (False, (1 + 4) / 2)])
def test_one_step_prediction_starts_from_the_real_observation(kind, open_loop, expected):
    """Raw latents, dynamics that predict no change: open loop compares with s_0, one step with each s_t."""
    learner = make_learner(kind, (1, 1), latent="raw", consistency="mse", open_loop=open_loop)
    torch.nn.init.zeros_(learner.agent.world_model.dynamics[-1].weight)
    observations = torch.tensor([[[0.0], [1.0], [3.0]]])
    consistency, _ = model_losses(learner, observations, torch.zeros(1, 2, 1), torch.zeros(1, 2))
    assert consistency == pytest.approx(expected)


def test_expectile_loss_by_hand():
    difference, count = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 3.0])
    assert float(expectile_loss(difference, 0.8, count)) == pytest.approx((0.8 * 1 + 3 * 0.2 * 4) / 2)


def test_bellman_loss_by_hand_stops_at_terminals_only():
    target = bellman_target(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 9.0]), 0.9, -2.0)
    assert target.tolist() == pytest.approx([0.5 + 0.9, 0.5 - 1.8])
    q = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    loss = bellman_loss(q, torch.tensor([1.4, 0.5]), torch.tensor([1.0, 2.0]))
    # ((1 - 1.4)^2 + 2 x 0.25) / 2 + ((2 - 1.4)^2 + 2 x 0.25) / 2
    assert float(loss) == pytest.approx((0.16 + 0.5) / 2 + (0.36 + 0.5) / 2)


def test_actor_loss_by_hand_with_clipped_weight():
    mean, log_std = torch.tensor([[0.0], [0.5]]), torch.tensor([[0.0], [math.log(0.5)]])
    action, advantage = torch.tensor([[1.0], [0.5]]), torch.tensor([0.1, 5.0])
    half_log_tau = 0.5 * math.log(2 * math.pi)
    first = math.exp(0.3) * (-0.5 - half_log_tau)
    second = 100 * (-math.log(0.5) - half_log_tau)  # exp(15) is cut to 100
    loss = actor_loss(mean, log_std, action, advantage, 3.0, 100.0, torch.tensor([1.0, 0.5]))
    assert float(loss) == pytest.approx(-(first + 0.5 * second) / 2)
