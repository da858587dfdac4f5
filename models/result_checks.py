"""Checks of a result: is it as near to its picture as the noise allows, and is what was removed noise?

Every check is a number and the limit that it must stay within, as in models/checks.py, which checks the noise of the
picture. The limits follow from the statistics of independent noise and from what was measured (see each constant).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.checks import OFFSETS, SMALLEST, Check, multiple
from models.noise.correlation import (
    OPPONENT,
    SIDE,
    Shared,
    fit,
    in_blocks,
    places_of_flattest,
    repetition,
    residuals,
)
from models.units import details, scale_of

REMOVED = 0.05  # repetition of what is removed; from noisy photographs and micrographs it is 0.02 at most
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
# of commit 5164448 makes 48 worse by 0.3 dB and more. 40 of these have it, and one of the 52 that it makes better. Of
# the photographs that it makes better, one of cc15's fifteen has it, and two of 23 of PolyU.
AMOUNT_GRAY, SHARP = 2.2, 0.55

BLOCK = 32  # side of the blocks in which the result is compared with the picture
BIAS = 0.015  # of the level: a standard deviation of the networks' own error of brightness; 0.06 is the most measured
LEVEL_ERROR = 1.1  # how far a level that was found may be too low
CONSTANT = 1 / 255  # what stands for the noise of a block of one value, where no level is known
SCALE_ERROR = 1.5  # and a block's own scale, where its noise is not the same everywhere; measured 1.2

Grid = tuple[int, int, int]  # a picture's width, and the height and width of its blocks


@dataclass(frozen=True)
class Used:
    """What made a result, as far as checks and remedies depend on it.

    stage: of the model. strided: whether the stride was above 1. shared_noise: whether the model was trained on noise
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
