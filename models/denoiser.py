"""The stage-1 model: D-BSN, its covariance head and CNN_est together, and what its prediction means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from models import gaussian
from models.dbsn import DBSN
from models.gaussian import Covariance, Posterior, triangle
from models.layers import PointwiseNet
from models.noise_estimator import HIDDEN, NoiseEstimator, lower_factor

HEADS = ("mu", "total")


@dataclass(frozen=True)
class Prediction:
    """What stage 1 says of images y (N,C,H,W).

    mu: mean of the clean pixel given the pixels around it, (N,C,H,W), 0..1.
    cov_n: Sigma_n, covariance of the noise.
    cov_head: what the covariance head gives, blind as mu is: Sigma_mu where head is "mu"; V = Sigma_mu + Sigma_n, the total predictive covariance of the
        noisy pixel, where it is "total".
    """

    mu: Tensor
    cov_n: Covariance
    cov_head: Covariance
    head: str

    @cached_property
    def cov_mu(self) -> Covariance:
        """Sigma_mu, covariance of the clean pixel given the pixels around it."""
        return self.cov_head if self.head == "mu" else gaussian.excess(self.cov_head, self.cov_n)

    @cached_property
    def cov_total(self) -> Covariance:
        """Covariance of the noisy pixel given the pixels around it."""
        return gaussian.add(self.cov_head, self.cov_n) if self.head == "mu" else self.cov_head


def posterior(y: Tensor, p: Prediction) -> Posterior:
    """Mean and covariance of the clean image given the whole noisy one (Bayes' rule, as in the paper's stage 1); y (N,C,H,W), 0..1."""
    return gaussian.posterior(y, p.mu, p.cov_mu, p.cov_n)


def posterior_mean(y: Tensor, p: Prediction) -> Tensor:
    """The denoised image of stage 1, (N,C,H,W)."""
    return gaussian.posterior_mean(y, p.mu, p.cov_mu, p.cov_n)


def noise_level(cov_n: Covariance) -> Tensor:
    """Standard deviation of the noise, root mean square over channels: (N,1,H,W), H = W = 1 where it is image-wide; 0..1 units."""
    return cov_n.variance.mean(1, keepdim=True).sqrt()


def synthesise(x: Tensor, cov_n: Covariance, z: Tensor, scale: Tensor) -> Tensor:
    """Noisy images x + n, n ~ N(0, s^2 Sigma_n), of clean ones x (N,C,H,W): the pairs of the paper's knowledge distillation.

    z: standard normal, (N,C,H,W). scale: s, (N,), the jitter of the level around what was estimated.
    """
    return x + scale.view(-1, 1, 1, 1) * cov_n.sample(z)


class BlindSpotDenoiser(nn.Module):
    """channels: 1 gray or 3 colour. noise: "awgn", "hg" or "mg". width, blocks, mdc: see DBSN. head: what the covariance head gives, see Prediction.

    Attributes to set freely: `path` (see dbsn.py) and `dtype`, float32 or bfloat16, in which convolutions are computed; the last layer of each head and
    of the noise estimator and all covariance algebra are float32 always.
    """

    stage = 1

    def __init__(self, channels: int, noise: str, width: int = 96, blocks: int = 8, mdc: str = "release", head: str = "total"):
        super().__init__()
        self.config = dict(channels=channels, noise=noise, width=width, blocks=blocks, mdc=mdc, head=head)
        self.channels, self.noise, self.head = channels, noise, head
        self.dbsn = DBSN(channels, width, blocks, mdc)
        self.cov_head = PointwiseNet(width, HIDDEN[noise], len(triangle(channels)), depth=3)
        nn.init.zeros_(self.cov_head.last.weight)  # starts at one covariance everywhere: std softplus(-3), 12 of 255
        self.noise_estimator = NoiseEstimator(channels, noise)
        self.receptive_radius = self.dbsn.receptive_radius
        self.path, self.dtype = "auto", torch.float32

    def context(self, y: Tensor) -> tuple[Tensor, Covariance]:
        """What the pixels around each pixel say of it: mu (N,C,H,W) and the head's covariance, float32. y (N,C,H,W) float32 0..1."""
        mu, features = self.dbsn(y.to(self.dtype), self.path)
        return mu, lower_factor(self.cov_head(features), self.channels, shift=3)

    def forward(self, y: Tensor, cov_n: Covariance | None = None) -> Prediction:
        """y: noisy images (N,C,H,W), float32, 0..1, any size. cov_n: Sigma_n where it is known already, as for a tile of a larger image."""
        mu, cov_head = self.context(y)
        if cov_n is None:
            # only an input here: estimating the noise must not bend mu
            cov_n = self.noise_estimator((mu.detach() if self.noise_estimator.sees == "mu" else y).to(self.dtype))
        return Prediction(mu, cov_n, cov_head, self.head)
