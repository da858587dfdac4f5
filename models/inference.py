"""Whole images of any size are denoised here.

Large ones are taken in tiles, with the same result. The eightfold self-ensemble is here as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from models.denoiser import BlindSpotDenoiser, Prediction, noise_level, posterior
from models.gaussian import Full
from models.mwcnn import MWCNN, pad_to_multiple
from models.outliers import as_seen
from models.phases import on_phases, weights_of

# bytes of activations that an untiled image, or a tile, may take; on a GPU at most half of what is free
WORKING_SET = {"cpu": 1e9, "cuda": 8e9}
STRIP = 2**20  # pixels whose posterior is computed at once


@dataclass(frozen=True)
class Denoised:
    """The images that a model gives: (N,C,H,W), float32, on the CPU.

    A stage-1 model fills all; a stage-2 model only `image`.

    image: the denoised image: posterior mean or student's output.
    mu: what the surroundings alone say.
    std: standard deviation of the posterior.
    noise_level: standard deviation of the noise (N,1,H,W) or (N,1,1,1), 0..1 units.
    theta: what the noise estimator found, (N,K,1,1).
    tiled: whether the images were too large to be taken whole.
    """

    image: Tensor
    mu: Tensor | None = None
    std: Tensor | None = None
    noise_level: Tensor | None = None
    theta: Tensor | None = None
    tiled: bool = False


@torch.no_grad()
def denoise_batch(
    model: BlindSpotDenoiser | MWCNN,
    y: Tensor,
    tile: int | None = None,
    self_ensemble: bool = False,
    progress: bool = False,
) -> Denoised:
    """Denoises images.

    y: noisy images (N,C,H,W), float32, on any device: 0..1 for networks in white units, of any range for those in units
    of noise. NaN where there is no picture.
    tile: side of the tiles in pixels; None chooses one where the images need it.

    What carries no noise stays as it is. Into holes and such areas the network sees the picture around mirrored: see
    `as_seen`. Hot and dead pixels are seen as holes too, and other single ones far outside the range of the rest at the
    end of that range, for the network would be disturbed over its receptive field. What they have beyond that is added
    to the result, so that no value is cut: see `outlying`.

    The result does not depend on the tile (to rounding): tiles overlap by the network's receptive field, and a noise
    level that is one for the image is found over all of it first.
    """
    if not isinstance(y, Tensor) or y.ndim != 4 or not y.is_floating_point() or 0 in y.shape:
        got = f"{tuple(y.shape)} {y.dtype}" if hasattr(y, "shape") else type(y).__name__
        raise ValueError(f"denoise: the images are {got}; a float tensor (N,C,H,W) with N, H and W above 0 is needed")
    seen, beyond, kept = as_seen(y)
    if self_ensemble:
        results, tiled = {}, False
        for k in range(8):
            for name, value in vars(run(model, symmetry(seen, k), tile, progress)).items():
                if name == "tiled":
                    tiled = tiled or value
                elif value is not None:
                    value = inverse_symmetry(value, k) / 8
                    results[name] = results[name].add_(value) if name in results else value
        found = Denoised(**results, tiled=tiled)
    else:
        found = run(model, seen, tile, progress)
    found.image.add_(beyond.to(found.image))
    if kept.any():
        mask, value = kept.to(found.image.device), y.to(found.image)
        for image in (found.image, found.mu):
            if image is not None:
                image.copy_(torch.where(mask, value, image))
        if found.std is not None:
            found.std.masked_fill_(mask, 0)
    return found


def run(model: BlindSpotDenoiser | MWCNN, y: Tensor, tile: int | None, progress: bool) -> Denoised:
    """What the model makes of images (N,C,H,W) without NaN and outliers, in tiles of side tile; None: where needed."""
    side = tile or automatic_tile(model, y)
    tiled = max(y.shape[2:]) > side
    if model.stage == 2:
        results = [
            weight * run_student(model, y, stride, tile, tiled, progress)
            for stride, weight in weights_of(model.stride).items()
        ]
        return Denoised(sum(results[1:], results[0]).cpu(), tiled=tiled)

    device = next(model.parameters()).device

    # the network tile by tile, the noise over the whole image, and what is left is pixel by pixel
    mu, factor = context_in_tiles(model, y, side, progress)
    y = y.to(mu.device)
    gain = None if model.level_is_learned else model.gain(y, mu, Full(factor))
    theta = model.theta(y, mu, Full(factor), gain)
    image, maps = torch.empty_like(mu), []
    std = factor[:, : model.channels]  # strips of the factor are not needed again once they are used
    for top, bottom in spans(y.shape[2], max(1, STRIP // (y.shape[0] * y.shape[3]))):
        rows = slice(top, bottom)
        part, part_mu, part_factor = (t[:, :, rows].to(device) for t in (y, mu, factor))
        cov_n = model.noise_estimator.covariance(theta.to(device), part_mu)
        p = Prediction(part_mu, Full(part_factor), model.head, lambda cov_n=cov_n: cov_n)
        x = posterior(part, p)
        image[:, :, rows], std[:, :, rows] = x.mean.to(image), at_least(x.std, cov_n.variance, gain).to(std)
        maps.append(noise_level(cov_n).cpu())
    noise = maps[0] if maps[0].shape[2:] == (1, 1) else torch.cat(maps, 2)
    return Denoised(image.cpu(), mu.cpu(), std.cpu(), noise, theta.cpu(), tiled)


def context_in_tiles(model: BlindSpotDenoiser, y: Tensor, side: int, progress: bool = False) -> tuple[Tensor, Tensor]:
    """What the pixels around say of images (N,C,H,W): mu, and the factor of V. side: of the tiles, see in_tiles."""
    views = model.views(y)

    def context(part: Tensor) -> tuple[Tensor, Tensor]:
        mu, cov = model.context(part, views)
        return mu, cov.factor

    return in_tiles(context, model, y, side, progress)


def run_student(model: MWCNN, y: Tensor, stride: int, tile: int | None, tiled: bool, progress: bool = False) -> Tensor:
    """What a student makes of images (N,C,H,W) on their phases of a stride.

    tile: as given for the images, None chooses it for each phase. tiled: whether the images are too large to be taken
    whole; phases are then taken one at a time.
    """
    views = model.views(y[:, :, ::stride, ::stride])  # of one phase: neighbours that share noise differ too little

    def of(phases: Tensor) -> tuple[Tensor]:
        height, width = phases.shape[2:]
        times = len(phases) // len(y)
        own = views and [view.map(lambda t: t.repeat(times, 1, 1, 1)) for view in views]
        whole = pad_to_multiple(phases, model.multiple)
        side = tile or automatic_tile(model, whole)
        (image,) = in_tiles(lambda part: (model(part, own),), model, whole, side, progress)
        return (image[:, :, :height, :width],)

    return on_phases(of, y, stride, together=not tiled)[0]


def at_least(std: Tensor, variance: Tensor, gain: Tensor | None) -> Tensor:
    """The posterior's standard deviation, where V is hardly above Sigma_n or below it.

    There the difference says nothing. But mu carries a share of the noise of the pixels around, and that much is not
    known at least: Sigma_mu = gain Sigma_n. The posterior's variance is then gain / (1 + gain) Sigma_n.

    std: (N,C,H,W). variance: of the noise, (N,C,H,W) or (N,C,1,1). gain: BlindSpotDenoiser.gain, None if not known.
    """
    if gain is None:
        return std
    gain = gain.to(std)
    return torch.maximum(std, (gain / (1 + gain) * variance).sqrt())


def in_tiles(
    f: Callable[[Tensor], tuple[Tensor, ...]], model, y: Tensor, tile: int, progress: bool
) -> tuple[Tensor, ...]:
    """Applies f tile by tile.

    Each tile is read with the receptive field around it, as far as the image goes, and only its core is kept.

    Results are on the CPU, or on the model's device where one tile is all.
    """
    device, (height, width) = next(model.parameters()).device, y.shape[2:]
    step = model.multiple
    tile = max(step, tile // step * step)
    around = -(-model.receptive_radius // step) * step
    cores = [(r, c) for r in spans(height, tile) for c in spans(width, tile)]
    outputs: tuple[Tensor, ...] = ()
    for (top, bottom), (left, right) in tqdm(
        cores, desc="tiles", leave=False, disable=None if progress and len(cores) > 1 else True
    ):
        first, start = max(0, top - around), max(0, left - around)
        part = y[:, :, first : bottom + around, start : right + around].to(device)
        results = [r[:, :, top - first : bottom - first, left - start : right - start] for r in f(part)]
        if len(cores) == 1:
            return tuple(results)
        if not outputs:
            outputs = tuple(torch.empty(r.shape[0], r.shape[1], height, width) for r in results)
        for out, r in zip(outputs, results):
            out[:, :, top:bottom, left:right] = r.cpu()
    return outputs


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    return [(start, min(start + tile, length)) for start in range(0, length, tile)]


def automatic_tile(model: BlindSpotDenoiser | MWCNN, y: Tensor) -> int:
    """Tile side that keeps the activations within WORKING_SET; at least as large as the image where that fits."""
    device = next(model.parameters()).device
    if model.stage == 1:
        per_pixel = 10 * model.config["width"] * (2 if model.dtype == torch.bfloat16 else 4) + 400
    else:
        per_pixel = 4 * model.config["width"] * (2 if model.dtype == torch.bfloat16 else 4) + 100
    pixels = working_set(device) / (per_pixel * y.shape[0])
    if y.shape[2] * y.shape[3] <= pixels:
        return max(y.shape[2:]) + model.multiple
    return max(64, int(pixels**0.5) - 2 * model.receptive_radius)


def working_set(device: torch.device) -> float:
    """Bytes of activations that may be taken on the device."""
    most = WORKING_SET[device.type]
    if device.type != "cuda":
        return most
    # kept by PyTorch from earlier images
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(most, (torch.cuda.mem_get_info(device)[0] + unused) / 2)


def symmetry(x: Tensor, k: int) -> Tensor:
    """One of the square's eight symmetries, k in 0..7, of images (N,C,H,W)."""
    x = x.flip(3) if k & 1 else x
    x = x.flip(2) if k & 2 else x
    return x.transpose(2, 3) if k & 4 else x


def inverse_symmetry(x: Tensor, k: int) -> Tensor:
    x = x.transpose(2, 3) if k & 4 else x
    x = x.flip(2) if k & 2 else x
    return x.flip(3) if k & 1 else x
