"""Pictures of results: denoised images, images side by side with captions, maps as brightness, stacks put together."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from data.images import TIFF_SUFFIXES, write_image
from data.inputs import Input, Sample
from data.stacks import images_of, write_stack

CAPTION = 22  # pixels of height
GAP = 4


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
    """Mean over channels of a map (H,W,C), as a gray image (H,W,1) in which `highest` is white."""
    return (values.mean(2, keepdims=True) / highest).clip(0, 1)


def save_pictures(
    folder: Path,
    source: Input,
    sample: Sample,
    images: dict[str, np.ndarray],
    std: np.ndarray | None = None,
    level: np.ndarray | None = None,
) -> None:
    """Writes the results of one image under its name.

    images: the noisy one, then each result (H,W,C) by its method.

        NAME_denoised   the last result alone, with the input's format, depth and units
        NAME_all.png    everything side by side
        NAME_std.png    the posterior's standard deviation, white at 25 (of 255)
        NAME_level.png  the estimated noise level, white at 100

    Of a page of a stack the last result alone is written.
    """
    if len(images) > 1:
        tiff = source.path.suffix.lower() in TIFF_SUFFIXES
        bits = {"uint8": 8, "uint16": 16}.get(source.header.dtype.name, 32)
        units = sample.white_level / {8: 255, 16: 65535, 32: 1}[bits] if sample.white_level else 1.0
        target = folder / f"{source.name}_denoised{source.path.suffix.lower() if tiff else '.png'}"
        *_, denoised = images.values()
        write_image(target, denoised * units, bits=bits, like=source.path if tiff and not source.page else None)
    if source.page:
        return
    if sample.clean is not None:
        images = images | {"clean": sample.clean}
    write_image(folder / f"{source.name}_all.png", side_by_side(images))
    if std is not None:
        write_image(folder / f"{source.name}_std.png", as_map(std, 25 / 255))
    if level is not None:
        level = np.broadcast_to(level, (*sample.noisy.shape[:2], 1))
        write_image(folder / f"{source.name}_level.png", as_map(level, 100 / 255))


def put_stacks_together(folder: Path, inputs: list[Input], bad: set[Path]) -> None:
    """Writes NAME_denoised.tif of each stack in place of its pages' results.

    bad: the images that were not denoised. A stack with such a page stays in pages.
    """
    names = {source.path: source.name for source in inputs}
    stacks: dict[Path, list[Path]] = {}  # a stack -> its pages, in order
    for source in inputs:
        if source.page and source.path not in bad:
            stacks.setdefault(source.file, []).append(source.path)
    for stack, pages in stacks.items():
        if pages != images_of(stack):
            print(
                f"note: {stack}: the results stay in single pages, since not all of its pages were denoised",
                file=sys.stderr,
            )
            continue
        results = [folder / f"{names[page]}_denoised.tif" for page in pages]
        name = names[pages[0]].rpartition("_page")[0]
        if name in names.values():
            name += "_stack"
        write_stack(folder / f"{name}_denoised.tif", results, like=stack)
        for result in results:
            result.unlink()
