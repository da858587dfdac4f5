"""Pictures of results: denoised images, images side by side with captions, maps as brightness, stacks put together."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from data.files import TIFF_SUFFIXES
from data.images import JPEG_SUFFIXES, write_image
from data.inputs import Input, Sample
from data.stacks import images_of, write_stack
from models.units import shown_range
from utils.files import shown

CAPTION = 22  # pixels of height
GAP = 4
# Whole numbers are too coarse for noise of less than COARSE levels, in pictures of fewer than FEW: of 8 bits, and of
# more. Rounding adds an error of 0.29 levels, and smooth frames keep a tenth of their noise. In 8 bits floats
# are written only where hardly any levels are left.
COARSE, FEW = (1.5, 5.0), (64, 4096)
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
    values at the limits of the type. It is "same" for images whose noise was added here and for JPEG and WebP. These
    and other pictures of 8 bits hold what a screen shows, where nothing is below black or above white. Only those of
    TIFF and arrays may be measurements.
    """
    dtype, suffix = source.header.dtype, source.path.suffix.lower()
    if depth == "auto" and (sample.level is not None or suffix in (*JPEG_SUFFIXES, ".webp")):
        depth = "same"
    if dtype.kind == "f" or depth == "float":
        return np.dtype(np.float32)
    if depth == "same":
        return dtype
    values, noisy = denoised.astype(np.float64) * sample.white, sample.noisy.astype(np.float64) * sample.white
    removed = float(np.nanstd(noisy - values))
    deep = dtype.itemsize > 1
    coarse = 1e-3 < removed < COARSE[deep] and 0 < np.nanmax(noisy) - np.nanmin(noisy) < FEW[deep]
    known = values[np.isfinite(values)]
    limits = np.iinfo(dtype)
    measured = deep or suffix in (*TIFF_SUFFIXES, ".npy")
    cut = measured and np.abs(known - known.clip(limits.min, limits.max)).mean() > CUT * max(removed, 1.0)
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
        values = denoised.astype(np.float64) * sample.white
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
        ends = f"{low * sample.white:.4g} to {high * sample.white:.4g}"
        stretched = {f"{name} ({ends})" if k == 0 else name: im for k, (name, im) in enumerate(stretched.items())}
    write_image(folder / f"{source.name}_all.png", side_by_side(stretched))
    if std is not None:
        write_image(folder / f"{source.name}_std.png", as_map(std, (high - low) * 25 / 255))
    if level is not None:
        level = np.broadcast_to(level, (*sample.noisy.shape[:2], 1))
        write_image(folder / f"{source.name}_level.png", as_map(level, (high - low) * 100 / 255))
    return in_floats


class Stacks:
    """The results of stacks: NAME_denoised.tif takes the place of its pages' results as soon as all of them are there.

    folder: where the results are. inputs: all images of the test.
    """

    def __init__(self, folder: Path, inputs: list[Input]) -> None:
        self.folder = folder
        self.pages: dict[Path, list[Input]] = {}  # a stack -> those of its pages that are images of the test, in order
        for source in inputs:
            if source.page:
                self.pages.setdefault(source.file, []).append(source)
        self.names: dict[Path, str] = {}
        taken = {source.name for source in inputs}
        for stack, pages in self.pages.items():
            plain = name = pages[0].name.rpartition("_page")[0]
            number = 1
            while name in taken:  # by a picture, or a stack of the same name in a folder of the same name
                number += 1
                name = f"{plain}_stack" if number == 2 else f"{plain}_stack_{number - 1}"
            taken.add(name)
            self.names[stack] = name

    def put_together(self, last: Input, bad: set[Path]) -> None:
        """Does so with the stack whose last page this image is, if it is one.

        bad: the images that were not denoised. A stack with such a page stays in pages, and a note says so.
        """
        stack, pages = last.file, self.pages.get(last.file)
        if not last.page or last != pages[-1]:
            return
        if [source.path for source in pages if source.path not in bad] != images_of(stack):
            print(
                f"note: {shown(stack)}: the results stay in single pages, since not all of its pages were denoised",
                file=sys.stderr,
            )
            return
        results = [self.folder / f"{source.name}_denoised.tif" for source in pages]
        write_stack(self.folder / f"{self.names[stack]}_denoised.tif", results, like=stack)
        for result in results:
            result.unlink()
