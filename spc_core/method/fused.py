# SPDX-License-Identifier: Apache-2.0
"""The update of agent.Learner, several times faster; everything here has a plain form in the other files.

`fuse_` replaces layers within networks, also of a loaded checkpoint; FusedLearner chooses the rest. Tests compare each
function, and complete updates, with the plain ones.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spc_core.method.agent import Agent, Batch, Contexts, Learner
from spc_core.method.config import TrainConfig
from spc_core.method.latents import CategoricalFSQLatent
from spc_core.method.layers import EnsembleLinear
from spc_core.method.world_model import ContextEncoder

NARROW = 64  # products with at most this many inputs or outputs are cheap, so never rounded to bfloat16
COMPILE_SIZE = 2**20  # functions of fewer numbers are not worth the seconds of compiling


@dataclasses.dataclass(frozen=True)
class PackedBatch(Batch):
    """A batch whose contexts lie behind each other, without the padding between them: `context` is (M, 2 O + A + 1)."""

    owner: Tensor  # (M,), the context (of T C) of each transition
    real: Tensor  # (M,), 0 for padding, which comes last


def pack(batch: Batch, rows: int = 0) -> PackedBatch:
    """Pack the contexts of a batch, with zeros up to at least `rows` transitions."""
    real = batch.context_weight > 0
    context, owner = batch.context[real], real.flatten(0, 1).nonzero()[:, 0]
    missing = max(rows - len(context), 0)
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}
    weight = torch.cat([context.new_ones(len(context)), context.new_zeros(missing)])
    if missing:
        context = torch.cat([context, context.new_zeros(missing, context.shape[-1])])
        owner = torch.cat([owner, owner.new_zeros(missing)])
    return PackedBatch(**fields | {"context": context}, owner=owner, real=weight)


def packed_contexts(encoder: ContextEncoder, batch: PackedBatch, acted: int) -> Contexts:
    """The contexts of a packed batch; a transition begins with `acted` numbers of state and action."""
    embeddings = encoder.embed(batch.context)
    z = pool(encoder, embeddings, batch.owner, batch.real, batch.context_weight.sum(-1))
    return Contexts(z, encoder.votes(embeddings), batch.context[:, :acted], batch.real)


class FusedLearner(Learner):
    """A Learner with fused optimisers, matrix products in bfloat16 where it pays, and the functions of this file."""

    OPTIMIZER = {"fused": True}

    def __init__(self, agent: Agent, generator: torch.Generator | None = None, terminal_value: float = 0.0) -> None:
        """`generator` gives the noise of the samples; None: torch's own."""
        super().__init__(agent, terminal_value)
        self.generator = generator
        self.device_type = agent.task_means.device.type
        self.half = uses_bfloat16(agent.config, self.device_type)
        fuse_(agent)
        if self.club is not None:
            fuse_(self.club)

    def update(self, batch: Batch, number: int) -> dict[str, Tensor]:
        return super().update(batch if self.agent.context_encoder is None else pack(batch), number)

    def model_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Contexts]:
        with self._precision():
            return super().model_loss(batch)

    def club_loss(self, contexts: Contexts) -> Tensor:
        with self._precision():
            return super().club_loss(contexts)

    def policy_loss(self, batch: Batch, late: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with self._precision():  # separate: autocast caches the weights that it has rounded
            return super().policy_loss(batch, late, drawn)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.half)

    def _contexts(self, batch: Batch) -> Contexts:
        """Embeds real transitions only: more than half of the contexts may be padding."""
        if (encoder := self.agent.context_encoder) is None:
            return super()._contexts(batch)
        packed = batch if isinstance(batch, PackedBatch) else pack(batch)
        return packed_contexts(encoder, packed, self.agent.observation_dim + self.agent.action_dim)

    def draw_bits(self, like: Tensor) -> Tensor:
        """16 random bits for each number of `like`."""
        return random_bits(like, self.generator)

    def draw_shift(self, contexts: Contexts) -> Tensor:
        assert contexts.real is not None
        return random_shift(int(contexts.real.sum()), self.generator)

    def _rollout(self, batch: Batch, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Samples and compares codes in one function, and samples nothing in the last step."""
        model, space = self.agent.world_model, self.agent.world_model.latent
        if self.config.method.consistency != "cross_entropy" or not isinstance(space, CategoricalFSQLatent):
            return super()._rollout(batch, z)
        observations, actions = batch.observations.flatten(0, 1), batch.actions.flatten(0, 1)
        targets = model.encode_target(observations[:, 1:])
        losses: list[Tensor] = []

        def step(latent: Tensor, output: Tensor) -> Tensor:
            t, logits = len(losses), space.logits(output)
            bits = self.draw_bits(logits) if t + 1 < targets.shape[1] else None
            codes, loss = SampleAndCompare.apply(  # type: ignore[misc]
                logits, bits, space.indices(targets[:, t]), space.fsq.codebook, space.temperature
            )
            losses.append(loss)
            return latent if codes is None else codes.flatten(-2)  # nobody reads the last

        z, open_loop = batch.window_contexts(z), self.config.method.open_loop
        return losses, [predicted.reward for predicted in model.rollout(observations, actions, z, open_loop, step)]

    def _next_latent(self, latent: Tensor, output: Tensor) -> Tensor:
        """Samples with cheaper noise, and computes the gradient without one-hot codes."""
        space = self.agent.world_model.latent
        if not isinstance(space, CategoricalFSQLatent):
            return super()._next_latent(latent, output)
        logits = space.logits(output)
        perturbed = (logits - torch.log(exponential(self.draw_bits(logits)))) / space.temperature
        return StraightThroughCodes.apply(perturbed, space.fsq.codebook).flatten(-2)  # type: ignore[union-attr]

    def draw_uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.rand(shape, dtype=like.dtype, device=like.device, generator=self.generator)

    def _policy_inputs(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents, z, actions = super()._policy_inputs(batch, z)
        if self.half and latents.shape[-1] > NARROW:  # else each network would round them again
            return latents.bfloat16(), z.bfloat16(), actions.bfloat16()
        return latents, z, actions


def is_small(config: TrainConfig) -> bool:
    """Whether the networks are so narrow that an update is not bound by its products."""
    return config.model.dynamics_hidden[0] < 4 * NARROW


def uses_bfloat16(config: TrainConfig, device_type: str) -> bool:
    """Whether matrix products run in bfloat16; `auto`: for wide networks, if the processor supports it."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if is_small(config):
        return False  # casting costs more than the products save
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device_type == "cpu" and torch.cpu._is_avx512_bf16_supported()


class _NarrowInFullPrecision(nn.Module):
    """Keeps a narrow layer in full precision under autocast: observations, values, rewards."""

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if min(self.weight.shape[-2:]) > NARROW or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class FusedLinear(_NarrowInFullPrecision, nn.Linear):
    pass


class FusedEnsembleLinear(_NarrowInFullPrecision, EnsembleLinear):
    pass


class Mish(nn.Mish):
    """x tanh(softplus(x)), from one sigmoid t: with u = t (2 - t), tanh(softplus(x)) = u / (2 - u).

    Several times faster on a CPU than the library's, which takes an exponential, a logarithm and a tanh.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Mish.apply(x)  # type: ignore[return-value]


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        t = torch.sigmoid(x)
        gate = (2 - t).mul_(t)
        gate /= 2 - gate
        ctx.save_for_backward(gate, t.mul_(x))
        return x * gate

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gate, swish = ctx.saved_tensors  # d mish / dx = gate + x t (1 - gate^2)
        slope = (gate * gate).neg_().add_(1).mul_(swish).add_(gate)
        return slope.mul_(gradient)


def pool(encoder: ContextEncoder, embeddings: Tensor, owner: Tensor, real: Tensor, sizes: Tensor) -> Tensor:
    """Embeddings (M, E) of transitions, each of weight `real` in the context `owner`, to means z (*sizes, Z)."""
    zeros = embeddings.new_zeros(sizes.numel(), embeddings.shape[-1])
    sums = zeros.index_add(0, owner, encoder.summands(embeddings) * real[:, None])
    return encoder.mean(sums.view(*sizes.shape, -1), sizes)


FUSED = {nn.Linear: FusedLinear, EnsembleLinear: FusedEnsembleLinear, nn.Mish: Mish}


def fuse_(network: nn.Module) -> None:
    """Replace the layers of a network by their fused forms, in place; weights and their names stay."""
    for module in network.modules():
        if type(module) in FUSED:
            module.__class__ = FUSED[type(module)]  # as torch's own parametrizations do


def random_bits(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """16 random bits for each number of `like`, int16; four per draw, since a CPU's generator is serial."""
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    return words.random_(-(2**63), None, generator=generator).view(torch.int16)[: like.numel()].view(like.shape)


def random_shift(count: int, generator: torch.Generator | None) -> Tensor:
    """A number from 1 to below `count`, on the generator's device."""
    device = generator.device if generator else None
    return torch.randint(1, max(count, 2), (), generator=generator, device=device)


def uniform(bits: Tensor) -> Tensor:
    """Random bits to numbers between 0 and 1, fp32."""
    return (bits.float() + (2**15 + 0.5)) * 2**-16


def exponential(bits: Tensor) -> Tensor:
    """Random bits to standard exponential numbers, 7.6e-6 to 11.8; minus their logarithm is Gumbel noise."""
    return -torch.log(uniform(bits))


class StraightThroughCodes(torch.autograd.Function):
    """Codes (B, G, C) of the largest of perturbed logits (B, codes, G), with the gradient of a softmax.

    Equal to `gumbel_softmax(hard=True)` times the codebook, without its one-hot and difference tensors.
    """

    @staticmethod
    def forward(ctx, perturbed: Tensor, codebook: Tensor) -> Tensor:  # type: ignore[override]
        soft = torch.softmax(perturbed, 1)
        ctx.save_for_backward(soft, codebook)
        hard = (soft == soft.amax(1, keepdim=True)).to(soft.dtype)
        return hard.transpose(1, 2) @ codebook

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        soft, codebook = ctx.saved_tensors
        by_code = codebook @ gradient.transpose(1, 2)  # (B, codes, G)
        return by_code.sub_((by_code * soft).sum(1, keepdim=True)).mul_(soft), None


def sample_and_compare(
    logits: Tensor, bits: Tensor | None, indices: Tensor, codebook: Tensor, temperature: float
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """Logits and random bits (B, codes, G) and target indices (B, G) to sampled codes (B, G, C), cross-entropy (B,),
    and the softmaxes without and with noise, in the logits' precision. Without bits, nothing is sampled.

    With e = exp(logits) and exponential noise E, exp(logits + Gumbel) is e / E: one exponential serves both.
    """
    exact = logits.float()
    e = (exact - exact.amax(1, keepdim=True)).exp()
    likelihood = e / e.sum(1, keepdim=True)
    own = torch.arange(logits.shape[1], device=logits.device)[None, :, None] == indices[:, None]
    loss = -(likelihood * own).sum(1).clamp(min=1e-37).log().mean(-1)
    if bits is None:
        return None, loss, likelihood.to(logits.dtype), None
    noisy = e / exponential(bits)
    largest = noisy.amax(1, keepdim=True)
    hard = noisy == largest
    if temperature != 1:
        noisy = (noisy / largest) ** (1 / temperature)
    soft = noisy / noisy.sum(1, keepdim=True)
    codes = torch.stack([(hard * column[:, None]).sum(1) for column in codebook.unbind(1)], -1)
    return codes, loss, likelihood.to(logits.dtype), soft.to(logits.dtype)


def sample_and_compare_gradient(
    likelihood: Tensor, soft: Tensor | None, indices: Tensor, codebook: Tensor, temperature: float,
    of_codes: Tensor | None, of_loss: Tensor,
) -> Tensor:  # fmt: skip
    """Gradients of codes (B, G, C), where some were sampled, and losses (B,) to that of the logits (B, codes, G)."""
    own = torch.arange(likelihood.shape[1], device=likelihood.device)[None, :, None] == indices[:, None]
    share = (of_loss / indices.shape[1])[:, None, None]
    of_logits = share * (likelihood.float() - own.float())
    if soft is None or of_codes is None:
        return of_logits.to(likelihood.dtype)
    exact = soft.float()
    by_code = sum(column[:, None] * of_codes[:, None, :, c].float() for c, column in enumerate(codebook.unbind(1)))
    through = exact * (by_code - (by_code * exact).sum(1, keepdim=True)) / temperature
    return (through + of_logits).to(soft.dtype)


class SampleAndCompare(torch.autograd.Function):
    """StraightThroughCodes and code_cross_entropy of the same logits (B, codes, G), with one gradient for both.

    Of the logits' size, it saves only the two softmaxes, in the logits' precision.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, logits: Tensor, bits: Tensor | None, indices: Tensor, codebook: Tensor, temperature: float
    ) -> tuple[Tensor | None, Tensor]:
        work = compiled(sample_and_compare, logits)
        codes, loss, likelihood, soft = work(logits, bits, indices, codebook, temperature)
        ctx.save_for_backward(likelihood, soft, indices, codebook)
        ctx.temperature = temperature
        return codes, loss

    @staticmethod
    def backward(ctx, of_codes: Tensor | None, of_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        work = compiled(sample_and_compare_gradient, saved[0])
        return work(*saved, ctx.temperature, of_codes, of_loss), None, None, None, None


_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def compiled(function: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """`function`, compiled where `like` is large; without a working compiler it warns once and runs uncompiled."""
    if like.numel() < COMPILE_SIZE:
        return function
    if function in _compiled:
        return _compiled[function]
    fused = torch.compile(function, dynamic=False)

    def run(*args: Any) -> Any:
        try:
            return fused(*args)
        except Exception as error:  # a missing or broken compiler raises anything
            warnings.warn(f"{function.__name__} runs uncompiled, which is slower: {error}", stacklevel=2)
            _compiled[function] = function
            return function(*args)

    _compiled[function] = run
    return run
