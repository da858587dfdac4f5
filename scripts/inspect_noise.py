"""Says how much noise is in pictures, what kind it is, and what to do about it. Nothing is denoised or trained.

    python scripts/inspect_noise.py my_pictures/
    python scripts/inspect_noise.py frames/*.tif --json noise.json --plot noise.png

All levels are in the files' own values. Of large pictures the middle is looked at, 512 pixels wide and high, or another
part where the middle is empty.

    noise       standard deviation: one number, its root mean square where it depends on the intensity
    interval    where the true level is in 95 of 100 pictures; from 0 where neighbours share the noise
    gain, read, black
                noise that grows: its variance is read^2 + gain (x - black) at the intensity x. One of read and
                black is shown, since the picture tells read^2 - gain black alone: read where black is 0, else
                the least that black may be. Neither is where values are below 0
    shared      by how many pixels the noise is blurred, if neighbouring pixels share it
    channels    greatest correlation of the noise of two colour channels
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.images import gray_of
from data.inputs import Input, Request, find_inputs, keep_inputs, read_sample
from data.sets import evenly_spaced
from models.inspection import LEAST_PIXELS, PART, Inspection
from options.inspection import InspectionOptions
from utils.advice import Advice, Looker, advise, as_record, reasons
from utils.device import choose_device
from utils.errors import EXIT_FAILURE, RunError, UsageError, run_script
from utils.figures import noise_figure, write_figure
from utils.files import atomic_write_json, counted, shown

NAMED = 20  # files that a command names


@dataclass(frozen=True)
class Inspected:
    """A picture that was looked at.

    channels, low, high: of its pixels, low and high in file values. whole: no part of it is NaN or transparent.
    """

    source: Input
    channels: int
    low: float
    high: float
    whole: bool
    found: Inspection

    @classmethod
    def of(cls, source: Input, image: np.ndarray, found: Inspection) -> Inspected:
        """image: (H,W,C), in file values; NaN where there is none."""
        low, high = float(np.nanmin(image)), float(np.nanmax(image))
        return cls(source, image.shape[2], low, high, not np.isnan(image).any(), found)

    @property
    def span(self) -> float:
        return self.high - self.low

    @property
    def of_any_scale(self) -> bool:
        """Whether it is floats beyond 0..1, which networks of white units are not trained on."""
        return self.source.header.dtype.kind == "f" and not -0.5 <= self.low <= self.high <= 1.5

    @property
    def advice(self) -> Advice:
        return advise(self.found, self.channels, self.span, self.channels != self.source.header.channels)


def main(argv: list[str] | None = None) -> int:
    opt = InspectionOptions().parse(argv)
    seen, bad = inspect(opt)
    print_table(seen)
    print_advice(seen, opt.data)
    trainable = [one.found for one in seen if one.whole]
    if len(opt.data) == 1 and any(found.shared or found.grows or found.falls for found in trainable):
        folder = shlex.join([*opt.data, "denoised/"])
        print(f"\nbetter than released weights, in one command: bash scripts/denoise_folder.sh {folder}")
    if opt.json:
        atomic_write_json(opt.json, record(seen, bad))
    if opt.plot:
        write_figure(opt.plot, noise_figure([(one.source.shown, one.found) for one in seen]))
    if bad:
        print(f"{counted(bad)} skipped:", *bad.values(), sep="\n  ", file=sys.stderr)
    return EXIT_FAILURE if bad else 0


def inspect(opt) -> tuple[list[Inspected], dict[str, str]]:
    """The pictures of opt.data, each looked at, and what is wrong with those that cannot be.

    Raises RunError where none can be used, and UsageError as find_inputs does.
    """
    look = Looker.of(opt, choose_device(opt.device, 0, opt.deterministic))
    skip = opt.on_bad == "skip"
    inputs, _ = find_inputs(Request(opt.data, opt.data_root, mode=opt.mode, skip_bad=skip, named="PICTURES"), [])
    keep_inputs(inputs, {"--json": opt.json, "--plot": opt.plot})
    if opt.most and len(inputs) > opt.most:
        inputs = [inputs[k] for k in evenly_spaced(len(inputs), opt.most)]
    seen, bad = [], {}
    for source in tqdm(inputs, desc="pictures", disable=None):
        try:
            if source.problem:
                raise UsageError(source.problem)
            sample = read_sample(source, opt.mode, None, None)
            gray = gray_of(sample.noisy)
            image = (sample.noisy if gray is None else gray) * sample.white
            found = look(image)
            if found is None:
                small = np.isfinite(image).all(2).sum() < LEAST_PIXELS
                why = f"fewer than {LEAST_PIXELS} pixels: too few" if small else "one value everywhere: no noise"
                raise UsageError(f"{shown(source.path)} has {why} to look at")
            seen.append(Inspected.of(source, image, found))
        except UsageError as error:
            if opt.on_bad == "stop":
                raise
            bad[str(source.path)] = str(error)
    if not seen:
        raise RunError(f"none of the {len(inputs)} pictures could be used; the first: {next(iter(bad.values()))}")
    return seen, bad


def print_table(seen: list[Inspected]) -> None:
    titles = ("picture", "noise", "interval", "gain", "read", "black", "shared", "channels", "at ends")
    rows = [titles, *(cells(one) for one in seen)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *others in rows:
        print("  ".join([f"{name:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(others, widths[1:]))]))
    if large := [one for one in seen if max(one.source.header.height, one.source.header.width) > PART]:
        print(f"the middle of {counted(large, 'large picture')} was looked at, {PART} pixels wide and high")


def cells(one: Inspected) -> tuple[str, ...]:
    """The row of a picture."""
    found = one.found
    return (
        one.source.shown,
        f"{found.level:.4g}",
        f"{found.interval[0]:.4g} to {found.interval[1]:.4g}",
        *("-" if value is None else f"{value:.3g}" for value in (found.gain, found.read_noise, found.black)),
        f"{found.reach:.1f} px" if found.shared else "no",
        correlation(found),
        f"{sum(found.clipped):.1%}",
    )


def correlation(found: Inspection) -> str:
    if found.channels is None or len(found.channels) == 1:
        return "-"
    apart = found.channels - np.diag(found.channels.diagonal())
    return f"{apart.flat[np.abs(apart).argmax()]:.2f}"


def print_advice(seen: list[Inspected], data: list[str] | None = None) -> None:
    """One paragraph for each kind of noise, the most frequent first.

    data: what names the pictures in the commands that denoise and train them. None: without these.
    """
    groups: dict[tuple, list[Inspected]] = {}
    for one in seen:
        groups.setdefault(one.advice.kind, []).append(one)
    for members in sorted(groups.values(), key=len, reverse=True):
        advice = members[0].advice
        words = reasons([one.advice for one in members])
        print(f"\n{len(members)} of {len(seen)} pictures ({names_of(members)}): the noise is {words}.")
        for remark in dict.fromkeys(remark for one in members for remark in one.advice.remarks):
            these = [one for one in members if remark in one.advice.remarks]
            print(f"  note{'' if these == members else f' on {names_of(these)}'}: {remark}")
        if data is None:
            continue
        print(f"  to denoise them:      {command(advice.denoising, members, seen, data)}")
        whole = [one for one in members if one.whole]
        if whole:
            training = partial(advice.training, units_of_noise=any(one.of_any_scale for one in whole))
            print(f"  to train stage 1:     {command(training, whole, seen, data)}")
        else:
            print("  parts of them are NaN or transparent, so stage 1 cannot be trained on them")


def command(of: Callable[[list[str]], str], members: list[Inspected], seen: list[Inspected], data: list[str]) -> str:
    """A command on some of the pictures that were seen: on what names them all, or on NAMED of them at most."""
    files = data if len(members) == len(seen) else [str(one.source.path) for one in members]
    more = f"   # and the {len(files) - NAMED} others of them" if len(files) > NAMED else ""
    return f"{of(files[:NAMED])}{more}"


def names_of(seen: list[Inspected]) -> str:
    return ", ".join(one.source.shown for one in seen[:3]) + (", .." if len(seen) > 3 else "")


def record(seen: list[Inspected], bad: dict[str, str]) -> dict:
    """All that --json holds."""
    images = [
        {
            "name": one.source.shown,
            "path": str(one.source.path),
            "channels_number": one.channels,
            **as_record(one.found),
            "advice": vars(one.advice) | {"reasons": reasons([one.advice]), "remarks": list(one.advice.remarks)},
        }
        for one in seen
    ]
    return {"images": images, "skipped": bad}


if __name__ == "__main__":
    run_script(main)
