"""DNG files as folders of four planes: levels, areas and previews are those of the file."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import tifffile

from data.images import image_header, read_image
from data.sets import content_hash, find_images
from tests.helpers import TINY, ok
from utils.errors import UsageError

BLACK, WHITE = np.array([[500, 510], [520, 530]]), 4095
RGGB, AREA = (33422, "B", 4, bytes([0, 1, 1, 2])), (50829, "I", 4, (2, 4, 42, 54))  # 40 x 50 pixels
LEVELS = [(50713, "H", 2, (2, 2)), (50714, "H", 4, tuple(BLACK.ravel().tolist())), (50717, "H", 1, WHITE)]
VERSION = [(50706, "B", 4, bytes([1, 4, 0, 0])), (50708, "s", 0, "Camera")]


def sensor(height: int = 44, width: int = 56) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(400, WHITE, (height, width)).astype(np.uint16)


def write(path, pixels, tags=(), thumbnail=True, dim=(2, 2), byteorder="<", **options):
    """A DNG: a small preview, and below it what the sensor saw."""
    tags = [(33421, "H", 2, dim), RGGB, *tags]
    with tifffile.TiffWriter(path, byteorder=byteorder) as writer:
        if thumbnail:
            preview = np.zeros((8, 10, 3), np.uint8)
            writer.write(preview, photometric="rgb", subfiletype=1, subifds=1, extratags=VERSION, metadata=None)
        options = {"photometric": "cfa", "extratags": tags if thumbnail else [*tags, *VERSION]} | options
        writer.write(pixels, subfiletype=0, metadata=None, **options)
    return path


def planes(path) -> list[np.ndarray]:
    return [read_image(page)[..., 0] for page in find_images(path)]


def quarters(pixels) -> list[np.ndarray]:
    return [pixels[row::2, column::2] for row in (0, 1) for column in (0, 1)]


@pytest.mark.parametrize("thumbnail", [True, False])
def test_planes_with_the_levels_of_the_file(thumbnail, tmp_path):
    pixels = sensor()
    file = write(tmp_path / "a.DNG", pixels, [*LEVELS, AREA], thumbnail)
    pages = find_images(tmp_path)
    assert [str(page) for page in pages] == [f"{file}/a_page{k:04d}.tif" for k in range(1, 5)]
    inside = pixels[2:42, 4:54].astype(float)
    for page, quarter, black in zip(pages, quarters(inside), BLACK.ravel()):
        image, header = read_image(page), image_header(page)
        assert image.shape == (header.height, header.width, header.channels) == (20, 25, 1)
        assert image.dtype == header.dtype == np.float32
        np.testing.assert_allclose(image[..., 0], (quarter - black) / (WHITE - black), atol=1e-6)
        assert image.min() < 0  # noise below black stays
    assert len({content_hash(page) for page in pages}) == 4


def test_levels_that_are_not_given(tmp_path):
    """Black is then 0, and white the highest value of the depth."""
    pixels = sensor(8, 10)
    for found, quarter in zip(planes(write(tmp_path / "a.dng", pixels)), quarters(pixels)):
        np.testing.assert_allclose(found, quarter / 65535, atol=1e-6)
    odd = write(tmp_path / "odd.dng", sensor(9, 11))
    assert {plane.shape for plane in planes(odd)} == {(4, 5)}


def test_fractions_rows_columns_and_a_table(tmp_path):
    pixels = sensor(8, 10) % 256
    table = np.arange(200) ** 2 // 20  # the last value holds beyond it
    across, down = np.arange(10) * 2 - 4, np.arange(8) * 3
    tags = [
        (50712, "H", 200, tuple(table.tolist())),
        (50714, "2I", 1, (41, 2)),
        (50715, "2i", 10, tuple(n for value in across.tolist() for n in (value, 1))),
        (50716, "2i", 8, tuple(n for value in down.tolist() for n in (value, 1))),
        (50717, "I", 1, 1900),
    ]
    black = float(Fraction(41, 2)) + across + down[:, None]
    expected = (table[pixels.clip(0, 199)] - black) / (1900 - black)
    for found, quarter in zip(planes(write(tmp_path / "a.dng", pixels, tags)), quarters(expected)):
        np.testing.assert_allclose(found, quarter, atol=1e-6)


@pytest.mark.parametrize("how", [{"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}], ids=str)
def test_ways_to_store(how, tmp_path):
    pixels = sensor()
    found = planes(write(tmp_path / "a.dng", pixels, **how))
    np.testing.assert_allclose(found[3], pixels[1::2, 1::2] / 65535, atol=1e-6)


def test_what_is_wrong_is_said(tmp_path):
    good = write(tmp_path / "good.dng", sensor(8, 10), LEVELS)
    cut = tmp_path / "cut.dng"
    cut.write_bytes(good.read_bytes()[:-20])
    (tmp_path / "text.dng").write_text("no picture")
    tifffile.imwrite(tmp_path / "rgb.dng", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    cases = {
        "cut.dng": "truncated",
        "text.dng": "is no PNG",
        "rgb.dng": "no pixels of a Bayer sensor",
        write(tmp_path / "xtrans.dng", sensor(12, 12), dim=(6, 6)).name: "no Bayer pattern",
        write(tmp_path / "dark.dng", sensor(8, 10), [(50714, "H", 1, 99), (50717, "H", 1, 99)]).name: "not above",
        write(tmp_path / "tiny.dng", sensor(1, 9)).name: "has no pixels",
        "absent.dng": "does not exist",
    }
    for name, words in cases.items():
        with pytest.raises(UsageError, match=words) as caught:
            read_image(tmp_path / name / f"{name[:-4]}_page0001.tif")
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="4 planes"):
        read_image(good / "good_page0005.tif")
    with pytest.raises(UsageError, match="more than the limit"):
        image_header(good / "good_page0001.tif", max_pixels=79)


def test_packed_pixels_need_a_package(tmp_path):
    """12 bits without padding, as some cameras write them."""
    pixels = sensor(8, 10)
    file = write(tmp_path / "a.dng", pixels.astype(">u2"), bitspersample=16)
    packed = np.packbits(np.unpackbits(pixels.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 4:])
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0].pages[0]
        where, bits, count = page.dataoffsets[0], page.tags["BitsPerSample"], page.tags["StripByteCounts"]
    with open(file, "r+b") as opened:
        for place, data in ((where, packed.tobytes()), (bits.valueoffset, b"\x0c\0"), (count.valueoffset, b"\x78\0")):
            opened.seek(place)
            opened.write(data)
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="pip install imagecodecs"):
            planes(file)
    else:
        np.testing.assert_allclose(planes(file)[1], pixels[::2, 1::2] / 4095, atol=1e-6)


def test_training_on_raw_files_and_denoising_them(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        write(tmp_path / "in" / f"{name}.dng", sensor(), [*LEVELS, AREA])
    ok(run("train_dbsn", f"--name s1 --noisy {tmp_path}/in --noise hg {TINY} --steps 1"))
    ok(run("test", f"--checkpoint s1 --data {tmp_path}/in/a.dng --save {tmp_path}/out"))
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["a_denoised.tif"]
    result = tifffile.imread(tmp_path / "out" / "a_denoised.tif")
    assert result.shape == (4, 20, 25) and result.dtype == np.float32 and np.isfinite(result).all()


def test_levels_are_those_that_rawpy_finds(tmp_path):
    rawpy = pytest.importorskip("rawpy")
    pixels = sensor()
    with rawpy.imread(str(write(tmp_path / "a.dng", pixels, LEVELS))) as raw:
        seen, white = raw.raw_image_visible.astype(float), raw.white_level
        black = np.array(raw.black_level_per_channel, float)[raw.raw_colors_visible]
    for found, expected in zip(planes(tmp_path / "a.dng"), quarters((seen - black) / (white - black))):
        np.testing.assert_allclose(found, expected, atol=1e-3)
