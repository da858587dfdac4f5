"""Which stride takes pixels far enough apart for noise that neighbours share, and no farther.

A larger stride leaves less of the noise and less of the picture. Both are in Stein's unbiased estimate of the squared
error, which needs no clean picture. For noise of covariance Sigma over all pixels and a denoiser f with Jacobian J

    E |f(y) - x|^2 = E |f(y) - y|^2 - tr Sigma + 2 E tr(J Sigma),    tr(J Sigma) = E n^T (f(y + e n) - f(y)) / e

with n drawn from N(0, Sigma) and a small e (Ramani, Blu and Unser 2008). Sigma is what models/noise/correlation.py
reads from the picture, made STRONGER: the noise of cameras and microscopes has parts that reach further than the
Gaussian blur that is read, and the stride must be large enough for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.denoiser import BlindSpotDenoiser
from models.mwcnn import MWCNN
from models.noise.camera import spread, with_margin
from models.noise.correlation import Shared

STRIDES = (2, 3, 4)
STRIDES_OF_SHARED = (1, 2)  # for networks that know such noise
PART = 256  # side in pixels of the part of a picture that decides, its middle
STEP = 0.25  # e
STRONGER = 1.4  # times the standard deviation that was read; 1 loses 0.3 to 0.4 dB on cc15, 0.1 on fmd24


def stride_for(model: BlindSpotDenoiser | MWCNN, y: Tensor, shared: Shared | None) -> int:
    """The stride with which a picture is denoised where none is asked for.

    y: the picture (1,C,H,W), 0..1. shared: how neighbours share its noise; None where they do not, and the stride is
    then that of the model's training. So it is where the model was refined on such pictures.
    """
    if shared and not (model.config.get("refined") and model.shared_noise):
        return best_stride(model, y, shared)
    return model.config.get("stride", 1)


@torch.no_grad()
def best_stride(model: BlindSpotDenoiser | MWCNN, y: Tensor, shared: Shared) -> int:
    """The stride with the least estimated error on a picture y (1,C,H,W) whose noise is shared.

    The model's own stride stays as it is. Of a stage-1 model mu decides.
    """
    top, left = (max(0, (length - PART) // 2) for length in y.shape[2:])
    y = y[:, :, top : top + PART, left : left + PART].to(next(model.parameters()).device)
    n = noise(shared, y)
    before, errors = model.stride, {}
    try:
        for stride in STRIDES_OF_SHARED if model.stage == 2 and model.shared_noise else STRIDES:
            model.stride = stride
            result, moved = (image_of(model, image) for image in (y, y + STEP * n))
            errors[stride] = float((result - y).square().mean() + 2 * ((moved - result) * n).mean() / STEP)
    finally:
        model.stride = before
    return min(errors, key=errors.get)


def image_of(model: BlindSpotDenoiser | MWCNN, y: Tensor) -> Tensor:
    return model(y) if model.stage == 2 else model.context(y)[0]


def noise(shared: Shared, like: Tensor) -> Tensor:
    """A draw of the noise, STRONGER, in the shape of like (1,C,H,W), always the same one."""
    z = torch.randn(with_margin(like).shape, generator=torch.Generator().manual_seed(0)).to(like)
    reach, coarse, chroma, chroma_reach = (
        like.new_full((1, 1, 1, 1), level) for level in (shared.reach, 0.0, shared.chroma, shared.chroma_reach)
    )
    return STRONGER * shared.variance**0.5 * spread(z, reach, coarse, chroma, chroma_reach)
