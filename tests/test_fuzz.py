"""Random inputs are given to everything that reads what others wrote.

Random sizes are tried against the identities the code rests on.

By default a small budget of fixed examples, the same at every run. FUZZ=5000 pytest tests/test_fuzz.py tries that
many new ones in each test.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.crops import ImagePool, draw_crops
from data.images import image_header, read_image
from models import MWCNN, BlindSpotDenoiser
from models.dbsn import PhaseGrid
from models.gaussian import Diagonal, Full, add, cholesky, excess, nll, posterior, triangle
from models.inference import denoise_batch
from models.noise import NOISES
from options.stage1 import Stage1Options
from options.stage2 import Stage2Options
from options.test import TestOptions
from tests.helpers import matrix, png_chunk
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import RunError, UsageError
from utils.random import generator


def budget(examples: int) -> settings:
    """The given number of fixed examples, or $FUZZ new ones."""
    wanted = int(os.environ.get("FUZZ", 0))
    return settings(
        max_examples=wanted or examples,
        derandomize=not wanted,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors of a few pixels gain nothing from a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "input"


# --------------------------------------------------------------------------------------- ----- options

OPTIONS = {"stage1": Stage1Options(), "stage2": Stage2Options(), "test": TestOptions()}
ODD = [
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "1e400",
    "nan",
    "-inf",
    "1_0",
    "٣",
    "0x10",
    "5.5",
    "1e-320",
    "9" * 30,
    "a=b",
    "é",
    "../up",
    "%s",
    "x" * 300,
    "-sigma",
]
NUMBERS = st.one_of(
    st.integers(-2, 300).map(str), st.floats(-1, 300).map(str), st.floats().map(str), st.integers().map(str)
)
# a line break inside one argument is beyond what a one-line message can repeat
WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12)


def values_of(action: argparse.Action) -> st.SearchStrategy[list[str]]:
    """What may follow a flag.

    It is mostly something of the right kind, at times anything at all, or the wrong number of values.
    """
    if action.choices:
        usual = st.sampled_from(sorted(action.choices))
    elif action.type not in (None, Path):
        usual = NUMBERS
    else:
        usual = st.sampled_from(["a", "pictures/", "runs/x", "*.png", "bsd68"])
    value = st.one_of(usual, usual, usual, usual, st.sampled_from(ODD), WORDS)
    many = st.lists(value, max_size=3)
    if action.nargs == 0:
        return st.one_of(st.just([]), st.just([]), many)
    if action.nargs == "+":
        return many
    return st.one_of(value.map(lambda v: [v]), value.map(lambda v: [v]), value.map(lambda v: [v]), many)


@st.composite
def command_lines(draw: st.DrawFn, options) -> list[str]:
    """Half of them start from a line that is right, so that what follows is not hidden by a missing flag."""
    right = {
        "train_dbsn.py": "--name a --clean b --noise awgn --sigma 25",
        "train_distill.py": "--name a --teacher t --clean b --synthetic-noisy c --noise hg --alpha 40 --delta 10",
        "test.py": "--checkpoint a --data b --noise awgn --sigma 25",
    }[options.prog]
    line = right.split() if draw(st.booleans()) else []
    actions = [a for a in options.parser._actions if a.dest != "help"]
    for action in draw(st.lists(st.sampled_from(actions), max_size=6)):
        values, flag = draw(values_of(action)), action.option_strings[0]
        line += [f"{flag}={values[0]}", *values[1:]] if values and draw(st.integers(0, 4)) == 0 else [flag, *values]
    stray = draw(st.one_of(st.just(None), st.just(None), st.just(None), st.sampled_from(ODD), WORDS))
    return line if stray is None or stray in ("-h", "--help") else [*line, stray]


@pytest.mark.parametrize("name", OPTIONS)
@budget(150)
@given(data=st.data())
def test_options_parse_or_end_in_one_line(name, data):
    options = OPTIONS[name]
    line = data.draw(command_lines(options))
    assume("-h" not in line and "--help" not in line)
    err, out = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            parsed = options.parse(line)
    except SystemExit as end:
        assert end.code == 2
        assert err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1 and not out.getvalue()
    else:
        assert isinstance(parsed, argparse.Namespace) and not err.getvalue() and not out.getvalue()
        assert set(vars(parsed)) == set(options.defaults())
        for level in ("sigma", "alpha", "delta"):
            bounds = getattr(parsed, level)
            assert bounds is None or (len(bounds) == 2 and 0 <= bounds[0] <= bounds[1] <= 255)


def test_a_batch_size_beyond_floats(capsys):
    line = f"--name a --teacher t --clean b --noisy c --batch-size {'9' * 400}"
    with pytest.raises(SystemExit) as end:
        OPTIONS["stage2"].parse(line.split())
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: ")


# --------------------------------------------------------------------------------------- ------ images

MAX_PIXELS = 2**14  # of a picture, in these tests
MAX_MEMORY = 200e6  # bytes that reading one may take on top


def valid_files() -> dict[str, bytes]:
    """A small file of each kind that is read."""
    random = np.random.default_rng(0)
    colour, gray = random.integers(0, 256, (13, 11, 3), np.uint8), random.integers(0, 256, (13, 11), np.uint8)
    deep = random.integers(0, 65536, (13, 11, 3)).astype(np.uint16)
    files = {}

    def pillow(name: str, image: Image.Image, kind: str, **options) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[name] = buffer.getvalue()

    def tiff(name: str, pixels: np.ndarray, **options) -> None:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, **options)
        files[name] = buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    pillow("png", Image.fromarray(colour), "PNG", exif=exif)
    pillow("png gray", Image.fromarray(gray), "PNG")
    pillow("png palette", Image.fromarray(colour).quantize(7), "PNG", transparency=3)
    pillow("png one bit", Image.fromarray(gray > 99), "PNG")
    pillow("png alpha", Image.fromarray(np.dstack([colour, np.full((13, 11), 255, np.uint8)])), "PNG")
    pillow("png gray 16", Image.fromarray(deep[..., 0]), "PNG")
    files["png colour 16"] = cv2.imencode(".png", deep)[1].tobytes()
    pillow("jpeg", Image.fromarray(colour), "JPEG", exif=exif)
    pillow("jpeg progressive", Image.fromarray(gray), "JPEG", progressive=True)
    pillow("bmp", Image.fromarray(colour), "BMP")
    pillow("bmp palette", Image.fromarray(gray), "BMP")
    tiff("tiff", colour, photometric="rgb")
    tiff("tiff gray 16 big-endian", deep[..., 0], byteorder=">", photometric="minisblack")
    tiff("tiff float", deep[..., 0].astype(np.float32) / 65535, photometric="minisblack")
    tiff("tiff zlib tiles", colour, photometric="rgb", compression="zlib", tile=(16, 16), predictor=True)
    tiff("tiff planes", colour.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate")
    tiff("tiff big", gray, bigtiff=True, photometric="miniswhite")
    return files


VALID = valid_files()


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the files with a few bytes changed, cut, inserted or moved; rarely left as it is."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, min(len(data) - 1, 400) if draw(st.booleans()) else len(data) - 1)))
        kind = draw(st.sampled_from(["bit", "byte", "word", "cut", "insert", "remove", "copy"]))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "word":
            word = draw(
                st.sampled_from(
                    [
                        b"\xff\xff\xff\xff",
                        b"\x7f\xff\xff\xff",
                        b"\xff\xff\xff\x7f",
                        bytes(4),
                        b"\0\1\0\0",
                        b"\0\0\1\0",
                        b"\0\x80",
                    ]
                )
            )
            data[at : at + len(word)] = word
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=40))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "copy":
            source = draw(st.integers(0, max(0, len(data) - 1)))
            data[at : at + 20] = data[source : source + 20]
    return repaired(bytes(data)) if draw(st.booleans()) else bytes(data)


def repaired(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again, so that their contents are looked at.

    Anything else as it is.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        out, at = out + png_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]), at + 12 + length
    return out + data[at:]


class Memory:
    """Measures by how much the resident memory grows.

    `with Memory() as m:` .. m.peak: bytes by which it grew at most within the block; None where Linux does not tell.
    """

    def __enter__(self) -> Memory:
        self.peak = None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
            self.before = self.status("VmHWM")
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self.peak = self.status("VmHWM") - self.before

    @staticmethod
    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def check_reader(path: Path, data: bytes) -> np.ndarray | None:
    """The reader's promise, for any bytes: an image that is what the header says, or one line that names the file.

    Gives the image.
    """
    path.write_bytes(data)
    header = image = None
    with Memory() as memory:
        for read in (image_header, read_image):
            try:
                result = read(path, max_pixels=MAX_PIXELS)
            except UsageError as error:
                assert str(path) in str(error) and "\n" not in str(error)
            else:
                header, image = (result, image) if read is image_header else (header, result)
    assert memory.peak is None or memory.peak < MAX_MEMORY, f"{memory.peak / 1e6:.0f} MB for {len(data)} bytes"
    if image is not None:
        assert header is not None, "read, though its header is refused"
        assert (
            image.shape == (header.height, header.width, header.channels)
            and image.shape[0] * image.shape[1] <= MAX_PIXELS
        )
        assert image.dtype in (np.uint8, np.float32) and np.isfinite(image).all()
    return image


@pytest.mark.parametrize("name", VALID)
def test_the_fuzzed_files_are_valid(name, file):
    image = check_reader(file, VALID[name])
    assert image is not None or name == "png palette"  # which is partly transparent


@budget(300)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.tuples(st.sampled_from([d[:26] for d in VALID.values()]), st.binary(max_size=200)).map(b"".join),
    )
)
def test_random_bytes_are_an_image_or_refused(data, file):
    check_reader(file, data)


@budget(1000)
@given(data=mutated(list(VALID.values())))
def test_damaged_images_are_read_or_refused_in_one_line(data, file):
    check_reader(file, data)


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """Small files that unpack to 300 MB, though their headers claim a few pixels, or that claim many."""
    zeros = zlib.compress(bytes(300_000_000), 1)
    start, header = b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    end = png_chunk(b"IDAT", zlib.compress(bytes(72))) + png_chunk(b"IEND", b"")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((8, 8), np.uint8), photometric="minisblack", compression="zlib")
    strip = buffer.getvalue()
    return {
        "png pixels": start + header + png_chunk(b"IDAT", zeros) + png_chunk(b"IEND", b""),
        "png text": start + header + png_chunk(b"zTXt", b"a\0\0" + zeros) + end,
        "png profile": start + header + png_chunk(b"iCCP", b"a\0\0" + zeros) + end,
        "png claims": start
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", zeros),
        "tiff strip": with_entry(with_entry(strip + zeros, STRIP_OFFSET, len(strip)), STRIP_BYTES, len(zeros)),
    }


STRIP_OFFSET, STRIP_BYTES = 273, 279  # TIFF tags


def with_entry(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF whose first directory says another number for a tag."""
    changed, at = bytearray(data), int.from_bytes(data[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(data[at : at + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == tag:
            struct.pack_into("<HII", changed, entry + 2, 4, 1, value)
    return bytes(changed)


@pytest.mark.parametrize("name", ["png pixels", "png text", "png profile", "png claims", "tiff strip"])
def test_bombs_do_not_fill_the_memory(name, file, bombs):
    check_reader(file, bombs[name])


# --------------------------------------------------------------------------------------- - checkpoints

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.tensor(2.5, dtype=torch.float64),
    "c": torch.zeros(0, 2),
}
TENSORS |= {"d": torch.tensor([True, False]), "e": torch.arange(5).to(torch.bfloat16)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "valid.safetensors"
    save_checkpoint(path, "stage1", TENSORS, {"config": {"channels": 1}, "step": 3, "name": "a"})
    return path.read_bytes()


def check_loader(path: Path, data: bytes) -> bool:
    """The loader's promise, for any bytes: exactly what was saved, or one line. Whether it loaded."""
    path.write_bytes(data)
    try:
        found = load_checkpoint(path)
    except (UsageError, RunError) as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return False
    assert found.kind == "stage1" and found.values == {"config": {"channels": 1}, "step": 3, "name": "a"}
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)
    return True


@budget(300)
@given(data=st.data())
def test_random_bytes_are_no_checkpoint(data, file, checkpoint):
    start = data.draw(
        st.sampled_from([b"", checkpoint[:8], checkpoint[:9], checkpoint[:100], struct.pack("<Q", 20) + b'{"'])
    )
    assert not check_loader(file, start + data.draw(st.binary(max_size=200)))


@budget(500)
@given(data=st.data())
def test_damaged_checkpoints_are_refused_or_whole(data, file, checkpoint):
    damaged = data.draw(mutated([checkpoint]))
    assert check_loader(file, damaged) == (damaged == checkpoint)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["dbsn", "a", "format", "sha256", "values"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@budget(150)
@given(metadata=JSON, tensors=JSON)
def test_headers_that_are_json_but_not_ours(metadata, tensors, file):
    """Whatever the JSON of a header says, also where its texts are JSON in turn."""
    for inner in (metadata, {"dbsn": json.dumps(metadata)}):
        header = json.dumps({"__metadata__": inner, "t": tensors}).encode()
        assert not check_loader(file, struct.pack("<Q", len(header)) + header + bytes(8))


@example(depth=100_000)
@budget(5)
@given(depth=st.integers(1, 200_000))
def test_deeply_nested_headers(depth, file):
    for header in (
        b'{"__metadata__":' + b"[" * depth,
        b'{"__metadata__":{"dbsn":"' + b"[" * depth + b'"}}',
        b'{"a":' * depth,
    ):
        assert not check_loader(file, struct.pack("<Q", len(header)) + header)


# --------------------------------------------------------------------------------------- ------ tiling

KINDS = [(1, "awgn"), (3, "awgn"), (1, "hg"), (3, "hg"), (3, "mg")]


@pytest.fixture(scope="module")
def networks() -> dict:
    """A tiny model of each kind, with weights that make all its outputs vary from pixel to pixel."""
    torch.manual_seed(0)
    found = {}
    for kind in [*KINDS, (1, "student"), (3, "student")]:
        channels, noise = kind
        model = MWCNN(channels, 4) if noise == "student" else BlindSpotDenoiser(channels, noise, 4, 1, "residual")
        for name, parameter in model.named_parameters():
            if name.endswith("last.weight"):
                torch.nn.init.normal_(parameter, std=0.3)
        found[kind] = model.eval().requires_grad_(False)
    return found


@pytest.mark.parametrize("kind", KINDS)
@budget(10)
@given(
    height=st.integers(1, 48),
    width=st.integers(1, 48),
    tile=st.integers(1, 50),
    count=st.integers(1, 2),
    seed=st.integers(0, 2**20),
)
def test_tiles_equal_the_whole(kind, height, width, tile, count, seed, networks):
    tile = max(tile, max(height, width) // 4)  # few tiles, to save time
    y = torch.rand(count, kind[0], height, width, generator=generator("cpu", seed))
    whole, tiled = denoise_batch(networks[kind], y), denoise_batch(networks[kind], y, tile)
    for name in ("image", "mu", "std", "noise_level"):
        torch.testing.assert_close(getattr(tiled, name), getattr(whole, name), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [(1, "student"), (3, "student")])
@budget(10)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 400),
    tile=st.integers(16, 400),
    seed=st.integers(0, 2**20),
    turned=st.booleans(),
)
def test_tiles_of_the_student_equal_the_whole(kind, height, width, tile, seed, turned, networks):
    y = torch.rand(1, kind[0], height, width, generator=generator("cpu", seed))
    y = y.transpose(2, 3).contiguous() if turned else y
    torch.testing.assert_close(
        denoise_batch(networks[kind], y, tile).image, denoise_batch(networks[kind], y).image, atol=2e-5, rtol=1e-4
    )


# ------------------------------------------------------------------------------------- crops and noise


@budget(100)
@given(data=st.data())
def test_crops_lie_within_their_images(data):
    patch = data.draw(st.integers(1, 40))
    sides = st.integers(patch, patch + 60)
    sizes = np.array(data.draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=9)))
    seed, first, count = (
        data.draw(st.integers(0, 2**31 + 5)),
        data.draw(st.integers(0, 10**9)),
        data.draw(st.integers(1, 40)),
    )
    samples = np.arange(first, first + count)
    where = draw_crops(sizes, samples, patch, (seed,))
    assert where.image.shape == where.top.shape == where.left.shape == where.symmetry.shape == (count,)
    assert (
        (where.image >= 0).all()
        and (where.image < len(sizes)).all()
        and (where.symmetry >= 0).all()
        and (where.symmetry < 8).all()
    )
    assert (where.top >= 0).all() and (where.top + patch <= sizes[where.image, 0]).all()
    assert (where.left >= 0).all() and (where.left + patch <= sizes[where.image, 1]).all()
    # a sample's crop does not depend on the batch it is in
    k = data.draw(st.integers(0, count - 1))
    alone = draw_crops(sizes, samples[k : k + 1], patch, (seed,))
    assert [alone.image[0], alone.top[0], alone.left[0], alone.symmetry[0]] == [
        where.image[k],
        where.top[k],
        where.left[k],
        where.symmetry[k],
    ]
    # a pass over the images sees each once
    begin = first // len(sizes) * len(sizes)
    once = draw_crops(sizes, np.arange(begin, begin + len(sizes)), patch, (seed,))
    assert sorted(once.image) == list(range(len(sizes)))


@budget(40)
@given(data=st.data())
def test_crops_are_cut_where_they_say(data):
    patch = data.draw(st.integers(1, 12))
    sides = st.integers(patch, patch + 9)
    sizes = data.draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=4))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    where = draw_crops(np.array(sizes), np.arange(6), patch, (data.draw(st.integers(0, 99)),))
    crops = ImagePool(images).crops(where, patch)
    for k in range(6):
        part = images[where.image[k]][where.top[k] : where.top[k] + patch, where.left[k] : where.left[k] + patch]
        flips = [
            f(part)
            for turn in range(4)
            for f in (lambda a, t=turn: np.rot90(a, t), lambda a, t=turn: np.rot90(a, t)[::-1])
        ]
        found = np.rint(255 * crops[k].permute(1, 2, 0).numpy()).astype(np.uint8)
        assert any(np.array_equal(found, flip) for flip in flips)


