"""TIFF stacks: pages are images of their own, for training and for denoising, and results become a stack again."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.images import image_header, read_image, write_image
from data.sets import content_hash, find_images
from tests.helpers import LEVELS, ROOT, TINY, TINY2, ok
from utils.errors import UsageError

RANDOM = np.random.default_rng(0)
GRAY16 = RANDOM.integers(0, 65536, (6, 20, 30), np.uint16)
COLOUR = RANDOM.integers(0, 256, (4, 20, 30, 3), np.uint8)


def with_thumbnails():
    data = io.BytesIO()
    with tifffile.TiffWriter(data) as writer:
        for page in GRAY16[:3]:
            writer.write(page, photometric="minisblack", metadata=None)
            writer.write(page[::4, ::4], subfiletype=1, metadata=None)
    return data.getvalue()


def by_pillow(pages, **options):
    data = io.BytesIO()
    images = [Image.fromarray(page) for page in pages]
    images[0].save(data, "TIFF", save_all=True, append_images=images[1:], **options)
    return data.getvalue()


def written(pages, **options):
    data = io.BytesIO()
    tifffile.imwrite(data, pages, **options)
    return data.getvalue()


STACKS = {
    "pages": (written(GRAY16, photometric="minisblack"), GRAY16, range(1, 7)),
    "pages of 8-bit colour": (written(COLOUR, photometric="rgb", compression="zlib"), COLOUR, range(1, 5)),
    "ImageJ hyperstack": (
        written(GRAY16.reshape(2, 3, 20, 30), imagej=True, metadata={"axes": "ZCYX"}),
        GRAY16,
        range(1, 7),
    ),
    "OME": (written(GRAY16, photometric="minisblack", ome=True, metadata={"axes": "TYX"}), GRAY16, range(1, 7)),
    "16 bits, lzw": (by_pillow(GRAY16, compression="tiff_lzw"), GRAY16, range(1, 7)),
    "8 bits, lzw": (by_pillow(COLOUR, compression="tiff_lzw"), COLOUR, range(1, 5)),
    "thumbnail after each page": (with_thumbnails(), GRAY16[:3], (1, 3, 5)),
}


@pytest.mark.parametrize("kind", STACKS)
def test_each_page_is_an_image(kind, tmp_path):
    data, expected, numbers = STACKS[kind]
    (tmp_path / "a.b.TIF").write_bytes(data)
    pages = find_images(tmp_path)
    assert [str(page) for page in pages] == [f"{tmp_path}/a.b.TIF/a.b_page{k:04d}.tif" for k in numbers]
    assert find_images(str(pages[1])) == [pages[1]]
    for page, pixels in zip(pages, expected, strict=True):
        image, header = read_image(page), image_header(page)
        pixels = np.atleast_3d(pixels) if pixels.ndim == 2 else pixels
        np.testing.assert_array_equal(
            image, pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32) / np.float32(65535)
        )
        assert (header.height, header.width, header.channels) == image.shape and header.dtype == pixels.dtype
    assert len({content_hash(page) for page in pages}) == len(pages)


def test_what_is_wrong_with_a_page_is_said_of_it(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.stack([np.ones((9, 9), np.float32), np.full((9, 9), np.nan, np.float32)]),
        photometric="minisblack",
    )
    assert read_image(tmp_path / "a.tif" / "a_page0001.tif").shape == (9, 9, 1)
    for name, words in (
        ("a_page0002", "not finite"),
        ("a_page0003", "the stack has 2 pages"),
        ("a_page0000", "the stack has 2 pages"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            read_image(tmp_path / "a.tif" / f"{name}.tif")
        assert name in str(caught.value)
    for name in ("a.tif/b_page0001.tif", "b.tif/b_page0001.tif"):
        with pytest.raises(UsageError, match="no such file"):
            find_images(str(tmp_path / name))
    (tmp_path / "damaged.tif").write_bytes(b"II*\0")  # left to whoever reads it
    assert find_images(tmp_path / "damaged.tif") == [tmp_path / "damaged.tif"]


def test_training_on_stacks_and_denoising_them(run, pictures, tmp_path):
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    pages = np.stack(
        [257 * read_image(pictures / "gray" / f"{k}.png", "gray")[:37, :37, 0].astype(np.uint16) for k in range(8)]
    )
    scale = dict(resolution=(4.0, 4.0), metadata={"axes": "ZCYX", "unit": "um", "spacing": 0.5})
    tifffile.imwrite(noisy / "cells.tif", pages.reshape(4, 2, 37, 37), imagej=True, **scale)
    tifffile.imwrite(noisy / "movie.tif", pages[:3].astype(np.float32) / 65535, photometric="minisblack", metadata=None)
    tifffile.imwrite(noisy / "one.tif", pages[0])
    for images in ("memory", "disk"):
        ok(
            run(
                "train_dbsn",
                f"--name {images} --mode gray --noisy {noisy} --noise awgn --images {images} {TINY} --steps 2",
            )
        )
    ok(
        run(
            "train_distill",
            f"--name s2 --teacher disk --clean {pictures}/gray --noisy {noisy}/cells.tif {TINY2} --steps 1",
        )
    )
    ok(run("test", f"--checkpoint disk s2 --data {noisy} --save {tmp_path}/out --json {tmp_path}/r.json --depth same"))

    out = {f.name for f in (tmp_path / "out").iterdir()}
    assert {name for name in out if name.endswith(".tif")} == {
        "cells_denoised.tif",
        "movie_denoised.tif",
        "one_denoised.tif",
    }
    # not three for each page
    assert {name for name in out if name.endswith(".png")} == {"one_all.png", "one_std.png", "one_level.png"}
    assert [row["name"] for row in json.loads((tmp_path / "r.json").read_text())["images"]][7:9] == [
        "cells_page0008.tif",
        "movie_page0001.tif",
    ]
    with tifffile.TiffFile(tmp_path / "out" / "cells_denoised.tif") as cells:
        assert (
            cells.is_imagej
            and cells.series[0].axes == "ZCYX"
            and cells.series[0].shape == (4, 2, 37, 37)
            and cells.series[0].dtype == np.uint16
        )
        assert (
            cells.imagej_metadata["spacing"] == 0.5
            and cells.imagej_metadata["unit"] == "um"
            and cells.pages[0].resolution == (4.0, 4.0)
        )
    movie = tifffile.imread(tmp_path / "out" / "movie_denoised.tif")
    assert movie.shape == (3, 37, 37) and movie.dtype == np.float32

    # the pages are in their order: each is what its page gives alone
    ok(run("test", f"--checkpoint s2 --data {noisy}/cells.tif/cells_page0006.tif --save {tmp_path}/alone --depth same"))
    alone = tifffile.imread(tmp_path / "alone" / "cells_page0006_denoised.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "cells_denoised.tif").reshape(8, 37, 37)[5], alone)


def test_a_stack_with_a_bad_page_stays_in_pages(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(
        tmp_path / "in" / "a.tif",
        np.stack([np.full((20, 20), v, np.float32) for v in (0.5, np.nan, 0.4)]),
        photometric="minisblack",
    )
    code, _, err = run(
        "test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out --on-bad skip"
    )
    assert code == 1 and "a_page0002.tif" in err and "a.tif: the results stay in single pages" in err
    assert sorted(f.name for f in (tmp_path / "out").glob("*.tif")) == [
        "a_page0001_denoised.tif",
        "a_page0003_denoised.tif",
    ]


def test_a_stack_is_whole_before_the_next_image_fails(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    pages = np.random.default_rng(0).uniform(0, 1, (3, 20, 20)).astype(np.float32)
    tifffile.imwrite(tmp_path / "in" / "a.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "in" / "b.tif", np.full((20, 20), np.inf, np.float32))
    code, _, err = run("test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out")
    assert code == 2 and "b.tif" in err
    assert [f.name for f in (tmp_path / "out").glob("*.tif")] == ["a_denoised.tif"]


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_a_stack_keeps_its_alpha(kind, run, models, tmp_path):
    (tmp_path / "in").mkdir()
    pages = np.random.default_rng(0).integers(60, 90, (2, 20, 20, 2)).astype(np.uint8)
    pages[..., 1] = 255
    pages[1, :5, :, 1] = 0
    with tifffile.TiffWriter(tmp_path / "in" / "a.tif") as writer:
        for page in pages:
            writer.write(page, photometric="minisblack", extrasamples=[kind], metadata=None)
    ok(run("test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out"))
    with tifffile.TiffFile(tmp_path / "out" / "a_denoised.tif") as tiff:
        first, second = (page.asarray() for page in tiff.pages)
        assert second.shape == (20, 20, 2) and tiff.pages[1].extrasamples[0].name.lower() == kind
    assert first.ndim == 2  # all of it is opaque
    np.testing.assert_array_equal(second[..., 1] / second[..., 1].max(), pages[1, ..., 1] / 255)
    np.testing.assert_array_equal(second[:5, :, 0], pages[1, :5, :, 0])


def test_a_colour_stack_made_gray(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", COLOUR, imagej=True)
    ok(
        run(
            "test",
            (
                f"--checkpoint {models}/s1/last.safetensors --data {tmp_path}/in --mode gray {LEVELS['awgn']} "
                f"--save {tmp_path}/out"
            ),
        )
    )
    assert tifffile.imread(tmp_path / "out" / "a_denoised.tif").shape == (4, 20, 30)


def test_a_single_image_keeps_how_its_values_are_held(run, models, tmp_path):
    """0 as white stays so, and so do channels that are planes, of which a note tells."""
    (tmp_path / "in").mkdir()
    colour = np.random.default_rng(0).integers(0, 4000, (3, 40, 41)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "in" / "planes.tif", colour, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "in" / "white.tif", 30000 + colour[0], photometric="miniswhite")
    for file, mode, name in (("planes", "color", "color-awgn-blind-full"), ("white", "gray", "gray-awgn-blind-full")):
        line = f"--checkpoint {ROOT}/checkpoints/{name}.safetensors --data {tmp_path}/in/{file}.tif --mode {mode}"
        code, out, err = run("test", f"{line} --save {tmp_path}/out")
        assert code == 0
        before, after = (tifffile.TiffFile(tmp_path / path) for path in (f"in/{file}.tif", f"out/{file}_denoised.tif"))
        with before, after:
            a, b = before.pages[0], after.pages[0]
            assert (a.photometric, a.planarconfig, a.shape) == (b.photometric, b.planarconfig, b.shape)
            assert abs(a.asarray().mean() - b.asarray().mean()) < 60
        assert ("three channels as planes" in out + err) == (file == "planes")


def test_a_single_image_keeps_its_pixel_sizes(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    pixels = np.full((20, 20), 30000, np.uint16)
    tifffile.imwrite(tmp_path / "in" / "a.tif", pixels, imagej=True, resolution=(9.7, 9.7), metadata={"unit": "um"})
    tifffile.imwrite(tmp_path / "in" / "b.tif", pixels, resolution=(300, 300), resolutionunit="inch")
    ok(run("test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out"))
    with (
        tifffile.TiffFile(tmp_path / "out" / "a_denoised.tif") as a,
        tifffile.TiffFile(tmp_path / "out" / "b_denoised.tif") as b,
    ):
        assert a.is_imagej and a.imagej_metadata["unit"] == "um" and a.pages[0].resolution == pytest.approx((9.7, 9.7))
        assert b.pages[0].resolution == (300, 300) and b.pages[0].resolutionunit == 2


def test_what_a_tiff_says_of_itself_is_kept(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    stack = np.random.RandomState(0).randint(100, 200, (2, 3, 20, 20)).astype(np.uint16)
    ramp = np.arange(256, dtype=np.uint8)
    look = {"mode": "composite", "LUTs": [np.stack([ramp, 0 * ramp, ramp])] * 3, "Ranges": (100.0, 200.0) * 3}
    notes = {"Labels": [f"p{k}" for k in range(6)], "Info": "63x", "fps": 2.0}
    tifffile.imwrite(tmp_path / "in" / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"} | look | notes)
    times = dict(description="exposure 20 ms", datetime="2024:01:01 10:00:00")
    tifffile.imwrite(tmp_path / "in" / "b.tif", stack[0, 0], **times)
    ok(run("test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out"))
    with tifffile.TiffFile(tmp_path / "out" / "a_denoised.tif") as a:
        found = a.imagej_metadata
        assert all(found[name] == value for name, value in (look | notes).items() if name != "LUTs")
        assert len(found["LUTs"]) == 3 and (found["LUTs"][0] == look["LUTs"][0]).all()
    with tifffile.TiffFile(tmp_path / "out" / "b_denoised.tif") as b:
        assert b.pages[0].description == times["description"] and b.pages[0].datetime.year == 2024


def test_units_that_imagej_writes_in_other_letters_cost_no_result(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    pixels = np.random.RandomState(0).randint(0, 9999, (3, 20, 20)).astype(np.uint16)
    for name, image, counts in (("a", pixels[0], ""), ("b", pixels, "images=3\nslices=3\n")):
        text = f"ImageJ=1.53t\n{counts}unit=µm\nspacing=2.0\n".encode("latin1")
        tifffile.imwrite(
            tmp_path / "in" / f"{name}.tif", image, photometric="minisblack", description=text, metadata=None
        )
    ok(run("test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out"))
    for name in "ab":
        with tifffile.TiffFile(tmp_path / "out" / f"{name}_denoised.tif") as found:
            assert found.imagej_metadata["unit"] == "um"


def test_channels_that_are_made_one_gray_are_told(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    colours = np.random.RandomState(0).randint(0, 9999, (20, 20, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "in" / "a.tif", colours)
    tifffile.imwrite(tmp_path / "in" / "b.tif", colours[..., :1].repeat(3, 2))
    line = f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out --mode gray"
    code, _, err = run("test", line)
    _, told = err.split("colour pictures made gray")
    assert code == 0 and "a.tif" in told and "b.tif" not in told


OME = {
    "axes": "ZCYX",
    "Name": "embryo",
    "PhysicalSizeX": 0.1,
    "PhysicalSizeXUnit": "µm",
    "PhysicalSizeZ": 0.5,
    "Channel": {"Name": ["DAPI", "GFP"], "EmissionWavelength": [460, 510]},
    "Plane": {"DeltaT": [0.5 * k for k in range(6)], "PositionZ": [0.1] * 6},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64], ids=lambda t: t.__name__)
def test_ome_metadata_is_kept(dtype, run, models, tmp_path):
    (tmp_path / "in").mkdir()
    stack = (GRAY16 / 65535 if np.dtype(dtype).kind == "f" else GRAY16 % 256).astype(dtype)
    tifffile.imwrite(
        tmp_path / "in" / "a.ome.tif", stack.reshape(3, 2, 20, 30), ome=True, photometric="minisblack", metadata=OME
    )
    tifffile.imwrite(
        tmp_path / "in" / "b.ome.tif",
        stack[0],
        ome=True,
        photometric="minisblack",
        metadata={"PhysicalSizeX": 0.2, "Name": "one"},
    )
    tifffile.imwrite(
        tmp_path / "in" / "c.ome.tif",
        COLOUR,
        ome=True,
        photometric="rgb",
        metadata={"axes": "TYXS", "TimeIncrement": 2.0},
    )
    white = [] if np.dtype(dtype).kind == "f" else ["--white-level", "255", "--depth", "same"]
    ok(
        run(
            "test",
            f"--checkpoint {models}/s2/last.safetensors --mode gray --data {tmp_path}/in --save {tmp_path}/out "
            + " ".join(white),
        )
    )

    def described(path):
        with tifffile.TiffFile(path) as tiff:
            image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"] if tiff.is_ome else None
            return image, tiff.series[0].axes, tiff.series[0].shape, tiff.series[0].dtype

    for name in ("a", "b"):
        (before, axes, shape, _), (after, *rest) = (
            described(tmp_path / folder / f"{name}.ome{end}.tif") for folder, end in (("in", ""), ("out", "_denoised"))
        )
        assert rest == [axes, shape, np.float32 if dtype == np.float64 else dtype]
        assert before["Pixels"].pop("Type") == after["Pixels"].pop("Type").replace(
            "float", "double" if dtype == np.float64 else "float"
        )
        assert after == before
    # colour made gray is no longer what the metadata says
    assert described(tmp_path / "out" / "c.ome_denoised.tif") == (None, "IYX", (4, 20, 30), np.uint8)


def test_ome_metadata_that_makes_no_sense_costs_no_result(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    text = (
        '<OME><Image><Pixels DimensionOrder="XYCZT" SizeX="30" SizeY="20" SizeZ="1" SizeC="9" SizeT="1" Type="uint16">'
        "<Channel/></Pixels></Image></OME>"
    )
    for name, description in (("a", text), ("b", text[:40]), ("c", text.replace('"9"', '"6"'))):
        tifffile.imwrite(
            tmp_path / "in" / f"{name}.tif", GRAY16, photometric="minisblack", description=description, metadata=None
        )
    ok(run("test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out"))
    for name in "abc":
        assert tifffile.imread(tmp_path / "out" / f"{name}_denoised.tif").size == GRAY16.size


def test_a_resolution_that_makes_no_sense_costs_no_result(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY16[0], resolution=(300, 300))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        unit = file.pages[0].tags[296].valueoffset
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[unit : unit + 2] = b"\x4d\0"
    (tmp_path / "a.tif").write_bytes(data)
    write_image(tmp_path / "b.tif", 65535 * read_image(tmp_path / "a.tif"), np.uint16, like=tmp_path / "a.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), GRAY16[0])


def test_a_png_that_is_called_tif(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(GRAY16[0]).save(tmp_path / "in" / "a.tif", "PNG")
    ok(run("test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out"))
    assert tifffile.imread(tmp_path / "out" / "a_denoised.tif").dtype == np.uint16


def test_folder_of_the_stack_is_not_written_to(run, models, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY16, photometric="minisblack")
    code, _, err = run("test", f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/a.tif --save {tmp_path}")
    assert code == 2 and "overwritten" in err
