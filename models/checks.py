"""Checks of one picture and its result: where the method's assumptions do not hold, the result is not to be trusted.

Every check is a number and the limit that it must stay within. Blocks are chosen by place, or by how flat they are,
never pixels by their value: that would bend every mean. The limits follow from the statistics of independent noise and
from what pictures themselves were measured to add (see each constant).
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
    OPPONENT,
    SIDE,
    Shared,
    correlation_of_channels,
    energies,
    fit,
    in_blocks,
    left_by_surface,
    places_of_flattest,
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
REMOVED = 0.05  # the same of what is removed; from noisy photographs and micrographs it is 0.02 at most
# Greatest correlation of neighbours in what is removed. Where noise is independent the gray students have 0.05 at most
# on half of BSD68 at AWGN 15 and more, 0.09 at AWGN 5. At AWGN 2 three results have more, and are worse than their
# pictures. A drawing of thin lines has 0.12, text 0.11.
WHITE = 0.1
# What is left of shared noise in the flattest blocks, as a share of its standard deviation. On cc15 color-photo-full
# leaves 0.70 at most. color-hg-blind-full, which is not for photographs, leaves 0.75 to 0.95 on the first five of them.
LEFT = 0.85
# What is removed from a photograph: its root mean square in units of the noise that was read, and of what is removed in
# the flattest blocks. On cc15 color-photo-full removes 1.4 and 2.4 at most. Of fifteen pictures of CBSD68, clean and as
# JPEG of quality 92, it removes more than either from ten.
AMOUNT, AMOUNT_FLAT = 1.7, 3.0
# What weights for photographs take for noise though it is texture: so gray beside its amount at least, and so blurred
# at most, in pixels (see check_amount). Of 105 crops of bsd432 with weak noise that neighbours share, color-photo-full
# makes 48 worse by 0.3 dB and more. 40 of these have it, and one of the 52 that it makes better. Of the photographs
# that it makes better, one of cc15's fifteen has it, and two of 23 of PolyU.
AMOUNT_GRAY, SHARP = 2.2, 0.55
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

BLOCK = 32  # side of the blocks in which the result is compared with the picture
BIAS = 0.015  # of the level: a standard deviation of the networks' own error of brightness; 0.06 is the most measured
LEVEL_ERROR = 1.1  # how far a level that was found may be too low
CONSTANT = 1 / 255  # what stands for the noise of a block of one value, where no level is known
SCALE_ERROR = 1.5  # and a block's own scale, where its noise is not the same everywhere; measured 1.2

Grid = tuple[int, int, int]  # a picture's width, and the height and width of its blocks


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


@dataclass(frozen=True)
class Used:
    """What made a result, as far as checks and remedies depend on it.

    stage: of the model. strided: whether pixels were taken apart. shared_noise: whether the model was trained on noise
    that neighbours share. photographs: on that of photographs alone, with no pictures of the user's own. refined: on
    the very pictures that it is for.
    """

    stage: int = 2
    strided: bool = False
    shared_noise: bool = False
    photographs: bool = False
    refined: bool = False

    @property
    def training(self) -> str:
        """What further training may help."""
        if self.refined:
            return "train longer on such pictures (more --steps)"
        return "train on such pictures (train_dbsn.py --start-from)"


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


def check_result(
    y: Tensor,
    result: Tensor,
    level: Tensor | None = None,
    shared: Shared | None = None,
    independent: bool = False,
    used: Used = Used(),
) -> list[Check]:
    """Whether a result (C,H,W) is as near to its picture y (C,H,W), 0..1, as the noise allows.

    level: the noise's standard deviation, (1,H,W) or (1,1,1). None where the model gives none: each block's own noise
    scale stands for it, that of models/units.py or, where it is larger, the root mean square of the same details.
    shared: how its noise is, where neighbours share it. independent: whether the model and the checks took the noise
    for independent. used: what made the result.
    """
    channels, height, width = y.shape
    size = min(BLOCK, height), min(BLOCK, width)
    y, shift = y.double(), result.double() - y.double()
    if level is None:
        blocks = in_blocks(y, *size)
        planes = blocks.flatten(0, 1)[:, None]  # B C,1,h,w
        varied = planes.amax((1, 2, 3)) > planes.amin((1, 2, 3))
        scale = torch.where(varied, scale_of(planes)[1].flatten(), CONSTANT)
        size_of_details = details(planes).square().mean((1, 2, 3)).nan_to_num()  # no details in a single row
        variance = torch.maximum(scale.square(), size_of_details).view(-1, channels)
    else:
        level = level.double().expand(1, height, width)
        variance = in_blocks(level.square(), *size).mean((2, 3)).expand(-1, channels)
    together = 1.0
    if shared:  # neighbours differ too little, so a block's own scale is too small
        together, variance = shared.pixels, variance.clamp_min(shared.variance)
    shifts = in_blocks(shift, *size)
    return [
        check_brightness(
            "brightness", shift.mean((1, 2))[None], variance.mean(0)[None], height * width / together, used
        ),
        check_brightness(
            "brightness, blocks", shifts.mean((2, 3)), variance, size[0] * size[1] / together, used, (width, *size)
        ),
        check_distance(shifts, variance, SCALE_ERROR if level is None else LEVEL_ERROR, together, used, (width, *size)),
        *check_removed(shift, independent, used),
        *(check_left(y, result.double(), used) if shared else []),
        *(check_amount(y, shift, shared, used) if shared and used.shared_noise else []),
    ]


def check_removed(shift: Tensor, independent: bool, used: Used) -> list[Check]:
    """Whether result - y, shift (C,H,W), is noise.

    A pattern that repeats itself over the picture is not. What neighbours share is not either, where the noise is
    independent: thin lines and letters that lose contrast leave it.
    """
    if min(shift.shape[1:]) < SMALLEST:
        return []
    stride = "--stride 1, " if used.strided else ""
    remedy = f"try {stride}other weights, or {used.training}"
    value, checks = repetition(shift), []
    if value is not None:
        words = f"what was removed repeats itself over the picture, so it is a pattern of the picture's own: {remedy}"
        checks.append(Check("pattern", value, REMOVED, words))
    if independent and shift.any():
        value = greatest_correlation(shift)
        keeps_more = " (stage 1 keeps more than its student)" if used.stage == 2 else ""
        words = (
            f"neighbouring pixels share what was removed (correlation {value:.2f}), and independent noise is not "
            f"shared, so detail was removed with it: try other weights{keeps_more}, or {used.training}"
        )
        checks.append(Check("detail", value, WHITE, words))
    return checks


def greatest_correlation(t: Tensor) -> float:
    """The greatest correlation of the neighbours in t (C,H,W), at any of OFFSETS or its mirror image.

    0 in a constant.
    """
    t = t - t.mean((1, 2), keepdim=True)
    height, width = t.shape[1:]
    products = [
        (u[:, down:, right:] * u[:, : height - down, : width - right]).mean()
        for u in (t, t.flip(2))
        for down, right in OFFSETS.values()
    ]
    return float(max(products) / t.square().mean().clamp_min(torch.finfo(t.dtype).tiny))


def check_amount(y: Tensor, shift: Tensor, shared: Shared, used: Used) -> list[Check]:
    """Whether more than the noise was removed from a photograph y (C,H,W): result - y, shift (C,H,W).

    It is compared with the noise that was read, and with what was removed in the flattest blocks. Photographs with
    little noise lose fine texture, which is as strong as the noise that the weights know. Where the flattest blocks
    have texture too, the noise that is read is too much. But texture is nearly gray, and sharper than the noise of
    cameras. So where what was removed is blurred by SHARP pixels at most, with its root mean square a in units of the
    noise that was read, and that of its colours c in units of its brightness,

        a / c  <=  AMOUNT_GRAY
    """
    chosen = places_of_flattest(y)
    if chosen is None or not shift.any():
        return []
    removed, blocks = float(shift.square().mean().sqrt()), in_blocks(shift, SIDE, SIDE)
    in_noise = removed / math.sqrt(shared.variance)
    found = []
    if used.photographs:
        in_flat = removed / max(float(blocks[chosen].square().mean().sqrt()), 1e-12)
        found += [
            ("amount", in_noise, AMOUNT, "more was removed ({:.1f} times the noise that was read)"),
            ("amount, flat", in_flat, AMOUNT_FLAT, "more was removed ({:.1f} times what was removed in flat parts)"),
        ]
    if len(y) == 3:
        reach, colours = reach_and_colours(blocks)
        if reach <= SHARP:
            gray = in_noise / max(colours, 1e-12)
            found.append(
                ("amount, gray", gray, AMOUNT_GRAY, "what was removed is sharp and nearly gray, as texture is")
            )
    remedy = "so fine texture may be lost: compare the result with the picture, color-hg-blind-full removes less"
    return [Check(name, value, limit, f"{words.format(value)}, {remedy}") for name, value, limit, words in found]


def reach_and_colours(blocks: Tensor) -> tuple[float, float]:
    """By how many pixels blocks (B,3,SIDE,SIDE) of noise are blurred, and the root mean square of their colours.

    The reach is that of their brightness. The colours are in units of it: 1 where channels are independent.
    """
    bright, *colours = torch.einsum("kc,bcij->kbij", OPPONENT.to(blocks), residuals(blocks))
    of_brightness = float(bright.square().mean())
    return fit(bright)[0], math.sqrt(float(torch.stack(colours).square().mean()) / max(of_brightness, 1e-30))


def check_left(y: Tensor, result: Tensor, used: Used) -> list[Check]:
    """Whether the noise that neighbours share in a picture y (C,H,W) is less in its result (C,H,W).

    It is measured as what no surface of second degree explains of the flattest blocks of y.
    """
    chosen = places_of_flattest(y)
    if chosen is None:
        return []
    before, after = (float(residuals(in_blocks(t, SIDE, SIDE)[chosen]).square().mean()) for t in (y, result))
    value = math.sqrt(after / before)
    if used.refined:
        others = f"it may be a JPEG's blocks, which no weights know; else {used.training}"
    elif used.shared_noise:
        others = (
            "it may be a JPEG's blocks, which no weights know; else train on such pictures (scripts/denoise_folder.sh)"
        )
    else:
        others = (
            "if it is no texture, use weights for photographs, a larger --stride, or train on such pictures "
            "(scripts/denoise_folder.sh)"
        )
    words = f"{min(value, 1):.0%} of the noise that neighbouring pixels share is left in flat parts: {others}"
    return [Check("left", value, LEFT, words)]


def check_brightness(
    name: str, shift: Tensor, variance: Tensor, pixels: float, used: Used, grid: Grid | None = None
) -> Check:
    """Whether the mean of result - y, shift (B,C) of B blocks, is within the noise's standard error; variance (B,C).

    Over n pixels the noise's mean has the variance level^2 / n. The limit is Bonferroni's for B C means.

        z = |mean(result - y)| / sqrt(level^2 / n + (BIAS level)^2)
    """
    z = shift.abs() / (variance * (1 / pixels + BIAS**2)).sqrt().clamp_min(1e-6)
    at = int(z.argmax())
    amount, (row, column) = 255 * float(shift.flatten()[at]), place(at // shift.shape[1], grid)
    words = (
        f"{abs(amount):.2g} of 255 {'brighter' if amount > 0 else 'darker'} than the picture{spot(row, column)}, "
        f"{float(z.max()):.1f} standard errors: do not measure brightness on the result; {used.training}"
    )
    return Check(name, float(z.max()), multiple(z.numel()), words, row, column, amount)


def check_distance(shifts: Tensor, variance: Tensor, error: float, together: float, used: Used, grid: Grid) -> Check:
    """Whether result - y (B,C,h,w) is larger than the noise somewhere; variance: the noise's, (B,C).

    error: how many times too low the level may be. A result removes no more than the noise. Over n values its mean
    square has the relative standard error sqrt(2 / n).

        rms(result - y) / level  <=  error sqrt(1 + z sqrt(2 / n))
    """
    ratio = (shifts.square().mean((1, 2, 3)) / variance.mean(1).clamp_min(1e-12)).sqrt()
    at, value = int(ratio.argmax()), float(ratio.max())
    limit = error * math.sqrt(1 + multiple(len(ratio)) * math.sqrt(2 * together / shifts[0].numel()))
    row, column = place(at, grid)
    words = (
        f"changed by {value:.2f} times the noise{spot(row, column)}: the picture itself is smoothed there; use other "
        f"weights, or {used.training}"
    )
    return Check("distance", value, limit, words, row, column)


def place(block: int, grid: Grid | None) -> tuple[int | None, int | None]:
    """Row and column of a block's first pixel; None for the whole picture."""
    if grid is None:
        return None, None
    width, high, wide = grid
    return block // (width // wide) * high, block % (width // wide) * wide


def spot(row: int | None, column: int | None) -> str:
    return "" if row is None else f" at row {row}, column {column}"


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
