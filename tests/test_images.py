"""Files of every kind are read and written, good, odd and bad ones. Results are written whole."""

from __future__ import annotations

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from data.images import image_header, read_image, to_float, write_image
from tests.helpers import png_chunk
from utils.errors import RunError, UsageError

RANDOM = np.random.default_rng(0)
GRAY, COLOUR = RANDOM.integers(0, 256, (9, 7), np.uint8), RANDOM.integers(0, 256, (9, 7, 3), np.uint8)
GRAY16, COLOUR16 = RANDOM.integers(0, 65536, (9, 7), np.uint16), RANDOM.integers(0, 65536, (9, 7, 3), np.uint16)
BIG_GRAY, BIG_COLOUR = RANDOM.integers(0, 256, (20, 30, 1), np.uint8), RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
BIG_GRAY16, BIG_COLOUR16 = (
    RANDOM.integers(0, 65536, (20, 30, 1), np.uint16),
    RANDOM.integers(0, 65536, (20, 30, 3), np.uint16),
)
FLOAT = (BIG_GRAY16 / 65535).astype(np.float32)
TURNED = [(274, 3, 1, 6, True)]  # the tag Orientation = 6: shown a quarter turn clockwise


def png(path, pixels, **kwargs):
    Image.fromarray(pixels).save(path, **kwargs)


def with_orientation(path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(COLOUR).save(path, exif=exif)


def png_bomb(path):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
    )


def truncated(path, save):
    save(path)
    path.write_bytes(path.read_bytes()[:-30])


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


