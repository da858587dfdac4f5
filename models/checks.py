"""Checks of a picture's noise: where the method's assumptions do not hold, its result is not to be trusted.

models/result_checks.py has those of the result. Every check is a number and the limit that it must stay within. Blocks
are chosen by place, or by how flat they are, never pixels by their value: that would bend every mean. The limits follow
from the statistics of independent noise and from what pictures themselves were measured to add (see each constant).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from models.noise.correlation import (
    FEWEST,
    ONE_NOISE,
    Shared,
    correlation_of_channels,
    energies,
    in_blocks,
    left_by_surface,
    repetition,
    residuals,
    shared_noise,
    unevenness,
)
from models.outliers import filled, known_part, outlying, without_noise
from models.units import details, scale_of, shown_range

FALSE_ALARMS = 1e-5  # chance that independent noise fails a check of one picture

FLAT, FLAT_SHARE = 8, 0.02  # side of the blocks for the noise's correlation, and share of them
SMALLEST = 64  # side in pixels of the pictures whose noise is looked at
# What pictures themselves may leave in their flattest blocks. BSD68, CBSD68 and Set12 with independent noise of level 5
# and more have 0.28 at most in the mean of rows and columns, 0.43 in one of the two, 0.17 in other directions. Cameras'
# JPEG pictures and wide-field microscopes have 0.39 or more in the mean.
SIDES, ONE_SIDE, OTHERS = 0.24, 0.36, 0.2
# A part without noise: at least LOUD_SHARE of the blocks have LOUDER times the noise of the flattest, and correlations
# within QUIET. Of pictures whose noise is shared (cc15, fmd24, PolyU) 0.007 of the blocks at most have, of clean ones
# (BSD68) 0.06. Where half of these has AWGN 25, a third has.
LOUDER, QUIET, LOUD_SHARE = 3.0, 0.12, 0.08
UNDECIDED = 0.4  # a limit of the least of them above which noise that passes need not be independent
OFFSETS = {
    "rows": (0, 1),
    "columns": (1, 0),
    "diagonals": (1, 1),
    "rows, two apart": (0, 2),
    "columns, two apart": (2, 0),
}

# What neighbours share is taken for texture within these limits. scripts/texture_study.py on bsd432: so are 92% of
# the squares whose texture passes for shared noise, and 29% of gray and 8% of colour squares with shared noise. Of
# crops of photographs (cc15, PolyU) and microscope pictures (fmd24) whose noise was read rightly 0.7% were.
UNEVEN = 1.2  # times the unevenness of Gaussian noise
COLOURFUL = 0.5  # standard deviation of the colours in units of the brightness's; texture of bsd432 has 0.43 at most
# Camera and microscope pictures (cc15, fmd24) have 0.06 at most, gratings as strong as their noise 0.3 or more.
REPEATED = 0.1
# Without noise: the least share of details that are zero, and the greatest variance of neighbours' differences in units
# of that of the pixels of a block. Pictures with noise of 1 of 255 have 0.17 zeros at most, counts of few photons have
# a ratio of 0.79 or more (BSD68 and Set12). Masks have 0.57 zeros or more and a ratio of 0.55 in the median.
EQUAL, LIKE = 0.5, 0.65
# Impulses. How far a pixel is beyond all its neighbours, of the noise's scale and of the picture's range; and the share
# of such pixels. BSD68, CBSD68, Set12, t91, cc15 and fmd24 have 0.008 at most, clean, as JPEG, with AWGN of 1 to 50 or
# as counts of 0.1 photons and more. One impulse in twenty at AWGN 5 gives 0.02 or more.
JUMP, JUMP_RANGE, IMPULSES = 4.0, 0.15, 0.01
# Share of pixels at white whose noise is cut off. With more some frames of a simulated microscope come out farther from
# the truth than they were. One of the 68 pictures of CBSD68 has more at AWGN 25, none without noise.
SATURATED, FEW_VALUES = 0.3, 16
TEXTURED = 8 / 255  # standard deviation; below it cameras and microscopes have the most of their shared noise

HIGH_PASS = (1, -4, 6, -4, 1)  # removes what varies smoothly from row to row
PARTS = 4  # parts of a row that must share its noise
STRIPES = 0.2  # standard deviation of the rows' own noise in units of the pixels'; pictures alone have 0.15 at most


@dataclass(frozen=True)
class Check:
    """One check: it fails where value is above limit.

    name: what is checked, its kind and after a comma where. words: what is wrong where it fails, and what to do. row,
    column: the first pixel of the block where the value is largest; None for the whole picture. amount: the error of
    brightness, of 255.
    """

    name: str
    value: float
    limit: float
    words: str
    row: int | None = None
    column: int | None = None
    amount: float | None = None

    @property
    def kind(self) -> str:
        return self.name.split(",")[0]

    @property
    def failed(self) -> bool:
        return not self.value <= self.limit  # so that nan fails

    def record(self) -> dict:
        numbers = {"value": self.value, "limit": self.limit, "row": self.row, "column": self.column}
        known = {key: number for key, number in (numbers | {"amount": self.amount}).items() if number is not None}
        return {"check": self.name, "passed": not self.failed, **known}


def check_noise(y: Tensor) -> list[Check]:
    """Whether the noise of a picture y (C,H,W), 0..1, is independent from pixel to pixel, as the method takes it to be.

    No network is asked: one that is given shared noise returns it as part of the picture, and its residual is white.
    """
    if min(y.shape[1:]) < SMALLEST:
        return []
    y = y.double()
    checks = [check_impulses(y), *check_neighbours(y)]
    checks += check_texture(y) if neighbours_share_noise(checks) else []
    empty = without_noise(y[None])[0]
    checks.append(check_saturation(y, empty))
    # a border of one value has no noise, and its edge is a row that differs from both of its neighbours
    border = torch.where(empty, torch.nan, 0.0)
    part = known_part(torch.cat([y, border]))
    part, mostly_known = part[:-1], float(part[-1].isnan().double().mean()) < 0.5
    if min(part.shape[1:]) >= SMALLEST and mostly_known:
        checks += [check_stripes(part, "rows"), check_stripes(part.transpose(1, 2), "columns")]
    return checks


def check_impulses(y: Tensor) -> Check:
    """Share of the pixels of y (C,H,W) that are alone, far above or below all eight neighbours.

    The single photons of a picture that is dark otherwise are not far above: they have the least value but one.
    """
    planes = y[:, None]  # each channel by itself
    values = y.unique()
    step = float(values[1] - values[0]) if len(values) > 1 else 0.0
    least = max(JUMP_RANGE * float(y.max() - y.min()), 1.5 * step)
    jump = (JUMP * scale_of(planes)[1]).clamp_min(least)
    height, width = y.shape[1:]
    around = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    places = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    shifted = [around[:, :, i : i + height, j : j + width] for i, j in places]
    above = planes > reduce(torch.maximum, shifted) + jump
    below = planes < reduce(torch.minimum, shifted) - jump
    value = float((above | below).double().mean())
    words = (
        f"{value:.1%} of the pixels are alone, far above or below all their neighbours, as salt and pepper is, and the "
        "networks were not trained on such noise: replace these pixels by the median of their neighbours first"
    )
    return Check("impulses", value, IMPULSES, words)


def check_saturation(y: Tensor, empty: Tensor) -> Check:
    """Share of the pixels of y (C,H,W) that have its greatest value, outside of areas without noise, empty (1,H,W).

    So many are where noise is cut off at white. The mean of what is left is too dark. Pictures of few values, such as
    counts of single photons, are no such ones.
    """
    value = (
        float(((y == y.max()).any(0, keepdim=True) & ~empty).double().mean()) if len(y.unique()) > FEW_VALUES else 0.0
    )
    words = (
        f"the noise of {value:.0%} of the pixels is cut off at the greatest value, where the result is too dark: "
        "expose less, or leave these parts out"
    )
    return Check("saturation", value, SATURATED, words)


def check_neighbours(y: Tensor) -> list[Check]:
    """Correlation of the noise of neighbouring pixels of y (C,H,W), in the flattest blocks.

    No checks where too few blocks are left.

    A block's residual r = P y is what a surface of second degree leaves. Independent noise has E r r^T = level^2 P, so

        correlation = <r_i r_j> / <r_i^2> - <P_ij> / <P_ii>,   j = i + offset

    is zero in the mean. Over n pairs its standard error is 1 / sqrt(n). Blocks with clipped pixels do not count. Where
    few are left their flattest FEWEST are a larger share of them, in which pictures leave as much more.

    The flattest blocks may be those of a part without noise, such as one that was pasted or smoothed, and have its
    texture. So blocks of far more noise count instead, where it is independent in many.
    """
    energy = energies(y, FLAT)
    usable = int(energy.isfinite().sum())
    number = max(FEWEST, round(FLAT_SHARE * usable))
    if usable < number:
        return []
    share, r = number / usable, residuals(in_blocks(y, FLAT, FLAT))  # B,C,h,w
    flattest, places = energy.topk(number, largest=False)
    sides = (correlation(r, 0, 1) + correlation(r, 1, 0)) / 2
    loud = energy.isfinite() & (energy > LOUDER**2 * flattest.mean()) & (sides.abs() < QUIET)
    if loud.sum() >= LOUD_SHARE * usable:
        places = loud
    weight = r[places].square().mean((1, 2, 3))
    found = {name: float((correlation(r[places], *to) * weight).sum() / weight.sum()) for name, to in OFFSETS.items()}
    error = 1 / math.sqrt(number * FLAT * (FLAT - 1))  # one channel: channels may share their noise
    sides = (found["rows"] + found["columns"]) / 2
    more = share - FLAT_SHARE + 3 * error
    checks = [between("rows and columns", sides, SIDES + share - FLAT_SHARE + 3 * error / math.sqrt(2))]
    checks += [between(name, found[name], ONE_SIDE + more) for name in ("rows", "columns")]
    checks += [between(name, found[name], OTHERS + more) for name in list(found)[2:]]
    return checks


def correlation(r: Tensor, down: int, right: int) -> Tensor:
    """Of pixels so far apart in each of the residuals r (B,C,FLAT,FLAT), (B,), see check_neighbours."""
    here, there = r[:, :, down:, right:], r[:, :, : FLAT - down, : FLAT - right]
    energy = r.square().mean((1, 2, 3)).clamp_min(torch.finfo(r.dtype).tiny)
    return (here * there).mean((1, 2, 3)) / energy - left_by_surface(FLAT, down, right)


def between(where: str, value: float, limit: float) -> Check:
    words = (
        f"neighbouring pixels share their noise (correlation {value:.2f} in flat parts, {where}), and these networks "
        "keep such noise: use weights for photographs, leave --stride to its default, or denoise the camera's raw "
        "values"
    )
    return Check(f"neighbours, {where}", value, limit, words)


def check_texture(y: Tensor) -> list[Check]:
    """Whether what neighbours share in a picture y (C,H,W) may be the picture's own: a pattern, or texture.

    The flattest blocks of a picture of grass or gravel are not flat. Their texture is uneven, and noise is not. Texture
    changes brightness more than colour. No check of it where it is weak or colourful. Gratings, lattices and the dots
    of a print are even, but they repeat themselves over the picture, and noise does not.
    """
    either = "--stride 1 keeps it, --stride 3 removes it, compare"
    repeated = repetition(y)
    if repeated is not None and repeated > REPEATED:
        words = f"what neighbouring pixels share repeats itself over the picture, so it may be a pattern: {either}"
        return [Check("texture, pattern", repeated, REPEATED, words)]
    found, value = shared_noise(y), unevenness(y)
    if not found or value is None or found.variance <= TEXTURED**2 or (len(y) > 1 and found.chroma > COLOURFUL):
        return []
    words = (
        f"what neighbouring pixels share ({255 * found.variance**0.5:.2g} of 255) is {value:.1f} times as uneven as "
        f"noise, so it may be texture: {either}"
    )
    return [Check("texture", value, UNEVEN, words)]


def as_checked(y: Tensor) -> Tensor:
    """An image (1,C,H,W), any units, as the checks see it: 0..1, without single pixels far outside, on the CPU."""
    seen, _, _ = outlying(filled(y.cpu()))
    low, high = shown_range(seen.numpy())
    return (seen - low) / (high - low)


def shared_by_neighbours(y: Tensor) -> Shared | None:
    """How the noise of a picture y (C,H,W), 0..1, is shared; None where the checks find it independent."""
    return shared_noise(y) if neighbours_share_noise(check_noise(y)) else None


def neighbours_share_noise(checks: Iterable[Check]) -> bool | None:
    """Whether checks of a picture say that neighbouring pixels share their noise; None where they cannot tell.

    In small pictures, and in those that are clipped for the most part, the limits are so high that noise which is
    shared may pass. What may be texture is not taken for noise either.
    """
    checks = list(checks)
    if may_be_texture(checks):
        return None
    found = [check for check in checks if check.kind == "neighbours"]
    if any(check.failed for check in found):
        return True
    return None if not found or min(check.limit for check in found) > UNDECIDED else False


def channels_have_one_noise(y: Tensor) -> bool:
    """Whether the channels of a picture y (C,H,W), 0..1, whose neighbours share no noise, have the same noise."""
    found = correlation_of_channels(y, neighbours_share=False) if len(y) > 1 else None
    return found is not None and float(found.min()) > ONE_NOISE


def shows_no_noise(y: Tensor) -> bool:
    """Whether a picture y (C,H,W) is without noise, as masks, drawings and screenshots are.

    Noise makes pixels differ. In a picture without it many Haar details are zero, even in blocks with more than one
    value. So they are in counts of few photons. But there neighbours differ as much as any two pixels of a block do,
    in most blocks.
    """
    if min(y.shape[1:]) < FLAT:
        return False
    blocks = in_blocks(y.double(), FLAT, FLAT).flatten(0, 1)[:, None]  # B C,1,h,w
    blocks = blocks[(blocks.amax((1, 2, 3)) > blocks.amin((1, 2, 3)))]
    if not len(blocks) or float((details(blocks) == 0).double().mean()) < EQUAL:
        return False
    pairs = (blocks[..., 1:] - blocks[..., :-1], blocks[..., 1:, :] - blocks[..., :-1, :])
    of_neighbours = sum(d.square().mean((1, 2, 3)) for d in pairs) / 4
    return float((of_neighbours / blocks.var((1, 2, 3), unbiased=False)).median()) < LIKE


def may_be_texture(checks: Iterable[Check]) -> bool:
    """Whether checks of a picture take what neighbours share for texture."""
    return any(check.failed for check in checks if check.kind == "texture")


def check_stripes(y: Tensor, lines: str) -> Check:
    """The standard deviation of noise that a whole row of y (C,H,W) shares, in units of the pixels' own noise.

    d are HIGH_PASS differences between rows, clipped at three standard deviations. Their means over parts a and b of
    each row have the covariance sigma_row^2, whatever the pixels' own noise is:

        (sigma_row / sigma)^2 = min over a, b of  mean_rows d_a d_b
    """
    scale = detail_scale(y)
    norm = math.sqrt(sum(c * c for c in HIGH_PASS))
    length = y.shape[1] - len(HIGH_PASS) + 1
    d = sum(c * y[:, k : k + length] for k, c in enumerate(HIGH_PASS)) / norm
    d = (d / scale).clamp(-3, 3)
    parts = [part.mean(2) for part in d.tensor_split(PARTS, 2)]
    least = min(float((a * b).mean()) for k, a in enumerate(parts) for b in parts[:k])
    value = math.sqrt(max(0.0, least))
    words = (
        f"{lines} have noise of their own ({value:.2f} times the pixels'), unless they are the scene's, and the "
        "networks keep such noise: subtract a dark frame, or each "
        f"{lines[:-1]}'s offset measured on a covered part, first"
    )
    return Check(f"stripes, {lines}", value, STRIPES + 3 * PARTS / (y.shape[2] * math.sqrt(length)), words)


def detail_scale(y: Tensor) -> Tensor:
    """Noise scale of each channel of y (C,H,W), (C,1,1): the mean of the lower half of |diagonal Haar details|.

    Unlike their median it does not jump where values are rounded to 8 bits. Of |z| of a standard normal z it is 0.3246.
    """
    size = details(y[None])[0].abs().flatten(1).sort(1).values
    return (size[:, : size.shape[1] // 2].mean(1) / 0.3246).clamp_min(1e-6).view(-1, 1, 1)


def multiple(number: int) -> float:
    """How many standard errors the largest of so many normal values may have."""
    return NormalDist().inv_cdf(1 - FALSE_ALARMS / (2 * number))


def doubts(checks: Iterable[Check]) -> list[str]:
    """The words of the failed checks, of each kind those of the one furthest beyond its limit."""
    worst: dict[str, Check] = {}
    for check in checks:
        before = worst.get(check.kind)
        if check.failed and (before is None or check.value / check.limit > before.value / before.limit):
            worst[check.kind] = check
    return [check.words for check in worst.values()]
