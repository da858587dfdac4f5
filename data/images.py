"""Reading and writing single images: PNG, JPEG, BMP, WebP, TIFF of integers and floats, NumPy's .npy. Reading DNG.

In memory an image is (H,W,C), C = 1 or 3, RGB order: uint8 as stored, or float32 in which 1.0 is the full scale of the
file's type (65535 for 16 bits, 1.0 for floats). Floats and signed integers may lie outside of 0..1. A page of a TIFF
stack is an image of its own, named by a path below the file (data/stacks.py). Files come from strangers:
whatever is wrong with one ends in a UsageError of one line that names it, and its size is checked before its pixels
are decoded.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, RESUNIT

from data.raw import PLANES, RAW_SUFFIXES, bayer_page, is_raw, plane_size, read_plane
from utils.errors import RunError, UsageError
from utils.files import atomic_write_bytes, shown

TIFF_SUFFIXES = (".tif", ".tiff")
# pictures of types that are not read
OTHER_SUFFIXES = frozenset(
    ".gif .heic .heif .avif .jp2 .jxl .psd .pgm .ppm .exr .fits .mrc .czi .lif .nd2 .oib .oif .svs .cr2 .cr3 .nef .arw "
    ".orf .raf .rw2 .raw".split()
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".npy", *TIFF_SUFFIXES, *RAW_SUFFIXES)
MAX_PIXELS = 2**30  # a small file can claim a huge picture: more than this is refused unless asked for
CHANNELS = {"gray": 1, "color": 3}  # of each --mode
MODES = {channels: mode for mode, channels in CHANNELS.items()}
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
ORIENTATION = 0x0112  # the tag of EXIF and of TIFF

# Pillow's own limit is lower, warns instead of refusing and does not hold for TIFF; MAX_PIXELS takes its place
Image.MAX_IMAGE_PIXELS = None
# Both write many lines to stderr about a damaged file; what matters of it is in the UsageError.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True)
class Header:
    """What a file says of its image before any pixel is decoded; height and width as shown, after any EXIF rotation.

    premultiplied: the colours of partly transparent pixels are multiplied by alpha (a kind of TIFF).
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype
    premultiplied: bool = False


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


def full_scale(dtype: np.dtype) -> float:
    """The file value that is 1.0 in memory: the greatest of an integer type, and 1.0 for floats."""
    return float(np.iinfo(dtype).max) if np.dtype(dtype).kind in "iu" else 1.0


