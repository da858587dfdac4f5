"""The units of the networks' input: (y - origin) / unit.

    white   origin 0, unit 1: the network sees the image as it is, 0..1. It is right at the brightness of its training.
    noise   both are taken from the image. The results are equivariant: f(a y + b) = a f(y) + b for a > 0. To a network
            that was trained so, the origin is the image's mean and the unit its noise scale.

Equivariance by normalising the input follows Herbreteau et al. 2023, "Normalization-equivariant neural networks". Their
networks are equivariant layer by layer. Here any network will do, because both are taken from the whole image.
A pixel's own value enters them with a weight of about one in the number of pixels. Otherwise the network stays blind.

A network that was trained in white units works in units of noise too. It knows values of 0..1 alone, so its images are
also made to fit: where the noise is small against the image's range, the range is the scale (`fitting`).

A star or a bright bead can make that range a hundred times as wide as everything else. So the network is shown such an
image more than once (`views_of`): whole, and cut to the range of its darker half, where the wide range leaves nothing
to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

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
# An image is shown again where its noise is less than FAINT of its range, and the range is more than WIDE times that of
# its darker half. From view to view the range becomes STEP times narrower at most.
FAINT, WIDE, STEP = 2.5 / 255, 4, 16
# Pixels by which an image, and the covariance that comes with it, are kept away from what was cut: beside a star that
# is cut to its surroundings' range the network is too sure of itself.
BESIDE, AROUND = 1, 4
BRIGHT = 3.0  # times the white of its training: a learned noise level says nothing of such values
EDGE = 0.1  # of a view's range: what is nearer to where it was cut is taken from the wider one


class View(NamedTuple):
    """What a network is shown of images y: (y - origin) / unit, y cut to low..high. All are (N,1,1,1)."""

    origin: Tensor
    unit: Tensor
    low: Tensor
    high: Tensor

    def cut(self, y: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(y, self.low), self.high)

    def into(self, y: Tensor) -> Tensor:
        """Images (N,C,H,W) in the network's units."""
        return (y - self.origin) / self.unit

    def out_of(self, x: Tensor) -> Tensor:
        """Images (N,C,H,W) of the network's units in those of the images."""
        return self.origin + self.unit * x

    def map(self, f: Callable[[Tensor], Tensor]) -> View:
        return View(*map(f, self))

    def inside(self, x: Tensor, y: Tensor, wider: View, around: int) -> Tensor:
        """How far x, and y up to so many pixels around, are within the range, both (N,C,H,W).

        From 0 near an end that was cut, or beyond, to 1, (N,1,H,W). 0 where the wider one is the same.
        """
        high, low = (sign * F.max_pool2d(sign * y, 2 * around + 1, 1, around) for sign in (1, -1))
        low, high = torch.minimum(x, low), torch.maximum(x, high)
        edge = EDGE * (self.high - self.low)
        above = torch.where(self.low > wider.low, (low - self.low) / edge - 1, 1)
        below = torch.where(self.high < wider.high, (self.high - high) / edge - 1, 1)
        same = (self.low == wider.low) & (self.high == wider.high)
        return torch.minimum(above, below).amin(1, keepdim=True).clamp_(0, 1).masked_fill(same, 0)


def units_in_use(model) -> str:
    """The units in which a loaded model of either stage is used where no white level is given.

    They are those of noise, whatever the brightness of the pictures. A model that has learned a noise level keeps those
    of its training, for which the level holds.
    """
    return model.config["units"] if model.level_is_learned else "noise"


def full_scale(dtype: np.dtype) -> float:
    """The value that is white where nothing else is said: the greatest of an integer type, and 1.0 for floats."""
    return float(np.iinfo(dtype).max) if np.dtype(dtype).kind in "iu" else 1.0


def other_scale(white: float | None, dtype: np.dtype, low: float = 0.0, high: float | None = None) -> str | None:
    """Why values cannot have the scale on which a model learned its noise level; None where nothing speaks against it.

    white: the value that was white in its training. None: the greatest of an integer type of 8 or 16 bits, and 1 for
    floats. dtype: of the values. low, high: their extremes, where they are known.
    """
    dtype = np.dtype(dtype)
    if not white and dtype.kind in "iu" and dtype.itemsize > 2:
        return f"holds {dtype} values, whose greatest is white in no picture"
    if white and white > 255 and dtype == np.uint8:
        return f"has 8 bits, and the model was trained on values of which {white:g} is white"
    if high is None:
        return None
    if white and high > BRIGHT * white:
        return f"has values up to {high:.3g}, and {white:g} is white to the model"
    if dtype.kind == "f" and ((high <= 1.5 < white) if white else (low < -0.5 or high > 1.5)):
        return f"has float values from {low:.3g} to {high:.3g}, and {white or 1:g} is white to the model"
    return None


Network = Callable[[Tensor, View], tuple[Tensor, ...]]


def seen_in(views: list[View], y: Tensor, network: Network) -> tuple[Tensor, ...]:
    """What a network makes of images y (N,C,H,W), shown one view after the other.

    network: takes images and their view. The first of what it gives is an image like y, the second a map of how sure it
    is. Where that image and y are inside the next view's range, the next view's results count.
    """
    first, *narrower = (view.map(lambda t: t.to(y)) for view in views)
    results, wider = network(y, first), first
    for view in narrower:
        found = network(view.cut(y), view)
        results = tuple(
            torch.lerp(a, b, view.inside(results[0], y, wider, around))
            for a, b, around in zip(results, found, (BESIDE, AROUND))
        )
        wider = view
    return results


