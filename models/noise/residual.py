"""Sigma_n of each image by itself, read from the residual r = y - mu. Nothing here is learned.

D-BSN's covariance V at a pixel does not depend on the pixel's own value. So choosing pixels by V leaves their noise
as it was. Where V is lowest, the mean of r r^T is Sigma_n and the little that mu errs there. (V itself will not do:
the least of many uncertain values is too low.) Three steps follow, each a function below:

1. quiet pixels     the pixels with the lowest log|V|. Places near clipped pixels count as less quiet.
2. a line           E r^2 = s0 + slope V through the quiet pixels, read off at the lowest V (`line_at_lowest`).
3. the gain         mu carries a share of the noise of the pixels around. Squared residuals are too large by that share
                    (`BlindSpotDenoiser.gain`).

docs/estimator.md measures all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional as F

from models.gaussian import Covariance, Diagonal, planes
from models.noise.base import FLOOR, NoiseModel

SAMPLE = 2**22  # pixels that suffice for the statistics of an image
LOWEST = 0.02  # share of the pixels where the line is read off: those with the lowest V
FITTED = 0.3  # share of the pixels through which the line is laid
STEEPEST = 2.0  # the greatest slope of the line; the slope is 1 where V is right
BINS = 16  # ranges of intensity
PART_SQUARES = 3  # a part of an image, for standard errors, has the square of it as many squares of pixels
BLOCK = 16  # side of the blocks in which clipped pixels are counted
AVOID = 30  # what a share of clipped pixels adds to log V: a share of 3% counts as a V 2.5 times larger
DRAWN = 0.01  # of the variance of a darker range of intensity: what has less is no photograph
MOST_DRAWN = 4  # ranges of BINS that are left out for it
FURTHER = 10  # times the span of intensities in which the curve was measured, up to where it is used
CLEAR = 0.02  # share of clipped pixels that takes no more than a few hundredths off the noise's variance


class ResidualEstimator(nn.Module):
    """channels: 1 or 3. noise: the noise model, which says how its theta is read."""

    learned = False  # it needs a noisy image

    def __init__(self, channels: int, noise: type[NoiseModel]):
        super().__init__()
        self.channels, self.noise = channels, noise

    @torch.no_grad()
    def estimate(
        self, y: Tensor, mu: Tensor, v: Covariance, gain: Tensor | float = 0.0, unit: Tensor | float = 1.0
    ) -> Tensor:
        """theta (N,K,1,1) of noisy images y (N,C,H,W) with D-BSN's mu (N,C,H,W) and V.

        gain (N,1,1,1): see above. unit (N,1,1,1): the value of y that is 1 to the network.
        FLOOR units are the least standard deviation.
        """
        floor = (FLOOR * (unit * torch.ones_like(y[:, :1, :1, :1]))).square()
        return self.noise.read(Seen.of(y, mu, v, floor), gain)

    def covariance(self, theta: Tensor, image: Tensor) -> Covariance:
        """Sigma_n at an image (N,C,H,W), mu or a clean one; H = W = 1 where it is image-wide."""
        return self.noise.sigma_n(theta, image)


@dataclass(frozen=True)
class Seen:
    """Images (N,C,H,W), and their sampled pixels: mu (N,C,1,n), v, clipped (N,1,1,n), residuals, C tensors (N,1,1,n).

    floor: the least variance of the noise, (N,1,1,1).
    """

    image: Tensor
    residuals: list[Tensor]
    mu: Tensor
    v: Covariance
    clipped: Tensor
    floor: Tensor

    @classmethod
    def of(cls, y: Tensor, mu: Tensor, v: Covariance, floor: Tensor) -> Seen:
        return cls(y, planes(sampled(y) - sampled(mu)), sampled(mu), v.map(sampled), share_clipped(y), floor)

    @property
    def channels(self) -> int:
        return len(self.residuals)

    @cached_property
    def uncertainty(self) -> Tensor:
        """log|V| / C, and what clipped surroundings add, (N,1,1,n)."""
        return self.v.log_det() / self.channels + AVOID * self.clipped

    @property
    def floor_of_channels(self) -> Tensor:
        """The floor of each channel, (N C,1)."""
        return self.floor.expand(-1, self.channels, -1, -1).reshape(-1, 1)

    def parts(self, groups: int) -> Tensor:
        """In which of so many parts of the image each sampled pixel is, (n,): squares, dealt out in turn."""
        height, width = self.image.shape[2:]
        side = max(1, int((height * width / groups) ** 0.5 / PART_SQUARES))
        pixel = torch.arange(0, height * width, spacing(self.image), device=self.image.device)
        return (pixel // width // side * -(-width // side) + pixel % width // side) % groups

    def quietest(self, share: float) -> tuple[Tensor, Tensor]:
        """The share of the pixels with the lowest uncertainty: their uncertainty and index, (N,1,1,k), lowest first."""
        return lowest(self.uncertainty, share)


def lowest(values: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The lowest share of values (..,n) and their indices, (..,k), lowest first."""
    return values.topk(max(1, round(share * values.shape[-1])), dim=-1, largest=False)


