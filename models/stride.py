"""Which stride takes pixels far enough apart for noise that neighbours share, and no farther.

A larger stride leaves less of the noise and less of the picture. Both are in Stein's unbiased estimate of the squared
error, which needs no clean picture. For noise of covariance Sigma over all pixels and a denoiser f with Jacobian J

    E |f(y) - x|^2 = E |f(y) - y|^2 - tr Sigma + 2 E tr(J Sigma),    tr(J Sigma) = E n^T (f(y + e n) - f(y)) / e

with n drawn from N(0, Sigma) and a small e (Ramani, Blu and Unser 2008). Sigma is what models/noise/correlation.py
reads from the picture, made STRONGER: the noise of cameras and microscopes has parts that reach further than the
Gaussian blur that is read, and the stride must be large enough for them.

The errors of a student differ from one stride to the next. So a mean of its results can be better than any of them.
It has the weights of the least estimated error.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from models.checks import as_checked, shared_by_neighbours
from models.denoiser import BlindSpotDenoiser
from models.inference import Denoised, denoise_batch, run_student
from models.mwcnn import MWCNN
from models.noise.camera import spread, with_margin
from models.noise.correlation import Shared
from models.outliers import as_seen
from models.phases import Stride

STRIDES = (2, 3, 4)  # one of them for stage 1
MIXED = (1, 2, 3, 4)  # for students
STRIDES_OF_HOLES = (1, 2)  # for networks whose hole hides the neighbours
PART = 256  # side in pixels of the part of a picture that decides, its middle
STEP = 0.25  # e
# Times the standard deviation that was read. Beside 1.4 it gains mixtures 0.05 dB on cc15 and fmd24, and costs stage 1
# 0.03 dB.
STRONGER = 1.2
SMALLEST_WEIGHT = 0.05  # a result that would have less is not computed


def stride_for(model: BlindSpotDenoiser | MWCNN, y: Tensor, shared: Shared | None) -> Stride:
    """The stride with which a picture is denoised where none is asked for.

    y: the picture (1,C,H,W), 0..1. shared: how neighbours share its noise; None where they do not, and the stride is
    then that of the model's training. So it is where the model was refined on such pictures.
    """
    if not shared or (model.config.get("refined") and model.shared_noise):
        return model.config.get("stride", 1)
    return (best_mixture if model.stage == 2 else best_stride)(model, as_seen(y)[0], shared)


def stride_of(model: BlindSpotDenoiser | MWCNN, y: Tensor) -> Stride:
    """stride_for a picture (1,C,H,W), any units, whose noise is looked at first."""
    shown = as_checked(y)
    return stride_for(model, shown, shared_by_neighbours(shown[0]))


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
        model.stride = stride_of(model, y) if stride is None else stride
        return denoise_batch(model, y, tile, self_ensemble)
    finally:
        model.stride = before


@torch.no_grad()
def best_stride(model: BlindSpotDenoiser, y: Tensor, shared: Shared) -> int:
    """The stride whose mu has the least estimated error on a picture y (1,C,H,W) whose noise is shared."""
    strides = STRIDES_OF_HOLES if model.dbsn.hole > 1 else STRIDES
    y, found = on_part(model, y, shared, strides)
    errors = {stride: float((result - y).square().mean()) + 2 * trace for stride, (result, trace) in found.items()}
    return min(errors, key=errors.get)


@torch.no_grad()
def best_mixture(model: MWCNN, y: Tensor, shared: Shared) -> Stride:
    """The weights with which the results of several strides have the least estimated error on y (1,C,H,W).

    Stein's estimate of sum_i w_i f_i(y), sum_i w_i = 1, is quadratic in the weights,

        w^T G w + 2 t^T w - tr Sigma,    G_ij = E (f_i(y) - y)(f_j(y) - y),    t_i = tr(J_i Sigma).
    """
    y, found = on_part(model, y, shared, MIXED)
    off = torch.stack([(result - y).flatten() for result, _ in found.values()]).double()
    traces = torch.tensor([trace for _, trace in found.values()], dtype=torch.float64)
    weights = least((off @ off.T / off.shape[1]).cpu(), traces).tolist()
    kept = {stride: weight for stride, weight in zip(found, weights) if weight >= SMALLEST_WEIGHT}
    if len(kept) == 1:
        return next(iter(kept))
    return {stride: weight / sum(kept.values()) for stride, weight in kept.items()}


def least(g: Tensor, t: Tensor) -> Tensor:
    """The weights w (K,), 0 or more with the sum 1, of the least w^T G w + 2 t^T w. G: (K,K), positive semidefinite.

    At the minimum those above 0 solve the problem without that bound, so every set of them is tried.
    """
    best, least_value = torch.eye(len(t), dtype=t.dtype)[0], torch.inf
    for count in range(1, len(t) + 1):
        for chosen in map(list, combinations(range(len(t)), count)):
            # where the gradient 2 G w + 2 t is the same number -m along all of them, and the sum is 1
            system = t.new_ones(count + 1, count + 1)
            system[:count, :count] = 2 * g[chosen][:, chosen]
            system[count, count] = 0
            right = torch.cat([-2 * t[chosen], t.new_ones(1)])
            w = torch.zeros_like(t)
            w[chosen] = torch.linalg.lstsq(system, right[:, None]).solution[:count, 0]
            value = float(w @ g @ w + 2 * t @ w)
            # of equal results the system may have no solution, and what is given then has another sum
            if (w >= 0).all() and abs(float(w.sum()) - 1) < 1e-6 and value < least_value:
                best, least_value = w, value
    return best


def on_part(
    model: BlindSpotDenoiser | MWCNN, y: Tensor, shared: Shared, strides: tuple[int, ...]
) -> tuple[Tensor, dict[int, tuple[Tensor, float]]]:
    """The middle of a picture, and for each stride the model's result there and tr(J Sigma) over the number of values.

    The model's own stride stays as it is.
    """
    top, left = (max(0, (length - PART) // 2) for length in y.shape[2:])
    y = y[:, :, top : top + PART, left : left + PART].to(next(model.parameters()).device)
    n = noise(shared, y)
    before, found = model.stride, {}
    try:
        for stride in strides:
            model.stride = stride
            result, moved = (image_of(model, image) for image in (y, y + STEP * n))
            found[stride] = result, float(((moved - result) * n).mean()) / STEP
    finally:
        model.stride = before
    return y, found


def image_of(model: BlindSpotDenoiser | MWCNN, y: Tensor) -> Tensor:
    return run_student(model, y, model.stride, None, False) if model.stage == 2 else model.context(y)[0]


def noise(shared: Shared, like: Tensor) -> Tensor:
    """A draw of the noise, STRONGER, in the shape of like (1,C,H,W), always the same one."""
    z = torch.randn(with_margin(like).shape, generator=torch.Generator().manual_seed(0)).to(like)
    reach, coarse, chroma, chroma_reach = (
        like.new_full((1, 1, 1, 1), level) for level in (shared.reach, 0.0, shared.chroma, shared.chroma_reach)
    )
    return STRONGER * shared.variance**0.5 * spread(z, reach, coarse, chroma, chroma_reach)
