"""Random numbers as functions of keys: the same (seed, stream, sample) always gives the same draw, on any process and
in any batch.

The keys of every draw of a training begin with its seed and a Stream. No two streams share a draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, unique
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UsageError

# How draws are keyed. Runs of 1 have crops outside the streams: crop_keys and noise_thetas know these runs.
STREAMS = 2


@unique
class Stream(IntEnum):
    """What a draw is for. The numbers are keys: a stream keeps its number for good."""

    NOISE = 0  # the noise of the training images, or of their crops
    HELD_OUT = 1  # which images are held out, and their noise
    VALIDATION = 2  # the noise of the --val images
    WEIGHTS = 3  # the first weights
    HALVES = 4  # which of the shared images of stage 2 are clean, and which are noisy
    SYNTHESIS = 5  # stage 2: the noise of the pairs
    NOISY_CROPS = 6  # stage 2: where the noisy crops are
    THETAS = 7  # stage 2: which of the noises found on noisy images a pair has
    THETA_NOISE = 8  # stage 2: the noise of the images on which these are found, where it is else drawn for each crop
    CROPS = 9  # where the training crops are, in stage 2 the clean ones
    HELD_OUT_CROPS = 10  # where the held-out crops are
    AUGMENT = 11  # sharpness and tones of the clean crops
    REVIVED = 12  # new weights of units that were shut off


def streams_of(record: Mapping[str, Any] | None) -> int:
    """How a run's draws are keyed: as they were when it began. record: its recorded options, None in a new run."""
    streams = STREAMS if record is None else record.get("streams", 1)
    if streams not in (1, STREAMS):
        raise UsageError(f"the run's draws are of kind {streams}, from a newer version: go on with that one")
    return streams


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


def seed_weights(seed: int) -> None:
    """Seeds torch's own generator, from which the first weights are drawn."""
    torch.manual_seed(int(hashed(seed, Stream.WEIGHTS) >> np.uint64(1)))


def generator(device: torch.device | str, *keys: int) -> torch.Generator:
    """A generator on the device. Its state is a function of the keys."""
    return torch.Generator(device).manual_seed(int(hashed(*keys) >> np.uint64(1)))


def generators(device: torch.device | str, seed: int, stream: Stream, samples: np.ndarray) -> list[torch.Generator]:
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