@torch.no_grad()
def views_of(y: Tensor, widest: float | None = None) -> list[View]:
    """The views of images y (N,C,H,W), the widest first: one for most images.

    widest: for networks that were trained in white units, see `fitting`. Those that were trained in units of noise have
    seen images of any range, so they have one view.

    An image has more where its range is far too wide for its noise and for its darker half: see FAINT and WIDE. The
    narrowest view is cut to the range of that half: from the twentieth part of its values to the median, with as much
    below and twice as much above, and wide enough for the usual noise. Beside an image that has more views, the
    narrowest view of another one is repeated. So images do not depend on each other.
    """
    low, high = y.amin((1, 2, 3), keepdim=True), y.amax((1, 2, 3), keepdim=True)
    m, noise = scale_of(y)
    if widest is None:
        return [View(m, noise, low, high)]
    views = [View(*fitting(y, m, noise, widest), low, high)]
    start, middle = darker_half(y)
    reach = torch.maximum(middle - start, noise / USUAL_NOISE / 2)
    least, most = torch.maximum(low, start - reach), torch.minimum(high, middle + 2 * reach)
    ratio = torch.where(most > least, (high - low) / (most - least), 1)
    ratio = torch.where((ratio > WIDE) & (noise < FAINT * (high - low)), ratio, 1)
    number = (ratio.double().log() / math.log(STEP)).round(decimals=6).ceil()  # of further views, of each image
    for k in range(1, int(number.max()) + 1):
        reached = (number.clamp_max(k) / number.clamp_min(1)).to(y)
        part = torch.where(ratio > 1, (1 - ratio**-reached) / (1 - 1 / ratio), 0)
        ends = low + part * (least - low), high + part * (most - high)
        cut = torch.minimum(torch.maximum(y, ends[0]), ends[1])
        views.append(View(*fitting(cut, *scale_of(cut), widest), *ends))
    return views


@torch.no_grad()
def scale_of(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean m and noise scale s of images y (N,C,H,W), any size, on any device: (N,1,1,1) each.

    s is the median of the absolute diagonal Haar details over 0.6745: the noise's standard deviation where the image is
    smooth (Donoho and Johnstone 1994). Where that is zero s is the image's standard deviation; 1 in a constant image.
    Blocks of one value, such as black surroundings, have no noise and count for neither m nor s.
    """
    counts = varied_blocks(y)
    inside = y.masked_fill(~spread(counts, BLOCK, y), torch.nan).flatten(1)
    m = inside.nanmean(1)
    deviation = (inside - m[:, None]).square_().nanmean(1).sqrt()
    d = details(y).abs()
    d = d.masked_fill(~spread(counts, BLOCK // 2, d), torch.nan).flatten(1)
    # an image of one row or column has no details
    s = d[:, :: max(1, -(-d.shape[1] // SAMPLE))].nanmedian(1).values / MAD if d.shape[1] else torch.zeros_like(m)
    s = torch.where(s > 0, s, deviation)
    return m.view(-1, 1, 1, 1), torch.where(s > 0, s, torch.ones_like(s)).view(-1, 1, 1, 1)


def varied_blocks(y: Tensor) -> Tensor:
    """Which blocks of images y (N,C,H,W) have more than one value, (N,1,h,w). In a constant image all count."""
    blocks = [F.max_pool2d(t, BLOCK, ceil_mode=True) for t in (y, -y)]
    counts = (blocks[0] + blocks[1] > 0).any(1, keepdim=True)  # the greatest value less the least
    return counts | ~counts.any((2, 3), keepdim=True)


def fitting(y: Tensor, m: Tensor, s: Tensor, widest: float) -> tuple[Tensor, Tensor]:
    """Origin and unit with which a network of white units is shown images y (N,C,H,W) of mean m and noise scale s.

    It sees the usual mean and the usual noise, as long as the image's range is then at most `widest`, and its usual
    range at most 1. Else one of these two is just what it may be: a network that sees whole areas beyond the values of
    its training can be wrong by far more than the noise. The mean gives way where values would be outside of 0..1.
    """
    low, high = y.amin((1, 2, 3), keepdim=True), y.amax((1, 2, 3), keepdim=True)
    unit = torch.maximum(s / USUAL_NOISE, (high - low) / widest)
    if widest > 1:
        unit = torch.maximum(unit, usual_range(y))
    mean = torch.maximum((m - low) / unit, (1 - (high - m) / unit).clamp_max(USUAL_MEAN))
    return m - mean * unit, unit


def usual_range(y: Tensor) -> Tensor:
    """The range of images y (N,C,H,W), but for one in BEYOND values at either end, (N,1,1,1). Many are sampled."""
    flat = y.flatten(1)
    step = (flat.shape[1] + SAMPLE - 1) // SAMPLE
    ranked = flat[:, torch.arange(0, flat.shape[1], step, device=y.device)].sort(1).values
    few = ranked.shape[1] // BEYOND
    return (ranked[:, ranked.shape[1] - 1 - few] - ranked[:, few]).view(-1, 1, 1, 1)


def darker_half(y: Tensor) -> tuple[Tensor, Tensor]:
    """The values that a twentieth and a half of an image's values are below, (N,1,1,1) each, y (N,C,H,W).

    Blocks of one value do not count. Many are sampled.
    """
    step = (y[0].numel() + SAMPLE - 1) // SAMPLE
    ranked = y.masked_fill(~spread(varied_blocks(y), BLOCK, y), torch.nan).flatten(1)[:, ::step].sort(1).values
    number = (~ranked.isnan()).sum(1, keepdim=True)  # NaN are the last
    return tuple(ranked.gather(1, (part * (number - 1)).long()).view(-1, 1, 1, 1) for part in (0.05, 0.5))


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
