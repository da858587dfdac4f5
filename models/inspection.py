"""What a picture says of its noise, before anything is denoised.

Two things are measured. How neighbours and channels share the noise comes from the flattest blocks, no network asked
(models/noise/correlation.py). How large the noise is at each intensity comes from the residual of a stage-1 network
(models/noise/residual.py), with standard errors of the jackknife.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from models.denoiser import BlindSpotDenoiser
from models.gaussian import Full
from models.inference import automatic_tile, context_in_tiles
from models.noise.base import FLOOR
from models.noise.correlation import (
    DISTANCES,
    ONE_NOISE,
    SIDE,
    Shared,
    correlation_of_channels,
    in_blocks,
    left_by_surface,
    places_of_flattest,
    residuals,
    shared_noise,
)
from models.noise.residual import Curve, Seen, read_curve, read_level
from models.outliers import as_seen, without_noise
from models.stride import best_stride

PART = 512  # side in pixels of the part of a picture that is looked at
GROUPS = 20  # parts of a picture for the standard errors
LEAST_PIXELS = 20 * GROUPS  # fewer leave parts without a pixel that counts
NORMAL_95 = 1.96  # standard errors of a 95% interval
GROWS = 1.15  # ratio of the noise in bright and in dark parts above which it depends on the signal
TEXTURE = 0.0012  # of a picture's range: a standard deviation of the error that pictures add, measured on Set12
CORRELATED = 0.2  # correlation of channels above which they share their noise


@dataclass(frozen=True)
class ChannelCurve:
    """The noise of one channel: standard deviation at each intensity, and its 95% interval, from dark to bright.

    clear: which of them count: the others have too many clipped pixels. darkest: least intensity of those that count.
    coefficients: sigma^2 = a + b t + c t^2 through those that count, t = x - darkest.
    """

    intensity: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    clear: np.ndarray
    darkest: float
    coefficients: tuple[float, float, float]

    def fitted(self, x: np.ndarray) -> np.ndarray:
        """Standard deviation at intensities x by the coefficients."""
        a, b, c = self.coefficients
        t = np.maximum(x - self.darkest, 0)
        return np.sqrt(a + b * t + c * t * t)

    @property
    def counted(self) -> np.ndarray:
        """Intensities that count."""
        return self.intensity[self.clear]


@dataclass(frozen=True)
class Inspection:
    """The noise of a picture. All values have the picture's units.

    level, interval: standard deviation over the picture where it is the same everywhere, else its root mean square
    along the curve; 95% interval. It begins at 0 where neighbours share the noise: texture of the flattest parts, from
    which such noise is read, counts with it.
    curves: one for each channel.
    grows: whether the noise depends on the signal. falls: whether it is less in bright parts, as gamma makes it.
    gain, read_noise, black: sigma^2 = read_noise^2 + gain (x - black), the mean over the channels. A picture tells
    read_noise^2 - gain black alone. Where that is positive it is read_noise^2 for black 0. Else read_noise is None, and
    black the least that it may be, where a sensor has no read noise. All are None where the noise does not grow.
    shared: whether neighbouring pixels share it. reach: by how many pixels it is blurred, 0 where independent.
    autocorrelation: along "rows" and "columns" at 1, 2, 3 and 4 pixels; None where too few blocks are flat.
    channels: correlation of the channels (C,C); None as before.
    stripes: noise that whole "rows" or "columns" share, in parts of the pixels' own, where there is such.
    texture: whether what neighbours share may be texture. It is then not counted as noise.
    clipped: the shares of pixels with the picture's least and greatest value.
    impulses: the share of pixels that are alone, far from all their neighbours; 0 where they are few.
    """

    level: float
    interval: tuple[float, float]
    curves: tuple[ChannelCurve, ...]
    grows: bool
    falls: bool
    gain: float | None
    read_noise: float | None
    black: float | None
    shared: bool
    reach: float
    autocorrelation: dict[str, list[float]] | None
    channels: np.ndarray | None
    stripes: dict[str, float]
    texture: bool
    clipped: tuple[float, float]
    impulses: float = 0.0

    @property
    def channels_share(self) -> bool:
        """Whether the channels share their noise."""
        if self.channels is None or len(self.channels) == 1:
            return False
        return bool(np.abs(self.channels - np.eye(len(self.channels))).max() > CORRELATED)

    @property
    def one_noise(self) -> bool:
        """Whether all channels have the same noise."""
        return self.channels is not None and len(self.channels) > 1 and bool(self.channels.min() > ONE_NOISE)


@torch.no_grad()
def inspect_noise(
    model: BlindSpotDenoiser,
    y: Tensor,
    neighbours_share: bool,
    stripes: dict[str, float] | None = None,
    texture: bool = False,
    impulses: float = 0.0,
) -> Inspection:
    """The noise of a picture y (C,H,W), any units; NaN where there is none. Of a large one a part is looked at.

    model: a network of stage 1 with the residual estimator, such as gray-awgn-blind or color-awgn-blind.
    neighbours_share, stripes, texture, impulses: what models/checks.py finds.
    """
    clipped = share_at_ends(y)
    y = as_seen(telling_part(y)[None])[0]
    low, high = y.amin(), y.amax()
    unit = (high - low).clamp_min(1e-30)
    shown = (y - low) / unit
    shared = shared_noise(shown[0])
    before = model.stride, model.units
    model.units = "noise"
    try:
        model.stride = best_stride(model, shown, shared) if neighbours_share and shared else 1
        seen, gain = residuals_of(model, shown)
    finally:
        model.stride, model.units = before
    curve, floor = read_curve(seen, gain, GROUPS), seen.floor_of_channels
    variance, error = (float(t) for t in read_level(seen, gain, GROUPS))
    if neighbours_share and shared:
        more = larger_in_flattest(shared, curve, floor)
        curve = replace(curve, variance=more * curve.variance, error=more * curve.error)
        variance, error = more * variance, more * error
    low, unit = float(low), float(unit)
    channels = tuple(channel_curve(curve, k, floor, low, unit) for k in range(len(y[0])))
    grows, falls = trend(channels)
    if grows or falls:  # no one level: over the ranges of intensity, which have as many pixels each
        variance, error = float(curve.variance.mean()), float(curve.error.square().sum().sqrt()) / curve.error.numel()
    level = variance**0.5
    spread = NORMAL_95 * math.hypot(error / (2 * level), TEXTURE)
    return Inspection(
        level=level * unit,
        interval=(0.0 if neighbours_share else max(0.0, level - spread) * unit, (level + spread) * unit),
        curves=channels,
        grows=grows,
        falls=falls,
        **(photon_noise(curve, floor, low, unit) if grows else {"gain": None, "read_noise": None, "black": None}),
        shared=neighbours_share,
        reach=shared.reach if neighbours_share and shared else 0.0,
        autocorrelation=autocorrelation_of(shown[0]),
        channels=correlation_of_channels(shown[0], neighbours_share),
        stripes=stripes or {},
        texture=texture,
        clipped=clipped,
        impulses=impulses,
    )


def telling_part(y: Tensor) -> Tensor:
    """The middle of a picture (C,H,W), PART pixels wide at most. Where half of it is empty: the fullest of nine parts.

    Empty are pixels that are NaN, or in areas of one value.
    """
    ends = [max(0, length - PART) for length in y.shape[1:]]
    halves = [(end // 2, 0, end) for end in ends]  # the middle first
    fullest, most = y, -1.0
    for top, left in product(*halves):
        part = y[:, top : top + PART, left : left + PART]
        empty = without_noise(part.nan_to_num()[None])[0] | part.isnan().any(0)
        share = 1 - float(empty.double().mean())
        if share > most:
            fullest, most = part, share
        if most >= 0.5:
            break
    return fullest


def channel_curve(curve: Curve, k: int, floor: Tensor, low: float, unit: float) -> ChannelCurve:
    """Channel k of a curve of values (x - low) / unit, in the units of x. floor: see Curve.polynomial."""
    intensity, variance, error = (t[k].cpu().numpy() for t in (curve.intensity, curve.variance, curve.error))
    std = np.sqrt(variance)
    of_std = np.hypot(error / (2 * std), TEXTURE)
    a, b, c = (float(t) for t in curve.polynomial((0, 1, 2), floor)[k])
    return ChannelCurve(
        intensity=low + unit * intensity,
        std=unit * std,
        low=unit * np.maximum(std - NORMAL_95 * of_std, 0),
        high=unit * (std + NORMAL_95 * of_std),
        clear=curve.clear[k].cpu().numpy(),
        darkest=low + unit * float(curve.darkest[k]),
        coefficients=(unit**2 * a, unit * b, c),
    )


def photon_noise(curve: Curve, floor: Tensor, low: float, unit: float) -> dict[str, float | None]:
    """gain, read_noise and black of an Inspection, from a line through the curve; arguments as of channel_curve."""
    at_darkest, slope = (t.cpu() for t in curve.polynomial((0, 1), floor).unbind(1))  # of each channel
    gain = float(slope.mean()) * unit
    darkest = low + unit * curve.darkest[:, 0].cpu()
    at_zero = float((at_darkest * unit**2 - slope * unit * darkest).mean())
    if at_zero >= 0 and darkest.min() < 0:  # black is below 0, nobody knows where
        return {"gain": gain, "read_noise": None, "black": None}
    if at_zero >= 0:
        return {"gain": gain, "read_noise": at_zero**0.5, "black": 0.0}
    return {"gain": gain, "read_noise": None, "black": -at_zero / max(gain, 1e-30)}


def residuals_of(model: BlindSpotDenoiser, y: Tensor) -> tuple[Seen, Tensor]:
    """The residuals of y (1,C,H,W) and mu's gain."""
    mu, factor = context_in_tiles(model, y, automatic_tile(model, y))
    y, v = y.to(mu), Full(factor)
    floor = (FLOOR * model.unit(y) * torch.ones_like(y[:, :1, :1, :1])).square()
    return Seen.of(y, mu, v, floor), model.gain(y, mu, v)


