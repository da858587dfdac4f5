"""Reading and writing single images: PNG, JPEG, BMP and TIFF, of 8 and 16 bits, and float TIFF.

In memory an image is (H,W,C), C = 1 or 3, RGB order: uint8 as stored, or float32 in which 1.0 is white. Files come from strangers: whatever is wrong with one
ends in a UsageError of one line that names it, and its size is checked before its pixels are decoded.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps

from utils.errors import UsageError
from utils.files import atomic_write_bytes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 2**30  # a small file can claim a huge picture: more than this is refused unless asked for
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
EXIF_ORIENTATION = 0x0112

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower, warns instead of refusing and does not hold for TIFF; MAX_PIXELS takes its place


@dataclass(frozen=True)
class Header:
    """What a file says of its image before any pixel is decoded; height and width as shown, after any EXIF rotation."""

    height: int
    width: int
    channels: int
    dtype: np.dtype


def image_header(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Raises UsageError as read_image does."""
    with reading(path) as data:
        return tiff_header(path, data, max_pixels) if is_tiff(data) else pillow_header(path, data, max_pixels)[1]


def read_image(path: Path, mode: str | None = None, white_level: float | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image (H,W,C): uint8 for 8-bit files where white_level is None, else float32 with white at 1.0.

    mode: None leaves the channels as stored, "gray" converts to luma (ITU-R 601), "color" repeats a gray image.
    white_level: the file value that becomes 1.0; None: 255 or 65535 by the file's depth, 1.0 for float files.
    Raises UsageError for files that are missing, unreadable, damaged, larger than max_pixels, transparent, not finite, or of another kind.
    """
    with reading(path) as data:
        image = decode_tiff(path, data, max_pixels) if is_tiff(data) else decode_with_pillow(path, data, max_pixels)
    if image.dtype.kind == "f":
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise bad(path, "holds values that are not finite (NaN or infinity); replace them first")
        low, high = float(image.min()), float(image.max())
        if white_level is None and (low < -0.5 or high > 1.5):
            raise bad(path, f"is a float image with values from {low:g} to {high:g}, where 0 to 1 is expected: say which value is white with --white-level")
    if white_level is not None:
        image = image.astype(np.float32) / np.float32(white_level)
    elif image.dtype == np.uint16:
        image = image.astype(np.float32) / np.float32(65535)
    if mode == "gray" and image.shape[2] == 3:
        luma = (image.astype(np.float32) @ LUMA)[..., None]
        image = np.rint(luma).astype(np.uint8) if image.dtype == np.uint8 else luma
    elif mode == "color" and image.shape[2] == 1:
        image = image.repeat(3, axis=2)
    return np.ascontiguousarray(image)


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 0..1; float32 as it is."""
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image


def write_image(path: Path, image: np.ndarray, bits: int = 8) -> None:
    """Writes (H,W,C), uint8 or float 0..1, as PNG or TIFF by the suffix; atomically. RunError where the disk refuses.

    bits: 8 or 16: floats are clipped to 0..1 and rounded; 32, TIFF only: float32 as it is.
    """
    path = Path(path)
    tiff = path.suffix.lower() in (".tif", ".tiff")
    if bits == 32 and not tiff:
        raise ValueError("32-bit float images are written as TIFF only")
    if bits == 32:
        image = to_float(image).astype(np.float32)
    elif bits == 16 or image.dtype != np.uint8:
        highest, dtype = (255, np.uint8) if bits == 8 else (65535, np.uint16)
        image = np.rint(to_float(image).clip(0, 1) * highest).astype(dtype)
    pixels = image[..., 0] if image.shape[2] == 1 else image
    buffer = io.BytesIO()
    if tiff:
        tifffile.imwrite(buffer, pixels, photometric="minisblack" if pixels.ndim == 2 else "rgb", compression="zlib")
        data = buffer.getvalue()
    elif bits == 16:  # Pillow writes no 16-bit colour
        data = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])[1].tobytes()
    else:
        Image.fromarray(pixels).save(buffer, "PNG")
        data = buffer.getvalue()
    atomic_write_bytes(path, data)


# ------------------------------------------------------------------------------------------------------------------ the formats


def bad(path: Path, what: str) -> UsageError:
    """One line, even where the file's name has a newline in it."""
    return UsageError(f"{ascii(str(path))[1:-1] if not str(path).isprintable() else path} {what}")