def png16(pixels, colour_type, *before, width=None, height=None):
    """A 16-bit PNG (or one that claims another size) of pixels (H,W,C)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    size = struct.pack(">IIBBBBB", width or pixels.shape[1], height or pixels.shape[0], 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", size)
        + b"".join(before)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def with_late_exif(data):
    """EXIF after the pixels, where PNG allows it."""
    exif = Image.Exif()
    exif[274] = 6
    return data[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]


def with_thumbnail():
    data = io.BytesIO()
    with tifffile.TiffWriter(data) as writer:
        writer.write(BIG_GRAY[..., 0])
        writer.write(BIG_GRAY[::2, ::2, 0], subfiletype=1)
    return data.getvalue()


def opaque(pixels):
    return np.dstack([pixels, np.full(pixels.shape[:2], np.iinfo(pixels.dtype).max, pixels.dtype)])


def turned(pixels):
    return np.rot90(pixels, -1)


def bytes_of(kinds):
    """The kinds, each (bytes, ..), as the tables below have them: (how to make the file, ..)."""
    return {kind: (lambda path, data=data: path.write_bytes(data), other) for kind, (data, other) in kinds.items()}


SIXTEEN = GRAY16.astype(np.float32)[..., None] / 65535

# name of the file, how to make it, and the expected image (H,W,C)
READABLE = {
    "gray.png": (lambda p: png(p, GRAY), GRAY[..., None]),
    "colour.png": (lambda p: png(p, COLOUR), COLOUR),
    "colour.bmp": (lambda p: png(p, COLOUR), COLOUR),
    "upper.PNG": (lambda p: png(p, COLOUR), COLOUR),
    "gray16.png": (lambda p: png(p, GRAY16), GRAY16[..., None]),
    "colour16.png": (lambda p: cv2.imwrite(str(p), COLOUR16[..., ::-1]), COLOUR16),
    "one_bit.png": (lambda p: Image.fromarray(GRAY > 127).save(p), (GRAY > 127).astype(np.uint8)[..., None] * 255),
    "palette.png": (lambda p: Image.fromarray(COLOUR // 128 * 255).quantize(8).save(p), COLOUR // 128 * 255),
    "gray_palette.png": (lambda p: gray_palette(p), GRAY[..., None]),
    "opaque.png": (lambda p: png(p, np.dstack([COLOUR, np.full((9, 7), 255, np.uint8)])), COLOUR),
    "gray_opaque.png": (lambda p: png(p, np.dstack([GRAY, np.full((9, 7), 255, np.uint8)])), GRAY[..., None]),
    "one_pixel.png": (lambda p: png(p, GRAY[:1, :1]), GRAY[:1, :1, None]),
    "one_row.png": (lambda p: png(p, GRAY[:1]), GRAY[:1, :, None]),
    "gray.tif": (lambda p: tifffile.imwrite(p, GRAY), GRAY[..., None]),
    "gray16.tif": (lambda p: tifffile.imwrite(p, GRAY16), GRAY16[..., None]),
    "big_endian.tif": (lambda p: tifffile.imwrite(p, GRAY16, byteorder=">"), GRAY16[..., None]),
    "compressed.tiff": (
        lambda p: tifffile.imwrite(p, COLOUR16, photometric="rgb", compression="zlib"),
        COLOUR16,
    ),
    "planar.tif": (
        lambda p: tifffile.imwrite(p, COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        COLOUR,
    ),
    "float.tif": (lambda p: tifffile.imwrite(p, SIXTEEN[..., 0]), SIXTEEN),
    "double.tif": (lambda p: tifffile.imwrite(p, SIXTEEN[..., 0].astype(np.float64)), SIXTEEN.astype(np.float64)),
    "white_is_zero.tif": (lambda p: tifffile.imwrite(p, GRAY, photometric="miniswhite"), 255 - GRAY[..., None]),
    "tab\tand\nnewline.png": (lambda p: png(p, GRAY), GRAY[..., None]),
    "ünïcødé 图.png": (lambda p: png(p, GRAY), GRAY[..., None]),
} | {f"exif{k}.png": (lambda p, k=k: with_orientation(p, k), ROTATED) for k, ROTATED in {
    1: COLOUR, 2: COLOUR[:, ::-1], 3: COLOUR[::-1, ::-1], 4: COLOUR[::-1], 5: COLOUR.transpose(1, 0, 2),
    6: np.rot90(COLOUR, -1), 7: COLOUR.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(COLOUR),
}.items()}  # fmt: skip


def gray_palette(path):
    image = Image.frombytes("P", (7, 9), GRAY.tobytes())
    image.putpalette([v for k in range(256) for v in (k, k, k)])
    image.save(path)


# kinds that one decoder alone turns, inverts, reduces to 8 bits, cuts or refuses
READABLE |= bytes_of(
    {
        "tiff lzw": (pillow(BIG_COLOUR, "TIFF", compression="tiff_lzw"), BIG_COLOUR),
        "tiff lzw, predictor": (pillow(BIG_COLOUR, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), BIG_COLOUR),
        "tiff lzw, white is zero": (with_tag(pillow(BIG_GRAY, "TIFF", compression="tiff_lzw"), 262, 0), 255 - BIG_GRAY),
        "tiff lzw, turned": (pillow(BIG_COLOUR, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}), turned(BIG_COLOUR)),
        "tiff palette": (pillow(BIG_COLOUR // 128 * 255, "TIFF", "P"), BIG_COLOUR // 128 * 255),
        "tiff gray palette": (pillow(BIG_GRAY, "TIFF", "P"), BIG_GRAY),
        "tiff cmyk": (pillow(BIG_COLOUR, "TIFF", "CMYK"), BIG_COLOUR),
        "tiff fax": (pillow(BIG_GRAY > 127, "TIFF", compression="group4"), (BIG_GRAY > 127).astype(np.uint8) * 255),
        "tiff 1 bit, white is zero": (
            tiff(BIG_GRAY[..., 0] > 127, photometric="miniswhite"),
            (BIG_GRAY <= 127).astype(np.uint8) * 255,
        ),
        "tiff opaque": (tiff(opaque(BIG_COLOUR), photometric="rgb", extrasamples=["unassalpha"]), BIG_COLOUR),
        "tiff gray opaque": (pillow(opaque(BIG_GRAY), "TIFF"), BIG_GRAY),
        "tiff with thumbnail": (with_thumbnail(), BIG_GRAY),
        "tiff turned": (tiff(BIG_GRAY[..., 0], extratags=TURNED), turned(BIG_GRAY)),
        "tiff 16 turned": (tiff(BIG_COLOUR16, photometric="rgb", extratags=TURNED), turned(BIG_COLOUR16)),
        "tiff 16 lzw": (opencv(BIG_COLOUR16, ".tif", 259, 5), BIG_COLOUR16),
        "tiff 16 lzw, white is zero": (
            with_tag(pillow(BIG_GRAY16, "TIFF", compression="tiff_lzw"), 262, 0),
            65535 - BIG_GRAY16,
        ),
        "tiff 16 lzw, turned": (
            pillow(BIG_GRAY16, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}),
            turned(BIG_GRAY16),
        ),
        "tiff 16 planar": (
            tiff(BIG_COLOUR16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
            BIG_COLOUR16,
        ),
        "tiff 16 tiles": (tiff(BIG_COLOUR16, photometric="rgb", tile=(16, 16)), BIG_COLOUR16),
        "tiff 16 strips": (tiff(BIG_COLOUR16, photometric="rgb", rowsperstrip=7, compression="zlib"), BIG_COLOUR16),
        "tiff 16 big endian": (tiff(BIG_COLOUR16, photometric="rgb", byteorder=">"), BIG_COLOUR16),
        "tiff float, predictor": (opencv(FLOAT, ".tif", 259, 8, 317, 3), FLOAT),
        "tiff float, white is zero": (tiff(FLOAT[..., 0], photometric="miniswhite"), 1 - FLOAT),
        "bigtiff": (tiff(BIG_GRAY16[..., 0], bigtiff=True), BIG_GRAY16),
        "png late exif": (with_late_exif(pillow(BIG_COLOUR, "PNG")), turned(BIG_COLOUR)),
        "png 16 late exif": (with_late_exif(png16(BIG_COLOUR16, 2)), turned(BIG_COLOUR16)),
        "png 16 opaque": (png16(opaque(BIG_COLOUR16), 6), BIG_COLOUR16),
        "png 16 gray opaque": (png16(opaque(BIG_GRAY16), 4), BIG_GRAY16),
        "png 16 unused transparent colour": (png16(BIG_COLOUR16, 2, png_chunk(b"tRNS", bytes(6))), BIG_COLOUR16),
        "png opaque palette": (
            pillow(BIG_COLOUR // 128 * 255, "PNG", "P", transparency=bytes([255] * 3)),
            BIG_COLOUR // 128 * 255,
        ),
        "webp": (pillow(BIG_COLOUR, "WEBP", lossless=True), BIG_COLOUR),
        "jpeg of many frames": (
            pillow(np.full_like(BIG_COLOUR, 9), "MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
            np.full_like(BIG_COLOUR, 9),
        ),
    }
)


# name of the file, how to make it, and words of the error
UNREADABLE = {
    "missing.png": (lambda p: None, "does not exist"),
    "folder.png": (lambda p: p.mkdir(), "is a folder"),
    "empty.png": (lambda p: p.touch(), "0 bytes"),
    "text.png": (lambda p: p.write_text("this is no picture"), "no PNG, JPEG, BMP, WebP, TIFF"),
    "gif.png": (lambda p: Image.fromarray(GRAY).save(p, "GIF"), "no PNG, JPEG, BMP, WebP, TIFF"),
    "cut.png": (lambda p: truncated(p, lambda q: png(q, COLOUR)), "damaged"),
    "cut.jpg": (lambda p: truncated(p, lambda q: Image.fromarray(COLOUR.repeat(9, 0)).save(q)), "damaged"),
    "cut.bmp": (lambda p: truncated(p, lambda q: png(q, COLOUR)), "damaged"),
    "cut16.png": (lambda p: truncated(p, lambda q: cv2.imwrite(str(q), COLOUR16)), "damaged"),
    "cut.tif": (lambda p: truncated(p, lambda q: tifffile.imwrite(q, GRAY16)), "truncated|damaged"),
    "header_only.tif": (lambda p: p.write_bytes(b"II*\0"), "damaged"),
    "header_only.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "no PNG|damaged"),
    "bomb.png": (png_bomb, "more than the limit"),
    "transparent.png": (lambda p: png(p, np.dstack([COLOUR, GRAY])), "transparent"),
    "gray_transparent.png": (lambda p: png(p, np.dstack([GRAY, GRAY])), "transparent"),
    "colour_key.png": (lambda p: Image.fromarray(GRAY).save(p, transparency=int(GRAY[0, 0])), "transparent"),
    "stack.tif": (lambda p: tifffile.imwrite(p, np.stack([GRAY] * 3), photometric="minisblack"), "stack of 3 pages"),
    "two_channels.tif": (
        lambda p: tifffile.imwrite(p, np.dstack([GRAY, GRAY]), photometric="minisblack", planarconfig="contig"),
        "2 channels",
    ),
    "five_channels.tif": (
        lambda p: tifffile.imwrite(p, np.dstack([GRAY] * 5), photometric="minisblack", planarconfig="contig"),
        "5 channels",
    ),
    "nan.tif": (lambda p: tifffile.imwrite(p, np.where(SIXTEEN[..., 0] > 0.5, np.nan, SIXTEEN[..., 0])), "not finite"),
    "infinite.tif": (lambda p: tifffile.imwrite(p, np.full((9, 7), np.inf, np.float32)), "not finite"),
    "wide.tif": (lambda p: tifffile.imwrite(p, GRAY16.astype(np.uint64)), "uint64"),
    "broken_link.png": (lambda p: p.symlink_to("nowhere.png"), "link to nowhere.png"),
    "loop.png": (lambda p: p.symlink_to(p), "cannot be read"),
}

UNREADABLE |= bytes_of(
    {
        "stack with one directory": (
            tiff(np.dstack([BIG_GRAY16] * 6).transpose(2, 0, 1), truncate=True),
            "stack of 6 pages",
        ),
        "volume": (tiff(np.zeros((5, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16)), "stack of 5 pages"),
        "unspecified fourth channel": (
            tiff(opaque(BIG_COLOUR), photometric="rgb", extrasamples=["unspecified"]),
            "4 channels",
        ),
        "complex": (tiff(np.zeros((4, 4), np.complex64)), "complex64"),
        "signed": (tiff(np.zeros((4, 4), np.int8)), "int8"),
        "palette of 16 bits": (
            with_tag(tiff(BIG_GRAY16[..., 0]), 262, 3),
            "with a colour table; save it as plain gray or RGB",
        ),
        "logarithmic": (with_tag(tiff(BIG_GRAY16[..., 0]), 262, 32844), "save it as gray or RGB"),
        "too large for float32": (tiff(np.full((4, 4), 1e300)), "too large for 32 bits"),
        "transparent tiff": (tiff(np.dstack([BIG_COLOUR16, BIG_GRAY16]), photometric="rgb"), "transparent"),
        "transparent colour": (
            png16(BIG_GRAY16, 0, png_chunk(b"tRNS", BIG_GRAY16[0, 0].astype(">u2").tobytes())),
            "transparent",
        ),
        "transparent 16": (png16(np.dstack([BIG_GRAY16, BIG_GRAY16]), 4), "transparent"),
        "short strip": (with_tag(with_tag(tiff(BIG_GRAY16[..., 0], compression="zlib"), 257, 60), 278, 60), "damaged"),
        "missing strips": (
            with_tag(with_tag(tiff(BIG_GRAY16[..., 0], rowsperstrip=5), 257, 60), 278, 5),
            "damaged|truncated",
        ),
        "claims too much": (
            with_tag(with_tag(tiff(np.zeros((300, 300), np.uint8)), 256, 60000), 257, 60000),
            "more than the limit",
        ),
        "no pixels": (with_tag(tiff(BIG_GRAY16[..., 0]), 256, 0), "no pixels|damaged"),
        "animation": (
            pillow(BIG_COLOUR, "PNG", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
            "animation",
        ),
        "animated webp": (
            pillow(BIG_COLOUR, "WEBP", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
            "animation",
        ),
    }
)


@pytest.mark.parametrize("name", READABLE)
def test_readable(name, tmp_path):
    make, pixels = READABLE[name]
    make(tmp_path / name)
    image, header = read_image(tmp_path / name), image_header(tmp_path / name)
    expected = pixels.astype(np.float32) / np.float32(65535) if pixels.dtype == np.uint16 else pixels
    expected = expected.astype(np.float32) if expected.dtype == np.float64 else expected
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == expected.dtype and header.dtype == pixels.dtype and image.flags.c_contiguous
    assert (header.height, header.width, header.channels) == image.shape


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(name, tmp_path):
    make, words = UNREADABLE[name]
    make(tmp_path / name)
    with pytest.raises(UsageError, match=words) as caught:
        read_image(tmp_path / name)
    message = str(caught.value)
    assert name in message and message.isprintable()


def test_names_in_messages_stay_on_one_line(tmp_path):
    (tmp_path / "a\nb.png").touch()
    with pytest.raises(UsageError) as caught:
        read_image(tmp_path / "a\nb.png")
    assert "\n" not in str(caught.value) and "a\\nb.png" in str(caught.value)


def test_cmyk_and_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    image = read_image(tmp_path / "c.jpg")
    assert image.shape == (8, 8, 3) and image[..., 0].min() > 200 and image[..., 1:].max() < 60


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    png(tmp_path / "a.png", GRAY)
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(UsageError, match="Permission denied"):
        read_image(tmp_path / "a.png")


def test_conversion_between_gray_and_colour(tmp_path):
    png(tmp_path / "c.png", COLOUR)
    png(tmp_path / "g.png", GRAY)
    luma = np.rint(COLOUR.astype(np.float64) @ [0.299, 0.587, 0.114])
    assert abs(read_image(tmp_path / "c.png", mode="gray")[..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(read_image(tmp_path / "g.png", mode="color"), np.dstack([GRAY] * 3))


def test_white_level(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", (GRAY16 // 16))  # a 12-bit camera
    image = read_image(tmp_path / "a.tif", white_level=4095)
    np.testing.assert_allclose(image[..., 0], (GRAY16 // 16) / 4095, rtol=1e-6)
    tifffile.imwrite(tmp_path / "f.tif", 300 * SIXTEEN[..., 0])
    np.testing.assert_allclose(read_image(tmp_path / "f.tif", white_level=300), SIXTEEN, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, None), (np.uint8, 200), (np.uint16, None), (np.uint16, 4095)])
def test_transparent_parts_have_the_units_of_the_others(dtype, white, tmp_path):
    values = np.full((9, 7, 4), 150, dtype)
    values[..., 3] = np.iinfo(dtype).max
    values[0, 0, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    image = read_image(tmp_path / "a.tif", white_level=white, holes=True)
    assert image.dtype == np.float32 and np.isnan(image[0, 0]).all()
    np.testing.assert_allclose(image[1:], 150 / (white or np.iinfo(dtype).max), rtol=1e-6)


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_alpha_is_written_as_it_was_read(kind, tmp_path):
    pixels = np.full((9, 7, 4), 60, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[kind])
    header = image_header(tmp_path / "a.tif")
    color, alpha = pixels[..., :3], pixels[..., 3]
    write_image(tmp_path / "b.tif", color, values=np.uint8, alpha=alpha, premultiplied=header.premultiplied)
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        assert [one.name.lower() for one in tiff.pages[0].extrasamples] == [kind]
        np.testing.assert_array_equal(tiff.asarray(), pixels)


@pytest.mark.parametrize(("bits", "channels"), [(8, 1), (8, 3), (16, 1), (16, 3)])
def test_png_keeps_profile_and_resolution(bits, channels, tmp_path):
    """A profile that is for other channels than the result's would make it invalid."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    png(tmp_path / "a.png", COLOUR)
    Image.open(tmp_path / "a.png").save(tmp_path / "a.png", icc_profile=icc, dpi=(300, 300))
    factor, dtype = {8: (1, np.uint8), 16: (257, np.uint16)}[bits]
    write_image(tmp_path / "b.png", factor * COLOUR[..., :channels].astype(float), dtype, like=tmp_path / "a.png")
    with Image.open(tmp_path / "b.png") as written:
        assert written.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert written.info.get("icc_profile") == (icc if channels == 3 else None)
    image = to_float(read_image(tmp_path / "b.png"))
    np.testing.assert_allclose(image, COLOUR[..., :channels] / 255, atol=0.5 / (2**bits - 1))


