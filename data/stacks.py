"""TIFF stacks: many images in one file, such as a microscope's sections, channels and moments.

A stack is treated as a folder of its pages. Page 3 of cells.tif is the image cells.tif/cells_page0003.tif, gray or RGB, independent of the others; its
results are named by it, and put together in a stack again at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tifffile

from data.images import TIFF_SUFFIXES, file_and_page, is_tiff, open_file
from utils.errors import UsageError
from utils.files import atomic_path


def images_of(file: Path) -> list[Path]:
    """The images of a file: its pages where it is a TIFF of several, thumbnails left out, else itself.

    A file that cannot be read is left to whoever reads it, who says what is wrong.
    """
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return [file]
    try:
        with open_file(file) as opened:
            if not is_tiff(opened):
                return [file]
            with tifffile.TiffFile(opened) as tiff:
                numbers = [k for k, page in enumerate(tiff.pages, 1) if not page.is_reduced]
    except UsageError:
        return [file]
    except Exception:  # what tifffile raises on a damaged file has nothing in common
        return [file]
    return [file / f"{file.stem}_page{k:04d}.tif" for k in numbers] if len(numbers) > 1 else [file]


def whole_stacks(images: list[Path]) -> Iterator[tuple[Path, list[int]]]:
    """The stacks of which every page is among the images, and where in the list their pages are."""
    places = {image: k for k, image in enumerate(images)}
    for stack in dict.fromkeys(file for file, page in map(file_and_page, images) if page):
        pages = images_of(stack)
        if all(page in places for page in pages):
            yield stack, [places[page] for page in pages]


def write_stack(path: Path, pages: list[Path], like: Path) -> None:
    """Puts TIFF files of one page together in one, in order; atomically. RunError where the disk refuses.

    like: the stack whose pages they are made from. Where that is ImageJ's, so is the result, with its sections, channels, moments and pixel sizes.
    """
    arrays = (tifffile.imread(page) for page in pages)
    first = tifffile.imread(pages[0])
    photometric = "minisblack" if first.ndim == 2 else "rgb"
    with tifffile.TiffFile(like) as original, atomic_path(path) as temporary:
        series, page = original.series[0], original.pages[0]
        if original.is_imagej and series.shape[-first.ndim :] == first.shape and series.dtype == first.dtype:
            known = original.imagej_metadata or {}
            metadata = {"axes": series.axes} | {name: known[name] for name in ("unit", "spacing", "finterval") if name in known}
            pixels = dict(shape=series.shape, dtype=first.dtype, photometric=photometric, resolution=page.resolution, resolutionunit=page.resolutionunit)
            tifffile.imwrite(temporary, arrays, imagej=True, metadata=metadata, **pixels)
        else:
            with tifffile.TiffWriter(temporary, bigtiff=first.nbytes * len(pages) > 2**31) as writer:
                for array in arrays:
                    writer.write(array, photometric=photometric, compression="zlib", metadata=None)
