"""Clean crops made unlike themselves, so that a student does not learn the sharpness and colours of one set.

Photographs at a camera's full size are softer than the small sharp pictures of most sets: demosaicking and the lens
blur them. A student of sharp pictures alone takes their faint noise for detail.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.random import Stream, generators, uniform

GAMMA = 0.4  # log of the greatest exponent of the tones
SATURATION = 0.6  # how far colours may be from a gray of the same brightness: 1 -/+ this


@torch.no_grad()
def augmented(
    x: Tensor,
    samples: np.ndarray,
    enlarge: tuple[float, float],
    tones: bool,
    seed: int,
    ends: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Clean crops x (N,C,P,P), enlarged and with other tones. It is a function of (seed, samples).

    enlarge: range of the factor, drawn log-uniformly for each crop; (1, 1) leaves the sharpness as it is.
    tones: whether brightness, contrast and colours change too.
    ends: the values that are black and white. What is changed is cut there.
    """
    low, high = enlarge
    if high == 1 and not tones:
        return x
    black, white = ends
    x = (x - black) / (white - black)
    draws = uniform(4, x, generators(x.device, seed, Stream.AUGMENT, samples))  # N,4
    if high > 1:
        factors = low * (high / low) ** draws[:, 0]
        x = torch.cat([enlarged(one, float(factor)) for one, factor in zip(x.split(1), factors)])
    if tones:
        gamma, contrast, saturation = (draws[:, k].view(-1, 1, 1, 1) for k in (1, 2, 3))
        x = x.clamp(0, 1) ** torch.exp(GAMMA * (2 * gamma - 1)) * (1 - 0.5 * contrast.square())
        gray = x.mean(1, keepdim=True)
        x = (gray + (1 + SATURATION * (2 * saturation - 1)) * (x - gray)).clamp(0, 1)
    return black + (white - black) * x


def enlarged(x: Tensor, factor: float) -> Tensor:
    """The top left part of a crop (1,C,P,P), enlarged by the factor (1 or more) to its size, bicubic, within 0..1."""
    side = x.shape[2]
    part = x[:, :, : max(8, round(side / factor)), : max(8, round(side / factor))]
    return F.interpolate(part, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
