"""Additive white Gaussian noise: Sigma_n = sigma^2 I."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models.gaussian import Diagonal
from models.noise.base import Level, NoiseModel, Range, fraction, within
from models.noise.residual import Seen, read_level


@dataclass(frozen=True)
class Awgn(NoiseModel):
    """y = x + n, n ~ N(0, sigma^2 I) with one sigma for the image. sigma: its range, 0..1 units."""

    sigma: Range

    name = "awgn"
    title = "additive white Gaussian"
    levels = (Level("sigma", "awgn: standard deviation"),)
    image_wide = True
    hidden = 16

    def covariance(self, x: Tensor, position: Tensor) -> Diagonal:
        return Diagonal(within(self.sigma, fraction(position, 0, x)).square().expand(-1, x.shape[1], -1, -1))

    def published(self, x: np.ndarray) -> np.ndarray:
        return x + np.random.RandomState(0).normal(0, self.sigma[0], x.shape)

    @classmethod
    def cnn_outputs(cls, channels: int) -> int:
        return 1

    @classmethod
    def read(cls, seen: Seen, gain: Tensor | float) -> Tensor:
        """theta = sigma^2, K = 1: the mean of r^2 over the channels, where V is lowest."""
        return read_level(seen, gain)[0]

    @classmethod
    def sigma_n(cls, theta: Tensor, image: Tensor) -> Diagonal:
        return Diagonal(theta.expand(-1, image.shape[1], -1, -1))

    @classmethod
    def estimator(cls, ranges: bool, noisy: bool) -> str:
        return "residual" if ranges or noisy else "cnn"  # really noisy images seldom have one level

    @classmethod
    def trained_range(cls, levels: Mapping[str, Range]) -> Range:
        return levels["sigma"]
