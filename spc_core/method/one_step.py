# SPDX-License-Identifier: Apache-2.0
"""One-step heads: reward and change of the observation from (latent, s, a, z), each with a spread of its own.

They say what an action would bring in a task, also in one between the recorded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spc_core.method.layers import mlp

LOG_STD_MIDDLE, LOG_STD_RANGE, LOG_STD_FIRST = -2.5, 3.5, 0.7  # within -6 and 1; about -0.4 at first


class Outlook(NamedTuple):
    """What the heads expect of an action."""

    reward: Tensor  # (...)
    next_observation: Tensor  # (..., O)


class OneStep(nn.Module):
    """(inputs) to means and log-stds of reward and change, the change in units of `scale`."""

    scale: Tensor  # (O,), standard deviation of a change of observations with standard deviation 1

    def __init__(self, inputs: int, observation_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = mlp(inputs, hidden, 2 * (observation_dim + 1))
        self.register_buffer("scale", torch.ones(observation_dim))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(..., inputs) to means and log-stds (..., 1 + O)."""
        mean, raw = self.network(inputs).chunk(2, -1)
        return mean, LOG_STD_MIDDLE + LOG_STD_RANGE * torch.tanh(raw / LOG_STD_RANGE + LOG_STD_FIRST)

    def targets(self, reward: Tensor, observation: Tensor, next_observation: Tensor) -> Tensor:
        """(...), (..., O), (..., O) to what the means should be (..., 1 + O)."""
        return torch.cat([reward[..., None], (next_observation - observation) / self.scale], -1)

    def outlook(self, mean: Tensor, observation: Tensor) -> Outlook:
        """Means (..., 1 + O) at observations (..., O), in the units of both."""
        return Outlook(mean[..., 0], observation + mean[..., 1:] * self.scale)


def beta_nll(mean: Tensor, log_std: Tensor, target: Tensor, beta: float) -> Tensor:
    """Negative log-likelihood of a Normal, weighted by its std^(2 beta) as a constant (arXiv 2203.09168); (...).

    With beta 0 it is the likelihood, which neglects what it cannot predict yet; with 1 it learns like squared errors.
    """
    loss = 0.5 * ((target - mean) * torch.exp(-log_std)).square() + log_std
    return (loss * torch.exp(2 * beta * log_std).detach()).mean(-1)


def frozen(module: nn.Module) -> Callable[..., Any]:
    """The module as a function that does not learn, but passes the gradient to its inputs."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return lambda *inputs: functional_call(module, weights, inputs)
