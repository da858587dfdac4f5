"""The stage-1 model: D-BSN, its covariance head and CNN_est together, and what its prediction means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from models import gaussian
from models.dbsn import DBSN
from models.gaussian import Covariance, Full, Posterior, mahalanobis, triangle
from models.layers import PointwiseNet, without_autocast
from models.noise import ESTIMATORS, NOISES, lower_factor
from models.noise.residual import AVOID, lowest, sampled, share_clipped, spacing
from models.phases import on_phases
from models.units import USUAL_MEAN, USUAL_NOISE, View, seen_in, views_of

WHITE_SHIFT = 3  # in white units V starts at softplus(-3)^2: a standard deviation of 12 of 255
NOISE_SHIFT = -0.5413  # softplus(-NOISE_SHIFT) = 1: in units of noise, V starts at about one
WIDEST = 2.0  # the range of values that a network trained on 0..1 bears: where mu is wrong, V makes up for it
Slices = tuple[slice, slice]  # rows and columns
SHAKE = 0.5  # noise added to measure the gain, relative to what was estimated
GAIN_WINDOWS, GAIN_CORE = 5, 28  # in how many parts of an image the gain is measured, and the side of each in pixels
GAIN_COST = 0.151  # share of the image's pixels that the parts may have, the receptive field around them included
GAIN_SHARE = 0.1  # share of the image's pixels that count for the gain: those predicted best for their noise


@dataclass(frozen=True)
class Prediction:
    """What stage 1 says of images y (N,C,H,W).

    mu: mean of the clean pixel given the pixels around it, (N,C,H,W), 0..1.
    v: what the covariance head gives, blind as mu is. Where head is "total": V = Sigma_mu + Sigma_n, the covariance of
    the noisy pixel given the pixels around it. Where head is "mu": Sigma_mu.
    estimate: computes Sigma_n. It is called when cov_n is first asked for.
    """

    mu: Tensor
    v: Covariance
    head: str
    estimate: Callable[[], Covariance]

    @cached_property
    def cov_n(self) -> Covariance:
        """Sigma_n, covariance of the noise."""
        return self.estimate()

    @cached_property
    def cov_mu(self) -> Covariance:
        """Sigma_mu, covariance of the clean pixel given the pixels around it."""
        return self.v if self.head == "mu" else gaussian.excess(self.v, self.cov_n)

    @cached_property
    def cov_total(self) -> Covariance:
        """Covariance of the noisy pixel given the pixels around it."""
        return gaussian.add(self.v, self.cov_n) if self.head == "mu" else self.v


def posterior(y: Tensor, p: Prediction) -> Posterior:
    """Mean and covariance of the clean image given the whole noisy one.

    This is Bayes' rule, as in the paper's stage 1. y: (N,C,H,W), 0..1.
    """
    return gaussian.posterior(y, p.mu, p.cov_mu, p.cov_n)


def posterior_mean(y: Tensor, p: Prediction) -> Tensor:
    """The denoised image of stage 1, (N,C,H,W)."""
    return gaussian.posterior_mean(y, p.mu, p.cov_mu, p.cov_n)


def noise_level(cov_n: Covariance) -> Tensor:
    """Standard deviation of the noise, root mean square over channels, in 0..1 units.

    It is (N,1,H,W), H = W = 1 where it is image-wide.
    """
    return cov_n.variance.mean(1, keepdim=True).sqrt()


class BlindSpotDenoiser(nn.Module):
    """The model of stage 1: D-BSN, its covariance head and the noise estimator.

    channels: 1 gray or 3 colour.
    noise: a name in models.noise.NOISES.
    width, blocks, mdc: see DBSN.
    stride: D-BSN sees every stride-th pixel, see models/phases.py; 1 for noise that is independent.
    hole: see DBSN.
    head: see Prediction.
    estimator: "cnn", the paper's CNN_est, or "residual", which is not trained and needs head "total".

    Attributes to set freely:
    stride: it may be smaller or larger in use than in training.
    path: see dbsn.py.
    dtype: float32 or bfloat16, in which D-BSN is computed. The last layer of each head, the noise estimator and all
    covariance algebra are float32 always.
    units: see models/units.py.
    """

    stage = 1

    def __init__(
        self,
        channels: int,
        noise: str,
        width: int = 96,
        blocks: int = 8,
        mdc: str = "release",
        head: str = "total",
        estimator: str = "cnn",
        units: str = "white",
        stride: int = 1,
        hole: int = 1,
    ):
        super().__init__()
        model = NOISES[noise]
        if model.needs_color and channels == 1:
            raise ValueError(f"{noise} noise needs more than one channel")
        if estimator == "residual" and head != "total":
            raise ValueError("the residual estimator is not trained, so Sigma_mu alone has no loss: use head 'total'")
        self.config = dict(
            channels=channels,
            noise=noise,
            width=width,
            blocks=blocks,
            mdc=mdc,
            head=head,
            estimator=estimator,
            units=units,
        )
        # older versions read what has neither
        self.config |= {name: value for name, value in (("stride", stride), ("hole", hole)) if value > 1}
        self.channels, self.noise, self.head, self.estimator = channels, noise, head, estimator
        self.dbsn = DBSN(channels, width, blocks, mdc, hole)
        self.cov_head = PointwiseNet(width, model.hidden, len(triangle(channels)), depth=3)
        nn.init.zeros_(self.cov_head.last.weight)  # starts at one covariance everywhere
        self.noise_estimator = ESTIMATORS[estimator](channels, model)
        self.path, self.dtype, self.units, self.stride = "auto", torch.float32, units, stride

    @property
    def shared_noise(self) -> bool:
        """Whether it knows noise that neighbours share."""
        return NOISES[self.noise].shared

    @property
    def independent_noise(self) -> bool:
        """Whether it knows noise that neighbours do not share."""
        return not self.shared_noise

    @property
    def level_is_learned(self) -> bool:
        """Whether it has learned a noise level, which holds for the scale of its training alone."""
        return self.noise_estimator.learned

    @property
    def apart(self) -> int:
        """How far from a pixel the nearest one is that its prediction sees, in pixels of the image."""
        return (self.dbsn.hole + 1) // 2 * self.stride

    @property
    def receptive_radius(self) -> int:
        """How far D-BSN sees, in pixels of the image."""
        return self.dbsn.receptive_radius * self.stride

    @property
    def multiple(self) -> int:
        """Tiles of an image begin at multiples of it."""
        return self.stride

    def forward(self, y: Tensor) -> Prediction:
        """y: noisy images (N,C,H,W), float32, 0..1, any size. Sigma_n is not computed before it is asked for."""
        mu, v = self.context(y)
        seen = mu.detach()  # estimating the noise must not bend mu
        return Prediction(mu, v, self.head, lambda: self.noise_estimator.covariance(self.theta(y, seen, v), seen))

    @torch.no_grad()
    def take_up_units_of_noise(self) -> None:
        """Turns a network of white units into one of noise units, which further training then makes better.

        mu stays exactly what it is for images of the usual mean and noise, because the layers that meet the units are
        1x1 convolutions. V's diagonal is a softplus: it keeps its value and slope at V = Sigma_n.
        """
        head, mu, v = self.dbsn.head, self.dbsn.mu.last, self.cov_head.last
        head.bias += USUAL_MEAN * head.weight.sum((1, 2, 3))
        head.weight *= USUAL_NOISE
        mu.bias.sub_(USUAL_MEAN).div_(USUAL_NOISE)
        mu.weight /= USUAL_NOISE
        before = math.log(math.expm1(USUAL_NOISE))  # softplus(before) = USUAL_NOISE, softplus(-NOISE_SHIFT) = 1
        slope = (1 - math.exp(-USUAL_NOISE)) / USUAL_NOISE / (1 - math.exp(-1))
        for k, (i, j) in enumerate(triangle(self.channels)):
            if i == j:
                v.bias[k] = slope * (v.bias[k] - WHITE_SHIFT - before)
            else:
                v.bias[k] /= USUAL_NOISE
            v.weight[k] *= slope if i == j else 1 / USUAL_NOISE
        self.units = self.config["units"] = "noise"

    def views(self, y: Tensor) -> list[View] | None:
        """What `context` needs to know of a whole image y (N,C,H,W) to work on parts of it."""
        if self.units == "white":
            return None
        seen = y[:, :, :: self.apart, :: self.apart]  # neighbours that share noise differ too little
        return views_of(seen, WIDEST if self.config["units"] == "white" else None)

    def context(self, y: Tensor, views: list[View] | None = None) -> tuple[Tensor, Covariance]:
        """What the pixels around each pixel say of it: mu (N,C,H,W) and the head's covariance, float32.

        y as in forward.
        """
        if self.units == "white":
            mu, raw = on_phases(self.network, y, self.stride)
            return mu, lower_factor(raw, self.channels, WHITE_SHIFT)
        shift = WHITE_SHIFT if self.config["units"] == "white" else NOISE_SHIFT

        def in_own_units(y: Tensor, view: View) -> tuple[Tensor, Tensor]:
            mu, raw = on_phases(self.network, view.into(y), self.stride)
            return view.out_of(mu), lower_factor(raw, self.channels, shift).scale(view.unit).factor

        mu, factor = seen_in(views or self.views(y), y, in_own_units)
        return mu, Full(factor)

    def network(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """D-BSN and its covariance head: mu (N,C,H,W) and the head's raw output (N,T,H,W), in the network's units."""
        with without_autocast(y):
            mu, features = self.dbsn(y.to(self.dtype), self.path)
        return mu, self.cov_head(features)

    def theta(self, y: Tensor, mu: Tensor, v: Covariance, gain: Tensor | float | None = None) -> Tensor:
        """What the noise estimator finds on noisy images y (N,C,H,W), given their context: (N,K,1,1). On any device.

        gain: self.gain's, where it is known already. In training mode it is left out: it would cost a pass of the
        network for a number that is only watched.
        """
        if gain is None:
            gain = 0.0 if self.level_is_learned or self.training else self.gain(y, mu, v)
        gain = gain.to(y.device) if isinstance(gain, Tensor) else gain
        return self.noise_estimator.estimate(y, mu, v, gain, self.unit(y))

    def unit(self, y: Tensor) -> Tensor | float:
        """The difference of values of images y (N,C,H,W) that is 1 to the network in the narrowest view, (N,1,1,1)."""
        views = self.views(y)
        return 1.0 if views is None else views[-1].unit

    @torch.no_grad()
    def gain(self, y: Tensor, mu: Tensor, v: Covariance) -> Tensor:
        """The share of the noise's variance that mu carries in the pixels predicted best for their noise, (N,1,1,1).

        Measured by adding known noise n of covariance s^2 Sigma_n, s = SHAKE, in a few windows of each image:

            gain = E [ d^T Sigma_n^-1 d ] / (C s^2),   d = mu(y + n) - mu(y)

        Squared residuals are too large by this share.
        """
        cov_n = self.noise_estimator.covariance(self.noise_estimator.estimate(y, mu, v, unit=self.unit(y)), mu)
        uncertainty = sampled(v.log_det() - cov_n.log_det()) / self.channels + AVOID * share_clipped(y)
        best = lowest(uncertainty, GAIN_SHARE)[1].flatten(1) * spacing(y)  # N,k: places in the order of rows
        device, views = self.dbsn.tail.weight.device, self.views(y)
        gains = []
        for k, places in enumerate(best.sort().values):
            counts = torch.zeros(y.shape[2:], device=y.device)
            counts.view(-1)[places] = 1
            random, found = torch.Generator().manual_seed(0), []
            for window, core in self.windows(y.shape[2], y.shape[3], places):
                here, noisy = cov_n.map(lambda t, k=k, at=window: crop(t[k : k + 1], at)), crop(y[k : k + 1], window)
                n = here.sample(torch.randn(noisy.shape, generator=random).to(y))
                own = views and [view.map(lambda t, k=k: t[k : k + 1]) for view in views]
                moved = self.context((noisy + SHAKE * n).to(device), own)[0].to(mu) - crop(mu[k : k + 1], window)
                share = mahalanobis(crop(moved, core), here.map(lambda t, at=core: crop(t, at)))[0, 0]
                counted = counts[window][core]
                found.append((share * counted).sum() / counted.sum())
            gains.append(sum(found) / (len(found) * self.channels * SHAKE**2))
        return torch.stack(gains).view(-1, 1, 1, 1)

    def windows(self, height: int, width: int, places: Tensor) -> list[tuple[Slices, Slices]]:
        """Windows of an image around some of the places (in the order of rows), and in each the core where mu is exact.

        The places are evenly spaced ranks, so that dense regions have as many windows as they have places. Together the
        windows have GAIN_COST of the image's pixels at most. A small image is one window.
        """
        side = GAIN_CORE + 2 * self.receptive_radius
        number = min(GAIN_WINDOWS, int(GAIN_COST * height * width / side**2))
        if number == 0:
            whole = slice(0, height), slice(0, width)
            return [(whole, whole)]
        ranks = [int((i + 0.5) / number * len(places)) for i in range(number)]
        return [
            tuple(zip(*(self.around(at, side, length) for at, length in zip(divmod(place, width), (height, width)))))
            for place in places[ranks].tolist()
        ]

    def around(self, at: int, side: int, length: int) -> tuple[slice, slice]:
        """Part of an axis of an image around a position, and within it the part whose surroundings it holds."""
        start = min(max(0, at - side // 2), max(0, length - side))
        stop = min(start + side, length)
        first = self.receptive_radius if start > 0 else 0
        last = stop - start - (self.receptive_radius if stop < length else 0)
        return slice(start, stop), slice(first, last)


def crop(t: Tensor, at: Slices) -> Tensor:
    """A part of a map (N,K,H,W); a constant (N,K,1,1) as it is."""
    return t if t.shape[2:] == (1, 1) else t[:, :, *at]