def image_header(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Raises UsageError as read_image does."""
    with reading(path) as file:
        if is_npy(file):
            return npy_header(path, file, max_pixels)
        if is_tiff(file):
            with tifffile.TiffFile(file) as tiff:
                return (raw_page if is_raw(file_and_page(path)[0]) else tiff_page)(path, tiff, max_pixels)[1]
        return pillow_header(path, file, max_pixels)[1]


def read_image(
    path: Path,
    mode: str | None = None,
    white_level: float | None = None,
    max_pixels: int = MAX_PIXELS,
    holes: bool = False,
) -> np.ndarray:
    """The image (H,W,C): uint8 for 8-bit files where white_level is None, else float32 with white at 1.0.

    mode: None leaves the channels as stored, "gray" converts to luma (ITU-R 601) or takes `gray_of` the image where
    there is one, "color" repeats a gray image.
    white_level: the file value that becomes 1.0; None: full_scale of the file's type.
    holes: NaN and transparent parts are allowed and become NaN, in float32.

    Raises UsageError for files that are missing, unreadable, damaged, larger than max_pixels, transparent, not finite,
    or of another kind.
    """
    image = decoded(path, max_pixels)
    scale = white_level or full_scale(image.dtype)
    wide = np.float64 if image.dtype.itemsize >= 4 and image.dtype != np.float32 else np.float32
    if image.shape[2] in (2, 4):
        image = transparent_as_nan(image, wide) if holes else without_alpha(path, image)
    if image.dtype.kind == "f":
        finite = np.isfinite(image)
        if not (finite | (np.isnan(image) & holes)).all():
            what = "infinity" if holes else "NaN or infinity"
            raise bad(path, f"holds values that are not finite ({what}); replace them first")
        if not finite.any():
            raise bad(path, "holds no finite value; give another image")
    if white_level is not None or image.dtype != np.uint8:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
            image = (image.astype(wide) / wide(scale)).astype(np.float32)
        if np.isinf(image).any():
            raise bad(path, "holds values that are not finite in 32 bits; divide them by a constant first")
    if mode == "gray" and image.shape[2] == 3:
        image = as_gray(image)
    elif mode == "color" and image.shape[2] == 1:
        image = image.repeat(3, axis=2)
    return np.ascontiguousarray(image)


def gray_of(image: np.ndarray) -> np.ndarray | None:
    """The gray image (H,W,1) that a colour one (H,W,3) is made of, None where there is none.

    All its channels show it but for those of one value: a gray image stored in colour, or shown in green, for instance.
    Its noise is one and the same in these channels.
    """
    pixels = image[~np.isnan(image).any(2)] if image.dtype.kind == "f" else image.reshape(-1, image.shape[2])
    if image.shape[2] != 3 or not len(pixels):
        return None
    showing = [k for k in range(3) if (pixels[:, k] != pixels[0, k]).any()]
    if not showing or any((pixels[:, k] != pixels[:, showing[0]]).any() for k in showing):
        return None
    return image[..., showing[:1]]


def as_gray(image: np.ndarray) -> np.ndarray:
    """A colour image (H,W,3) as a gray one (H,W,1) of its type: see read_image."""
    if (gray := gray_of(image)) is not None:
        return gray
    luma = (image.astype(np.float32) @ LUMA)[..., None]
    return np.rint(luma).astype(np.uint8) if image.dtype == np.uint8 else luma


def check_white(path: Path, image: np.ndarray, white_level: float | None) -> None:
    """Refuses an image as read_image gives it where 0..1 is expected and no white level explains its values."""
    if image.dtype.kind == "f" and white_level is None and (image.min() < -0.5 or image.max() > 1.5):
        raise bad(
            path,
            (
                f"has float values from {image.min():g} to {image.max():g}, where 0 to 1 is expected: "
                "say which value is white with --white-level (stage 2's clean images: --clean-white-level)"
            ),
        )


def decoded(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels as stored, (H,W,1..4), alpha last. Raises UsageError as read_image does."""
    with reading(path) as file:
        if is_npy(file):
            return decode_npy(path, file, max_pixels)
        return decode_tiff(path, file, max_pixels) if is_tiff(file) else decode_other(path, file, max_pixels)


def transparent_as_nan(image: np.ndarray, wide: type) -> np.ndarray:
    """(H,W,2) or (H,W,4) -> (H,W,1) or (H,W,3), still in file values.

    Where a part has alpha 0, it is NaN and the image is of the float type `wide`.
    """
    hidden = image[..., -1] == 0
    if not hidden.any():
        return image[..., :-1]
    return np.where(hidden[..., None], wide(np.nan), image[..., :-1].astype(wide))


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 0..1; float32 as it is."""
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image


def write_image(
    path: Path,
    image: np.ndarray,
    bits: int = 8,
    like: Path | None = None,
    holes: bool = False,
    values: np.dtype | None = None,
    alpha: np.ndarray | None = None,
    premultiplied: bool = False,
) -> None:
    """Writes (H,W,C), uint8 or float 0..1, as PNG, TIFF or .npy by the suffix, atomically.

    bits: 8 or 16: floats are clipped to 0..1 and rounded; 32, TIFF and .npy only: float32 as it is.
    like: an image whose pixel sizes, or colour profile, EXIF and dpi, another one takes over.
    holes: values that are NaN are written as such.
    values: the image holds file values of this type instead, and bits do not count.
    alpha: (H,W), a channel to be written as one more. premultiplied: see Header; TIFF only.

    Raises RunError where the disk refuses or a value is not finite.
    """
    path = Path(path)
    tiff = path.suffix.lower() in TIFF_SUFFIXES
    npy = path.suffix.lower() == ".npy"
    if not tiff and not npy and path.suffix.lower() != ".png":
        raise ValueError(f"images are written as .png, .tif, .tiff or .npy, not {path.suffix}")
    if image.dtype.kind == "f" and not (np.isfinite(image) | (np.isnan(image) & holes)).all():
        raise RunError(
            f"{shown(path)}: the result has values that are not finite (NaN or infinity); nothing is written"
        )
    if bits == 32 and not tiff and not npy:
        raise ValueError("32-bit float images are written as TIFF or .npy only")
    if values is not None:
        image = as_type(image, values)
        bits = 8 * image.dtype.itemsize
    elif bits == 32:
        image = to_float(image).astype(np.float32)
    elif bits == 16 or image.dtype != np.uint8:
        highest, dtype = (255, np.uint8) if bits == 8 else (65535, np.uint16)
        image = np.rint(to_float(image).clip(0, 1) * highest).astype(dtype)
    if alpha is not None:
        image = np.dstack([image, alpha.astype(image.dtype)])
    pixels = image[..., 0] if image.shape[2] == 1 else image
    buffer = io.BytesIO()
    if npy:
        np.save(buffer, pixels)
        data = buffer.getvalue()
    elif tiff:
        extra = {} if alpha is None else {"extrasamples": ["assocalpha" if premultiplied else "unassalpha"]}
        options = (
            dict(photometric="minisblack" if image.shape[2] < 3 else "rgb")
            | extra
            | (calibration(like, pixels) if like else {})
        )
        tifffile.imwrite(buffer, pixels, compression=None if "imagej" in options else "zlib", **options)
        data = buffer.getvalue()
    elif bits == 16:  # Pillow writes no 16-bit colour
        if pixels.ndim == 3 and pixels.shape[2] == 2:
            pixels = pixels[..., [0, 0, 0, 1]]
        order = {2: ..., 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.ndim if pixels.ndim == 2 else pixels.shape[2]]
        data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., order] if pixels.ndim == 3 else pixels))[1]
        data = with_profile(data.tobytes(), profile(like, 1 if pixels.ndim == 2 else pixels.shape[2]) if like else {})
    else:
        Image.fromarray(pixels).save(buffer, "PNG", **(profile(like, image.shape[2]) if like else {}))
        data = buffer.getvalue()
    atomic_write_bytes(path, data)


def as_type(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """File values in a type: rounded and kept within its limits where it is one of integers."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return image.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(image.astype(np.float64)).clip(limits.min, limits.max).astype(dtype)


def profile(path: Path, channels: int) -> dict:
    """Options of Pillow's save that keep the colour profile, EXIF and dpi of a PNG, JPEG, BMP or WebP file.

    The EXIF orientation is left out, since it is applied when the file is read. So is a profile of another colour space
    than that of the result's channels (with alpha), and whatever makes no sense.
    """
    space = b"GRAY" if channels < 3 else b"RGB "
    options = {}
    with suppress(Exception), Image.open(path) as image:  # what is damaged in these is not worth a result
        exif = image.getexif()
        exif.pop(ORIENTATION, None)
        icc = image.info.get("icc_profile") or b""
        found = {"icc_profile": icc if icc[16:20] == space else None, "dpi": image.info.get("dpi")}
        options = {name: value for name, value in found.items() if value} | ({"exif": exif.tobytes()} if exif else {})
    return options


def with_profile(png: bytes, options: dict) -> bytes:
    """A PNG file with the colour profile, EXIF and dpi that Pillow would write for the options."""
    if not options:
        return png
    written = io.BytesIO()
    Image.new("L", (1, 1)).save(written, "PNG", **options)
    chunks = png_chunks(written.getvalue())
    kept = b"".join(chunk for kind, chunk in chunks if kind in (b"iCCP", b"pHYs", b"eXIf"))
    end = len(PNG_SIGNATURE) + len(png_chunks(png)[0][1])  # of the header
    return png[:end] + kept + png[end:]


def png_chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a whole PNG file: the kind of each, and all of its bytes."""
    chunks, start = [], len(PNG_SIGNATURE)
    while start < len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        chunks.append((kind, png[start : start + length + 12]))
        start += length + 12
    return chunks


def calibration(path: Path, pixels: np.ndarray, pages: int = 1) -> dict:
    """Options of tifffile.imwrite that give `pages` arrays like `pixels` the resolution of a TIFF file.

    Where the file is ImageJ's or OME's and the form can be kept, so is the form, with its axes and what it says of
    pixel sizes, channels and moments. The options are empty for a file that is no TIFF, whatever its name says, or
    whose tags make no sense.
    """
    with open_file(path) as file:
        if not is_tiff(file):
            return {}
    try:
        with tifffile.TiffFile(path) as tiff:
            page, series = tiff.pages[0], tiff.series[0]
            options = dict(resolution=page.resolution, resolutionunit=RESUNIT(page.resolutionunit))
            fits = series.shape[-pixels.ndim :] == pixels.shape and math.prod(series.shape) == pages * pixels.size
            axes = {"axes": series.axes} if fits else {}
            # it has no colour of 16 bits
            if tiff.is_imagej and (fits or pages == 1) and (pixels.ndim == 2 or pixels.dtype == np.uint8):
                known = tiff.imagej_metadata or {}
                return options | dict(
                    imagej=True,
                    metadata=axes | {name: known[name] for name in ("unit", "spacing", "finterval") if name in known},
                )
            if tiff.is_ome and fits:
                with suppress(Exception):  # what tifffile would not write again
                    image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
                    metadata = axes | (image[0] if isinstance(image, list) else image)
                    metadata["Pixels"].pop("Type", None)  # the result of float64 is float32
                    samples = pixels.shape[2] if pixels.ndim == 3 else 1
                    tifffile.OmeXml().addimage(
                        pixels.dtype, series.shape, (pages, 1, 1, *pixels.shape[:2], samples), **metadata
                    )
                    return options | dict(ome=True, metadata=metadata)
            return options
    except Exception:  # tags that make no sense, which are not worth a result
        return {}


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_SAMPLES = {  # colour samples of a pixel, without alpha
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
PLAIN = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)  # samples are intensities as they stand
# what tifffile decodes without the package imagecodecs
TIFFFILE_CODECS = (COMPRESSION.NONE, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS)


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


def is_npy(file: BinaryIO) -> bool:
    signature = file.read(6)
    file.seek(0)
    return signature == b"\x93NUMPY"


def npy_header(path: Path, file: BinaryIO, max_pixels: int) -> Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
        raise bad(path, f"is an array of the shape {shape}; save (H,W) or (H,W,3), each frame in a file of its own")
    check_pixels(path, *shape[:2], max_pixels)
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or dtype in (np.int64, np.uint64):
        raise bad(path, f"holds {dtype} values; save it with astype('float32')")
    return Header(*shape[:2], shape[2] if len(shape) == 3 else 1, dtype.newbyteorder("="))


def decode_npy(path: Path, file: BinaryIO, max_pixels: int) -> np.ndarray:
    header = npy_header(path, file, max_pixels)
    file.seek(0)
    pixels = np.load(file, allow_pickle=False)
    return pixels.astype(header.dtype).reshape(header.height, header.width, header.channels)


def without_alpha(path: Path, pixels: np.ndarray) -> np.ndarray:
    """(H,W,1..4) -> (H,W,1) or (H,W,3).

    An alpha channel is dropped where it is opaque everywhere. UsageError elsewhere.
    """
    if pixels.shape[2] in (1, 3):
        return pixels
    opaque = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    if (pixels[..., -1] != opaque).any():
        raise bad(path, "is partly transparent; flatten it onto a background first")
    return pixels[..., :-1]


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


@dataclass(frozen=True)
class PngFacts:
    """What Pillow does not tell of a PNG before it has decoded it. All zero for other formats."""

    bits: int = 0  # of one sample
    gray: bool = False
    animated: bool = False
    may_rotate: bool = False  # there is a chunk that can hold an EXIF orientation; it may follow the pixels


def png_facts(file: BinaryIO) -> PngFacts:
    facts = []
    if file.read(8) == PNG_SIGNATURE:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            start = file.read(min(length, 32))
            facts.append((kind, start))
            file.seek(length - len(start) + 4, os.SEEK_CUR)  # the rest and the checksum
    file.seek(0)
    if not facts or facts[0][0] != b"IHDR" or len(facts[0][1]) < 10:
        return PngFacts()
    bits, colour_type = facts[0][1][8:10]
    rotates = any(
        kind == b"eXIf" or start.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")) for kind, start in facts
    )
    return PngFacts(
        bits=bits, gray=colour_type in (0, 4), animated=any(kind == b"acTL" for kind, _ in facts), may_rotate=rotates
    )


def orientation_of(image: Image.Image, png: PngFacts) -> int:
    # Pillow decodes a whole PNG to look for EXIF data after the pixels: ask only where there is some
    return image.getexif().get(ORIENTATION, 1) if image.format != "PNG" or png.may_rotate else 1


def pillow_header(path: Path, file: BinaryIO, max_pixels: int) -> tuple[Image.Image, Header, PngFacts]:
    png = png_facts(file)
    try:
        image = Image.open(file, formats=("PNG", "JPEG", "BMP", "WEBP"))
    except UnidentifiedImageError:
        raise bad(path, "is no PNG, JPEG, BMP, WebP, TIFF or .npy image, whatever its name says") from None
    width, height = image.size
    check_pixels(path, height, width, max_pixels)
    if png.animated or (image.format == "WEBP" and image.is_animated):
        raise bad(path, "is an animation; save one picture of it")
    if orientation_of(image, png) in (5, 6, 7, 8):
        height, width = width, height
    if png.bits == 16:
        gray = png.gray
    elif image.mode == "P":
        order, palette = image.palette.getdata()  # image.getpalette() would decode the pixels
        colours = np.frombuffer(bytes(palette), np.uint8).reshape(-1, len(order))[:, :3]
        gray = bool((colours == colours[:, :1]).all())
    else:
        gray = image.mode in ("1", "L", "LA")
    return image, Header(height, width, 1 if gray else 3, np.dtype(np.uint16 if png.bits == 16 else np.uint8)), png


def decode_other(path: Path, file: BinaryIO, max_pixels: int) -> np.ndarray:
    image, header, png = pillow_header(path, file, max_pixels)
    image.load()  # raises where the file is truncated, which OpenCV does not
    orientation = orientation_of(image, png)
    if png.bits != 16:
        pixels = from_pillow(image, header.channels)
    elif image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.uint16)[..., None]
        if (pixels == image.info.get("transparency", -1)).any():  # the one gray value that is transparent
            hidden = (pixels != image.info["transparency"]).astype(np.uint16) * 65535
            pixels = np.dstack([pixels, hidden])
    else:  # Pillow keeps the upper eight bits only
        pixels = from_opencv(file)
        pixels = pixels[..., [0, 3]] if png.gray else pixels  # OpenCV makes gray with alpha RGBA
    return rotated(pixels, orientation)


def tiff_page(path: Path, tiff: tifffile.TiffFile, max_pixels: int) -> tuple[tifffile.TiffPage, Header]:
    """The page that the path names, or the only picture of the file.

    It is checked to be whole and of a kind that decode_tiff knows.
    """
    number = file_and_page(path)[1]
    if number is not None and not 0 < number <= len(tiff.pages):
        raise bad(path, f"is not there: the stack has {len(tiff.pages)} pages")
    page = tiff.pages[(number or 1) - 1]
    check_pixels(path, page.imagelength, page.imagewidth, max_pixels)
    tiff.filehandle.seek(page.offset)
    if len(page.tags) < struct.unpack(tiff.tiff.tagnoformat, tiff.filehandle.read(tiff.tiff.tagnosize))[0]:
        raise bad(path, "is damaged: some of its tags cannot be read")  # tifffile would go on with their default values
    pages = page.imagedepth
    if number is None:
        others = sum(not other.is_reduced for other in tiff.pages[1:])  # thumbnails may follow
        # a stack can have all its pixels in one page
        pages = max(pages, 1 + others, tiff.series[0].size // max(page.size, 1))
    if pages > 1:
        raise bad(
            path,
            (
                f"is a stack of {pages} pages that cannot be told apart: damaged, or stored as one; "
                "split it into one file a page"
            ),
        )

    samples = TIFF_SAMPLES.get(page.photometric)
    if samples is None:
        raise bad(
            path, f"is a TIFF of the kind {getattr(page.photometric, 'name', page.photometric)}; save it as gray or RGB"
        )
    extra = page.samplesperpixel - samples
    if extra and not (
        extra == 1 and page.extrasamples and page.extrasamples[0] in (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
    ):
        raise bad(
            path, f"has {page.samplesperpixel} channels; 1 (gray) or 3 (RGB) are needed: save each as a page of a stack"
        )
    dtype = np.dtype(np.uint8 if page.dtype == np.bool_ else page.dtype or "V")
    deep = page.bitspersample == 8 * dtype.itemsize and (
        dtype.kind == "f" or dtype in (np.uint16, np.int16, np.uint32, np.int32)
    )
    if dtype != np.uint8 and not (deep and page.photometric in PLAIN):
        table = " with a colour table" if page.photometric == PHOTOMETRIC.PALETTE else ""
        raise bad(
            path,
            (
                f"holds {dtype} values of {page.bitspersample} bits{table}; save it as plain gray or RGB with "
                "8 unsigned, 16 or 32 bits, or as float"
            ),
        )

    check_whole(path, tiff, page)
    turned = page.tags.valueof(ORIENTATION, default=1) in (5, 6, 7, 8)
    height, width = (page.imagewidth, page.imagelength) if turned else (page.imagelength, page.imagewidth)
    gray = samples == 1 and (
        page.photometric != PHOTOMETRIC.PALETTE or bool((page.colormap >> 8 == page.colormap[:1] >> 8).all())
    )
    premultiplied = bool(extra) and page.extrasamples[0] == EXTRASAMPLE.ASSOCALPHA
    return page, Header(height, width, 1 if gray else 3, dtype.newbyteorder("="), premultiplied)


def raw_page(path: Path, tiff: tifffile.TiffFile, max_pixels: int) -> tuple[tifffile.TiffPage, Header]:
    """The page of the sensor's pixels and the header of a plane. It is checked to be whole and not too large."""
    page = bayer_page(path, tiff)
    check_pixels(path, page.imagelength, page.imagewidth, max_pixels)
    if file_and_page(path)[1] not in range(1, PLANES + 1):
        raise bad(path, f"is not there: a raw file has {PLANES} planes")
    check_whole(path, tiff, page)
    check_strips(path, tiff.filehandle, page)
    height, width = plane_size(page)
    check_pixels(path, height, width, max_pixels)
    return page, Header(height, width, 1, np.dtype(np.float32))


def check_whole(path: Path, tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
    whole = len(page.dataoffsets) >= math.prod(page.chunked)
    if not whole or any(
        n == 0 or start + n > tiff.filehandle.size for start, n in zip(page.dataoffsets, page.databytecounts)
    ):
        raise bad(path, "is truncated: pixels are missing")


def check_strips(path: Path, file: BinaryIO, page: tifffile.TiffPage) -> None:
    """Refuses deflated strips or tiles that hold more than their pixels.

    tifffile would unpack the whole of a few bytes that stand for gigabytes.
    """
    if page.compression not in (COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE):
        return
    most = math.prod(page.chunks) * page.dtype.itemsize
    for offset, count in zip(page.dataoffsets, page.databytecounts):
        file.seek(offset)
        if len(zlib.decompressobj().decompress(file.read(count), most + 1)) > most:
            raise bad(path, "has compressed data that is larger than its image")


def decode_tiff(path: Path, file: BinaryIO, max_pixels: int) -> np.ndarray:
    """Decodes a TIFF page.

    tifffile decodes what it can alone. libtiff decodes the other compressions and colour spaces, in Pillow (8 bits) or
    OpenCV (more).
    """
    with tifffile.TiffFile(file) as tiff:
        if is_raw(file_and_page(path)[0]):
            return read_plane(path, raw_page(path, tiff, max_pixels)[0], file_and_page(path)[1])
        page, header = tiff_page(path, tiff, max_pixels)
        if (
            page.compression in TIFFFILE_CODECS
            and page.predictor in (1, 2)
            and page.photometric in PLAIN
            and page.bitspersample % 8 == 0
        ):
            check_strips(path, file, page)
            pixels = page.asarray()
            pixels = np.moveaxis(pixels, 0, 2) if page.axes == "SYX" else np.atleast_3d(pixels)
            pixels = rotated(pixels.astype(pixels.dtype.newbyteorder("=")), page.tags.valueof(ORIENTATION, default=1))
        elif header.dtype == np.uint8:
            file.seek(0)
            image = Image.open(file, formats=("TIFF",))
            image.seek(page.index)
            image.load()
            return from_pillow(image, header.channels)  # Pillow has rotated and inverted it
        else:
            pixels = from_opencv(file, page.index)  # rotated, not inverted
            if pixels.dtype != header.dtype or pixels.shape[2] != page.samplesperpixel:
                raise ValueError(
                    f"compression {page.compression} of {page.samplesperpixel} x {header.dtype}; "
                    "save it without compression"
                )
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        colours = pixels[..., :1]
        pixels = np.dstack([np.asarray(full_scale(pixels.dtype), pixels.dtype) - colours, pixels[..., 1:]])
    return pixels
