"""Several processes that train or test together, started by torchrun; one process alone is a world of size one.

    torchrun --nproc-per-node 4 train_dbsn.py ..

A global batch means the same on any number of processes: every crop and every draw of noise is a function of (seed,
sample index), each process makes the samples of its share, and gradients are averaged. Process 0 writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UsageError


@dataclass(frozen=True)
class World:
    """The place of this process among those that work together.

    rank: this process, 0..size-1.
    local_rank: its number on its machine, which is that of its GPU.
    local_size: how many processes share that machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, first: int, count: int) -> np.ndarray:
        """This process' part of the sample indices first..first+count-1; count is a multiple of size."""
        part = count // self.size
        return np.arange(first + self.rank * part, first + (self.rank + 1) * part)

    def check_share(self, count: int, flag: str) -> None:
        """Raises UsageError where count, the value of a flag, cannot be shared evenly."""
        if count % self.size:
            raise UsageError(
                f"{flag} {count} cannot be shared evenly by {self.size} processes; use a multiple of {self.size}"
            )

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes. Wrap again when other parameters are trained."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Scalars averaged over the processes."""
        if self.size == 1:
            return {k: v.item() for k, v in values.items()}
        stacked = torch.stack([v.detach().double() for v in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).tolist()))

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process: all stop together."""
        return self.any_of([flag], device)[0]

    def any_of(self, flags: list[bool], device: torch.device) -> list[bool]:
        """The same of several flags, in one exchange."""
        if self.size == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.float32, device=device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.bool().tolist()

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all processes, in order of rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs in process 0, then in the others."""
        if self.size > 1 and not self.main:
            dist.barrier()
        yield
        if self.size > 1 and self.main:
            dist.barrier()


@contextmanager
def join(device_name: str) -> Iterator[World]:
    """The world that torchrun describes in the environment; alone without it. device_name: --device."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World()
        return
    cuda = device_name != "cpu" and torch.cuda.is_available()
    try:
        world = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    except KeyError as missing:
        raise UsageError(
            f"WORLD_SIZE is set in the environment but {missing.args[0]} is not: "
            "start several processes with torchrun, or unset WORLD_SIZE"
        ) from None
    if cuda and world.local_size > torch.cuda.device_count():
        raise UsageError(
            f"torchrun --nproc-per-node {world.local_size}: this machine has {torch.cuda.device_count()} GPUs; "
            "use as many processes at most"
        )
    if cuda:
        torch.cuda.set_device(world.local_rank)
    # generous: process 0 evaluates and saves while the others wait
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=1))
    try:
        yield world
    finally:
        dist.destroy_process_group()
