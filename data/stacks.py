"""TIFF stacks: many images in one file, such as a microscope's sections, channels and moments.

A stack is treated as a folder of its pages. Page 3 of cells.tif is the image cells.tif/cells_page0003.tif, gray or
RGB, independent of the others; its results are named by it, and put together in a stack again at the end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from data.files import TIFF_SUFFIXES, is_tiff, open_file
from data.raw import PLANES, is_raw
from data.tiff import calibration
from utils.files import atomic_path


def images_of(file: Path) -> list[Path]:
    """The images of a file: its pages where it is a TIFF of several, thumbnails left out, else itself.

    Those of a raw camera file are its four planes.

    A file that cannot be read is left to whoever reads it, who says what is wrong.
    """
    if is_raw(file):
        return [page_of(file, k) for k in range(1, PLANES + 1)]
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return [file]
    try:
        with open_file(file) as opened:
            if not is_tiff(opened):
                return [file]
            with tifffile.TiffFile(opened) as tiff:
                numbers = [k for k, page in enumerate(tiff.pages, 1) if not page.is_reduced]
    except Exception:  # what tifffile raises on a damaged file has nothing in common
        return [file]
    return [page_of(file, k) for k in numbers] if len(numbers) > 1 else [file]


def page_of(file: Path, number: int) -> Path:
    """The name of a page, from 1."""
    return file / f"{file.stem}_page{number:04d}.tif"


def write_stack(path: Path, pages: list[Path], like: Path) -> None:
    """Puts TIFF files of one page together in one, in order, atomically.

    like: the stack whose pages they are made from, and its pixel sizes. Where it is ImageJ's or OME's, so is the
    result, with its sections, channels and moments.

    Raises RunError where the disk refuses.
    """
    first = tifffile.imread(pages[0])
    dtype = np.result_type(*(tifffile.imread(page).dtype for page in pages))  # a page alone may need floats
    arrays, first = (tifffile.imread(page).astype(dtype) for page in pages), first.astype(dtype)
    alpha = [alpha_of(page) for page in pages]
    options = calibration(like, first, len(pages))
    if any(alpha):  # ImageJ and OME have no such channel
        options = {name: options[name] for name in ("resolution", "resolutionunit") if name in options}
    with atomic_path(path) as temporary:
        if "metadata" in options:
            with tifffile.TiffFile(like) as original:
                shape = original.series[0].shape
            compression = "zlib" if "ome" in options else None  # ImageJ reads no compressed stacks of its own form
            tifffile.imwrite(
                temporary,
                arrays,
                shape=shape,
                dtype=first.dtype,
                photometric=photometric(first),
                compression=compression,
                **options,
            )
        else:
            with tifffile.TiffWriter(temporary, bigtiff=first.nbytes * len(pages) > 2**31) as writer:
                for array, extra in zip(arrays, alpha):
                    form = dict(photometric=photometric(array), compression="zlib", metadata=None) | extra
                    writer.write(array, **form, **options)


def photometric(pixels: np.ndarray) -> str:
    """What tifffile is to call the samples of a gray (H,W) or RGB (H,W,3) page, with alpha (H,W,2) or (H,W,4)."""
    return "minisblack" if pixels.ndim == 2 or pixels.shape[2] == 2 else "rgb"


def alpha_of(page: Path) -> dict:
    """The option of tifffile.imwrite for the alpha channel of a TIFF file; empty where it has none."""
    with tifffile.TiffFile(page) as tiff:
        kinds = tiff.pages[0].extrasamples
        return {"extrasamples": kinds} if kinds else {}
