"""Random numbers are functions of keys.

The same (seed, stream, sample) always gives the same draw, on any process and in any batch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def hashed(*keys: int | np.ndarray) -> np.ndarray:
    """64 well mixed bits from integer keys, elementwise: SplitMix64's finaliser over each key in turn."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def generator(device: torch.device | str, *keys: int) -> torch.Generator:
    """A generator on the device. Its state is a function of the keys."""
    return torch.Generator(device).manual_seed(int(hashed(*keys) >> np.uint64(1)))


def generators(device: torch.device | str, seed: int, stream: int, samples: np.ndarray) -> list[torch.Generator]:
    """One generator for each sample. A sample's draw depends neither on its batch nor on the process that makes it."""
    return [generator(device, seed, stream, int(sample)) for sample in samples]


def normal(like: Tensor, random: list[torch.Generator]) -> Tensor:
    """Standard normal values in the shape of `like` (N,..), on its device. Image k is drawn from generator k."""
    shape, options = (1, *like.shape[1:]), dict(device=like.device, dtype=like.dtype)
    return torch.cat([torch.randn(shape, generator=g, **options) for g in random])


def uniform(count: int, like: Tensor, random: list[torch.Generator]) -> Tensor:
    """(N,count) uniform values in 0..1, on like's device. Row k is drawn from generator k."""
    options = dict(device=like.device, dtype=like.dtype)
    return torch.cat([torch.rand(1, count, generator=g, **options) for g in random])


@lru_cache(maxsize=4)
def permutation(count: int, *keys: int) -> np.ndarray:
    """A permutation of 0..count-1, (count,). It is a function of the keys."""
    return np.random.Generator(np.random.Philox(key=int(hashed(*keys)))).permutation(count)
