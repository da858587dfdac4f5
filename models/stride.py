"""Which stride takes pixels far enough apart for noise that neighbours share, and no farther.

A larger stride leaves less of the noise and less of the picture. Both are in Stein's unbiased estimate of the squared
error, which needs no clean picture. For noise of covariance Sigma over all pixels and a denoiser f with Jacobian J

    E |f(y) - x|^2 = E |f(y) - y|^2 - tr Sigma + 2 E tr(J Sigma),    tr(J Sigma) = E n^T (f(y + e n) - f(y)) / e

with n drawn from N(0, Sigma) and a small e (Ramani, Blu and Unser 2008). Sigma is what models/noise/correlation.py
reads from the picture, made STRONGER: the noise of cameras and microscopes has parts that reach further than the
Gaussian blur that is read, and the stride must be large enough for them.

A student that knows such noise is of use with stride 1 too, and its errors differ from one stride to the other. So a
mean of both results is better than either, with the weights of the least estimated error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.denoiser import BlindSpotDenoiser
from models.inference import Denoised, denoise_batch
from models.mwcnn import MWCNN
from models.noise.camera import spread, with_margin
from models.noise.correlation import Shared
from models.phases import Stride
from utils import doubts  # as a module: it imports this package, and either may be first

STRIDES = (2, 3, 4)
STRIDES_OF_HOLES = (1, 2)  # for networks whose hole hides the neighbours
PART = 256  # side in pixels of the part of a picture that decides, its middle
STEP = 0.25  # e
STRONGER = 1.4  # times the standard deviation that was read; 1 loses 0.3 to 0.4 dB on cc15, 0.1 on fmd24
STRONGER_IN_MIXTURE = 1.2  # the same for two strides together: less is at stake
SMALLEST_WEIGHT = 0.05  # a result that would have less is not computed


def stride_for(model: BlindSpotDenoiser | MWCNN, y: Tensor, shared: Shared | None) -> Stride:
    """The stride with which a picture is denoised where none is asked for.

    y: the picture (1,C,H,W), 0..1. shared: how neighbours share its noise; None where they do not, and the stride is
    then that of the model's training. So it is where the model was refined on such pictures.
    """
    if not shared or (model.config.get("refined") and model.shared_noise):
        return model.config.get("stride", 1)
    if model.stage == 2 and model.shared_noise:
        return best_mixture(model, y, shared)
    return best_stride(model, y, shared)


def denoise_picture(
    model: BlindSpotDenoiser | MWCNN,
    y: Tensor,
    tile: int | None = None,
    self_ensemble: bool = False,
    stride: Stride | None = None,
) -> Denoised:
    """denoise_batch of one picture (1,C,H,W), any units. The model's own stride stays as it is.

    stride: None takes the one that the noise asks for, as test.py does.
    """
    before = model.stride
    try:
        if stride is None:
            shown = doubts.as_checked(y)
            stride = stride_for(model, shown, doubts.shared_by_neighbours(shown[0]))
        model.stride = stride
        return denoise_batch(model, y, tile, self_ensemble)
    finally:
        model.stride = before


@torch.no_grad()
def best_stride(model: BlindSpotDenoiser | MWCNN, y: Tensor, shared: Shared) -> int:
    """The stride with the least estimated error on a picture y (1,C,H,W) whose noise is shared.

    The model's own stride stays as it is. Of a stage-1 model mu decides.
    """
    strides = STRIDES_OF_HOLES if model.config.get("hole", 1) > 1 else STRIDES
    errors = {stride: error for stride, (_, error) in estimates(model, y, shared, strides, STRONGER).items()}
    return min(errors, key=errors.get)


@torch.no_grad()
def best_mixture(model: MWCNN, y: Tensor, shared: Shared) -> Stride:
    """The weights of strides 1 and 2 whose mean has the least estimated error on a picture y (1,C,H,W).

    Of results f and g with errors e and h, the mean w f + (1 - w) g has the error

        w e + (1 - w) h - w (1 - w) E |f - g|^2,    least at w = 1/2 + (h - e) / (2 E |f - g|^2).
    """
    (f, e), (g, h) = estimates(model, y, shared, (1, 2), STRONGER_IN_MIXTURE).values()
    w = min(1.0, max(0.0, 0.5 + (h - e) / (2 * float((f - g).square().mean()) + 1e-20)))
    if min(w, 1 - w) < SMALLEST_WEIGHT:
        return 1 if w > 0.5 else 2
    return {1: w, 2: 1 - w}


def estimates(
    model: BlindSpotDenoiser | MWCNN, y: Tensor, shared: Shared, strides: tuple[int, ...], stronger: float
) -> dict[int, tuple[Tensor, float]]:
    """What strides make of the middle of a picture, and their estimated errors. The model's own stride stays.

    stronger: the noise's standard deviation in units of what was read.
    """
    top, left = (max(0, (length - PART) // 2) for length in y.shape[2:])
    y = y[:, :, top : top + PART, left : left + PART].to(next(model.parameters()).device)
    n = stronger * noise(shared, y)
    before, found = model.stride, {}
    try:
        for stride in strides:
            model.stride = stride
            result, moved = (image_of(model, image) for image in (y, y + STEP * n))
            error = (result - y).square().mean() + 2 * ((moved - result) * n).mean() / STEP
            found[stride] = result, float(error)
    finally:
        model.stride = before
    return found


def image_of(model: BlindSpotDenoiser | MWCNN, y: Tensor) -> Tensor:
    return model(y) if model.stage == 2 else model.context(y)[0]


def noise(shared: Shared, like: Tensor) -> Tensor:
    """A draw of the noise in the shape of like (1,C,H,W), always the same one."""
    z = torch.randn(with_margin(like).shape, generator=torch.Generator().manual_seed(0)).to(like)
    reach, coarse, chroma, chroma_reach = (
        like.new_full((1, 1, 1, 1), level) for level in (shared.reach, 0.0, shared.chroma, shared.chroma_reach)
    )
    return shared.variance**0.5 * spread(z, reach, coarse, chroma, chroma_reach)
