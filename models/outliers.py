"""Pixels that a network must not see: holes of NaN, hot and dead pixels, peaks far outside the range, empty areas.

`as_seen` puts the picture around in their place.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from models.units import scale_of

WINDOW = 17  # side of the squares of one value that carry no noise
OUTSIDE = 4  # pixels by which their centres may be beyond the image
FADING = 0.02  # share of the pixels beside areas of the least value that have it too, where noise fades
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


def as_seen(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images y (N,C,H,W) as a network is to see them, what single pixels have beyond that, and what is to stay.

    The last is (N,C,H,W): holes of NaN, areas `without_noise`, and hot and dead pixels. Holes and
    areas are filled with the mirrored picture around, so that a level that is one for the image is that of the picture.
    Else noise would also end at the edge of an area, and a network would take that of the pixels beside it for as weak.
    Areas towards which the noise is `fading` stay.
    """
    seen, beyond, hot = outlying(filled(y))
    hole, constant = y.isnan().any(1, keepdim=True), without_noise(seen)
    strange = constant & ~fading(seen, constant)
    if strange.any():
        some = ~(hole | constant).flatten(1).all(1).view(-1, 1, 1, 1)  # else there is nothing to mirror
        seen = filled(seen.masked_fill((hole | strange) & some, torch.nan))
    return seen, beyond, hole | constant | hot


def fading(y: Tensor, constant: Tensor) -> Tensor:
    """Which of the areas `without_noise` of images y (N,C,H,W) are where the noise fades, areas and result (N,1,H,W).

    These have the least value, and so have many pixels beside them: the sky between stars, or black that cuts the noise
    of dark parts. A network is right to take the noise beside them for weak.
    """
    least = (y == y.amin((2, 3), keepdim=True)).all(1, keepdim=True)
    beside = ~constant
    share = (least & beside).sum((2, 3), keepdim=True) / beside.sum((2, 3), keepdim=True).clamp_min(1)
    return constant & least & (share > FADING)


def without_noise(y: Tensor) -> Tensor:
    """Where images y (N,C,H,W) carry no noise, (N,1,H,W): in squares of one value, as large as WINDOW.

    Noise has no such squares: of n pixels that have the most frequent value with probability p, all have it with p^n.
    They are black surroundings, saturated areas, and frames that are empty. A square's centre may be OUTSIDE pixels
    beyond the image: 5 x 17 pixels at an edge are enough, and 5 x 5 in a corner.
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
