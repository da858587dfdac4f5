"""Kinds of file that one decoder alone gets wrong are read right.

Such a decoder turns, inverts, reduces to 8 bits, cuts, refuses or silently shortens them.
"""

from __future__ import annotations

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from data.images import image_header, read_image, to_float, write_image
from utils.errors import RunError, UsageError

RANDOM = np.random.default_rng(0)
GRAY, COLOUR = RANDOM.integers(0, 256, (20, 30, 1), np.uint8), RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
GRAY16, COLOUR16 = RANDOM.integers(0, 65536, (20, 30, 1), np.uint16), RANDOM.integers(0, 65536, (20, 30, 3), np.uint16)
FLOAT = (GRAY16 / 65535).astype(np.float32)
TURNED = [(274, 3, 1, 6, True)]  # the tag Orientation = 6: shown a quarter turn clockwise


def pillow(pixels, kind, mode=None, **options):
    image = Image.fromarray(pixels.squeeze())
    data = io.BytesIO()
    (image.convert(mode) if mode else image).save(data, kind, **options)
    return data.getvalue()


def tiff(pixels, **options):
    data = io.BytesIO()
    tifffile.imwrite(data, pixels, **options)
    return data.getvalue()


def opencv(pixels, suffix, *options):
    return cv2.imencode(suffix, pixels[..., ::-1], options)[1].tobytes()


def with_tag(data, tag, value):
    """A TIFF with the number of one tag overwritten."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[0].tags[tag]
        number = struct.pack(file.byteorder + {3: "H", 4: "I"}[int(found.dtype)], value)
    return data[: found.valueoffset] + number + data[found.valueoffset + len(number) :]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, colour_type, *before, width=None, height=None):
    """A 16-bit PNG (or one that claims another size) of pixels (H,W,C)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    size = struct.pack(">IIBBBBB", width or pixels.shape[1], height or pixels.shape[0], 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + b"".join(before)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def with_late_exif(data):
    """EXIF after the pixels, where PNG allows it."""
    exif = Image.Exif()
    exif[274] = 6
    return data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]


def with_thumbnail():
    data = io.BytesIO()
    with tifffile.TiffWriter(data) as writer:
        writer.write(GRAY[..., 0])
        writer.write(GRAY[::2, ::2, 0], subfiletype=1)
    return data.getvalue()


def opaque(pixels):
    return np.dstack([pixels, np.full(pixels.shape[:2], np.iinfo(pixels.dtype).max, pixels.dtype)])


def turned(pixels):
    return np.rot90(pixels, -1)


