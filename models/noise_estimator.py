"""CNN_est, the paper's noise estimator: 1x1 convolutions that give Sigma_n, the covariance of the noise.

    noise model                         Sigma_n                 sees    over the image
    awgn  additive white Gaussian       sigma^2 I               y       mean of the raw output
    hg    heteroscedastic (Poisson-     diag(sigma_c(x)^2)      mu      one value per pixel
          Gaussian)
    mg    multivariate Gaussian         full C x C              y       mean of the covariance

1x1 convolutions cannot tell noise from texture by looking at it; what they learn is the level that explains the training images, as a function of
intensity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.gaussian import Covariance, Diagonal, Full, cholesky, triangle
from models.layers import PointwiseNet

NOISE_MODELS = ("awgn", "hg", "mg")
HIDDEN = {"awgn": 16, "hg": 32, "mg": 32}
FLOOR = 1e-3  # least standard deviation, 0..1 units: a quarter of a level of 255


def positive(raw: Tensor, shift: float) -> Tensor:
    """Raw network output -> standard deviation above FLOOR, 0..1 units: exponential well below the shift, linear above it."""
    return F.softplus(raw - shift) + FLOOR


def lower_factor(raw: Tensor, channels: int, shift: float) -> Full:
    """Raw output (N,T,H,W) -> covariance L L^T: the diagonal of L made positive, the rest as it is."""
    entries = [positive(e, shift) if i == j else e for e, (i, j) in zip(raw.split(1, dim=1), triangle(channels))]
    return Full(torch.cat(entries, 1))


class NoiseEstimator(nn.Module):
    """channels: 1 or 3; noise: one of NOISE_MODELS, "mg" in colour only."""

    def __init__(self, channels: int, noise: str):
        super().__init__()
        if noise == "mg" and channels == 1:
            raise ValueError("multivariate noise needs more than one channel")
        self.channels, self.noise = channels, noise
        outputs = {"awgn": 1, "hg": channels, "mg": len(triangle(channels))}[noise]
        self.net = PointwiseNet(channels, HIDDEN[noise], outputs, depth=5)
        nn.init.zeros_(self.net.last.weight)  # starts at one level everywhere, about 4.9 of 255

    @property
    def sees(self) -> str:
        """Which image is the input: the noisy "y" or the denoised "mu"."""
        return "mu" if self.noise == "hg" else "y"

    @property
    def image_wide(self) -> bool:
        """Whether Sigma_n is one matrix for the image, found from the mean of `statistic` over all of it."""
        return self.noise != "hg"

    def statistic(self, image: Tensor) -> Tensor:
        """(N,C,H,W) 0..1 -> (N,K,H,W) float32, the quantity whose mean over the image determines Sigma_n where that is image-wide."""
        raw = self.net(image)
        return lower_factor(raw, self.channels, shift=4).entries() if self.noise == "mg" else raw

    def covariance(self, statistic: Tensor) -> Covariance:
        """Sigma_n from the statistic: (N,K,1,1), its mean over the image, for awgn and mg; (N,K,H,W) for hg."""
        if self.noise == "mg":
            return cholesky(statistic)
        variance = positive(statistic, shift=4).square()
        return Diagonal(variance.expand(-1, self.channels, -1, -1))

    def forward(self, image: Tensor) -> Covariance:
        """Sigma_n for images (N,C,H,W), 0..1, float32 or bfloat16, of the kind `sees` names; H = W = 1 where it is image-wide."""
        statistic = self.statistic(image)
        return self.covariance(statistic.mean((2, 3), keepdim=True) if self.image_wide else statistic)
