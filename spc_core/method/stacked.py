# SPDX-License-Identifier: Apache-2.0
"""Several seeds of one method as one model: the update of each of them alone, as batched products in compiled code.

An update of a small model spends most of its time around its products: norms, activations, copies, calls. A compiler
fuses them, and a stack compiles once for all seeds. A stack of one is the same run, compiled.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from spc_core.method.agent import Batch, Contexts, Learner, is_late, schedule_
from spc_core.method.config import TrainConfig
from spc_core.method.fused import (
    FusedLearner,
    PackedBatch,
    exponential,
    is_small,
    pack,
    packed_contexts,
    random_bits,
    random_shift,
    uses_bfloat16,
)
from spc_core.method.latents import CategoricalFSQLatent
from spc_core.method.layers import ema_

WORTH = 20_000  # updates of all seeds that pay for compiling


def stacks(config: TrainConfig, seeds: int, device_type: str) -> bool:
    """Whether `seeds` runs of a config train as a stack: small models in fp32, for which a compiler is there."""
    if uses_bfloat16(config, device_type) or config.compile == "off":
        return False
    if config.compile == "on":
        return True
    if not is_small(config):
        return False
    compiler = device_type == "cuda" or shutil.which(os.environ.get("CXX", "g++")) is not None
    return compiler and seeds * config.updates >= WORTH


def bytes_of_update(learner: FusedLearner, batch: Batch) -> int:
    """What the update of one learner takes: weights, gradients and averages, and what is kept for the backward pass."""
    trial = FusedLearner(copy.deepcopy(learner.agent), torch.Generator(batch.task.device))
    weights = sum(tensor.nbytes for tensor in trial.agent.state_dict().values())
    kept: list[int] = []
    late, drawn = batch.rewards.new_ones(()), trial.draw_tasks(batch)
    for loss in (trial.model_loss, lambda batch: trial.policy_loss(batch, late, drawn)):
        sizes: dict[int, int] = {}  # by storage, since a tensor may be kept twice

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss(batch)
        kept.append(sum(sizes.values()))
    return 4 * weights + max(kept)


class StackedLearner:
    """Trains the agents of several learners at once, each with batches, noise and optimisers of its own.

    The learners have one config and have made the same number of updates. Their weights become views of the stack's;
    `share` gives them their optimisers' states too, so that each can be saved, and go on, by itself.
    """

    def __init__(self, learners: Sequence[FusedLearner], rows: int = 0, compiles: bool = True) -> None:
        """`rows`: transitions that a batch's contexts hold at most, else that update is not compiled."""
        self.learners, self.config, self._rows, self._compiles = list(learners), learners[0].config, rows, compiles
        self._lane = _Lane(learners[0])
        self._own = [_tensors(learner) for learner in learners]  # weights and buffers by name, of each learner
        self._tensors = {name: _stacked([own[name] for own in self._own]) for name in self._own[0]}
        self.optimizers = {name: self._stack_optimizer(name) for name in learners[0].optimizers}
        for index, own in enumerate(self._own):
            for name, tensor in own.items():
                tensor.data = self._tensors[name].data[index]
        self._compiled = {loss: torch.compile(self._of_all(loss), dynamic=False) for loss in ("model", "policy")}

    def update(self, batches: Sequence[Batch], number: int) -> list[dict[str, Tensor]]:
        """Update number `number` of each learner, with its batch; returns the losses of each."""
        schedule_(self.optimizers, self.config, number)
        stack = self._stack(batches)
        losses: dict[str, Tensor] = {}
        if "model" in self.optimizers and number % self.config.world_model_every == 0:
            losses |= self._update_model(stack)
        drawn = [learner.draw_tasks(batch) for learner, batch in zip(self.learners, batches, strict=True)]
        losses |= self._update_policy(stack, is_late(self.config, number), torch.stack(drawn))
        return [{name: values[index] for name, values in losses.items()} for index in range(len(self.learners))]

    def share(self) -> None:
        """Give each learner's optimisers their part of the states."""
        for index, (learner, own) in enumerate(zip(self.learners, self._own, strict=True)):
            names = {id(tensor): name for name, tensor in own.items()}
            for name, optimizer in learner.optimizers.items():
                stacked = self.optimizers[name]
                for group, common in zip(optimizer.param_groups, stacked.param_groups, strict=True):
                    group.update({key: value for key, value in common.items() if key != "params"})
                    for parameter in group["params"]:
                        state = stacked.state[self._tensors[names[id(parameter)]]]
                        optimizer.state[parameter] = {
                            key: value.clone() if key == "step" else value[index] for key, value in state.items()
                        }

    def _stack_optimizer(self, name: str) -> torch.optim.Optimizer:
        """An optimiser over the stacked weights, in the state of the learners' own."""
        optimizers = [learner.optimizers[name] for learner in self.learners]
        names = {id(tensor): name for name, tensor in self._own[0].items()}
        groups = []
        for group in optimizers[0].param_groups:
            groups.append({**group, "params": [self._tensors[names[id(p)]] for p in group["params"]]})
        kind: Any = type(optimizers[0])
        stacked = kind(groups)
        for members in zip(*(_parameters(optimizer) for optimizer in optimizers), strict=True):
            states = [o.state[p] for o, p in zip(optimizers, members, strict=True) if p in o.state]
            if states:
                stacked.state[self._tensors[names[id(members[0])]]] = {
                    key: value.clone() if key == "step" else torch.stack([state[key] for state in states])
                    for key, value in states[0].items()
                }
        return stacked

    def _stack(self, batches: Sequence[Batch]) -> _Stack:
        rows = max(self._rows, *(int((batch.context_weight > 0).sum()) for batch in batches))
        packed = [pack(batch, rows) for batch in batches]
        names = [field.name for field in dataclasses.fields(PackedBatch) if field.name != "context_of"]
        fields = {name: torch.stack([getattr(batch, name) for batch in packed]) for name in names}
        return _Stack(fields, packed[0].context_of, rows == self._rows)

    def _minimise(self, loss: str, stack: _Stack, *inputs: Any) -> list[Any]:
        """Step down a loss of `_Lane`, named as its optimiser, for every seed; returns what it gave besides."""
        arguments = (self._tensors, stack.fields, stack.context_of, *inputs)
        given = None
        if self._compiles and stack.usual:
            try:
                given = self._gradients(loss, self._compiled[loss], arguments)
            except Exception as error:  # a missing or broken compiler raises anything, also in the backward pass
                warnings.warn(f"training goes on uncompiled, which is slower: {error}", stacklevel=2)
                self._compiles = False
        if given is None:
            given = self._gradients(loss, self._of_all(loss), arguments)
        self.optimizers[loss].step()
        return given

    def _gradients(self, loss: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
        self.optimizers[loss].zero_grad(set_to_none=True)
        totals, *given = function(*arguments)
        totals.sum().backward()
        return given

    def _of_all(self, loss: str) -> Callable[..., Any]:
        def of_one(tensors: dict[str, Tensor], *inputs: Any) -> Any:
            return functional_call(self._lane, tensors, (loss, *inputs))

        def of_all(tensors: dict[str, Tensor], fields: dict[str, Tensor], context_of: Tensor, *inputs: Any) -> Any:
            return vmap(of_one, (0, 0, None) + (0,) * len(inputs))(tensors, fields, context_of, *inputs)

        return of_all

    def _update_model(self, stack: _Stack) -> dict[str, Tensor]:
        losses, contexts = self._minimise("model", stack, self._draw_bits(stack), self._draw_shifts(stack))
        contexts = {name: part.detach() for name, part in contexts.items()}
        if "embeddings" in contexts:
            arguments = (self._tensors, stack.fields, stack.context_of, contexts)
            with torch.no_grad():
                self._tensors["agent.task_means"].copy_(self._of_all("task_means")(*arguments))
            if "club" in self.optimizers:
                self._gradients("club", lambda *given: (self._of_all("club")(*given),), arguments)
                self.optimizers["club"].step()
        self._follow("agent.world_model.target_encoder.", "agent.world_model.encoder.", self.config.loss.target_rate)
        return {name: values.detach() for name, values in losses.items()}

    def _update_policy(self, stack: _Stack, late: bool, drawn: Tensor) -> dict[str, Tensor]:
        rewards = stack.fields["rewards"]
        (losses,) = self._minimise("policy", stack, rewards.new_full((len(rewards),), float(late)), drawn)
        self._follow("agent.critic.target_q.", "agent.critic.q.", self.config.loss.target_rate)
        self._follow("agent.average_actor.", "agent.actor.", self.config.loss.actor_average_rate)
        return {name: values.detach() for name, values in losses.items()}

    def _draw_bits(self, stack: _Stack) -> Tensor:
        """Random bits (S, draws, B, codes, G) for the samples, in the order in which each learner would draw them."""
        space, method, rewards = self.learners[0].agent.world_model.latent, self.config.method, stack.fields["rewards"]
        if not isinstance(space, CategoricalFSQLatent) or not method.learns_model:
            return rewards.new_empty(len(rewards), 0)
        draws = rewards.shape[-1] - (method.consistency == "cross_entropy")  # its last sample is not used
        like = rewards.new_empty(1).expand(rewards[0, ..., 0].numel(), space.codes, space.groups)
        bits = [[random_bits(like, learner.generator) for _ in range(draws)] for learner in self.learners]
        return torch.stack([torch.stack(own) for own in bits])

    def _draw_shifts(self, stack: _Stack) -> Tensor:
        """CLUB's shifts (S,)."""
        if self.learners[0].club is None:
            return stack.fields["task"].new_zeros(len(self.learners))
        counts = [int(real.sum()) for real in stack.fields["real"]]
        drawn = [random_shift(n, learner.generator) for n, learner in zip(counts, self.learners, strict=True)]
        return torch.stack(drawn)

    def _follow(self, targets: str, sources: str, rate: float) -> None:
        names = [name.removeprefix(targets) for name in self._tensors if name.startswith(targets)]
        pairs = [(self._tensors[targets + name], self._tensors[sources + name]) for name in names]
        ema_([target for target, _ in pairs], [source for _, source in pairs], rate)


@dataclasses.dataclass(frozen=True)
class _Stack:
    """The batches of all seeds: the fields of PackedBatch with a first axis for the seed."""

    fields: dict[str, Tensor]
    context_of: Tensor
    usual: bool  # of the shapes that are compiled


class _Lane(nn.Module):
    """The losses of one learner as functions of its weights, for torch.func and the compiler."""

    def __init__(self, learner: FusedLearner) -> None:
        super().__init__()
        self.learner = _TracedLearner(copy.deepcopy(learner.agent), learner.terminal_value)
        self.agent = self.learner.agent
        if self.learner.club is not None:
            self.club = self.learner.club
        for module in self.modules():
            if isinstance(module, nn.Mish):
                module.__class__ = _SigmoidMish

    def forward(self, loss: str, fields: dict[str, Tensor], context_of: Tensor, *inputs: Any) -> Any:
        batch = PackedBatch(**fields, context_of=context_of)
        if loss == "model":
            bits, self.learner.shift = inputs
            self.learner.bits = list(bits.unbind())
            total, losses, contexts = self.learner.model_loss(batch)
            self.learner.bits, self.learner.shift = [], None  # vmap's tensors must not outlive it
            return total, losses, {name: part for name, part in contexts._asdict().items() if part is not None}
        if loss == "policy":
            return self.learner.policy_loss(batch, *inputs)
        contexts = Contexts(**inputs[0])
        return self.learner.club_loss(contexts) if loss == "club" else self.learner.moved_task_means(contexts, batch)


class _TracedLearner(Learner):
    """A learner on packed contexts, whose noise was drawn before: plain functions, which a compiler fuses."""

    bits: list[Tensor]
    shift: Tensor | None

    def _contexts(self, batch: Batch) -> Contexts:
        if (encoder := self.agent.context_encoder) is None:
            return super()._contexts(batch)
        assert isinstance(batch, PackedBatch)
        return packed_contexts(encoder, batch, self.agent.observation_dim + self.agent.action_dim)

    def _next_latent(self, latent: Tensor, output: Tensor) -> Tensor:
        """As FusedLearner's: a code by the Gumbel trick, hard forward and soft backward."""
        space = self.agent.world_model.latent
        if not isinstance(space, CategoricalFSQLatent):
            return super()._next_latent(latent, output)
        if not self.bits:
            return latent  # after the last step, which nobody reads
        noisy = torch.softmax((space.logits(output) - torch.log(exponential(self.bits.pop(0)))) / space.temperature, 1)
        hard = (noisy == noisy.amax(1, keepdim=True)).to(noisy.dtype)
        one_hot = hard + noisy - noisy.detach()
        return torch.stack([(one_hot * c[:, None]).sum(1) for c in space.fsq.codebook.unbind(1)], -1).flatten(-2)

    def draw_shift(self, contexts: Contexts) -> Tensor:
        assert self.shift is not None
        return self.shift


class _SigmoidMish(nn.Mish):
    """Mish from one sigmoid, as fused.Mish, for a compiler to fuse."""

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(x)
        gate = (2 - t) * t
        return x * (gate / (2 - gate))


def _tensors(learner: FusedLearner) -> dict[str, Tensor]:
    """All weights and stored buffers of a learner, by their names in `_Lane`."""
    named = {f"agent.{name}": tensor for name, tensor in learner.agent.state_dict(keep_vars=True).items()}
    if learner.club is not None:
        named |= {f"club.{name}": tensor for name, tensor in learner.club.state_dict(keep_vars=True).items()}
    return named


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach() for tensor in tensors]).requires_grad_(tensors[0].requires_grad)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
