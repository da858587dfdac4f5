"""What a test tells: the row of each image, their means, the record of the whole, and the printed table."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field

import numpy as np
import torch

from models.checks import Check, doubts, may_be_texture, neighbours_share_noise
from models.inspection import Inspection
from models.noise import NOISES
from models.noise.correlation import Shared
from utils.baselines import describe_baseline
from utils.device import device_name
from utils.page import PicturePage, short
from utils.provenance import training_facts

SPREADS = 0.084, 0.307  # standard deviations of photographs: the middle 96% of bsd432
# Below so much of the least level of its training, or below LITTLE of 255 (gray, colour), a student may take more of
# the picture than of its noise. On 15 pictures of t91, 160x160 with noise of 0.3 to 3, that and the checks tell of 73%
# of the results of gray-awgn-blind-full that are worse than their pictures, of 80% of gray-hg-blind-full's, of 98% of
# color-awgn-blind-full's and of 85% of color-hg-blind-full's. Of the better ones they tell of none of the first's, of
# a fifth, of an eighth and of a third. So they do of a fifth of microscope and X-ray pictures that have become better.
WEAK, LITTLE = 0.6, {1: 2.2, 3: 0.9}
HIDDEN = 0.2  # of the least level of a training: below it parts without noise may have been read
NO_NOISE = (
    "most pixels are as their neighbours, as in masks and drawings, where there is no noise to remove: there the "
    "result has lost some of the picture, so keep it (--on-doubt keep)"
)
METHODS = {1: ("mu", "posterior"), 2: ("distilled",)}  # what a checkpoint of each stage gives


@dataclass
class Row:
    """What a test finds of one image; index is its place among all. Levels are in 0..255 units, None where unknown."""

    index: int
    path: str
    shown: str
    problem: str | None = None  # why the image cannot be used; the rest is then empty
    level: float | None = None
    estimated: float | None = None
    white: float = 1.0  # the file value that is 1.0
    figures: dict[str, dict[str, float | None]] = field(default_factory=dict)  # of each method
    seconds: dict[str, float] = field(default_factory=dict)  # of each baseline and checkpoint
    hot_pixels: int = 0  # and dead ones: see models/outliers.py
    merged: bool = False  # whether different channels were made one gray
    planes: bool = False  # whether its file holds red, green and blue as planes of their own
    in_floats: bool = False  # whether the result's file has floats, in place of the input's integers
    dim: float | None = None  # the greatest file value, where it is far below --white-level
    tiled: set[str] = field(default_factory=set)  # the checkpoints that took the image in tiles
    peak: list[float] | None = None  # of PSNR: the ends of the clean image's range; None: white
    unknown: list[str] = field(default_factory=list)  # words on noise that checkpoints were not trained on
    strides: dict[str, dict[int, float]] = field(default_factory=dict)  # of each checkpoint, where not 1 alone
    shared: Shared | None = None  # how its noise is shared, where neighbours share it
    known: bool = False  # whether every checkpoint knows such noise, or its stride suits it
    checks: dict[str, list[Check]] = field(default_factory=dict)  # of the "input" and of each checkpoint's result
    within: dict[str, dict[str, float] | None] = field(default_factory=dict)  # utils.metrics.shares_within, stage 1's
    # for --report: what was found of the noise, root mean square of what was removed (file units), and what is shown
    noise: Inspection | None = None
    removed: float | None = None
    page: PicturePage | None = None

    @property
    def neighbours_share_noise(self) -> bool | None:
        """Whether a check of the input says so; None where none could be made."""
        return neighbours_share_noise(self.checks.get("input", []))

    @property
    def may_be_texture(self) -> bool:
        """Whether a check of the input takes what neighbours share for texture."""
        return may_be_texture(self.checks.get("input", []))

    @property
    def strides_in_words(self) -> str | None:
        """The strides, by name where there are several checkpoints; None where all are 1."""
        if not self.strides:
            return None
        several = len(self.checks) > 2
        taken = [
            f"every {', '.join(map(str, sorted(weights)))}{f' for {short(name)}' if several else ''}"
            for name, weights in self.strides.items()
        ]
        return f"{self.shown}: {'; '.join(taken)}"

    @property
    def doubts(self) -> list[str]:
        """Why the results may be wrong, in words.

        Shared noise is no doubt where every checkpoint knows it, or where it may be texture, which is a doubt itself.
        What is left of it is told where it should have been removed.
        """
        several = len(self.checks) > 2
        moot = "neighbours" if self.known or self.may_be_texture else "left"
        return [
            f"{short(name)}: {words}" if several and name != "input" else words
            for name, checks in self.checks.items()
            for words in doubts(c for c in checks if c.kind != moot)
        ]

    @property
    def warnings(self) -> list[str]:
        """All that was found wrong, in words."""
        return [*self.unknown, *self.doubts]

    def record(self) -> dict:
        checks = {name: [check.record() for check in checks] for name, checks in self.checks.items()}
        return {
            "name": self.shown,
            "noise_level": {
                "true": self.level,
                "estimated": self.estimated,
                "in_file": None if self.estimated is None else self.estimated / 255 * self.white,
            },
            **self.figures,
            **({"peak": self.peak} if self.peak else {}),
            **({"within": self.within} if self.within else {}),
            **({"hot_pixels": self.hot_pixels} if self.hot_pixels else {}),
            **({"strides": self.strides} if self.strides else {}),
            **({"merged": True} if self.merged else {}),
            **({"planes": True} if self.planes else {}),
            **({"in_floats": True} if self.in_floats else {}),
            **({"dim": self.dim} if self.dim is not None else {}),
            "doubts": self.warnings,
            "checks": checks,
        }


def test_record(opt, argv: list[str], code: str | None, device: torch.device, models: list, rows: list[Row]) -> dict:
    """All that --json holds, in its order."""
    good, bad = [row for row in rows if not row.problem], [row for row in rows if row.problem]
    tiled = set().union(*(row.tiled for row in good))
    return {
        "arguments": list(argv),
        "protocol": opt.protocol,
        **({"repeats": opt.repeats} if opt.protocol == "laine" else {}),
        "noise": noise_record(opt),
        "data": [str(d) for d in opt.data],
        "clean": [str(d) for d in opt.clean or []],
        "mode": opt.mode,
        "checkpoints": [str(model.file) for model in models],
        "models": [model_record(model, models) | {"tiled": str(model.file) in tiled} for model in models],
        "baselines": {name: describe_baseline(name) for name in opt.baseline},
        "self_ensemble": opt.self_ensemble,
        "code": code,
        "torch": str(torch.__version__),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seconds_per_image": {name: sum(row.seconds[name] for row in good) / len(good) for name in good[0].seconds},
        "mean": means([row.figures for row in good]),
        "skipped": {row.path: row.problem for row in bad},
        "images": [row.record() for row in good],
    }


def noise_record(opt) -> dict | None:
    """The noise that is added: the model, and its levels in 0..255 units, a range as its ends."""
    if opt.noise is None:
        return None
    values = {level.name: getattr(opt, level.name) for level in NOISES[opt.noise].levels}
    levels = {
        name: value if not isinstance(value, tuple) else value[0] if value[0] == value[1] else list(value)
        for name, value in values.items()
    }
    return {"model": opt.noise, **levels}


def model_record(model, models: list) -> dict:
    """What identifies a checkpoint, how it was trained, and the names of its results in the table."""
    return {
        "name": model.name,
        "file": str(model.file),
        "sha256": hashlib.sha256(model.file.read_bytes()).hexdigest(),
        "stage": model.stage,
        "config": model.config,
        "precision": str(model.dtype).removeprefix("torch."),
        "step": model.values["step"],
        "training": training_facts(model.values),
        "methods": {method: method_name(method, model, models) for method in METHODS[model.stage]},
    }


def method_name(method: str, model, models: list) -> str:
    """The name of a method in tables: mu, posterior or distilled.

    The checkpoint follows, as it was given, where several of its stage are tested.
    """
    alone = sum(m.stage == model.stage for m in models) == 1
    return method if alone else f"{method} {model.name}"


def noise_not_trained_on(model, level: float, spread: float) -> str | None:
    """The remark on a noise level that a stage-1 model was not trained on.

    It is for a level (0..255 units) that the model finds outside of those of its training. In units of noise the level
    itself does not matter, only its ratio to the picture's spread, the standard deviation of the clean picture (0..1).
    None where it was trained on such levels, where nobody knows on which, and for mg, which has no one level.
    """
    if (trained_on := trained_levels(model)) is None:
        return None
    low, high = trained_on
    if model.config["units"] == "noise":
        ratio, least, most = level / 255 / max(spread, 1e-6), low / 255 / SPREADS[1], high / 255 / SPREADS[0]
        if 0.8 * least <= ratio <= 1.25 * most:
            return None
        remedy = "use weights that were trained on such noise, or train on these pictures (train_dbsn.py --start-from)"
        return f"noise of {ratio:.2g} of the picture's spread, {model.name} knows {least:.2g} to {most:.2g}: {remedy}"
    if 0.8 * low <= level <= 1.25 * high:  # what an estimate may be off
        return None
    raised = level < low and model.units == "white" and not model.level_is_learned
    remedy = "; a --white-level nearer to the brightest value raises it" if raised else ""
    if level < HIDDEN * low and not raised:
        remedy = "; where noise can be seen, parts without any, such as text, hide it: use a student (stage 2)"
    trained = f"{low:.3g} to {high:.3g}" if low < high else f"{low:.3g}"
    return f"noise of {level:.2g}, {model.name} was trained on {trained} (of 255, white){remedy}"


def trained_levels(model) -> tuple[float, float] | None:
    """Least and greatest level of the noise that a model was trained on, 0..255 units.

    None where nobody knows, and for noise that has no one level.
    """
    facts = training_facts(model.values) or {}
    noise = NOISES.get(facts.get("noise"))
    if noise is None or not all(facts.get(level.name) for level in noise.levels if not level.whole):
        return None
    if (levels := noise.trained_range(facts)) is None:
        return None
    times, jitter = facts.get("level_scale", 1.0), facts.get("level_jitter", 0.0)  # of a student, for learned pairs
    if facts.get("pairs") == "drawn":
        times, jitter = 1.0, 0.0
    return levels[0] * times * (1 - jitter), levels[1] * times * (1 + jitter)


def too_weak_for(student, level: float) -> str | None:
    """The remark on noise so weak that a student may take more of the picture than of the noise.

    level: of the noise, or more, 0..255 units. None where nobody knows what it was trained on.
    """
    trained_on = trained_levels(student)
    if trained_on is None or student.config["units"] == "noise":
        return None
    if level >= max(LITTLE[student.channels], WEAK * trained_on[0]):
        return None
    known = f", {student.name} was trained on {trained_on[0]:.2g} and more" if level < WEAK * trained_on[0] else ""
    return (
        f"noise of {level:.2g} or less{known} (of 255, white): the result may have lost more of the picture than of "
        "its noise, so compare both (--on-doubt keep writes the picture)"
    )


def little_removed(removed: float, seen: float, strided: bool) -> str:
    """The remark on a picture from which a student removed little, and whose details are stronger; 0..255 units.

    strided: whether the stride was above 1.
    """
    others = "train on such pictures (scripts/denoise_folder.sh)" if strided else "try --stride 2, and compare"
    return (
        f"little was removed, {removed:.2g} (of 255, white), of details of {seen:.2g}: these are the picture's own, or "
        "noise that the weights do not know, as of few photons, or of frames that were shifted, turned, scaled or "
        f"sharpened: {others}"
    )


def not_removed(model, one_noise: bool) -> str | None:
    """A word on a model that keeps noise which the channels have in common, where one_noise says that they have.

    None for mg and for noise of photographs, which such noise belongs to, and where nobody knows what it knows.
    """
    noise = NOISES.get((training_facts(model.values) or {}).get("noise"))
    if not one_noise or model.shared_noise or noise is None or noise.needs_color:
        return None
    return (
        f"its channels have the same noise, as a JPEG's with subsampled colour, and {model.name} takes that for the "
        "picture: try color-photo-full, and compare the result with the picture"
    )


def smoothed(model, neighbours_share: bool | None, texture: bool, one_noise: bool) -> str | None:
    """A word on what a model that was trained on shared noise alone smooths; None where the noise may be such.

    neighbours_share, texture, one_noise: what models/checks.py finds of the picture.
    """
    if model.independent_noise or not (texture or neighbours_share is False):
        return None
    kind = "gray" if model.channels == 1 else "color"
    what = (
        "what neighbouring pixels share may be texture"
        if texture
        else "the noise of neighbouring pixels is independent"
    )
    others = f"{kind}-hg-blind-full keeps it, compare"
    if one_noise:
        others = "compare the result with the picture, for other weights keep noise that channels have in common"
    return f"{what}, and {model.name} smooths fine detail as noise that they share: {others}"


def means(rows: list[dict[str, dict]]) -> dict[str, dict[str, float | None]]:
    """Mean over images of every figure of every method; None where no image has it."""
    result: dict[str, dict[str, float | None]] = {}
    for method, figures in rows[0].items():
        result[method] = {}
        for figure in figures:
            known = [row[method][figure] for row in rows if row[method][figure] is not None]
            result[method][figure] = float(np.mean(known)) if known else None
    return result


def note(what: str, words: list[str | None]) -> None:
    """Tells what is to be known of some images, of the first ones by name. None: nothing to tell of this one."""
    told = [word for word in words if word]
    if told:
        more = [f"and {len(told) - 5} more, which --json FILE has"] if len(told) > 5 else []
        print(f"note: {what}:", *told[:5], *more, sep="\n  ", file=sys.stderr)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def cell(figures: dict[str, float | None]) -> str:
    return f"{number(figures['psnr'], 2)} / {number(figures['psnr_uint8'], 2)}  {number(figures['ssim'], 4)}"


def print_table(table: dict) -> None:
    """Per image and in the mean: PSNR (float / after rounding to 8 bits) and SSIM of each method, and noise levels."""
    images, methods = table["images"], list(table["mean"])
    width = max([len(row["name"]) for row in images] + [5])
    columns = {method: max(len(method), 22) for method in methods}
    if methods:
        print("PSNR in dB (float / rounded to 8 bits), SSIM")
    added = table["noise"] is not None
    title = "level: true  estimated" if added else "noise found (file values)"
    print("  ".join([f"{'image':{width}}", *(f"{m:>{columns[m]}}" for m in methods), title]))
    for row in images:
        cells = [f"{cell(row[m]):>{columns[m]}}" for m in methods]
        level = row["noise_level"]
        levels = f"{number(level['true'], 2):>11}  {number(level['estimated'], 2):>9}"
        if not added:
            levels = f"{'-' if level['in_file'] is None else format(level['in_file'], '.4g'):>{len(title)}}"
        print("  ".join([f"{row['name']:{width}}", *cells, levels]))
    if methods:
        print("  ".join([f"{'mean':{width}}", *(f"{cell(table['mean'][m]):>{columns[m]}}" for m in methods)]))
    if table["baselines"]:
        print(f"{', '.join(table['baselines'])}: told the true level of each image, which the networks are not")
    levels = [row["noise_level"] for row in images]
    errors = [abs(v["estimated"] / v["true"] - 1) for v in levels if v["estimated"] and v["true"]]
    if errors:
        near = sum(error <= 0.05 for error in errors)
        print(f"estimated levels: mean error {np.mean(errors):.1%}, within 5% on {near} of {len(errors)} images")
    for name, value in table["seconds_per_image"].items():
        print(f"{name}: {value:.2f} seconds per image")
