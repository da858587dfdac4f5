"""The stage-1 model: D-BSN, its covariance head and CNN_est together, and what its prediction means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from models import gaussian
from models.dbsn import DBSN
from models.gaussian import Covariance, Posterior, mahalanobis, triangle
from models.layers import PointwiseNet
from models.noise_estimator import ESTIMATORS, HIDDEN, lower_factor, quietest, sampled

HEADS = ("mu", "total")
SHAKE = 0.5  # noise added to measure the gain, relative to what was estimated
GAIN_SIDE = 512  # greatest side of the part of an image on which the gain is measured
GAIN_SHARE = 0.1  # of its pixels: those that are predicted best


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
    estimator: of the noise, "cnn" or "residual", see noise_estimator.py; "residual" needs head "total".

    Attributes to set freely: `path` (see dbsn.py) and `dtype`, float32 or bfloat16, in which D-BSN is computed; the last layer of each head, the noise
    estimator and all covariance algebra are float32 always.
    """

    stage = 1

    def __init__(self, channels: int, noise: str, width: int = 96, blocks: int = 8, mdc: str = "release", head: str = "total", estimator: str = "cnn"):
        super().__init__()
        if noise == "mg" and channels == 1:
            raise ValueError("multivariate noise needs more than one channel")
        if estimator == "residual" and head != "total":
            raise ValueError("the residual estimator is not trained, and Sigma_mu alone has no loss without Sigma_n: use head 'total'")
        self.config = dict(channels=channels, noise=noise, width=width, blocks=blocks, mdc=mdc, head=head, estimator=estimator)
        self.channels, self.noise, self.head, self.estimator = channels, noise, head, estimator
        self.dbsn = DBSN(channels, width, blocks, mdc)
        self.cov_head = PointwiseNet(width, HIDDEN[noise], len(triangle(channels)), depth=3)
        nn.init.zeros_(self.cov_head.last.weight)  # starts at one covariance everywhere: std softplus(-3), 12 of 255
        self.noise_estimator = ESTIMATORS[estimator](channels, noise)
        self.receptive_radius = self.dbsn.receptive_radius
        self.path, self.dtype = "auto", torch.float32

    def context(self, y: Tensor) -> tuple[Tensor, Covariance]:
        """What the pixels around each pixel say of it: mu (N,C,H,W) and the head's covariance, float32. y (N,C,H,W) float32 0..1."""
        mu, features = self.dbsn(y.to(self.dtype), self.path)
        return mu, lower_factor(self.cov_head(features), self.channels, shift=3)

    def level(self, y: Tensor, mu: Tensor, cov_head: Covariance) -> Tensor:
        """What the noise estimator says of images y (N,C,H,W), given their context; (N,K,1,1), see noise_estimator.py. On any device."""
        if self.estimator == "cnn":
            return self.noise_estimator.level(y)
        gain = 0.0 if self.training else self.gain(y, mu, cov_head).to(y.device)
        return self.noise_estimator.level(y, mu, cov_head, gain)

    @torch.no_grad()
    def gain(self, y: Tensor, mu: Tensor, cov_head: Covariance) -> Tensor:
        """The variance that noise causes in mu, relative to that of the noise, in the pixels that are predicted best for their noise; (N,1,1,1).

        Measured by adding known noise: mu moves by its share of it. Squared residuals there are too large by this share.
        """
        device = next(self.parameters()).device
        if max(y.shape[2:]) > GAIN_SIDE:
            top, left = ((size - min(size, GAIN_SIDE)) // 2 for size in y.shape[2:])
            y = y[:, :, top : top + GAIN_SIDE, left : left + GAIN_SIDE].to(device)
            mu, cov_head = self.context(y)
        cov_n = self.noise_estimator.covariance(self.noise_estimator.level(y, mu, cov_head), mu)
        z = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
        moved, _ = self.context((y + SHAKE * cov_n.sample(z)).to(device))
        share = mahalanobis(moved.to(mu) - mu, cov_n) / (self.channels * SHAKE**2)
        _, best = quietest(y, sampled(cov_head.log_det() - cov_n.log_det()) / self.channels, GAIN_SHARE)
        return sampled(share).gather(3, best).mean(3, keepdim=True)

    def forward(self, y: Tensor) -> Prediction:
        """y: noisy images (N,C,H,W), float32, 0..1, any size."""
        mu, cov_head = self.context(y)
        seen = mu.detach()  # estimating the noise must not bend mu
        cov_n = self.noise_estimator.covariance(self.level(y, seen, cov_head), seen)
        return Prediction(mu, cov_n, cov_head, self.head)
