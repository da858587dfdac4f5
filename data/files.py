"""Image files before their pixels are decoded: they are opened and refused here, and what all decoders need.

Files come from strangers: whatever is wrong with one ends in a UsageError of one line that names it.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from data.raw import RAW_SUFFIXES
from utils.errors import UsageError
from utils.files import shown

TIFF_SUFFIXES = (".tif", ".tiff")
MAX_PIXELS = 2**30  # a small file can claim a huge picture: more than this is refused unless asked for
ORIENTATION = 0x0112  # the tag of EXIF and of TIFF
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Pillow's own limit is lower, warns instead of refusing and does not hold for TIFF; MAX_PIXELS takes its place
Image.MAX_IMAGE_PIXELS = None
# Both write many lines to stderr about a damaged file; what matters of it is in the UsageError.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True)
class Header:
    """What a file says of its image before any pixel is decoded; height and width as shown, after any EXIF rotation.

    premultiplied: the colours of partly transparent pixels are multiplied by alpha (a kind of TIFF).
    planar: red, green and blue are planes of their own, one after the other (a kind of TIFF).
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype
    premultiplied: bool = False
    planar: bool = False


def file_and_page(path: Path) -> tuple[Path, int | None]:
    """The file that an image is in, and its page in a TIFF stack or its plane in a raw file, from 1.

    cells.tif/cells_page0003.tif is page 3 of cells.tif.
    """
    stack = Path(path).parent
    page = re.fullmatch(rf"{re.escape(stack.stem)}_page(\d+)\.tif", Path(path).name, re.DOTALL)
    return (
        (stack, int(page[1]))
        if page and stack.suffix.lower() in (*TIFF_SUFFIXES, *RAW_SUFFIXES) and not stack.is_dir()
        else (Path(path), None)
    )


def bad(path: Path, what: str) -> UsageError:
    return UsageError(f"{shown(path)} {what}")


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file that is not empty; UsageError for anything else."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise bad(path, "is a folder, not an image")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise bad(path, "is no regular file")
        if status.st_size == 0:
            raise bad(path, "is empty (0 bytes)")
        return path.open("rb")
    except FileNotFoundError:
        raise bad(
            path,
            f"is a link to {shown(os.readlink(path))}, which does not exist" if path.is_symlink() else "does not exist",
        ) from None
    except OSError as error:
        raise bad(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise bad(path, f"cannot be read: {error}") from None


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Gives the opened file that the image is in and turns whatever the decoders raise on it into a UsageError."""
    with open_file(file_and_page(path)[0]) as file:
        try:
            yield file
        except UsageError:
            raise
        except MemoryError:
            raise bad(path, "does not fit in memory; cut it into smaller images") from None
        # What decoders raise has nothing in common: OSError, SyntaxError, ValueError, struct.error, TiffFileError ..
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise bad(path, f"is no image that can be decoded, or it is damaged ({text[:120]})") from error


def check_pixels(path: Path, height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise bad(path, f"has no pixels ({width}x{height})")
    if height * width > max_pixels:
        raise bad(path, f"claims {width}x{height} pixels, more than the limit of {max_pixels}")


def is_tiff(file: BinaryIO) -> bool:
    signature = file.read(4)
    file.seek(0)
    return signature in TIFF_SIGNATURES


def rotated(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF orientation 1..8 applied to (H,W,C); any other value stands for 1."""
    pixels = pixels.transpose(1, 0, 2) if orientation in (5, 6, 7, 8) else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def from_pillow(image: Image.Image, channels: int) -> np.ndarray:
    """An 8-bit Pillow image of any mode -> (H,W,channels) uint8, with alpha as one more channel where it has any."""
    if "transparency" in image.info:
        # the only conversion that every mode has for a transparent palette entry or colour
        image = image.convert("RGBA")
    image = image.convert(("L" if channels == 1 else "RGB") + "A" * image.has_transparency_data)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def from_opencv(file: BinaryIO, page: int = 0) -> np.ndarray:
    """OpenCV's decoding as (H,W,C) in RGB order.

    It is for the deep formats that neither Pillow nor tifffile decodes. page: of a TIFF, from 0.
    """
    file.seek(0)
    _, pages = cv2.imdecodemulti(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED, range=(page, page + 1))
    if not pages:
        raise ValueError("OpenCV cannot decode it")
    pixels = np.atleast_3d(pages[0])
    return pixels[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]]
