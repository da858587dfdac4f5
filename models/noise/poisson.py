"""Photon noise: y = poisson(lam x) / lam, real counts. Sigma_n = diag(x_c / lam)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.gaussian import Diagonal
from models.noise.base import Level, NoiseModel, Range, fraction, within
from models.noise.residual import Seen, polynomial_at, read_polynomial
from utils.random import uniform


@dataclass(frozen=True)
class Poisson(NoiseModel):
    """y_c = k_c / lam, k_c ~ Poisson(lam x_c) in each channel. lam: range of the photons in a pixel of value 1."""

    lam: Range

    name = "poisson"
    title = "photon counts"
    levels = (Level("lam", "poisson: photons in a white pixel", unit=1.0, low=0.1, high=1e6),)
    image_wide = False

    def covariance(self, x: Tensor, position: Tensor) -> Diagonal:
        tiny = torch.finfo(x.dtype).tiny  # black has no noise, and a covariance is positive
        return Diagonal((x / within(self.lam, fraction(position, 0, x))).clamp_min(tiny))

    def add(self, x: Tensor, random: list[torch.Generator]) -> Tensor:
        lam = within(self.lam, fraction(uniform(2, x, random), 0, x))
        counts = [torch.poisson((k * one).clamp_min(0), generator=g) for k, one, g in zip(lam, x, random)]
        return torch.stack(counts) / lam

    def published(self, x: np.ndarray) -> np.ndarray:
        return np.random.RandomState(0).poisson(self.lam[0] * x.clip(0)) / self.lam[0]

    @classmethod
    def read(cls, seen: Seen, gain: Tensor | float) -> Tensor:
        """theta, K = 4 C: the function sigma_c^2 = a + b (x - low) of each channel.

        With it come the intensities low and high, beyond which it is constant. It takes in a camera's own noise.
        """
        return read_polynomial(seen, gain, powers=(0, 1))

    @classmethod
    def sigma_n(cls, theta: Tensor, image: Tensor) -> Diagonal:
        return polynomial_at(theta, image, powers=(0, 1))

    @classmethod
    def trained_range(cls, levels: Mapping[str, Range]) -> Range:
        return 0.0, 255 / levels["lam"][0] ** 0.5
