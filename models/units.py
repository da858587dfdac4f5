"""The units of the networks' input: (y - m) / s.

    white   m = 0, s = 1: the network sees the image as it is, 0..1. It is right at the brightness of its training.
    noise   m is the image's mean, s its noise scale. The results are equivariant: f(a y + b) = a f(y) + b for a > 0.

Equivariance by normalising the input follows Herbreteau et al. 2023, "Normalization-equivariant neural networks". Their
networks are equivariant layer by layer. Here any network will do, because m and s are taken from the whole image.
A pixel's own value enters them with a weight of about one in the number of pixels. Otherwise the network stays blind.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNITS = ("white", "noise")
MAD = 0.6745  # median of |z| for a standard normal z
SAMPLE = 2**20  # details that suffice for their median
# A network trained in white units takes units of noise too: every image is brought to this mean and this noise. Of
# noise levels from 15 to 30 of 255 the lowest changes its results least. Images of little noise get a contrast that
# such a network has never seen, and come out worse than they were, until it is trained on them.
USUAL_MEAN, USUAL_NOISE = 0.45, 15 / 255

Scale = tuple[Tensor, Tensor]  # m and s, (N,1,1,1) each


@torch.no_grad()
def scale_of(y: Tensor) -> Scale:
    """Mean and noise scale of images y (N,C,H,W), any size, on any device.

    s is the median of the absolute diagonal Haar details over 0.6745: the noise's standard deviation where the image is
    smooth (Donoho and Johnstone 1994). Where that is zero s is the image's standard deviation; 1 in a constant image.
    """
    m = y.mean((1, 2, 3), keepdim=True)
    deviation = (y - m).square().mean((1, 2, 3), keepdim=True).sqrt()
    s = details(y).abs().flatten(1)
    if s.shape[1]:
        s = s[:, :: -(-s.shape[1] // SAMPLE)].median(1).values.view(-1, 1, 1, 1) / MAD
    else:  # an image of one row or column
        s = torch.zeros_like(m)
    s = torch.where(s > 0, s, deviation)
    return m, torch.where(s > 0, s, torch.ones_like(s))


def details(y: Tensor) -> Tensor:
    """Diagonal Haar details of y (N,C,H,W): (N,C,H/2,W/2). White noise keeps its standard deviation."""
    height, width = y.shape[2] // 2 * 2, y.shape[3] // 2 * 2
    a, b = y[:, :, 0:height:2, :width], y[:, :, 1:height:2, :width]
    return (a[..., 0::2] - a[..., 1::2] - b[..., 0::2] + b[..., 1::2]) / 2
