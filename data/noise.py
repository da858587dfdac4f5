"""Noise models: the covariance of the noise on a clean image, draws from it, and the published test protocol.

Images are 0..1, so are levels here; options divide by 255 once. All noise is independent from pixel to pixel, never clipped, never quantised.

    awgn   Sigma_n = sigma^2 I                             additive white Gaussian
    hg     Sigma_n = diag((alpha x_c)^2 + delta^2)         heteroscedastic (Poisson-Gaussian in its linearised form)
    mg     Sigma_n = sigma^2 U diag(lambda) U^T            multivariate Gaussian, colour only; U orthonormal, lambda in (0,1)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.crops import normal, uniform
from models.gaussian import Covariance, Diagonal, cholesky, triangle

Range = tuple[float, float]


@dataclass(frozen=True)
class Noise:
    """A noise model whose levels are uniform in ranges, drawn once per image; (v, v) is a fixed level.

    model: "awgn" (uses sigma), "hg" (alpha and delta) or "mg" (sigma: the greatest standard deviation in any direction, and mg_seed, from which U and
    lambda are drawn).
    """

    model: str
    sigma: Range = (0.0, 0.0)
    alpha: Range = (0.0, 0.0)
    delta: Range = (0.0, 0.0)
    mg_seed: int = 0

    @classmethod
    def from_options(cls, opt) -> Noise:
        """Levels in 0..255 units, (low, high) or None, as the option classes leave them."""
        unit = {name: tuple(v / 255 for v in getattr(opt, name) or (0.0, 0.0)) for name in ("sigma", "alpha", "delta")}
        return cls(opt.noise, **unit, mg_seed=opt.mg_seed)

    def covariance(self, x: Tensor, levels: Tensor) -> Covariance:
        """Sigma_n at clean images x (N,C,H,W); levels (N,2) uniform in 0..1, the position within the ranges."""
        first, second = (levels[:, k].view(-1, 1, 1, 1).to(x) for k in (0, 1))
        if self.model == "awgn":
            return Diagonal(within(self.sigma, first).square().expand(-1, x.shape[1], -1, -1))
        if self.model == "hg":
            return Diagonal((within(self.alpha, first) * x).square() + within(self.delta, second).square())
        unit = torch.from_numpy(multivariate_covariance(self.mg_seed)).to(x)
        entries = torch.stack([unit[i, j] for i, j in triangle(3)]).view(1, -1, 1, 1)
        return cholesky(entries).scale(within(self.sigma, first))

    def add(self, x: Tensor, random: list[torch.Generator]) -> Tensor:
        """Clean images x (N,C,H,W) -> noisy ones; image k's levels and noise are drawn from generator k (on x's device)."""
        return x + self.covariance(x, uniform(2, x, random)).sample(normal(x, random))

    def published(self, x: np.ndarray) -> np.ndarray:
        """The published test noise on one clean image x (C,H,W) float: NumPy's legacy generator seeded with 0 for each image.

        HG takes two independent draws, one for each term. Levels must be fixed ones.
        """
        random = np.random.RandomState(0)
        if self.model == "awgn":
            return x + random.normal(0, self.sigma[0], x.shape)
        if self.model == "hg":
            signal, constant = random.normal(0, 1, x.shape), random.normal(0, 1, x.shape)
            return x + x * self.alpha[0] * signal + self.delta[0] * constant
        factor = self.sigma[0] * np.linalg.cholesky(multivariate_covariance(self.mg_seed))
        return x + np.einsum("ij,jhw->ihw", factor, random.normal(0, 1, x.shape))

    def level(self, x: np.ndarray) -> float:
        """Root mean square of the noise over a clean image x (C,H,W) and its channels, 0..1 units. Levels must be fixed ones."""
        cov = self.covariance(torch.from_numpy(np.ascontiguousarray(x))[None].double(), torch.zeros(1, 2))
        return float(cov.variance.mean().sqrt())


def within(bounds: Range, position: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * position


def multivariate_covariance(seed: int) -> np.ndarray:
    """U diag(lambda) U^T, (3,3): lambda uniform in (0,1), U orthonormal from the QR of a uniform matrix."""
    random = np.random.RandomState(seed)
    u, _ = np.linalg.qr(random.rand(3, 3))
    return (u * random.rand(3)) @ u.T