def sampled(t: Tensor) -> Tensor:
    """(N,K,H,W) -> (N,K,1,n): all pixels, or evenly spaced ones of a large image."""
    return t.flatten(2)[..., :: spacing(t)].unsqueeze(2)


def spacing(t: Tensor) -> int:
    """Distance between the sampled pixels of an image (N,K,H,W), in the order of rows."""
    return -(-t[0, 0].numel() // SAMPLE)


def line_at_lowest(squares: Tensor, v: Tensor, uncertainty: Tensor) -> Tensor:
    """E r^2 where V is lowest: r^2, V and uncertainty of the FITTED pixels, lowest first, (..,n) -> (..,1), float64.

    A mean over the LOWEST alone would be over few pixels. E r^2 = V as far as V is right, so a line through r^2 over
    V uses all of them. Each pixel is weighted by exp(-2 uncertainty): the inverse variance of its r^2, and less near
    clipped pixels. With weighted means m:

        slope = cov(v, r^2) / var(v), within 0..STEEPEST       E r^2 = m(r^2) + slope (lowest V - m(v))
    """
    s, v = squares.double(), v.double()
    weight = (-2 * uncertainty.double()).softmax(-1)
    centre = (weight * v).sum(-1, keepdim=True)
    apart = weight * (v - centre)
    slope = (apart * s).sum(-1, keepdim=True) / (apart * v).sum(-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    at = v[..., : count_lowest(v)].mean(-1, keepdim=True)
    return (weight * s).sum(-1, keepdim=True) + slope.clamp(0, STEEPEST) * (at - centre)


def count_lowest(t: Tensor) -> int:
    """How many of the FITTED pixels in the last dimension are among the LOWEST."""
    return max(1, round(LOWEST / FITTED * t.shape[-1]))


def read_level(seen: Seen, gain: Tensor | float, groups: int = 0) -> tuple[Tensor, Tensor | None]:
    """sigma^2 of noise that is the same everywhere, and its standard error, (N,1,1,1) each.

    It is the mean of r^2 over the channels, where V is lowest. groups: see read_curve.
    """
    uncertainty, quiet = seen.quietest(FITTED)
    squares = (sum(e * e for e in seen.residuals) / seen.channels).gather(3, quiet)
    v = seen.v.variance.mean(1, keepdim=True).gather(3, quiet)

    def variance(uncertainty: Tensor) -> Tensor:
        return torch.maximum(line_at_lowest(squares, v, uncertainty).float() / (1 + gain), seen.floor)

    error = jackknife(variance, uncertainty, seen.parts(groups)[quiet], groups) if groups else None
    return variance(uncertainty), error


@dataclass(frozen=True)
class Curve:
    """The noise's variance against intensity of images with C channels, in ranges of intensity: (N C,bins), float64.

    intensity, variance: where V is lowest in each range. error: the variance's standard error, None where not asked
    for. clear: whether the range counts, since few of its pixels are clipped. brightest: greatest intensity of each
    range.
    """

    intensity: Tensor
    variance: Tensor
    error: Tensor | None
    clear: Tensor
    brightest: Tensor

    @property
    def darkest(self) -> Tensor:
        """The least intensity of a range that counts, (N C,1)."""
        return self.intensity.masked_fill(~self.clear, torch.inf).amin(1, keepdim=True)

    def polynomial(self, powers: tuple[int, ...], floor: Tensor) -> Tensor:
        """Coefficients (N C,P) of sigma^2(x) = sum_p k_p (x - darkest)^p, none of them negative.

        So the noise does not fall where it gets brighter, and the value that is black in the picture does not matter.
        They are the least squares solution through the ranges, weighted by the inverse variance. floor (N C,1): the
        least variance.
        """
        x = (self.intensity - self.darkest).clamp_min(0)  # ranges that do not count may be darker
        # in units of the brightest range and the floor, so that brightness does not matter to rounding
        largest = x.amax(1, keepdim=True)
        largest = torch.where(largest > 0, largest, 1.0)
        powers_of_x = torch.stack([(x / largest) ** p for p in powers], 2)  # NC,bins,P
        s = self.variance / floor
        found = non_negative_least_squares(powers_of_x, s, self.clear / s.square())
        return found * floor / torch.cat([largest**p for p in powers], 1)


def read_curve(seen: Seen, gain: Tensor | float, groups: int = 0) -> Curve:
    """The noise's variance in each of BINS ranges of intensity.

    groups: parts of the image for the standard errors, which are the jackknife's (each part left out in turn); 0 for
    none.
    """
    squares = torch.cat(seen.residuals, 1).square() / (1 + gain)
    images, channels, _, n = seen.mu.shape
    rows = [
        t.expand_as(seen.mu).reshape(images * channels, n) for t in (seen.mu, seen.v.variance, squares, seen.clipped)
    ]
    mu, v, squares, clipped = rows  # NC,n each
    bins = min(BINS, n)
    order = mu.argsort(1)[:, : n // bins * bins].unflatten(1, (bins, -1))  # NC,bins,pixels
    uncertainty, chosen = lowest(at(v.log() + AVOID * clipped, order), FITTED)
    quiet = order.gather(2, chosen)  # NC,bins,k
    floor = seen.floor_of_channels
    squares, v = at(squares, quiet), at(v, quiet)

    def variance(uncertainty: Tensor) -> Tensor:
        return torch.maximum(line_at_lowest(squares, v, uncertainty)[..., 0], floor)

    error = jackknife(variance, uncertainty, seen.parts(groups)[quiet], groups) if groups else None
    quietest = quiet[..., : count_lowest(quiet)]
    x, share = at(mu, quietest).double().mean(2), at(clipped, quietest).mean(2)  # NC,bins
    found = variance(uncertainty)
    text = drawn(found)  # such ranges are sharp and never clipped: they must not set the bar for the others
    clear = ~text & (share <= share.masked_fill(text, torch.inf).amin(1, keepdim=True).clamp_min(CLEAR))
    return Curve(x, found, error, clear, at(mu, order[..., -1:])[..., 0].double())


def drawn(variance: Tensor) -> Tensor:
    """Which ranges of intensity, the darkest first, have almost no noise beside darker ones that have, (..,bins).

    Noise does not fall so far with intensity: a scale bar or text fills them. A few ranges at most are taken for such;
    of more the picture consists.
    """
    found = variance < DRAWN * variance.cummax(-1).values
    return found & (found.sum(-1, keepdim=True) <= MOST_DRAWN)


def jackknife(f: Callable[[Tensor], Tensor], uncertainty: Tensor, part: Tensor, groups: int) -> Tensor:
    """Standard error of a statistic f(uncertainty) of pixels (..,k), each in one of so many parts, (..,k).

    With f_g the statistic without part g (its pixels' weight is zero) and f' the mean of all:

        error^2 = (groups - 1) / groups  sum_g (f_g - f')^2
    """
    without = torch.stack([f(uncertainty.masked_fill(part == g, torch.inf)) for g in range(groups)])
    return ((groups - 1) * without.var(0, correction=0)).sqrt()


def read_polynomial(seen: Seen, gain: Tensor | float, powers: tuple[int, ...]) -> Tensor:
    """theta (N,(P+2) C,1,1): for each channel the coefficients of sigma^2(x) = sum_p k_p (x - low)^p.

    None of them is negative. With them come the intensities low and high, beyond which sigma is constant.

    Ranges of intensity with many clipped pixels are left out, and those that are `drawn`.
    """
    curve, floor = read_curve(seen, gain), seen.floor_of_channels
    coefficients = curve.polynomial(powers, floor)
    coefficients[:, 0] = torch.maximum(coefficients[:, 0], floor[:, 0])
    high = curve.brightest.masked_fill(~curve.clear, -torch.inf).amax(1, keepdim=True)
    measured = curve.intensity.masked_fill(~curve.clear, -torch.inf).amax(1, keepdim=True)
    high = torch.minimum(high, curve.darkest + FURTHER * (measured - curve.darkest))
    return torch.cat([coefficients, curve.darkest, high], 1).float().view(len(seen.image), -1, 1, 1)


def polynomial_at(theta: Tensor, image: Tensor, powers: tuple[int, ...]) -> Diagonal:
    """sigma^2(x) of read_polynomial's theta at an image (N,C,H,W). It is never below the constant coefficient."""
    constant, *coefficients, low, high = theta.unflatten(1, (image.shape[1], -1)).unbind(2)  # N,C,1,1 each
    x = image.clamp(low, high) - low
    return Diagonal(constant + sum(k * x**p for k, p in zip(coefficients, powers[1:])))


def at(t: Tensor, index: Tensor) -> Tensor:
    """t (B,n) at index (B,bins,k) -> (B,bins,k)."""
    return t.gather(1, index.flatten(1)).view(index.shape)


def non_negative_least_squares(a: Tensor, s: Tensor, weight: Tensor) -> Tensor:
    """x (B,P) >= 0 that minimises sum_k weight_k (a_k x - s_k)^2; a (B,K,P), s and weight (B,K)."""
    root = weight.sqrt()
    left, right = ((root[..., None] * a).cpu().numpy(), (root * s).cpu().numpy())
    return torch.from_numpy(np.stack([nnls(m, r)[0] for m, r in zip(left, right)])).to(a)


def indefinite(entries: Tensor, channels: int) -> Tensor:
    """Whether matrices have an eigenvalue that is not positive, (N,1,1,1).

    entries: their lower triangles, (N,T,1,1).
    """
    rows, columns = torch.tril_indices(channels, channels)
    matrix = entries.new_zeros(len(entries), channels, channels)
    matrix[:, rows, columns] = entries[:, :, 0, 0]
    return (torch.linalg.cholesky_ex(matrix).info > 0).view(-1, 1, 1, 1)  # it reads the lower triangle


def share_clipped(y: Tensor) -> Tensor:
    """The share of pixels around each sampled one that have the image's least or greatest value, (N,1,1,n).

    They are counted in its block. Where a file's range clips the noise there is less of it. A block at a time, since
    choosing pixels by their own value would bend the mean of the rest. An image that is not clipped has few such
    pixels.
    """
    height, width = y.shape[2:]
    low, high = y.amin((2, 3), keepdim=True), y.amax((2, 3), keepdim=True)
    strips = y.split(64 * BLOCK, 2)  # memory grows little with the image
    clipped = [((strip == low) | (strip == high)).any(1, keepdim=True).float() for strip in strips]
    blocks = torch.cat([F.avg_pool2d(strip, BLOCK, ceil_mode=True) for strip in clipped], 2)  # N,1,h,w
    pixel = torch.arange(0, height * width, spacing(y), device=y.device)
    return blocks[:, :, pixel // width // BLOCK, pixel % width // BLOCK].unsqueeze(2)
