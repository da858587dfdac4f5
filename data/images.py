"""Reading and writing single images: PNG, JPEG, BMP, WebP, TIFF of integers and floats, NumPy's .npy. Reading DNG.

In memory an image is (H,W,C), C = 1 or 3, RGB order: uint8 as stored, or float32 in which 1.0 is the full scale of the
file's type (65535 for 16 bits, 1.0 for floats). Floats and signed integers may lie outside of 0..1. A page of a TIFF
stack is an image of its own, named by a path below the file (data/stacks.py). Files come from strangers:
whatever is wrong with one ends in a UsageError of one line that names it, and its size is checked before its pixels
are decoded.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
from PIL import Image

from data.files import (
    MAX_PIXELS,
    TIFF_SUFFIXES,
    Header,
    bad,
    check_pixels,
    is_tiff,
    reading,
)
from data.png import decode_other, pillow_header, profile, with_profile
from data.raw import RAW_SUFFIXES
from data.tiff import calibration, decode_tiff, layout, tiff_header
from models.units import full_scale
from utils.errors import RunError
from utils.files import atomic_write_bytes, shown

# pictures of types that are not read
OTHER_SUFFIXES = frozenset(
    ".gif .heic .heif .avif .jp2 .j2k .jxl .psd .tga .pcx .pgm .ppm .pnm .pbm .exr .hdr .fits .fit .fts .dcm "
    ".nrrd .mha .nii .mrc .czi .lif .lsm .stk .ims .nd2 .oib .oif .vsi .dv .zvi .svs .ndpi .cr2 .cr3 .nef .arw "
    ".orf .raf .rw2 .raw .npz".split()
)
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
IMAGE_SUFFIXES = (".png", *JPEG_SUFFIXES, ".bmp", ".webp", ".npy", *TIFF_SUFFIXES, *RAW_SUFFIXES)
CHANNELS = {"gray": 1, "color": 3}  # of each --mode
LARGEST = 1e15  # usual value of an image in a file of floats: the squares of larger ones are beyond float32
MODES = {channels: mode for mode, channels in CHANNELS.items()}
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


def image_header(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Raises UsageError as read_image does."""
    with reading(path) as file:
        if is_npy(file):
            return npy_header(path, file, max_pixels)
        if is_tiff(file):
            return tiff_header(path, file, max_pixels)
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
    return converted(path, decoded(path, max_pixels), mode, white_level, holes)


def converted(
    path: Path, image: np.ndarray, mode: str | None = None, white_level: float | None = None, holes: bool = False
) -> np.ndarray:
    """What read_image gives, of the pixels of a file as `decoded` gives them. Raises UsageError as it does."""
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
        if float(np.abs(image[finite]).max()) > LARGEST and float(np.median(np.abs(image[finite]))) > LARGEST:
            raise bad(path, f"holds values beyond {LARGEST:g}, too large for 32 bits; divide them by a constant first")
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


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 0..1; float32 as it is."""
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image


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


def write_image(
    path: Path,
    image: np.ndarray,
    values: np.dtype | type = np.uint8,
    like: Path | None = None,
    holes: bool = False,
    alpha: np.ndarray | None = None,
    premultiplied: bool = False,
) -> None:
    """Writes (H,W,C), file values of the type `values`, as PNG, TIFF or .npy by the suffix, atomically.

    Integers are rounded and kept within the limits of the type. PNG has those of 8 and 16 bits.
    like: an image whose pixel sizes, or colour profile, EXIF and dpi, another one takes over.
    holes: values that are NaN are written as such.
    alpha: (H,W), a channel to be written as one more. premultiplied: see Header; TIFF only.

    Raises RunError where the disk refuses or a value is not finite.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix not in (".png", ".npy", *TIFF_SUFFIXES):
        raise ValueError(f"images are written as .png, .tif, .tiff or .npy, not {path.suffix}")
    if suffix == ".png" and values not in (np.uint8, np.uint16):
        raise ValueError(f"a PNG has no {np.dtype(values)} values")
    if image.dtype.kind == "f" and not (np.isfinite(image) | (np.isnan(image) & holes)).all():
        raise RunError(
            f"{shown(path)}: the result has values that are not finite (NaN or infinity); nothing is written"
        )
    image = as_type(image, values)
    if alpha is not None:
        image = np.dstack([image, alpha.astype(image.dtype)])
    if suffix == ".png":
        data = as_png(image, like)
    elif suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, without_channel(image))
        data = buffer.getvalue()
    else:
        extra = {} if alpha is None else {"extrasamples": ["assocalpha" if premultiplied else "unassalpha"]}
        data = as_tiff(image, extra, like)
    atomic_write_bytes(path, data)


def without_channel(image: np.ndarray) -> np.ndarray:
    """(H,W,1) -> (H,W), as files have gray images; others as they are."""
    return image[..., 0] if image.shape[2] == 1 else image


def as_png(image: np.ndarray, like: Path | None) -> bytes:
    """A PNG of (H,W,1..4), uint8 or uint16, alpha last. like: see write_image."""
    if image.dtype == np.uint8:
        buffer = io.BytesIO()
        Image.fromarray(without_channel(image)).save(buffer, "PNG", **(profile(like, image.shape[2]) if like else {}))
        return buffer.getvalue()
    # OpenCV has blue first, and no gray with alpha
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
    png = cv2.imencode(".png", np.ascontiguousarray(image[..., order]))[1].tobytes()
    return with_profile(png, profile(like, len(order)) if like else {})


def as_tiff(image: np.ndarray, extra: dict, like: Path | None) -> bytes:
    """A TIFF of (H,W,1..4). extra: options for alpha, which is last. like: see write_image."""
    pixels, buffer = without_channel(image), io.BytesIO()
    options = {"photometric": "minisblack" if image.shape[2] < 3 else "rgb"} | extra
    options |= calibration(like, pixels) if like else {}
    if like and not {"imagej", "ome"} & set(options):  # these have forms of their own
        form = layout(like)
        if "photometric" in form and image.shape[2] < 3:
            options |= form
            pixels = without_channel(np.dstack([full_scale(image.dtype) - image[..., :1], image[..., 1:]]))
            pixels = pixels.astype(image.dtype)
        if "planarconfig" in form and image.shape[2] > 1:
            options |= form
            pixels = np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(buffer, pixels, compression=None if "imagej" in options else "zlib", **options)
    return buffer.getvalue()


def as_type(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """File values in a type: rounded and kept within its limits where it is one of integers. NaN is 0 there."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return image.astype(dtype)
    limits = np.iinfo(dtype)
    return np.nan_to_num(np.rint(image.astype(np.float64))).clip(limits.min, limits.max).astype(dtype)