def larger_in_flattest(shared: Shared, curve: Curve, floor: Tensor) -> float:
    """How many times larger than the curve the variance of shared noise is: mu carries a share of it (Camera.read)."""
    a, b, c = curve.polynomial((0, 1, 2), floor).unbind(1)
    x = (shared.intensity.to(a) - curve.darkest[:, 0]).clamp_min(0)
    return max(1.0, shared.variance / max(float((a + b * x + c * x * x).mean()), 1e-12))


def trend(channels: tuple[ChannelCurve, ...]) -> tuple[bool, bool]:
    """Whether the noise grows with the signal, and whether it falls: the brightest intensities beside the darkest.

    The means over three ranges of intensity each, and over the channels, differ by more than GROWS and by more than
    their intervals.
    """
    dark, bright, apart = [], [], []
    for channel in channels:
        std, half = channel.std[channel.clear], (channel.high - channel.low)[channel.clear] / 2
        if len(std) >= 6:
            dark.append(std[:3].mean())
            bright.append(std[-3:].mean())
            apart.append(np.hypot(half[:3].mean(), half[-3:].mean()))
    if not dark:
        return False, False
    low, high, least = (float(np.mean(t)) for t in (dark, bright, apart))
    return high > max(GROWS * low, low + least), low > max(GROWS * high, high + least)


