"""PNG, JPEG, BMP and WebP files, which Pillow decodes; PNG of 16 bits by OpenCV."""

from __future__ import annotations

import io
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.files import (
    ORIENTATION,
    Header,
    bad,
    check_pixels,
    from_opencv,
    from_pillow,
    rotated,
)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
