"""Raw camera files: DNG with a Bayer pattern, as four gray planes.

A sensor's pixels have independent noise, which demosaicking would spread. Each of the four pixels of the pattern gives
a plane of half the size. A file is treated as a folder of its planes, as a TIFF stack is of its pages (data/stacks.py):
photo.dng/photo_page0001.tif. They are those of the even rows, left and right, then of the odd rows. Values are
linear: 0 is black and 1 is white, by the levels in the file.

tifffile decodes the pixels. Compressed or packed ones need the package imagecodecs.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC, TiffPage

from utils.errors import UsageError
from utils.files import shown

RAW_SUFFIXES = (".dng",)
PLANES = 4


def is_raw(path: Path) -> bool:
    return path.suffix.lower() in RAW_SUFFIXES


def bayer_page(path: Path, tiff: tifffile.TiffFile) -> TiffPage:
    """The page with the sensor's pixels; others are previews. UsageError where no page has a Bayer pattern."""
    pages = [page for top in tiff.pages for page in (top, *(top.pages or ()))]
    for page in pages:
        if page.photometric == PHOTOMETRIC.CFA and not page.is_reduced:
            if values(page, "CFARepeatPatternDim", [2, 2]) == [2, 2] and page.samplesperpixel == 1:
                return page
            raise UsageError(f"{shown(path)} has no Bayer pattern of 2x2 pixels; develop it into a 16-bit TIFF")
    raise UsageError(f"{shown(path)} holds no pixels of a Bayer sensor; save it as DNG that is not demosaicked")


def plane_size(page: TiffPage) -> tuple[int, int]:
    """Height and width of each plane; an odd last row or column of the sensor is left out."""
    top, left, bottom, right = active_area(page)
    return (bottom - top) // 2, (right - left) // 2


def read_plane(path: Path, page: TiffPage, number: int) -> np.ndarray:
    """Plane 1..4, (H,W,1) float32, black at 0 and white at 1."""
    height, width = plane_size(page)
    top, left, *_ = active_area(page)
    rows, columns = (2 * np.arange(n) + odd for n, odd in zip((height, width), divmod(number - 1, 2)))
    pixels = decode(path, page)[top + rows[:, None], left + columns]
    table = values(page, "LinearizationTable", [])
    if table:
        pixels = np.array(table)[pixels.clip(0, len(table) - 1)]
    black = black_level(page, rows, columns)
    (white, *_) = values(page, "WhiteLevel", [1 if page.dtype.kind == "f" else 2**page.bitspersample - 1])
    if white <= black.max():
        raise UsageError(f"{shown(path)}: its white level, {float(white):g}, is not above its black level")
    return ((pixels - black) / (float(white) - black)).astype(np.float32)[..., None]


def decode(path: Path, page: TiffPage) -> np.ndarray:
    try:
        return page.asarray().reshape(page.imagelength, page.imagewidth)
    except Exception as error:  # its kind depends on the compression
        if "imagecodecs" in str(error):
            raise UsageError(
                f"{shown(path)} is compressed: install the package imagecodecs (pip install imagecodecs), or save it "
                "without compression"
            ) from None
        raise


def active_area(page: TiffPage) -> list[int]:
    """Top, left, bottom and right of the pixels that light reaches."""
    return [int(value) for value in values(page, "ActiveArea", [0, 0, page.imagelength, page.imagewidth])]


def black_level(page: TiffPage, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The value of black at rows and columns of the active area: a repeated pattern and what rows and columns add."""
    top, left, bottom, right = active_area(page)
    high, wide = (int(value) for value in values(page, "BlackLevelRepeatDim", [1, 1]))
    pattern = np.array(values(page, "BlackLevel", [0] * high * wide), float).reshape(high, wide)
    across = np.array(values(page, "BlackLevelDeltaH", [0] * (right - left)), float)
    down = np.array(values(page, "BlackLevelDeltaV", [0] * (bottom - top)), float)
    return pattern[rows[:, None] % high, columns % wide] + across[columns] + down[rows, None]


def values(page: TiffPage, name: str, default: list) -> list:
    """The numbers of a tag. Where the file has them as fractions they are Fraction."""
    tag = page.tags.get(name)
    if tag is None:
        return default
    found = list(tag.value) if isinstance(tag.value, tuple | bytes | np.ndarray) else [tag.value]
    if tag.dtype in (tifffile.DATATYPE.RATIONAL, tifffile.DATATYPE.SRATIONAL):
        return [Fraction(a, b) for a, b in zip(found[::2], found[1::2])]
    return found
