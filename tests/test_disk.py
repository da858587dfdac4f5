"""Images that stay on disk give the same training as images in memory.

They stay within bounds. Every way in which such a training can end is tried.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import tifffile
import torch

import data.training
import train_dbsn
from data.crops import DiskPool, ImagePool, draw_crops
from data.images import read_image, to_float, write_image
from data.source import AHEAD, CropSource, DiskSource, crop_source, thread_count
from data.training import add_noise_once, digest, look_at
from models.noise.hg import Hg
from tests.conftest import LEVELS, TINY, TINY2, ok, read_tensors
from tests.test_distributed import assert_same_course, torchrun
from utils import device
from utils.errors import RunError, UsageError


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.fixture
def mixed(pictures, tmp_path):
    """Colour and gray, 8 and 16 bits, upright and turned."""
    shutil.copytree(pictures / "color", tmp_path / "mixed")
    for k in range(3):
        deep = 257 * read_image(pictures / "gray" / f"{k}.png")[..., 0].astype(np.uint16)
        # turned by a quarter
        tifffile.imwrite(tmp_path / "mixed" / f"deep{k}.tif", deep, extratags=[(274, "H", 1, 6, True)])
    return tmp_path / "mixed"


def assert_same_run(a, b):
    assert (a / "stats.jsonl").read_bytes() == (b / "stats.jsonl").read_bytes()
    states = [sorted(f.name for f in folder.glob("*.safetensors")) for folder in (a, b)]
    assert states[0] == states[1] and len(states[0]) >= 2
    for name in states[0]:  # the files differ in the options that they carry
        one, two = read_tensors(a / name), read_tensors(b / name)
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# ----------------------------------------------------------------------------------- the same training


@pytest.mark.parametrize(
    "images",
    ["--clean P/color --noise-draw fixed", "--clean M --noise-draw fixed", "--clean M --noise-draw fresh", "--noisy M"],
)
def test_stage_1_from_disk_is_that_from_memory(images, run, pictures, mixed, tmp_path):
    levels = f"{LEVELS['awgn']} --val P/color/0.png" if "--clean" in images else "--noise hg"
    line = (
        f"{images} {levels} {TINY} --mode {'gray' if 'P/' in images else 'color'} --steps 6 --save-every 2 "
        "--val-every 3"
    )
    line = line.replace("P/", f"{pictures}/").replace(" M ", f" {mixed} ")
    for place in ("memory", "disk"):
        ok(run("train_dbsn", f"--name {place} {line} --images {place}"))
    assert_same_run(tmp_path / "memory", tmp_path / "disk")
    for k, place in enumerate(("disk", "memory", "disk")):  # a stop after each of the first steps, then on elsewhere
        out = ok(run("train_dbsn", f"--name parts {line} --images {place} --max-minutes 1e-9"))
        assert f"{k + 1} of 6 steps" in out
    ok(run("train_dbsn", f"--name parts {line} --images disk"))
    assert_same_run(tmp_path / "memory", tmp_path / "parts")


STAGE2 = (
    "--teacher s1 --clean {0}/gray --synthetic-noisy {0}/gray "
    + f"{LEVELS['awgn']} {TINY2} --noisy-share 0.25 --steps 5 --save-every 2"
)


@pytest.mark.parametrize("draw", ["fixed", "fresh"])
def test_stage_2_from_disk(draw, run, pictures, models, tmp_path):
    shutil.copytree(models / "s1", tmp_path / "s1")
    line = f"{STAGE2.format(pictures)} --noise-draw {draw}"
    for name, flags in (
        ("memory", "--images memory"),
        ("disk", "--images disk"),
        ("parts", "--images disk --max-minutes 1e-9"),
    ):
        ok(run("train_distill", f"--name {name} {line} {flags}"))
    ok(run("train_distill", f"--name parts {line} --images auto"))
    assert_same_run(tmp_path / "disk", tmp_path / "parts")
    # kept, though they would fit
    assert json.loads((tmp_path / "parts" / "options.json").read_text())["images"] == "disk"
    rows = [
        [json.loads(text) for text in (tmp_path / name / "stats.jsonl").read_text().splitlines()]
        for name in ("memory", "disk")
    ]
    assert rows[0][0]["pairs"] == rows[1][0]["pairs"]
    if draw == "fresh":  # the targets are those of crops either way
        assert_same_run(tmp_path / "memory", tmp_path / "disk")
    else:  # those of whole images in memory, of crops from disk, which lack their surroundings
        whole, crop = (row[0]["posterior"] for row in rows)
        assert whole > 0 and crop > 0 and whole != crop
    code, _, err = run("train_distill", f"--name disk {line} --images memory")
    assert code == 2 and "--images was disk, now memory" in err


@pytest.mark.slow
def test_two_processes(run, pictures, tmp_path):
    line = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 6 --images disk"
    ok(run("train_dbsn", f"--name one {line}"))
    result = torchrun("train_dbsn.py", f"--name two {line}", tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_course(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("mode", ["gray", "color"])
@pytest.mark.parametrize("white_level", [None, 200.0])
@pytest.mark.parametrize("kind", ["bytes", "mixed"])
def test_pools_agree(mode, white_level, kind, mixed):
    """Values, types and strides: a convolution may choose its algorithm by them."""
    files = sorted(mixed.glob("*.png" if kind == "bytes" else "*"))
    images = look_at(files, mode, white_level)
    held = images.decode()
    np.testing.assert_array_equal(images.sizes, held.sizes)
    # where one is float32, all are
    assert images.memory() == sum(array.nbytes for array in held.arrays) or kind == "mixed"
    assert images.memory(1) == sum(5 * array.size if images.as_bytes else 8 * array.size for array in held.arrays)
    where = draw_crops(images.sizes, np.arange(40), 16, (3,))
    pools = [held.pool(), images.pool()]
    assert (
        isinstance(pools[0], ImagePool)
        and isinstance(pools[1], DiskPool)
        and len(pools[0]) == len(pools[1]) == len(files)
    )
    for memory, disk in (pools, [add_noise_once(pool, Hg(alpha=(0.1, 0.2), delta=(0, 0.1)), seed=1) for pool in pools]):
        for one, two in (
            (memory.cut(where, 16), disk.cut(where, 16)),
            (memory.crops(where, 16), disk.crops(where, 16)),
            (memory.image(2), disk.image(2)),
        ):
            assert torch.equal(one, two) and one.dtype == two.dtype and one.stride() == two.stride()


def test_sources_agree(mixed):
    images = look_at(sorted(mixed.iterdir()), "color", None)
    with crop_source(images.decode().pool(), 16, (7,), 4) as memory, crop_source(images.pool(), 16, (7,), 4) as disk:
        assert type(memory) is CropSource and type(disk) is DiskSource
        for step in (*range(12), 3, 30):  # backwards and far ahead too
            samples = np.arange(4 * step, 4 * step + 4)
            (y, where), (again, there) = memory.crops(samples), disk.crops(samples)
            assert torch.equal(y, again) and y.stride() == again.stride()
            np.testing.assert_array_equal(where.image, there.image)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sources_agree_on_a_gpu(mixed):
    images = look_at(sorted(mixed.glob("*.png")), "color", None)
    with (
        crop_source(images.decode().pool("cuda"), 16, (7,), 4) as memory,
        crop_source(images.pool("cuda"), 16, (7,), 4) as disk,
    ):
        for step in range(50):
            samples = np.arange(4 * step, 4 * step + 4)
            (y, _), (again, _) = memory.crops(samples), disk.crops(samples)
            assert torch.equal(y, again) and again.is_cuda and y.stride() == again.stride()


# ---------------------------------------------------------------------------------- bounds and waiting


class Slow(DiskPool):
    """A pool that counts what is asked of it."""

    def __init__(self, seconds=0.0, fault=None):
        super().__init__(np.array([[20, 20]] * 1000), lambda k: ImagePool([np.full((20, 20, 1), k % 256, np.uint8)]))
        self.seconds, self.fault, self.cuts, self.threads = seconds, fault, 0, {}

    def cut(self, where, patch):
        self.threads[threading.current_thread().name] = torch.get_num_threads()
        self.cuts += 1
        time.sleep(self.seconds)
        if self.fault and self.cuts > 30:
            raise self.fault
        return super().cut(where, patch)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_work_ahead_is_bounded(monkeypatch, two_threads):
    monkeypatch.setattr("data.source.processors", lambda: 6)
    pool = Slow()
    with DiskSource(pool, 16, (0,), stride=8, processes=2) as source:
        for step in range(5):
            # of two processes the first: strides of 8, 4 samples of its own
            source.crops(np.arange(8 * step, 8 * step + 4))
            assert len(source.coming) == AHEAD
            deadline = time.monotonic() + 30
            while (
                not all(crop.done() for crops in source.coming.values() for crop in crops)
                and time.monotonic() < deadline
            ):
                time.sleep(0.002)
            time.sleep(0.01)
            assert pool.cuts == 4 * (step + 1 + AHEAD)  # each made once, and no more than these
    # six processors for two processes
    assert 1 <= len(pool.threads) <= 3 and all(name.startswith("decode") for name in pool.threads)
    assert set(pool.threads.values()) == {1} and torch.get_num_threads() == 2  # here as it was


@pytest.mark.parametrize(
    ("side", "processes", "expected"), [(300, 1, 16), (300, 4, 10), (300, 99, 1), (4000, 1, 4), (20000, 1, 1)]
)
def test_thread_count(side, processes, expected, monkeypatch):
    monkeypatch.setattr("data.source.processors", lambda: 40)
    assert thread_count(np.array([[side, side]] * 3), processes) == expected


def test_waiting_is_measured():
    step = lambda k: np.arange(k, k + 1)  # noqa: E731
    with DiskSource(Slow(seconds=0.05), 16, (0,), stride=1) as source:
        for k in range(4):
            source.crops(step(k))
        assert 0.5 < source.share_waited() <= 1
        time.sleep(0.4)
        source.crops(step(4))
        assert source.share_waited() < 0.5
    with CropSource(ImagePool([np.zeros((20, 20, 1), np.uint8)]), 16, (0,)) as source:
        assert source.share_waited() == 0


@pytest.mark.parametrize(
    ("fault", "raised"), [(UsageError("x.png is damaged"), RunError), (ZeroDivisionError("a bug"), ZeroDivisionError)]
)
def test_what_a_thread_raises_comes_back(fault, raised):
    with pytest.raises(raised, match=r"damaged|a bug"), DiskSource(Slow(fault=fault), 16, (0,), stride=4) as source:
        for step in range(100):
            source.crops(np.arange(4 * step, 4 * step + 4))


def test_leaving_does_not_make_what_is_begun():
    pool = Slow(seconds=0.05)
    with DiskSource(pool, 16, (0,), stride=200) as source:
        source.begin(np.arange(200))
        time.sleep(0.02)
    assert pool.cuts < 100


# ------------------------------------------------------------------------------------------------ ends


@pytest.fixture
def folder(pictures, tmp_path):
    shutil.copytree(pictures / "gray", tmp_path / "images")
    return tmp_path / "images"


def truncate(file):
    """The header stays, half of the pixels go."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", ["pixels", "size", "gone"])
