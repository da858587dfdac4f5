"""TIFF files: a page of a stack, a plane of a raw file, and what ImageJ and OME write of pixel sizes."""

from __future__ import annotations

import io
import math
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, RESUNIT

from data.files import (
    ORIENTATION,
    Header,
    bad,
    check_pixels,
    file_and_page,
    from_opencv,
    from_pillow,
    is_tiff,
    open_file,
    rotated,
)
from data.raw import PLANES, bayer_page, is_raw, plane_size, read_plane
from models.units import full_scale

TIFF_SAMPLES = {  # colour samples of a pixel, without alpha
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
PLAIN = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)  # samples are intensities as they stand
IMAGEJ_COUNTS = ("ImageJ", "images", "channels", "slices", "frames", "hyperstack")  # they follow from the axes
# what tifffile decodes without the package imagecodecs
TIFFFILE_CODECS = (COMPRESSION.NONE, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS)


def tiff_header(path: Path, file: BinaryIO, max_pixels: int) -> Header:
    """The header of a page of a TIFF file, or of a plane of a raw one."""
    with tifffile.TiffFile(file) as tiff:
        return (raw_page if is_raw(file_and_page(path)[0]) else tiff_page)(path, tiff, max_pixels)[1]


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
    planar = samples == 3 and page.planarconfig == PLANARCONFIG.SEPARATE
    return page, Header(height, width, 1 if gray else 3, dtype.newbyteorder("="), premultiplied, planar)


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


def layout(path: Path) -> dict:
    """Options of tifffile.imwrite that keep how a TIFF file holds its values: 0 as white, or channels as planes.

    They are empty for usual files, and for a file that is no TIFF.
    """
    with open_file(path) as file:
        if not is_tiff(file):
            return {}
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            white_is_0 = {"photometric": "miniswhite"} if page.photometric == PHOTOMETRIC.MINISWHITE else {}
            planes = page.samplesperpixel > 1 and page.planarconfig == PLANARCONFIG.SEPARATE
            return white_is_0 | ({"planarconfig": "separate"} if planes else {})
    except Exception:  # what tifffile raises on a damaged file has nothing in common
        return {}


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
                if "unit" in known:  # micrometres; tifffile writes no other letters
                    known["unit"] = known["unit"].replace("µ", "u").encode("ascii", "replace").decode()
                scale = {name: known[name] for name in ("unit", "spacing", "finterval") if name in known}
                everything = {name: value for name, value in known.items() if name not in IMAGEJ_COUNTS}
                one_pixel = [1 if axis in "YX" else n for axis, n in zip(series.axes, series.shape)]
                small = np.zeros(one_pixel if fits else pixels.shape, pixels.dtype)
                for metadata in (axes | everything, axes | scale) if fits else (scale,):
                    with suppress(Exception):  # what tifffile would not write again
                        tifffile.imwrite(io.BytesIO(), small, imagej=True, metadata=metadata)
                        return options | dict(imagej=True, metadata=metadata)
                return options
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
            text = page.description
            if pages == 1 and text and not (tiff.is_imagej or tiff.is_ome or text.startswith('{"shape"')):
                options |= dict(description=text.encode("ascii", "replace"), metadata=None)
            return options | ({"datetime": page.datetime} if pages == 1 and page.datetime else {})
    except Exception:  # tags that make no sense, which are not worth a result
        return {}
