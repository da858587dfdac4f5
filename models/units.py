"""The units of the networks' input: (y - m) / s.

    white   m = 0, s = 1: the network sees the image as it is, 0..1. It is right at the brightness of its training.
    noise   m is the image's mean, s its noise scale. The results are equivariant: f(a y + b) = a f(y) + b for a > 0.

Equivariance by normalising the input follows Herbreteau et al. 2023, "Normalization-equivariant neural networks". Their
networks are equivariant layer by layer. Here any network will do, because m and s are taken from the whole image.
A pixel's own value enters them with a weight of about one in the number of pixels. Otherwise the network stays blind.

A network that was trained in white units works in units of noise too. It knows values of 0..1 alone, so its images are
also made to fit: where the noise is small against the image's range, the range is the scale (`fitting`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

UNITS = ("white", "noise")
MAD = 0.6745  # median of |z| for a standard normal z
SAMPLE = 2**20  # details that suffice for their median
BLOCK = 8  # side of the blocks in pixels: those without noise, of one value, do not count
# A network trained in white units works in units of noise too: every image is brought to this mean and this noise. Of
# noise levels from 15 to 30 of 255 the lowest changes its results least.
USUAL_MEAN, USUAL_NOISE = 0.45, 15 / 255
BEYOND = 500  # of so many pixels one may be darker than a network's black, and one brighter than its white
SMALL = 1 / 4  # of 0..1: pictures that fill less of it are stretched to be seen

Scale = tuple[Tensor, Tensor]  # m and s, (N,1,1,1) each


@torch.no_grad()
def scale_of(y: Tensor, widest: float | None = None) -> Scale:
    """Mean and noise scale of images y (N,C,H,W), any size, on any device.

    s is the median of the absolute diagonal Haar details over 0.6745: the noise's standard deviation where the image is
    smooth (Donoho and Johnstone 1994). Where that is zero s is the image's standard deviation; 1 in a constant image.
    Blocks of one value, such as black surroundings, have no noise and count for neither m nor s.

    widest: for networks that were trained in white units, see `fitting`.
    """
    blocks = [F.max_pool2d(t, BLOCK, ceil_mode=True) for t in (y, -y)]
    counts = (blocks[0] + blocks[1] > 0).any(1, keepdim=True)  # the greatest value less the least, N,1,h,w
    counts |= ~counts.any((2, 3), keepdim=True)  # a constant image: all of it
    inside = y.masked_fill(~spread(counts, BLOCK, y), torch.nan).flatten(1)
    m = inside.nanmean(1)
    deviation = (inside - m[:, None]).square_().nanmean(1).sqrt()
    d = details(y).abs()
    d = d.masked_fill(~spread(counts, BLOCK // 2, d), torch.nan).flatten(1)
    # an image of one row or column has no details
    s = d[:, :: max(1, -(-d.shape[1] // SAMPLE))].nanmedian(1).values / MAD if d.shape[1] else torch.zeros_like(m)
    s = torch.where(s > 0, s, deviation)
    scale = tuple(t.view(-1, 1, 1, 1) for t in (m, torch.where(s > 0, s, torch.ones_like(s))))
    return scale if widest is None else fitting(y, *scale, widest)


def fitting(y: Tensor, m: Tensor, s: Tensor, widest: float) -> Scale:
    """m and s with which a network of white units sees images y (N,C,H,W) as USUAL_MEAN + USUAL_NOISE (y - m) / s.

    They have the usual mean and the usual noise, as long as the image's range is then at most `widest`, and its usual
    range at most 1. Else one of these two is just what it may be: a network that sees whole areas beyond the values of
    its training can be wrong by far more than the noise. The mean gives way where values would be outside of 0..1.
    """
    low, high = y.amin((1, 2, 3), keepdim=True), y.amax((1, 2, 3), keepdim=True)
    white = torch.maximum(s / USUAL_NOISE, (high - low) / widest)  # what is 1 to the network
    if widest > 1:
        white = torch.maximum(white, usual_range(y))
    mean = torch.maximum((m - low) / white, (1 - (high - m) / white).clamp_max(USUAL_MEAN))
    return m - (mean - USUAL_MEAN) * white, white * USUAL_NOISE


def usual_range(y: Tensor) -> Tensor:
    """The range of images y (N,C,H,W), but for one in BEYOND values at either end, (N,1,1,1). Many are sampled."""
    flat = y.flatten(1)
    step = (flat.shape[1] + SAMPLE - 1) // SAMPLE
    ranked = flat[:, torch.arange(0, flat.shape[1], step, device=y.device)].sort(1).values
    few = ranked.shape[1] // BEYOND
    return (ranked[:, ranked.shape[1] - 1 - few] - ranked[:, few]).view(-1, 1, 1, 1)


def spread(blocks: Tensor, side: int, like: Tensor) -> Tensor:
    """Values of blocks (N,1,h,w) at their pixels, (N,1,H,W) as in `like`."""
    rows, columns = (torch.arange(length, device=like.device) // side for length in like.shape[2:])
    return blocks[:, :, rows][..., columns]


def details(y: Tensor) -> Tensor:
    """Diagonal Haar details of y (N,C,H,W): (N,C,H/2,W/2). White noise keeps its standard deviation."""
    height, width = y.shape[2] // 2 * 2, y.shape[3] // 2 * 2
    a, b = y[:, :, 0:height:2, :width], y[:, :, 1:height:2, :width]
    return (a[..., 0::2] - a[..., 1::2] - b[..., 0::2] + b[..., 1::2]) / 2


def shown_range(image: np.ndarray) -> tuple[float, float]:
    """The values that are black and white in pictures of an image: 0 and 1 where it fits, else its own range."""
    low, high = float(np.nanmin(image)), float(np.nanmax(image))
    if (low > -0.5 and SMALL <= high < 1.5) or low == high:
        return 0.0, 1.0
    return low, high