# what the file is: its bytes, and the pixels to expect of it
READABLE = {
    "tiff lzw": (pillow(COLOUR, "TIFF", compression="tiff_lzw"), COLOUR),
    "tiff lzw, predictor": (pillow(COLOUR, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), COLOUR),
    "tiff lzw, white is zero": (with_tag(pillow(GRAY, "TIFF", compression="tiff_lzw"), 262, 0), 255 - GRAY),
    "tiff lzw, turned": (pillow(COLOUR, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}), turned(COLOUR)),
    "tiff palette": (pillow(COLOUR // 128 * 255, "TIFF", "P"), COLOUR // 128 * 255),
    "tiff gray palette": (pillow(GRAY, "TIFF", "P"), GRAY),
    "tiff cmyk": (pillow(COLOUR, "TIFF", "CMYK"), COLOUR),
    "tiff fax": (pillow(GRAY > 127, "TIFF", compression="group4"), (GRAY > 127).astype(np.uint8) * 255),
    "tiff 1 bit, white is zero": (
        tiff(GRAY[..., 0] > 127, photometric="miniswhite"),
        (GRAY <= 127).astype(np.uint8) * 255,
    ),
    "tiff opaque": (tiff(opaque(COLOUR), photometric="rgb", extrasamples=["unassalpha"]), COLOUR),
    "tiff gray opaque": (pillow(opaque(GRAY), "TIFF"), GRAY),
    "tiff with thumbnail": (with_thumbnail(), GRAY),
    "tiff turned": (tiff(GRAY[..., 0], extratags=TURNED), turned(GRAY)),
    "tiff 16 turned": (tiff(COLOUR16, photometric="rgb", extratags=TURNED), turned(COLOUR16)),
    "tiff 16 lzw": (opencv(COLOUR16, ".tif", 259, 5), COLOUR16),
    "tiff 16 lzw, white is zero": (with_tag(pillow(GRAY16, "TIFF", compression="tiff_lzw"), 262, 0), 65535 - GRAY16),
    "tiff 16 lzw, turned": (pillow(GRAY16, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}), turned(GRAY16)),
    "tiff 16 planar": (tiff(COLOUR16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), COLOUR16),
    "tiff 16 tiles": (tiff(COLOUR16, photometric="rgb", tile=(16, 16)), COLOUR16),
    "tiff 16 strips": (tiff(COLOUR16, photometric="rgb", rowsperstrip=7, compression="zlib"), COLOUR16),
    "tiff 16 big endian": (tiff(COLOUR16, photometric="rgb", byteorder=">"), COLOUR16),
    "tiff float, predictor": (opencv(FLOAT, ".tif", 259, 8, 317, 3), FLOAT),
    "tiff float, white is zero": (tiff(FLOAT[..., 0], photometric="miniswhite"), 1 - FLOAT),
    "bigtiff": (tiff(GRAY16[..., 0], bigtiff=True), GRAY16),
    "png late exif": (with_late_exif(pillow(COLOUR, "PNG")), turned(COLOUR)),
    "png 16 late exif": (with_late_exif(png(COLOUR16, 2)), turned(COLOUR16)),
    "png 16 opaque": (png(opaque(COLOUR16), 6), COLOUR16),
    "png 16 gray opaque": (png(opaque(GRAY16), 4), GRAY16),
    "png 16 unused transparent colour": (png(COLOUR16, 2, chunk(b"tRNS", bytes(6))), COLOUR16),
    "png opaque palette": (pillow(COLOUR // 128 * 255, "PNG", "P", transparency=bytes([255] * 3)), COLOUR // 128 * 255),
    "webp": (pillow(COLOUR, "WEBP", lossless=True), COLOUR),
    "jpeg of many frames": (
        pillow(np.full_like(COLOUR, 9), "MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
        np.full_like(COLOUR, 9),
    ),
}

UNREADABLE = {
    "stack with one directory": (tiff(np.dstack([GRAY16] * 6).transpose(2, 0, 1), truncate=True), "stack of 6 pages"),
    "volume": (tiff(np.zeros((5, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16)), "stack of 5 pages"),
    "unspecified fourth channel": (tiff(opaque(COLOUR), photometric="rgb", extrasamples=["unspecified"]), "4 channels"),
    "complex": (tiff(np.zeros((4, 4), np.complex64)), "complex64"),
    "signed": (tiff(np.zeros((4, 4), np.int8)), "int8"),
    "palette of 16 bits": (with_tag(tiff(GRAY16[..., 0]), 262, 3), "with a colour table; save it as plain gray or RGB"),
    "logarithmic": (with_tag(tiff(GRAY16[..., 0]), 262, 32844), "save it as gray or RGB"),
    "too large for float32": (tiff(np.full((4, 4), 1e300)), "not finite"),
    "transparent tiff": (tiff(np.dstack([COLOUR16, GRAY16]), photometric="rgb"), "transparent"),
    "transparent colour": (png(GRAY16, 0, chunk(b"tRNS", GRAY16[0, 0].astype(">u2").tobytes())), "transparent"),
    "transparent 16": (png(np.dstack([GRAY16, GRAY16]), 4), "transparent"),
    "short strip": (with_tag(with_tag(tiff(GRAY16[..., 0], compression="zlib"), 257, 60), 278, 60), "damaged"),
    "missing strips": (with_tag(with_tag(tiff(GRAY16[..., 0], rowsperstrip=5), 257, 60), 278, 5), "damaged|truncated"),
    "claims too much": (
        with_tag(with_tag(tiff(np.zeros((300, 300), np.uint8)), 256, 60000), 257, 60000),
        "more than the limit",
    ),
    "no pixels": (with_tag(tiff(GRAY16[..., 0]), 256, 0), "no pixels|damaged"),
    "animation": (pillow(COLOUR, "PNG", save_all=True, append_images=[Image.new("RGB", (30, 20))]), "animation"),
    "animated webp": (
        pillow(COLOUR, "WEBP", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
        "animation",
    ),
}


@pytest.mark.parametrize("kind", READABLE)
def test_readable(kind, tmp_path):
    data, pixels = READABLE[kind]
    (tmp_path / "x").write_bytes(data)
    image, header = read_image(tmp_path / "x"), image_header(tmp_path / "x")
    expected = pixels.astype(np.float32) / np.float32(65535) if pixels.dtype == np.uint16 else pixels
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == expected.dtype and header.dtype == pixels.dtype
    assert (header.height, header.width, header.channels) == image.shape


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable(kind, tmp_path):
    data, words = UNREADABLE[kind]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        read_image(tmp_path / "x")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        pillow(COLOUR, "PNG"),
        png(COLOUR16, 2),
        pillow(COLOUR, "JPEG"),
        pillow(COLOUR, "BMP"),
        pillow(COLOUR, "TIFF", compression="tiff_lzw"),
        opencv(COLOUR16, ".tif", 259, 1),
        opencv(COLOUR16, ".tif", 259, 5),
        tiff(FLOAT[..., 0].astype(np.float16)),
        tiff(COLOUR16, photometric="rgb", compression="zlib"),
    ],
    ids=["png", "png16", "jpeg", "bmp", "tiff lzw", "tiff16", "tiff16 lzw", "float16", "deflate"],
)
def test_a_cut_file_is_refused_or_whole(data, tmp_path):
    """Wherever it is cut, what is read of it is nothing or all."""
    (tmp_path / "x").write_bytes(data)
    whole = read_image(tmp_path / "x")
    for end in [*range(1, len(data) - 24, len(data) // 29), *range(len(data) - 24, len(data))]:
        (tmp_path / "x").write_bytes(data[:end])
        try:
            image = read_image(tmp_path / "x")
        except UsageError:
            continue
        assert end > len(data) - 24
        np.testing.assert_array_equal(image, whole)


def test_header_decodes_nothing(tmp_path):
    (tmp_path / "x").write_bytes(png(GRAY16[:1], 0, width=20000, height=20000))  # its pixels are not there
    assert image_header(tmp_path / "x").width == 20000
    with pytest.raises(UsageError, match="damaged"):
        read_image(tmp_path / "x", max_pixels=4 * 10**8)


def test_paths_that_are_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("no\nwhere")
    for name, words in {
        "pipe.png": "no regular file",
        "link.png": r"link to no\\nwhere",
        "a\0b.png": "NUL|null",
        "x" * 300: "too long",
    }.items():
        with pytest.raises(UsageError, match=words) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).isprintable()


def test_what_is_not_written(tmp_path):
    with pytest.raises(RunError, match="not finite"):
        write_image(tmp_path / "a.png", np.full((4, 4, 3), np.nan))
    with pytest.raises(RunError) as caught:
        write_image(tmp_path / "no\nfolder" / "a.png", COLOUR)
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="jpg"):
        write_image(tmp_path / "a.jpg", COLOUR)
    assert not list(tmp_path.iterdir())


def test_written_bytes_scale_to_16_bits(tmp_path):
    write_image(tmp_path / "a.png", COLOUR, bits=16)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), to_float(COLOUR), atol=1e-7)
