"""Files of every kind are read and written, good, odd and bad ones.

Results are written whole and where they belong.
"""

from __future__ import annotations

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from data.images import image_header, read_image, to_float, write_image
from data.inputs import output_names
from data.pictures import side_by_side
from data.sets import SETS, SKIMAGE_TEST, SKIMAGE_TRAIN, content_hash, find_images
from utils.errors import RunError, UsageError

RANDOM = np.random.default_rng(0)
GRAY, COLOUR = RANDOM.integers(0, 256, (9, 7), np.uint8), RANDOM.integers(0, 256, (9, 7, 3), np.uint8)
GRAY16, COLOUR16 = RANDOM.integers(0, 65536, (9, 7), np.uint16), RANDOM.integers(0, 65536, (9, 7, 3), np.uint16)


def png(path, pixels, **kwargs):
    Image.fromarray(pixels).save(path, **kwargs)


def with_orientation(path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(COLOUR).save(path, exif=exif)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(path):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
    )


def truncated(path, save):
    save(path)
    path.write_bytes(path.read_bytes()[:-30])


SIXTEEN = GRAY16.astype(np.float32)[..., None] / 65535

# name of the file, how to make it, and the expected image (H,W,C)
READABLE = {
    "gray.png": (lambda p: png(p, GRAY), GRAY[..., None]),
    "colour.png": (lambda p: png(p, COLOUR), COLOUR),
    "colour.bmp": (lambda p: png(p, COLOUR), COLOUR),
    "upper.PNG": (lambda p: png(p, COLOUR), COLOUR),
    "gray16.png": (lambda p: png(p, GRAY16), SIXTEEN),
    "colour16.png": (lambda p: cv2.imwrite(str(p), COLOUR16[..., ::-1]), COLOUR16.astype(np.float32) / 65535),
    "one_bit.png": (lambda p: Image.fromarray(GRAY > 127).save(p), (GRAY > 127).astype(np.uint8)[..., None] * 255),
    "palette.png": (lambda p: Image.fromarray(COLOUR // 128 * 255).quantize(8).save(p), COLOUR // 128 * 255),
    "gray_palette.png": (lambda p: gray_palette(p), GRAY[..., None]),
    "opaque.png": (lambda p: png(p, np.dstack([COLOUR, np.full((9, 7), 255, np.uint8)])), COLOUR),
    "gray_opaque.png": (lambda p: png(p, np.dstack([GRAY, np.full((9, 7), 255, np.uint8)])), GRAY[..., None]),
    "one_pixel.png": (lambda p: png(p, GRAY[:1, :1]), GRAY[:1, :1, None]),
    "one_row.png": (lambda p: png(p, GRAY[:1]), GRAY[:1, :, None]),
    "gray.tif": (lambda p: tifffile.imwrite(p, GRAY), GRAY[..., None]),
    "gray16.tif": (lambda p: tifffile.imwrite(p, GRAY16), SIXTEEN),
    "big_endian.tif": (lambda p: tifffile.imwrite(p, GRAY16, byteorder=">"), SIXTEEN),
    "compressed.tiff": (
        lambda p: tifffile.imwrite(p, COLOUR16, photometric="rgb", compression="zlib"),
        COLOUR16.astype(np.float32) / 65535,
    ),
    "planar.tif": (
        lambda p: tifffile.imwrite(p, COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        COLOUR,
    ),
    "float.tif": (lambda p: tifffile.imwrite(p, SIXTEEN[..., 0]), SIXTEEN),
    "double.tif": (lambda p: tifffile.imwrite(p, SIXTEEN[..., 0].astype(np.float64)), SIXTEEN),
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


@pytest.mark.parametrize("name", READABLE)
def test_readable(name, tmp_path):
    make, expected = READABLE[name]
    make(tmp_path / name)
    image, header = read_image(tmp_path / name), image_header(tmp_path / name)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == expected.dtype and image.flags.c_contiguous
    assert (header.height, header.width, header.channels) == image.shape


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(name, tmp_path):
    make, words = UNREADABLE[name]
    make(tmp_path / name)
    with pytest.raises(UsageError, match=words) as caught:
        read_image(tmp_path / name)
    message = str(caught.value)
    assert name in message and "\n" not in message


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
    write_image(tmp_path / name, image, bits=bits)
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


def test_output_names_are_unique_and_stay_in_their_folder(tmp_path):
    files = [tmp_path / f for f in ("a/x.png", "b/x.png", "c/y.png", "b/x.tif", "x_2.png", "..png")]
    names = output_names(files)
    assert len(set(names)) == len(names) and names[2] == "y"
    for name in names:
        assert (tmp_path / "out" / f"{name}_all.png").resolve().parent == (tmp_path / "out").resolve()


def test_side_by_side():
    strip = side_by_side({"gray": np.zeros((9, 7, 1)), "colour": np.ones((9, 7, 3))})
    assert strip.shape[1] == 2 * 7 + 4 and strip.shape[2] == 3 and strip[-1, 0, 0] == 0 and strip[-1, -1, 0] == 255


# -------------------------------------------------------------------------------------- finding images


def test_find_images(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = lambda spec: [f.name for f in find_images(spec)]  # noqa: E731
    assert names(str(tmp_path)) == ["a.JPG", "b.png"]
    assert names(str(tmp_path / "**" / "*.png")) == ["b.png", "c.png"]
    assert names([str(tmp_path / "b.png"), str(tmp_path)]) == ["b.png", "a.JPG"]  # each once
    assert names("skimage_train") == SKIMAGE_TRAIN and not set(SKIMAGE_TRAIN) & set(SKIMAGE_TEST)


def test_embedded_photographs_are_there():
    for f in find_images(["skimage_train", "skimage_test"]):
        assert f.is_file()
        assert min(image_header(f).height, image_header(f).width) >= 300


def test_named_set(tmp_path, monkeypatch):
    (tmp_path / "cc15").mkdir()
    for name in ("1_real.png", "1_mean.png"):
        (tmp_path / "cc15" / name).touch()
    assert [f.name for f in find_images("cc15", tmp_path)] == ["1_real.png"]
    monkeypatch.setenv("DBSN_DATA", str(tmp_path))
    assert [f.name for f in find_images("cc15_clean")] == ["1_mean.png"]


@pytest.mark.parametrize("spec", ["nowhere/", "bsd86", "*.nothing", "EMPTY", *SETS])
def test_images_that_are_not_there(spec, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as caught:
        find_images(spec.replace("EMPTY", str(tmp_path / "empty")), tmp_path, "--clean")
    message = str(caught.value)
    assert message.startswith("--clean") and "\n" not in message
    if spec in SETS:
        assert str(tmp_path / SETS[spec].folder) in message and "DBSN_DATA" in message
    if spec == "bsd86":
        assert "did you mean" in message


def test_content_hash(tmp_path):
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (content_hash(tmp_path / n) for n in "abc")
    assert a == b != c