def test_damaged_file_is_named_by_the_step_that_needs_it(damage, run, folder, pictures, tmp_path):
    line = f"--name a --clean {folder} {LEVELS['awgn']} {TINY} --steps 16 --save-every 4 --held-out 0 --images disk"
    ok(run("train_dbsn", f"{line} --max-minutes 1e-9"))
    before, original = train_dbsn.objective, (folder / "3.png").read_bytes()

    def damaging(*args):
        if damage == "pixels":
            truncate(folder / "3.png")
        elif damage == "gone":
            (folder / "3.png").unlink(missing_ok=True)
        else:
            write_image(folder / "3.png", np.zeros((50, 50, 1), np.uint8))
        return before(*args)

    train_dbsn.objective = damaging
    try:
        code, out, err = run("train_dbsn", line)
    finally:
        train_dbsn.objective = before
    assert code == 1 and "of 16 steps" not in out
    assert [text for text in err.splitlines() if "error" in text] == [
        text for text in err.splitlines() if text.startswith("error: ") and "3.png" in text
    ]
    (folder / "3.png").write_bytes(original)
    ok(run("train_dbsn", line))
    ok(run("train_dbsn", line.replace("--name a", "--name whole")))
    assert_same_run(tmp_path / "a", tmp_path / "whole")


