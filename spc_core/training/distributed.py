# SPDX-License-Identifier: Apache-2.0
"""Data parallel training: one process for each device, which share the configured batch.

`torchrun --nproc-per-node N -m spc_ros.cli train DATASET --out RUN` starts them. Every process draws the same batch,
takes its share of each task's windows, and averages gradients with the others before each optimiser step, so that all
hold the same weights. RUN and DATASET must be visible to all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from spc_core.deploy.checkpoint import pick_device
from spc_core.method.config import ConfigError

T = TypeVar("T")


class Group:
    """The processes of one training run; alone, every method is the identity. Calls are in step in all processes."""

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world = device, rank, world

    @property
    def is_leader(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process; waits for all processes, but not for their devices."""
        if self.world == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return [bool(value) for value in values]

    def wait(self) -> None:
        """Return when all processes have called this."""
        self.any(False)

    def leader_first(self, make: Callable[[], T]) -> T:
        """Call `make` in the leading process first, so that the others find its files."""
        if not self.is_leader:
            self.wait()
        try:
            return make()
        finally:
            if self.is_leader:
                self.wait()

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over processes."""
        if self.world == 1 or not values:
            return values
        flat = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(flat)
        return dict(zip(values, (flat / self.world).tolist(), strict=True))

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over processes; a missing one counts as zeros."""
        if self.world == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)  # in one message: many small ones cost more
        flat /= self.world
        for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the leading process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, values: Tensor) -> list[Tensor]:
        """CPU tensors of one shape, one from each process, in the order of ranks."""
        if self.world == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(gathered, values)
        return gathered

    def close(self) -> None:
        """Leave the group; this process then runs alone. May be called twice."""
        if self.world > 1:
            dist.destroy_process_group()
            self.world = 1


def is_leader() -> bool:
    """Whether this process prints, by torchrun's environment."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join_group(device: str) -> Iterator[Group]:
    """The group that torchrun's environment describes, or this process alone. Raises ConfigError for a bad device."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group(pick_device(device))
        return
    if device.startswith("cuda:"):
        raise ConfigError(f"device is '{device}', but {world} processes need one each; use cuda or auto")
    chosen = pick_device(device)
    if chosen.type == "cuda":
        chosen = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(chosen)
    # flags and random states go via gloo, which does not wait for the GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    group = Group(chosen, dist.get_rank(), world)
    try:
        yield group
    finally:
        group.close()
