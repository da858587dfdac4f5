"""Multivariate Gaussian noise has correlated channels.

Sigma_n = sigma^2 U diag(lambda) U^T, U orthonormal, lambda in (0,1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.gaussian import Full, cholesky, triangle
from models.noise.base import CNN_SHIFT, Level, NoiseModel, Range, fraction, lower_factor, within
from models.noise.residual import FITTED, Seen, count_lowest, indefinite, line_at_lowest


@dataclass(frozen=True)
class Mg(NoiseModel):
    """y = x + n, n ~ N(0, sigma^2 U diag(lambda) U^T) over the three channels of a pixel (the paper's MG).

    sigma: range of the greatest standard deviation in any direction, 0..1 units. mg_seed: U and lambda are drawn from
    it.
    """

    sigma: Range
    mg_seed: int = 0

    name = "mg"
    title = "correlated channels"
    levels = (
        Level("sigma", "mg: the greatest standard deviation (75 by default)", default=75.0),
        Level(
            "mg_seed", "mg: seed of the covariance's directions and proportions; default: 0", 1.0, 0, 2**32 - 1, 0, True
        ),
    )
    needs_color = True
    image_wide = True

    def covariance(self, x: Tensor, position: Tensor) -> Full:
        shape = torch.from_numpy(multivariate_covariance(self.mg_seed)).to(x)
        entries = torch.stack([shape[i, j] for i, j in triangle(3)]).view(1, -1, 1, 1)
        return cholesky(entries).scale(within(self.sigma, fraction(position, 0, x)))

    def published(self, x: np.ndarray) -> np.ndarray:
        factor = self.sigma[0] * np.linalg.cholesky(multivariate_covariance(self.mg_seed))
        return x + np.einsum("ij,jhw->ihw", factor, np.random.RandomState(0).normal(0, 1, x.shape))

    @classmethod
    def cnn_outputs(cls, channels: int) -> int:
        return len(triangle(channels))

    @classmethod
    def cnn_statistic(cls, raw: Tensor) -> Tensor:
        return lower_factor(raw, 3, CNN_SHIFT).entries()

    @classmethod
    def cnn_covariance(cls, raw: Tensor, channels: int) -> Full:
        return cholesky(raw)

    @classmethod
    def read(cls, seen: Seen, gain: Tensor | float) -> Tensor:
        """theta = the lower triangle of Sigma_n, K = C (C + 1) / 2.

        It is the mean of r r^T where V is lowest, entry by entry. Where such lines do not meet in a positive matrix,
        the mean over the quietest pixels is taken: it is one.
        """
        uncertainty, quiet = seen.quietest(FITTED)
        r = seen.residuals
        squares = torch.cat([(r[i] * r[j]).gather(3, quiet) for i, j in triangle(seen.channels)], 1)
        found = line_at_lowest(squares, seen.v.entries().gather(3, quiet.expand_as(squares)), uncertainty).float()
        mean = squares[..., : count_lowest(squares)].mean(3, keepdim=True)
        found = torch.where(indefinite(found, seen.channels), mean, found) / (1 + gain)
        identity = found.new_tensor([float(i == j) for i, j in triangle(seen.channels)]).view(1, -1, 1, 1)
        return found + seen.floor * identity

    @classmethod
    def sigma_n(cls, theta: Tensor, image: Tensor) -> Full:
        return cholesky(theta)

    @classmethod
    def estimator(cls, ranges: bool, noisy: bool) -> str:
        return "residual"

    @classmethod
    def label(cls, record: Mapping[str, float]) -> str:
        seed = f", seed {record['mg_seed']}" if record.get("mg_seed") else ""
        return "MG" + ("" if record["sigma"] == 75 else f" {record['sigma']:g}") + seed


def multivariate_covariance(seed: int) -> np.ndarray:
    """U diag(lambda) U^T, (3,3). lambda is uniform in (0,1); U is orthonormal, from the QR of a uniform matrix."""
    random = np.random.RandomState(seed)
    u, _ = np.linalg.qr(random.rand(3, 3))
    return (u * random.rand(3)) @ u.T
