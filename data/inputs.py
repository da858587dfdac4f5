"""The images of a test: found, checked by their headers, and read one by one."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data.files import Header, file_and_page
from data.images import (
    CHANNELS,
    as_gray,
    check_white,
    converted,
    decoded,
    gray_of,
    image_header,
    read_image,
    to_float,
)
from data.sets import SETS, find_images
from models.noise import NOISES, NoiseModel
from models.noise.in_turn import InTurn
from models.outliers import filled, outlying
from models.units import full_scale, other_scale
from utils.baselines import SMALLEST_SIDE
from utils.errors import UsageError
from utils.files import shown

# The slope of a noisy image over its clean one may be so many times more or less than 1. It counts where they correlate
# by so many standard errors.
FAR, CERTAIN = 3, 10
# Bytes of an output's name: file systems take 255, and the endings of results and temporary files come to it.
LONGEST = 200


@dataclass(frozen=True)
class Input:
    """One image of a test, as it is known before its pixels are read.

    path: the image as it was found; file and page: where it is stored (data.files.file_and_page).
    reference: its clean image, where one is given. name: the stem of its outputs. shown: its name in tables.
    header: None where the image cannot be used; problem then says why.
    """

    path: Path
    file: Path
    page: int | None
    reference: Path | None
    name: str
    shown: str
    header: Header | None = None
    problem: str | None = None


def keep_inputs(inputs: Iterable[Input], outputs: Mapping[str, Path | None]) -> None:
    """Raises UsageError where an output, a file or folder by its flag, is one of the images, or a folder they are in.

    The images are the noisy ones and their clean ones.
    """
    given = {file for source in inputs for file in (source.file, source.reference) if file is not None}
    files = {file_and_page(file)[0].resolve() for file in given}
    for flag, output in outputs.items():
        if output is not None and output.resolve() in files:
            raise UsageError(f"{flag} {shown(output)} is one of the images themselves; give the name of a new file")
        if output is not None and output.resolve() in {file.parent for file in files}:
            raise UsageError(
                f"{flag} {shown(output)} is the folder of the images themselves; give another, so that none is "
                "overwritten"
            )


@dataclass(frozen=True)
class Sample:
    """The pixels of an input: noisy and clean, (H,W,C) float32; level: the true one, 0..255 units.

    clean and level are None where unknown. noisy is NaN where the file is, and in transparent parts.
    white: the file value that is 1.0.
    alpha: (H,W) of the file's type, None where all is opaque. hidden: what the file has in transparent parts, elsewhere
    NaN; None where there are none. merged: whether noisy is a mean of different channels.
    planes: whether it is in colour, and its file holds the channels as planes of their own.
    """

    noisy: np.ndarray
    clean: np.ndarray | None = None
    level: float | None = None
    white: float = 1.0
    alpha: np.ndarray | None = None
    hidden: np.ndarray | None = None
    merged: bool = False
    planes: bool = False


@dataclass(frozen=True)
class Request:
    """Which images are wanted, and what for: the flags of test.py of the same names.

    named: what messages call the argument that names the images.
    published: the noise is that of a published protocol, and its images are files of a known scale.
    skip_bad: an image's own problem is noted in its Input, and is no error.
    """

    data: list[str]
    data_root: Path | None = None
    clean: list[str] | None = None
    mode: str | None = None
    noise: str | None = None
    baselines: tuple[str, ...] = ()
    white_level: float | None = None
    published: bool = False
    skip_bad: bool = False
    named: str = "--data"


def find_inputs(request: Request, models: list) -> tuple[list[Input], float | None]:
    """The images that are wanted, in order, and the file value that is 1.0 in them (None: by the file's type).

    Raises UsageError where options, checkpoints and images do not go together.
    """
    paths = find_images(request.data, request.data_root, request.named)
    references: list = [None] * len(paths)
    if request.clean:
        references = matching(paths, find_images(request.clean, request.data_root, "--clean", repeats=True))
        for path, reference in zip(paths, references):
            if os.path.realpath(path) == os.path.realpath(reference):
                raise UsageError(f"--clean: {shown(path)} is an image of --data too: name its clean partner")
        pairs = [f"{shown(path.name)} with {shown(clean.name)}" for path, clean in zip(paths, references)]
        if paths[0].stem != references[0].stem and not SETS.keys() >= set(request.clean):
            print(
                f"note: --clean has other names, so pairs are made in order: {pairs[0]} .. {pairs[-1]}", file=sys.stderr
            )
    channels = agreed_channels(request, models)
    white_level = request.white_level or (None if request.published else learned_white_level(models))
    unique = len({path.name for path in paths}) == len(paths)
    inputs = []
    for path, reference, name in zip(paths, references, output_names(paths)):
        header = problem = None
        try:
            header = checked_header(path, request, models, channels, white_level, len(paths) > 1)
        except UsageError as error:
            if not request.skip_bad:
                raise
            problem = str(error)
        label = shown(path.name if unique else path)
        inputs.append(Input(path, *file_and_page(path), reference, name, label, header, problem))
    return inputs, white_level


def repeated(inputs: list[Input], times: int) -> list[Input]:
    """All images, then all of them again, so many times; the names of the outputs say which time it is."""
    if times == 1:
        return inputs
    return [
        replace(one, name=f"{one.name}_{k + 1}", shown=f"{one.shown} ({k + 1})") for k in range(times) for one in inputs
    ]


def matching(files: list[Path], references: list[Path]) -> list[Path]:
    """The clean image of each noisy one: by equal stems where all have one of their own, in order where none has.

    Raises UsageError where some have one and others have not, or where their numbers differ.
    """
    by_stem = {f.stem: f for f in references}
    unique = len(by_stem) == len(references) and len({f.stem for f in files}) == len(files)
    alone = [f for f in files if f.stem not in by_stem]
    if unique and not alone:
        return [by_stem[f.stem] for f in files]
    if len(files) != len(references):
        counts = f"images of --clean: {len(references)}, of --data: {len(files)}"
        raise UsageError(
            f"{counts}: give one clean image for each, with the same names or in the same order; one of several is "
            "named as often"
        )
    if unique and len(alone) < len(files):
        raise UsageError(
            f"--clean: {len(files) - len(alone)} of the {len(files)} images of --data have a clean image of the same "
            f"name there, {shown(alone[0])} has none: give every pair one name, or leave such images out"
        )
    return references


def output_names(files: list[Path]) -> list[str]:
    """A stem for each input's outputs: its own.

    Where stems repeat its folder's name stands before it, or the file's ending behind it, or both: the first that is
    of one file alone. A number stands behind it where all of that repeats. A name that is too long loses its beginning.
    """

    def ways(file: Path) -> list[str]:
        ending = f"{file.stem}_{file.suffix[1:]}"
        found = [file.stem, f"{file.parent.name}_{file.stem}", ending, f"{file.parent.name}_{ending}"]
        return [name if file.parent.name else name.lstrip("_") for name in found]

    counts = Counter(way for file in files for way in set(ways(file)))
    names: dict[str, None] = {}
    for file in files:
        name = next((way for way in ways(file) if counts[way] == 1), ways(file)[-1])
        if len(os.fsencode(name)) > LONGEST:
            name = os.fsencode(name)[-LONGEST:].decode(errors="ignore")  # the end has the number of a page
        candidate, k = name, 2
        while candidate in names:
            candidate, k = f"{name}_{k}", k + 1
        names[candidate] = None
    return list(names)


def needs_colour(noise: str | None) -> bool:
    """Whether a noise model of --noise describes correlated colour channels."""
    return noise is not None and NOISES[noise].needs_color


def agreed_channels(request: Request, models: list) -> int | None:
    """1, 3 or None (as stored). UsageError where checkpoints, --mode and --noise do not go together."""
    wanted = {model.channels for model in models}
    given = CHANNELS.get(request.mode)
    if needs_colour(request.noise) and given == 1:
        problem = "describes correlated colour channels and makes no sense with --mode gray"
        raise UsageError(f"--noise {request.noise} {problem}")
    if len(wanted) > 1:
        raise UsageError("--checkpoint: gray and colour checkpoints together; test them one after the other")
    channels = wanted.pop() if wanted else given
    if given and channels != given:
        takes = f"{models[0].file} takes {channels} channel{'s' if channels > 1 else ''}"
        raise UsageError(f"--mode {request.mode}: {takes}, so leave --mode out or use another checkpoint")
    return channels


def learned_white_level(models: list) -> float | None:
    """The file value that was white in the training of models with a noise level that is learned."""
    levels = {model.values["white_level"] for model in models if model.level_is_learned} or {None}
    if len(levels) > 1:
        problem = f"trained with different white levels ({', '.join(str(v) for v in levels)})"
        raise UsageError(f"--checkpoint: {problem}; say which with --white-level")
    return levels.pop()


def checked_header(
    path: Path, request: Request, models: list, channels: int | None, white_level: float | None, several: bool
) -> Header:
    """The image's header. UsageError where it cannot be read, or does not fit baselines, noise or checkpoints.

    several: whether there are others, which may fit.
    """
    header = image_header(path)
    found = header.channels
    if any(model.level_is_learned for model in models) and not (request.white_level or request.published):
        refuse_other_scale(path, white_level, header.dtype)
    if request.baselines and min(header.height, header.width) < SMALLEST_SIDE:
        size = f"{header.width}x{header.height}"
        smallest = f"{SMALLEST_SIDE}x{SMALLEST_SIDE}"
        raise UsageError(
            f"--baseline {request.baselines[0]}: {shown(path)} is {size}; images of {smallest} or more are needed"
        )
    if needs_colour(request.noise) and (channels or found) != 3:
        problem = f"describes correlated colour channels, but {shown(path)} is gray"
        raise UsageError(f"--noise {request.noise} {problem}: give colour images")
    if not request.mode and channels and found != channels:
        differ = f"{shown(path)} has {found} channel{'s' if found > 1 else ''}, {models[0].file} takes {channels}"
        gray = "use a gray checkpoint, such as gray-hg-blind-full"
        remedy = gray if found == 1 else "pass --mode gray to convert, or use a color checkpoint"
        others = ", or leave such files out with --on-bad skip" if several else ""
        raise UsageError(f"{differ}: {remedy}{others}")
    return header


def read_sample(
    source: Input, mode: str | None, white_level: float | None, noise: NoiseModel | InTurn | None
) -> Sample:
    """The pixels of an input, with noise added where a noise is given. Raises UsageError as read_image does.

    A clean image of floats may have the units of a noisy file of whole numbers, see `white_of_floats`.
    """
    white = white_level or full_scale(source.header.dtype)
    pixels = decoded(source.path)
    image = to_float(converted(source.path, pixels, mode, white_level, holes=noise is None))
    if noise:
        check_white(source.path, image, white_level)
        x = image.transpose(2, 0, 1).astype(np.float64)
        noisy = noise.published(x).transpose(1, 2, 0).astype(np.float32)
        return Sample(noisy, image, 255 * noise.rms(x), white)
    in_colour = mode == "gray" and source.header.channels == 3
    merged = in_colour and gray_of(converted(source.path, pixels, holes=True)) is None
    planes = source.header.planar and image.shape[2] == 3
    sample = with_alpha(Sample(image, white=white, merged=merged, planes=planes), pixels, mode)
    if source.reference is None:
        return sample
    floats = image_header(source.reference).dtype.kind == "f" and source.header.dtype.kind != "f"
    clean = to_float(read_image(source.reference, mode, None if floats else white_level, holes=True))
    if clean.shape != image.shape:
        shapes = f"--clean {shown(source.reference)} is {clean.shape}, {shown(source.path)} {image.shape}"
        raise UsageError(f"{shapes} (rows, columns, channels): they must show the same picture")
    if floats:
        of_clean = white_of_floats(clean, image, white)
        if of_clean is None:
            raise UsageError(
                f"--clean {shown(source.reference)} has values of another scale than {shown(source.path)}, be they in "
                f"0..1 or with {white:g} as white: give clean values in the noisy file's units, or say with "
                "--white-level what is white in it"
            )
        clean = (clean / of_clean).astype(np.float32)
    return replace(sample, clean=clean)


def check_scale(source: Input, sample: Sample, white_level: float | None) -> None:
    """Refuses values of another scale than that of the training of a model with a learned noise level.

    Hot and dead pixels do not count.
    """
    seen = outlying(filled(torch.from_numpy(sample.noisy.transpose(2, 0, 1).copy())[None]))[0]
    low, high = float(seen.min()) * sample.white, float(seen.max()) * sample.white
    refuse_other_scale(source.path, white_level, source.header.dtype, low, high)


def refuse_other_scale(path: Path, white_level: float | None, *values) -> None:
    """Raises UsageError where models.units.other_scale says why of the values."""
    if problem := other_scale(white_level, *values):
        raise UsageError(f"{shown(path)} {problem}: say with --white-level what is white here")


def white_of_floats(clean: np.ndarray, noisy: np.ndarray, noisy_white: float) -> float | None:
    """The value that is white in clean floats: 1, or that of the noisy file of whole numbers. None: neither can be.

    noisy: 0..1, of the same shape. noisy_white: the value in its file that is white. With the right white the slope of
    noisy over clean values is 1. Noise and an offset do not change it, clipping makes it less. Where the two have
    nothing in common, as flat pictures, the nearer mean decides.
    """
    known = ~(np.isnan(clean) | np.isnan(noisy))
    x, y = clean[known].astype(np.float64), noisy[known].astype(np.float64)
    if not known.any():
        return 1.0
    together, of_clean, of_noisy = ((x - x.mean()) * (y - y.mean())).mean(), x.var(), y.var()
    flat = min(np.ptp(x), np.ptp(y)) == 0
    if flat or together <= CERTAIN * math.sqrt(of_clean * of_noisy / x.size):
        return noisy_white if abs(x.mean() / noisy_white - y.mean()) < abs(x.mean() - y.mean()) else 1.0
    distance, white = min((abs(math.log(together / of_clean * white)), white) for white in (1.0, noisy_white))
    return white if distance < math.log(FAR) else None


def with_alpha(sample: Sample, pixels: np.ndarray, mode: str | None) -> Sample:
    """The sample with the alpha channel of its file, whose pixels are given, and what is in the transparent parts."""
    if pixels.shape[2] not in (2, 4) or (pixels[..., -1] == full_scale(pixels.dtype)).all():
        return sample
    alpha, colours = pixels[..., -1], pixels[..., :-1] / np.float32(sample.white)
    if mode == "gray" and colours.shape[2] == 3:
        colours = as_gray(colours)
    colours = np.broadcast_to(colours, sample.noisy.shape)
    return replace(sample, alpha=alpha, hidden=np.where((alpha == 0)[..., None], colours, np.nan).astype(np.float32))