@contextmanager
def reading(path: Path) -> Iterator[bytes]:
    """Gives the file's bytes and turns whatever the decoders raise on them into a UsageError."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise bad(path, "is a folder, not an image") from None
    except FileNotFoundError:
        raise bad(path, f"is a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else "does not exist") from None
    except OSError as error:
        raise bad(path, f"cannot be read: {error.strerror}") from None
    if not data:
        raise bad(path, "is empty (0 bytes)")
    try:
        yield data
    except UsageError:
        raise
    except Exception as error:  # the decoders' errors have nothing in common: OSError, SyntaxError, ValueError, struct.error, cv2.error, TiffFileError ..
        text = " ".join(str(error).split()) or type(error).__name__
        raise bad(path, f"is no image that can be decoded, or it is damaged ({text[:120]})") from error


def check_pixels(path: Path, height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise bad(path, f"has no pixels ({width}x{height})")
    if height * width > max_pixels:
        raise bad(path, f"claims {width}x{height} pixels, more than the limit of {max_pixels}")


def is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def pillow_header(path: Path, data: bytes, max_pixels: int) -> tuple[Image.Image, Header]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP"))
        except OSError:
            raise bad(path, "is no PNG, JPEG, BMP or TIFF image, whatever its name says") from None
        width, height = image.size
        check_pixels(path, height, width, max_pixels)
        if image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
            height, width = width, height
    sixteen = image.mode.startswith("I") or is_sixteen_bit_colour_png(data)
    gray = image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L") or (image.mode == "P" and gray_palette(image))
    return image, Header(height, width, 1 if gray else 3, np.dtype(np.uint16 if sixteen else np.uint8))


def is_sixteen_bit_colour_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24] == 16 and data[25] in (2, 6)


def gray_palette(image: Image.Image) -> bool:
    palette = np.frombuffer(bytes(image.palette.getdata()[1]), np.uint8) if image.palette else np.zeros(0, np.uint8)
    colours = palette[: len(palette) // 3 * 3].reshape(-1, 3)
    return image.palette is not None and image.palette.mode == "RGB" and bool((colours == colours[:, :1]).all())


def decode_with_pillow(path: Path, data: bytes, max_pixels: int) -> np.ndarray:
    image, header = pillow_header(path, data, max_pixels)
    image.load()  # raises where the file is truncated
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise bad(path, "is partly transparent; flatten it onto a background first")
    if is_sixteen_bit_colour_png(data):  # Pillow keeps the upper eight bits only
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., :3][..., ::-1]
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        return rotated(pixels, orientation)
    image = ImageOps.exif_transpose(image)
    if header.dtype == np.uint16:
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise bad(path, "has more than 16 bits a pixel; save it as a 16-bit image or a float TIFF")
        return pixels.astype(np.uint16)[..., None]
    pixels = np.asarray(image.convert("L" if header.channels == 1 else "RGB"))
    return pixels[..., None] if header.channels == 1 else pixels


def rotated(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF orientation 1..8 applied to (H,W,C)."""
    pixels = pixels.transpose(1, 0, 2) if orientation in (5, 6, 7, 8) else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def tiff_page(path: Path, file: tifffile.TiffFile, max_pixels: int) -> tuple[tifffile.TiffPage, Header]:
    if len(file.pages) != 1:
        raise bad(path, f"is a stack of {len(file.pages)} pages; split it into one file a page")
    page = file.pages[0]
    shape, axes = page.shape, page.axes
    channels = {"YX": 1, "YXS": shape[-1], "SYX": shape[0]}.get(axes)
    if channels is None:
        raise bad(path, f"is a TIFF with axes {axes}; a single gray or RGB picture is needed")
    height, width = shape[1:] if axes == "SYX" else shape[:2]
    check_pixels(path, height, width, max_pixels)
    if channels not in (1, 3):
        raise bad(path, f"has {channels} channels; 1 (gray) or 3 (RGB) are needed" + (": flatten its transparency" if channels in (2, 4) else ""))
    dtype = np.dtype(page.dtype) if page.dtype is not None else np.dtype("V")
    if dtype not in (np.uint8, np.uint16) and dtype.kind != "f" and dtype != np.bool_:
        raise bad(path, f"holds {dtype} values; save it with 8 or 16 bits, or as float")
    return page, Header(height, width, channels, np.dtype(np.uint8) if dtype == np.bool_ else dtype.newbyteorder("="))


def tiff_header(path: Path, data: bytes, max_pixels: int) -> Header:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return tiff_page(path, file, max_pixels)[1]


def decode_tiff(path: Path, data: bytes, max_pixels: int) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page, _ = tiff_page(path, file, max_pixels)
        expected = page.nbytes
        if page.compression == 1 and sum(page.databytecounts) < expected:
            raise bad(path, "is truncated: pixels are missing")
        pixels = page.asarray()
        if page.axes == "SYX":
            pixels = pixels.transpose(1, 2, 0)
        elif page.axes == "YX":
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                raise bad(path, "is a TIFF with a palette; save it as gray or RGB")
            pixels = pixels[..., None]
        if pixels.dtype == np.bool_:
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels.astype(pixels.dtype.newbyteorder("="))