def test_limit_of_pixels(tmp_path):
    png(tmp_path / "a.png", GRAY)
    tifffile.imwrite(tmp_path / "a.tif", GRAY)
    for name in ("a.png", "a.tif"):
        assert read_image(tmp_path / name, max_pixels=63).shape == (9, 7, 1)
        for f in (read_image, image_header):
            with pytest.raises(UsageError, match="limit of 62"):
                f(tmp_path / name, max_pixels=62)


@pytest.mark.parametrize(("name", "bits"), [("a.png", 8), ("a.png", 16), ("a.tif", 8), ("a.tif", 16), ("a.tiff", 32)])
@pytest.mark.parametrize("pixels", [GRAY16, COLOUR16])
def test_written_images_read_back(name, bits, pixels, tmp_path):
    image = (pixels if pixels.ndim == 3 else pixels[..., None]).astype(np.float32) / 65535 * 1.4 - 0.2
    highest, dtype = {8: (255, np.uint8), 16: (65535, np.uint16), 32: (1, np.float32)}[bits]
    write_image(tmp_path / name, highest * image, dtype)
    expected = image if bits == 32 else image.clip(0, 1)
    assert (
        abs(to_float(read_image(tmp_path / name)) - expected).max()
        <= {8: 0.5 / 255, 16: 0.5 / 65535, 32: 0}[bits] + 1e-7
    )
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", GRAY[..., None])
    before = (tmp_path / "a.png").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_image(tmp_path / "a.png", 255 - GRAY[..., None])
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "data",
    [
        pillow(BIG_COLOUR, "PNG"),
        png16(BIG_COLOUR16, 2),
        pillow(BIG_COLOUR, "JPEG"),
        pillow(BIG_COLOUR, "BMP"),
        pillow(BIG_COLOUR, "TIFF", compression="tiff_lzw"),
        opencv(BIG_COLOUR16, ".tif", 259, 1),
        opencv(BIG_COLOUR16, ".tif", 259, 5),
        tiff(FLOAT[..., 0].astype(np.float16)),
        tiff(BIG_COLOUR16, photometric="rgb", compression="zlib"),
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
    (tmp_path / "x").write_bytes(png16(BIG_GRAY16[:1], 0, width=20000, height=20000))  # its pixels are not there
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
        write_image(tmp_path / "no\nfolder" / "a.png", BIG_COLOUR)
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="jpg"):
        write_image(tmp_path / "a.jpg", BIG_COLOUR)
    assert not list(tmp_path.iterdir())