@pytest.mark.parametrize(("what", "words"), [("header", "3.png"), ("small", "--patch-size")])
def test_what_a_header_tells_is_found_before_anything_is_written(what, words, run, folder, tmp_path):
    if what == "header":
        (folder / "3.png").write_text("no picture")
    else:
        write_image(folder / "3.png", np.zeros((50, 15, 1), np.uint8))
    code, _, err = run("train_dbsn", f"--name a --clean {folder} {LEVELS['awgn']} {TINY} --steps 1 --images disk")
    assert code == 2 and words in err and "3.png" in err and not (tmp_path / "a").exists()


def test_signal_in_the_middle(run, pictures, tmp_path, monkeypatch):
    line = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 8 --save-every 3 --images disk"
    ok(run("train_dbsn", f"--name whole {line}"))
    before, calls = train_dbsn.objective, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return before(*args)

    monkeypatch.setattr(train_dbsn, "objective", stopping)
    code, out, _ = run("train_dbsn", f"--name a {line}")
    assert code == 75 and "4 of 8 steps" in out
    assert not [t.name for t in threading.enumerate() if t.name.startswith("decode")]
    assert "8 of 8" in ok(run("train_dbsn", f"--name a {line}"))
    whole, parts = tmp_path / "whole", tmp_path / "a"
    assert (whole / "stats.jsonl").read_bytes() == (parts / "stats.jsonl").read_bytes()
    one, two = (read_tensors(f / "last.safetensors") for f in (whole, parts))
    assert all(torch.equal(one[k], two[k]) for k in one)


