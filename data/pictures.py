"""Pictures of results: denoised images, images side by side with captions, maps as brightness, stacks put together."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from data.files import TIFF_SUFFIXES
from data.images import write_image
from data.inputs import Input, Sample
from data.stacks import images_of, write_stack
from models.units import shown_range
from utils.files import shown

CAPTION = 22  # pixels of height
GAP = 4
COARSE, FEW = 1.5, 64  # whole numbers are too coarse for noise below COARSE levels in pictures of fewer than FEW levels
SHOWN = (".jpg", ".jpeg", ".webp")  # files that hold what a screen shows
CUT = 0.02  # of the noise: what a type's limits may cut off the values in the mean


def side_by_side(images: dict[str, np.ndarray]) -> np.ndarray:
    """Captioned images (H,W,C) 0..1 of one size -> one strip (H',W',C') uint8; colour where any of them is."""
    channels = max(im.shape[2] for im in images.values())
    columns = []
    for caption, image in images.items():
        pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], channels))
        top = np.full((CAPTION, pixels.shape[1], channels), 255, np.uint8)
        cv2.putText(top, caption, (4, CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0,) * channels, 1, cv2.LINE_AA)
        columns += [np.concatenate([top, pixels]), np.full((CAPTION + pixels.shape[0], GAP, channels), 255, np.uint8)]
    return np.concatenate(columns[:-1], 1)


def as_map(values: np.ndarray, highest: float) -> np.ndarray:
    """Mean over channels of a map (H,W,C), as a gray image (H,W,1), 0..255, in which `highest` is white."""
    return 255 * (values.mean(2, keepdims=True) / highest).clip(0, 1)


def file_type(source: Input, sample: Sample, denoised: np.ndarray, depth: str) -> np.dtype:
    """The type of a result's file values: that of its input, or float32.

    depth: "same", "float", or "auto": float32 where whole numbers are too coarse, as for photon counts, or would cut
    values at the limits of the type. It is "same" for images whose noise was added here, and for files that hold what a
    screen shows, where nothing is above white.
    """
    dtype = source.header.dtype
    if depth == "auto" and (sample.level is not None or source.path.suffix.lower() in SHOWN):
        depth = "same"
    if dtype.kind == "f" or depth == "float":
        return np.dtype(np.float32)
    if depth == "same":
        return dtype
    values, noisy = denoised.astype(np.float64) * sample.unit, sample.noisy.astype(np.float64) * sample.unit
    removed = float(np.nanstd(noisy - values))
    coarse = removed < COARSE and 0 < np.nanmax(noisy) - np.nanmin(noisy) < FEW
    known = values[np.isfinite(values)]
    limits = np.iinfo(dtype)
    cut = np.abs(known - known.clip(limits.min, limits.max)).mean() > CUT * max(removed, 1.0)
    return np.dtype(np.float32) if coarse or cut else dtype


def save_pictures(
    folder: Path,
    source: Input,
    sample: Sample,
    images: dict[str, np.ndarray],
    std: np.ndarray | None = None,
    level: np.ndarray | None = None,
    depth: str = "auto",
) -> bool:
    """Writes the results of one image under its name. Returns whether the last one is floats, in place of integers.

    images: the noisy one, then each result (H,W,C) by its method. depth: see file_type.

        NAME_denoised   the last result alone, with the input's format, depth and units
        NAME_all.png    everything side by side
        NAME_std.png    the posterior's standard deviation, white at 25 (of 255)
        NAME_level.png  the estimated noise level, white at 100

    Where the clean image, or else the noisy one, is outside of 0..1 or fills a small part of it, black and white are
    the ends of its range, as the caption says, and 25 and 100 are of 255 parts of it. Of a page of a stack the last
    result alone is written.
    """
    in_floats = False
    if len(images) > 1:
        *_, denoised = images.values()
        denoised = denoised if sample.hidden is None else np.where(np.isnan(sample.hidden), denoised, sample.hidden)
        dtype = file_type(source, sample, denoised, depth)
        in_floats = dtype.kind == "f" and source.header.dtype.kind != "f"
        suffix = source.path.suffix.lower()
        if suffix not in (*TIFF_SUFFIXES, ".npy"):
            suffix = ".tif" if dtype.itemsize > 2 else ".png"
        target = folder / f"{source.name}_denoised{suffix}"
        values = denoised.astype(np.float64) * sample.unit
        like, alpha = None if source.page else source.path, sample.alpha
        if alpha is not None and dtype.kind == "f":
            alpha = alpha.astype(np.float32) / np.float32(np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1)
        premultiplied = source.header.premultiplied
        write_image(target, values, dtype, like, holes=True, alpha=alpha, premultiplied=premultiplied)
    if source.page:
        return in_floats
    if sample.clean is not None:
        images = images | {"clean": sample.clean}
    low, high = shown_range(sample.noisy if sample.clean is None else sample.clean)  # noise may reach far beyond
    stretched = {name: np.nan_to_num((image - low) / (high - low), nan=0.0) for name, image in images.items()}
    if (low, high) != (0.0, 1.0):
        ends = f"{low * sample.unit:.4g} to {high * sample.unit:.4g}"
        stretched = {f"{name} ({ends})" if k == 0 else name: im for k, (name, im) in enumerate(stretched.items())}
    write_image(folder / f"{source.name}_all.png", side_by_side(stretched))
    if std is not None:
        write_image(folder / f"{source.name}_std.png", as_map(std, (high - low) * 25 / 255))
    if level is not None:
        level = np.broadcast_to(level, (*sample.noisy.shape[:2], 1))
        write_image(folder / f"{source.name}_level.png", as_map(level, (high - low) * 100 / 255))
    return in_floats


def put_stacks_together(folder: Path, inputs: list[Input], bad: set[Path]) -> None:
    """Writes NAME_denoised.tif of each stack in place of its pages' results.

    bad: the images that were not denoised. A stack with such a page stays in pages.
    """
    names = {source.path: source.name for source in inputs}
    taken = set(names.values())
    stacks: dict[Path, list[Path]] = {}  # a stack -> its pages, in order
    for source in inputs:
        if source.page and source.path not in bad:
            stacks.setdefault(source.file, []).append(source.path)
    for stack, pages in stacks.items():
        if pages != images_of(stack):
            print(
                f"note: {shown(stack)}: the results stay in single pages, since not all of its pages were denoised",
                file=sys.stderr,
            )
            continue
        results = [folder / f"{names[page]}_denoised.tif" for page in pages]
        plain = name = names[pages[0]].rpartition("_page")[0]
        number = 1
        while name in taken:  # by a picture, or a stack of the same name in a folder of the same name
            number += 1
            name = f"{plain}_stack" if number == 2 else f"{plain}_stack_{number - 1}"
        taken.add(name)
        write_stack(folder / f"{name}_denoised.tif", results, like=stack)
        for result in results:
            result.unlink()