def autocorrelation_of(y: Tensor, removed: Tensor | None = None) -> dict[str, list[float]] | None:
    """Autocorrelation of the noise of a picture y (C,H,W) at DISTANCES, from its flattest blocks.

    removed: y less its result. Then it is of what was removed in these blocks. What the surface takes away from
    independent noise is added again, see models/noise/correlation.py. None where too few blocks are flat, or nothing
    was removed.
    """
    y = y.double()
    chosen = places_of_flattest(y)
    if chosen is None:
        return None
    r = residuals(in_blocks(y if removed is None else removed.double(), SIDE, SIDE)[chosen])
    energy = r.square().mean()
    if energy == 0:
        return None
    found: dict[str, list[float]] = {"rows": [], "columns": []}
    for distance in DISTANCES:
        white = left_by_surface(SIDE, 0, distance)
        along = (r[..., distance:] * r[..., :-distance]).mean(), (r[..., distance:, :] * r[..., :-distance, :]).mean()
        for name, covariance in zip(found, along):
            found[name].append(float(covariance / energy) - white)
    return found


def share_at_ends(y: Tensor) -> tuple[float, float]:
    """The shares of pixels of y (C,H,W) with its least and greatest value; 0 where a single pixel has it."""
    known = y[~y.isnan()]
    if not len(known):
        return 0.0, 0.0
    counts = [int((known == end).sum()) for end in (known.min(), known.max())]
    return tuple(count / len(known) if count > 1 else 0.0 for count in counts)
