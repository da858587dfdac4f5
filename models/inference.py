"""Whole images of any size are denoised here.

Large ones are taken in tiles, with the same result. The eightfold self-ensemble is here as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from models.denoiser import BlindSpotDenoiser, Prediction, noise_level, posterior
from models.gaussian import Full
from models.mwcnn import MWCNN, pad_to_multiple
from models.phases import on_phases, weights_of
from models.units import View, scale_of

# bytes of activations that an untiled image, or a tile, may take; on a GPU at most half of what is free
WORKING_SET = {"cpu": 1e9, "cuda": 8e9}
STRIP = 2**20  # pixels whose posterior is computed at once
WINDOW = 17  # side of the squares of one value that carry no noise
OUTSIDE = 4  # pixels by which they may stand out of the image
SMALL = 8  # pixels; in smaller images neighbours say little of the range
OUTLYING = 0.5  # of the range that two neighbours reach: what pixels farther outside have beyond is not seen
HOT_NOISE = 6.0  # a hot pixel is outside of the range that six neighbours reach, by that range and so much noise
ALONE = 0.1  # of a peak: what the neighbours of a hot pixel have at most
Group = tuple[tuple[int, int], ...]  # the row and column of each pixel
TWO: tuple[Group, ...] = (((0, 0), (0, 1)), ((0, 0), (1, 0)))
SIX: tuple[Group, ...] = (
    *(tuple((k * down, k * right) for k in range(6)) for down, right in ((0, 1), (1, 0), (1, 1))),
    tuple((k, 5 - k) for k in range(6)),
    *(tuple((i, j) for i in range(rows) for j in range(6 // rows)) for rows in (2, 3)),
)


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

    What carries no noise stays as it is. Into holes and painted areas the network sees the picture around mirrored: see
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


def as_seen(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images y (N,C,H,W) as a network is to see them, what single pixels have beyond that, and what is to stay.

    The last is (N,C,H,W): holes of NaN, areas `without_noise`, and hot and dead pixels. The picture is mirrored into
    holes and into those of these areas that were `painted`. A level that is one for the image is then that of the
    picture.
    """
    seen, beyond, hot = outlying(filled(y))
    hole, constant = y.isnan().any(1, keepdim=True), without_noise(seen)
    if constant.any():
        strange = torch.cat([painted(*pair) for pair in zip(seen.split(1), constant.split(1))])
        seen = filled(seen.masked_fill(strange | (hole & ~hole.flatten(1).all(1).view(-1, 1, 1, 1)), torch.nan))
    return seen, beyond, hole | constant | hot


def painted(y: Tensor, constant: Tensor) -> Tensor:
    """Which of an image's areas `without_noise` are not of the scene; y (1,C,H,W), areas and result (1,1,H,W).

    Noise is cut only at an end of the range. So an area of a value between those of the other pixels, or far away from
    them, is no saturated or black part of the scene. It is the border of a turned or aligned frame, for instance.
    """
    others = ~torch.isin(y, y[constant.expand_as(y)].unique())
    low = torch.where(others, y, torch.inf).amin((2, 3), keepdim=True)
    high = torch.where(others, y, -torch.inf).amax((2, 3), keepdim=True)
    between = (y > low) & (y < high)
    away = torch.maximum(low - y, y - high) > high - low
    return constant & ((between | away) & (low < high)).any(1, keepdim=True)


def without_noise(y: Tensor) -> Tensor:
    """Where images y (N,C,H,W) carry no noise, (N,1,H,W): in squares of one value, as large as WINDOW.

    Noise has no such squares: of n pixels that have the most frequent value with probability p, all have it with p^n.
    They are black surroundings, saturated areas, and frames that are empty. A square may stand out of the image by
    OUTSIDE pixels.
    """
    r = WINDOW // 2
    high, low = (greatest(F.pad(t, (r + OUTSIDE,) * 4, value=-torch.inf)) for t in (y, -y))
    constant = (high + low == 0).all(1, keepdim=True)  # N,1,H + 2 OUTSIDE,W + 2 OUTSIDE: around each square's centre
    return greatest(F.pad(constant.float(), (r - OUTSIDE,) * 4)) > 0


def greatest(t: Tensor) -> Tensor:
    """The greatest value of t (N,K,H,W) in each square of side WINDOW."""
    return F.max_pool2d(F.max_pool2d(t, (1, WINDOW), 1), (WINDOW, 1), 1)


def filled(y: Tensor) -> Tensor:
    """Images y (N,C,H,W) without NaN: the picture around is mirrored into the holes.

    So a hole has noise and structures like the picture's, and the level is found as without it. A wide hole is filled
    from its edges inwards: what was mirrored is mirrored again. An image that is NaN everywhere becomes 0.
    """
    missing = y.isnan()
    if not missing.any():
        return y
    full = y.cpu().clone()
    for image in full:
        fill(image)
    return full.to(y)


