"""Heteroscedastic Gaussian noise, the linearised Poisson-Gaussian: Sigma_n = diag((alpha x_c)^2 + delta^2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from models.gaussian import Diagonal
from models.noise.base import Level, NoiseModel, Range, fraction, within
from models.noise.residual import Seen, polynomial_at, read_polynomial


@dataclass(frozen=True)
class Hg(NoiseModel):
    """y_c = x_c + n_c, n_c ~ N(0, (alpha x_c)^2 + delta^2) in each channel (the paper's HG).

    alpha, delta: their ranges, 0..1 units.
    """

    alpha: Range
    delta: Range

    name = "hg"
    title = "Poisson-Gaussian"
    levels = (Level("alpha", "hg: the part that grows with the signal"), Level("delta", "hg: the constant part"))
    image_wide = False

    def covariance(self, x: Tensor, position: Tensor) -> Diagonal:
        alpha, delta = (within(r, fraction(position, k, x)) for k, r in enumerate((self.alpha, self.delta)))
        return Diagonal((alpha * x).square() + delta.square())

    def published(self, x: np.ndarray) -> np.ndarray:
        """Two independent draws, one for each term."""
        random = np.random.RandomState(0)
        signal, constant = random.normal(0, 1, x.shape), random.normal(0, 1, x.shape)
        return x + x * self.alpha[0] * signal + self.delta[0] * constant

    @classmethod
    def read(cls, seen: Seen, gain: Tensor | float) -> Tensor:
        """theta, K = 5 C: the function sigma_c^2 = a + b (x - low) + c (x - low)^2 of each channel.

        With it come the intensities low and high, beyond which it is constant.
        """
        return read_polynomial(seen, gain, powers=(0, 1, 2))

    @classmethod
    def sigma_n(cls, theta: Tensor, image: Tensor) -> Diagonal:
        return polynomial_at(theta, image, powers=(0, 1, 2))

    @classmethod
    def trained_range(cls, levels: Mapping[str, Range]) -> Range:
        return levels["delta"][0], math.hypot(levels["alpha"][1], levels["delta"][1])