LEVEL = st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)).map(lambda pair: tuple(sorted(pair)))


@budget(100)
@given(
    model=st.sampled_from(list(NOISES)),
    levels=st.tuples(*[LEVEL] * max(len(kind.levels) for kind in NOISES.values())),
    mg_seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    keys=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 6), st.integers(0, 10**6)),
)
def test_noise_is_finite_and_a_function_of_its_keys(model, levels, mg_seed, shape, keys):
    shape = (shape[0], 3, *shape[2:]) if model == "mg" else shape
    ranges = iter(levels)
    kind = NOISES[model]
    noise = kind(
        **{
            level.name: mg_seed if level.whole else tuple(max(level.low / level.unit, v) for v in next(ranges))
            for level in kind.levels
        }
    )
    x = torch.rand(shape, generator=generator("cpu", 1))
    y = noise.add(x, [generator("cpu", *keys)] * len(x))
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    assert torch.equal(y, noise.add(x, [generator("cpu", *keys)] * len(x)))
    other = noise.add(x, [generator("cpu", *keys[:2], keys[2] + 1)] * len(x))
    assert not torch.equal(y, other) or max(levels[0]) < 1e-3 or model in ("hg", "poisson", "camera")


# --------------------------------------------------------------------------------------- ------ phases


@budget(100)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 25), st.integers(1, 25)),
    dilation=st.sampled_from([2, 3]),
    seed=st.integers(0, 2**20),
)
def test_phases_join_to_what_was_split(shape, dilation, seed):
    d = dilation
    x = torch.randn(shape, generator=generator("cpu", seed))
    grid = PhaseGrid(x, d)
    parts = grid.split(x)  # N d d,F,h,w
    n, f, height, width = shape
    assert parts.shape == (n * d * d, f, -(-height // d), -(-width // d))
    assert torch.equal(grid.join(parts), x)
    assert torch.equal(grid.zero_outside(parts), parts)  # outside is zero already
    filled = grid.zero_outside(parts + 1).unflatten(0, (n, d, d))
    for p in range(min(d, height)):
        for q in range(min(d, width)):
            part = x[:, :, p::d, q::d]
            assert torch.equal(parts.unflatten(0, (n, d, d))[:, p, q, :, : part.shape[2], : part.shape[3]], part)
            assert (
                torch.count_nonzero(filled[:, p, q, :, part.shape[2] :])
                == torch.count_nonzero(filled[:, p, q, :, :, part.shape[3] :])
                == 0
            )


# ------------------------------------------------------------------------------------ Gaussian algebra


@st.composite
def covariances(draw: st.DrawFn, channels: int):
    """A covariance over pixels or for the whole image, float64.

    Standard deviations are 0.05 to 20, correlations well below 1.
    """
    seed, size = draw(st.integers(0, 2**20)), draw(st.sampled_from([1, 4]))
    g = generator("cpu", seed)
    std = draw(st.sampled_from([0.05, 1.0, 20.0]))
    uniform = lambda count: torch.rand(2, count, size, size, generator=g, dtype=torch.float64)  # noqa: E731
    if draw(st.booleans()):
        return Diagonal((std * (0.5 + uniform(channels))) ** 2)
    rows = [
        0.5 + e if i == j else 0.6 * (e - 0.5)
        for e, (i, j) in zip(uniform(len(triangle(channels))).split(1, 1), triangle(channels))
    ]
    return Full(std * torch.cat(rows, 1))


def vectors(x: torch.Tensor) -> torch.Tensor:
    """(N,C,H,W) -> (N,H,W,C,1)"""
    return x.permute(0, 2, 3, 1)[..., None]


@budget(80)
@given(data=st.data())
def test_gaussian_identities(data):
    channels = data.draw(st.sampled_from([1, 3]))
    a, b = data.draw(covariances(channels)), data.draw(covariances(channels))
    g = generator("cpu", data.draw(st.integers(0, 2**20)))
    y, mu = (torch.randn(2, channels, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    close = lambda p, q: torch.testing.assert_close(*torch.broadcast_tensors(p, q), rtol=1e-8, atol=1e-10)  # noqa: E731
    ma, mb, total = matrix(a), matrix(b), add(a, b)

    close(matrix(total), ma + mb)
    close(matrix(cholesky(a.entries())), ma)
    close(a.solve(a.apply(y)), y)
    close(a.apply(a.solve(y)), y)
    close(vectors(a.apply(y)), ma @ vectors(y))
    close(vectors(total.solve(y)), torch.linalg.solve((ma + mb).expand(2, 4, 4, channels, channels), vectors(y)))
    close(a.sample(a.whiten(y)), y)
    close(a.log_det()[:, 0], torch.logdet(ma))
    exact = torch.distributions.MultivariateNormal(
        mu.permute(0, 2, 3, 1), (ma + mb).expand(2, 4, 4, channels, channels)
    )
    close(nll(y, mu, total)[:, 0], -exact.log_prob(y.permute(0, 2, 3, 1)))

    # Bayes' rule as the textbook has it, in terms of precisions
    found = posterior(y, mu, a, b)
    precision = torch.linalg.inv(ma) + torch.linalg.inv(mb)
    cov = torch.linalg.inv(precision)
    close(matrix(found.cov), cov)
    close(vectors(found.mean), cov @ (torch.linalg.inv(ma) @ vectors(mu) + torch.linalg.inv(mb) @ vectors(y)))
    close(matrix(excess(total, b)), ma)