def fill(image: Tensor) -> None:
    """Fills the holes of one image (C,H,W) on the CPU, in place: see `filled`."""
    hole = image.isnan()
    unknown = hole.any(0).numpy().copy()
    if unknown.all():
        image[hole] = 0
        return
    height, width = unknown.shape
    while unknown.any():
        rows, columns = unknown.nonzero()
        nearest = distance_transform_edt(unknown, return_distances=False, return_indices=True)[:, rows, columns]
        across = [fold(2 * edge - at, n) for edge, at, n in zip(nearest, (rows, columns), (height, width))]
        found = ~unknown[across[0], across[1]]
        if not found.any():  # what is known is too thin to be mirrored
            across, found = nearest, np.ones_like(found)
        at, source = (rows[found], columns[found]), (across[0][found], across[1][found])
        values = image[:, source[0], source[1]]
        image[:, at[0], at[1]] = torch.where(hole[:, at[0], at[1]], values, image[:, at[0], at[1]])
        unknown[at] = False


def fold(index: np.ndarray, length: int) -> np.ndarray:
    """Indices that may be beyond 0..length-1, mirrored at these ends."""
    index = np.abs(index)
    return np.clip(np.where(index >= length, 2 * (length - 1) - index, index), 0, length - 1)


def known_part(y: Tensor) -> Tensor:
    """The part of an image y (C,H,W) without borders of NaN: its rows and columns that are known by half or more."""
    known = ~y.isnan().any(0)
    rows, columns = (known.float().mean(axis).ge(0.5).nonzero() for axis in (1, 0))
    if not len(rows) or not len(columns):
        return y
    return y[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def outlying(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images y (N,C,H,W) without NaN as a network is to see them, what single pixels have beyond that, which are hot.

    Hot and dead pixels are seen as holes that are `filled`. Other peaks are cut where OUTLYING says. Images with a side
    below SMALL have no such pixels.
    """
    if min(y.shape[2:]) < SMALL:
        return y, torch.zeros_like(y), torch.zeros_like(y, dtype=torch.bool)
    hot = far_and_alone(y)
    seen = filled(y.masked_fill(hot, torch.nan)) if hot.any() else y
    low, high = reached(seen, TWO)
    margin = OUTLYING * (high - low)
    seen = torch.minimum(torch.maximum(seen, low - margin), high + margin)
    return seen, y - seen, hot


def far_and_alone(y: Tensor) -> Tensor:
    """Which pixels of images y (N,C,H,W) are hot or dead: far outside the range of the others, and alone there.

    The range is what six neighbours reach. Where one pixel in a hundred is hot pairs of them are no rarity, sixes are.
    In counts of very few photons six reach nothing, and the range is that of two.
    """
    low, high = reached(y, SIX[:1])
    beyond = (y > 2 * high - low) | (y < 2 * low - high)
    if not beyond.any():  # of most pictures this is all
        return beyond
    six, two = reached(y, SIX), reached(y, TWO)
    low, high = (torch.where(six[0] < six[1], one, other) for one, other in zip(six, two))
    margin = high - low + HOT_NOISE * scale_of(y)[1]
    return (alone_above(y, high + margin) | alone_above(-y, margin - low)) & (low < high)


def alone_above(y: Tensor, limit: Tensor) -> Tensor:
    """Which pixels of images y (N,C,H,W) are above a limit (N,1,1,1) and alone there.

    The peak of a star or of a bead is not alone: above the sixth greatest of its eight neighbours, the third has ALONE
    of the peak or more.
    """
    above = y > limit
    if not above.any():
        return above
    n, c, row, column = above.nonzero(as_tuple=True)
    around = F.pad(y, (1, 1, 1, 1), mode="reflect")
    neighbours = [around[n, c, row + i, column + j] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    third, sixth = torch.stack(neighbours).topk(6, dim=0).values[[2, 5]]
    above[n, c, row, column] = third - sixth < ALONE * (y[n, c, row, column] - sixth)
    return above


def reached(y: Tensor, groups: tuple[Group, ...]) -> tuple[Tensor, Tensor]:
    """The least and the greatest value that all pixels of a group reach in images y (N,C,H,W), each (N,1,1,1).

    Where no group stays on one side, as in a checkerboard, these are the image's least and greatest.
    """
    height, width = y.shape[2:]
    low, high = [], []
    for group in groups:
        down, right = (length - max(places) for length, places in zip((height, width), zip(*group)))
        pixels = [y[:, :, row : row + down, column : column + right] for row, column in group]
        low.append(reduce(torch.maximum, pixels).amin((1, 2, 3)))
        high.append(reduce(torch.minimum, pixels).amax((1, 2, 3)))
    low, high = torch.stack(low).amin(0), torch.stack(high).amax(0)
    whole = y.amin((1, 2, 3)), y.amax((1, 2, 3))
    return tuple(torch.where(low <= high, *pair).view(-1, 1, 1, 1) for pair in zip((low, high), whole))


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
        own = views and [View(*(t.repeat(times, 1, 1, 1) for t in view)) for view in views]
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