# ----------------------------------------------------------------------------------- choice and record


@pytest.mark.parametrize(("free", "place"), [(10**12, "memory"), (10**5, "disk")])
def test_auto_takes_memory_where_the_images_fit(free, place, run, pictures, models, tmp_path, monkeypatch):
    monkeypatch.setattr(data.training, "free_memory", lambda device, processes: free)
    out = ok(
        run("train_dbsn", f"--name a --clean {pictures}/gray {LEVELS['awgn']} {TINY} --noise-draw fixed --steps 2")
    )
    assert ("read from disk as they are needed" in out) == (place == "disk")
    shutil.copytree(models / "s1", tmp_path / "s1")
    ok(run("train_distill", f"--name s2 {STAGE2.format(pictures)}"))
    assert json.loads((tmp_path / "s2" / "options.json").read_text())["images"] == place


def test_needed_memory(pictures):
    images = look_at(sorted((pictures / "color").iterdir()), "color", None)
    values = 10 * 37 * 40 * 3
    assert images.memory() == values and images.memory(float_copies=1) == 5 * values
    assert look_at(images.files, "gray", 255.0).memory() == 4 * values // 3
    cpu = torch.device("cpu")
    assert 2**20 < device.free_memory(cpu) < 2**50
    assert device.free_memory(cpu, 4) < device.free_memory(cpu, 2) < device.free_memory(cpu)


def test_images_are_recognised_on_either_path(run, folder, tmp_path):
    line = f"{LEVELS['awgn']} {TINY} --clean {folder} --steps 4 --max-minutes 1e-9"
    for name in ("memory", "disk"):
        for place in (name, "memory", "disk"):
            ok(run("train_dbsn", f"--name {name} {line} --images {place}"))
    (folder / "3.png").unlink()
    write_image(folder / "3.png", np.zeros((40, 37, 1), np.uint8))
    for name in ("memory", "disk"):
        for place in ("memory", "disk"):
            code, _, err = run("train_dbsn", f"--name {name} {line} --images {place}")
            assert code == 2 and "training images are others than before" in err


def test_digests(folder):
    files = sorted(folder.iterdir())
    on_disk = look_at(files, "gray", None)
    held = on_disk.decode()
    assert digest(held) == digest(on_disk, digest(held)) != digest(held.subset([1, 0, *range(2, 10)]))
    assert digest(on_disk).startswith("files:") and digest(on_disk) == digest(held, digest(on_disk)) != digest(
        on_disk.subset([1, 0, *range(2, 10)])
    )
    pixels = to_float(held.arrays[3])
    pixels[0, 0] = 1 - pixels[0, 0]
    held.arrays[3] = pixels
    assert digest(held) != digest(on_disk, digest(held))
