"""The benchmarks SIDD and DND: small files of every format, what is measured, and the submissions."""

from __future__ import annotations

import base64
import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut

from data.sidd_dnd import Block, read_block, read_blocks, read_boxes, read_crop, write_block, write_sidd_mat
from models import load_model
from models.inference import denoise_batch
from scripts import sidd_dnd
from tests.helpers import ok
from utils.errors import RunError, UsageError, run_script
from utils.metrics import psnr

h5py = pytest.importorskip("h5py", reason="files of MATLAB's version 7.3 take h5py")

STUDENT = "color-photo-full"
NOISY, CLEAN, BENCHMARK = "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb", "BenchmarkNoisyBlocksSrgb"
BOXES = [[(1, 1, 32, 32), (9, 5, 40, 36)], [(3, 2, 34, 33), (1, 4, 32, 40)]]  # as info.mat has them


def photograph(height, width, sigma=20.0):
    """A crop of a photograph and the same with independent noise, uint8."""
    clean = astronaut()[60 : 60 + height, 150 : 150 + width]
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
    return clean, np.rint(clean + noise).clip(0, 255).astype(np.uint8)


def as_blocks(picture):
    """(64,64,3) -> (2,2,32,32,3)"""
    return picture.reshape(2, 32, 2, 32, 3).swapaxes(1, 2)


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """As MATLAB writes version 7.3: 512 bytes of its own, then HDF5 with reversed axes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return path


def write_v5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    scipy.io.savemat(path, arrays, do_compression=True)
    return path


@pytest.fixture
def sidd(tmp_path):
    clean, noisy = map(as_blocks, photograph(64, 64))
    write_v5(tmp_path / "n.mat", {NOISY: noisy, BENCHMARK: noisy})
    write_hdf5(tmp_path / "c.mat", {CLEAN: clean})
    return tmp_path, noisy, clean


@pytest.fixture
def dnd(tmp_path):
    root = tmp_path / "dnd_2017"
    (root / "images_srgb").mkdir(parents=True)
    noisy = [photograph(40, 44, sigma)[1] / np.float32(255) for sigma in (20, 10)]
    for k, picture in enumerate(noisy):
        write_hdf5(root / "images_srgb" / f"{k + 1:04d}.mat", {"InoisySRGB": picture})
    write_boxes(root, BOXES)
    return root, noisy


def write_boxes(root, boxes):
    with h5py.File(root / "info.mat", "w", userblock_size=512) as file:
        for k, own in enumerate(boxes):
            file[f"#refs#/{k}"] = np.array(own, float).T
        references = [[file[f"#refs#/{k}"].ref for k in range(len(boxes))]]
        file.create_dataset("info/boundingboxes", data=np.array(references, h5py.ref_dtype), dtype=h5py.ref_dtype)


@pytest.fixture
def call(capsys, monkeypatch):
    """call("dnd --data ..") -> exit code, stdout, stderr."""
    monkeypatch.setattr(sidd_dnd, "load_model", lambda name, *_: load_model(name))

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            run_script(lambda: sidd_dnd.main([*line.split(), "--device", "cpu", "--amp", "off"]))
        out = capsys.readouterr()
        return end.value.code, out.out, out.err

    return run


def expected(block, name=STUDENT, **kwargs):
    """denoise_batch's result for a block (H,W,3), 0..1."""
    model = load_model(name)
    model.units = "noise"
    y = torch.from_numpy(np.ascontiguousarray(block.transpose(2, 0, 1), np.float32))[None]
    return denoise_batch(model, y, **kwargs).image[0].permute(1, 2, 0).clamp(0, 1).numpy()


def written(folder):
    return {f.relative_to(folder).as_posix(): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("write", [write_v5, write_hdf5])
def test_blocks_of_both_versions(write, tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7, 3), np.uint8)
    found = read_blocks(write(tmp_path / "a.mat", {NOISY: blocks, "other": np.zeros(3)}), NOISY)
    assert found.dtype == np.uint8 and np.array_equal(found, blocks)


@pytest.mark.parametrize("write", [write_v5, write_hdf5])
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({CLEAN: np.zeros((1, 1, 4, 4, 3), np.uint8)}, f"has no {NOISY}, only {CLEAN}"),
        ({NOISY: np.zeros((1, 1, 4, 4, 3))}, "float64 .* uint8 blocks"),
        ({NOISY: np.zeros((2, 4, 4, 3), np.uint8)}, r"\(2, 4, 4, 3\); uint8 blocks"),
        ({NOISY: np.zeros((2, 4, 4, 3, 2), np.uint8)}, f"give the file {NOISY}.mat"),
    ],
)
def test_wrong_arrays(write, arrays, words, tmp_path):
    with pytest.raises(UsageError, match=f"^--noisy .*a.mat.*{words}"):
        read_blocks(write(tmp_path / "a.mat", arrays), NOISY)


@pytest.mark.parametrize("write", [write_v5, write_hdf5])
def test_damaged_files(write, tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), np.uint8)
    path = write(tmp_path / "a.mat", {NOISY: blocks})
    data = path.read_bytes()
    for length in (0, 7, 100, 130, 300, 600, len(data) // 2, len(data) - 9):
        path.write_bytes(data[:length])
        with pytest.raises(UsageError, match=r"^--noisy .*a\.mat") as caught:
            read_blocks(path, NOISY)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["nowhere.mat", "."])
def test_missing_files(name, tmp_path):
    with pytest.raises(UsageError, match=r"^--clean .*check the path"):
        read_blocks(tmp_path / name, CLEAN, "--clean")


def test_version_73_takes_h5py(sidd, dnd, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for read in (lambda: read_blocks(sidd[0] / "c.mat", CLEAN), lambda: read_boxes(dnd[0])):
        with pytest.raises(UsageError, match=r"version 7\.3, which takes the package h5py: pip install h5py$"):
            read()
    assert read_blocks(sidd[0] / "n.mat", NOISY).shape == (2, 2, 32, 32, 3)  # version 5 does not


def test_boxes_and_crops(dnd):
    root, pictures = dnd
    boxes = read_boxes(root)
    assert boxes == [[(t - 1, l - 1, b, r) for t, l, b, r in own] for own in BOXES]  # noqa: E741
    for k, own in enumerate(boxes):
        for top, left, bottom, right in own:
            crop = read_crop(root / "images_srgb" / f"{k + 1:04d}.mat", (top, left, bottom, right))
            assert crop.dtype == np.float32 and np.array_equal(crop, pictures[k][top:bottom, left:right])


def test_wrong_files_of_dnd(dnd):
    root, pictures = dnd
    image = root / "images_srgb" / "0001.mat"
    with pytest.raises(UsageError, match=r"40 rows and 44 columns, and a box of info.mat ends at 41, 8"):
        read_crop(image, (0, 0, 41, 8))
    for array, words in (
        (np.full((8, 8, 3), np.nan), "not finite"),
        (np.zeros((8, 8, 3), np.uint8), "uint8 .*floats"),
        (np.zeros((8, 8)), r"\(8, 8\); floats"),
    ):
        with pytest.raises(UsageError, match=f"0001.mat.*{words}"):
            read_crop(write_hdf5(image, {"InoisySRGB": array}), (0, 0, 8, 8))
    with pytest.raises(UsageError, match="has no InoisySRGB, only x"):
        read_crop(write_hdf5(image, {"x": pictures[0]}), (0, 0, 8, 8))
    write_boxes(root, [[(5, 1, 4, 32)]])
    with pytest.raises(UsageError, match="boxes of picture 1 are no rows of top, left, bottom and right"):
        read_boxes(root)
    write_hdf5(root / "info.mat", {"info/boundingboxes": np.zeros((1, 4))})
    with pytest.raises(UsageError, match="refers to no boxes"):
        read_boxes(root)
    write_v5(root / "info.mat", {"info": np.zeros(3)})
    with pytest.raises(UsageError, match=r"info.mat is no MATLAB file of version 7.3"):
        read_boxes(root)


def test_a_block_that_was_written_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    write_block(tmp_path / "a.npz", Block(pixels, 0.25, {1: 0.75, 2: 0.25}))
    found = read_block(tmp_path / "a.npz")
    assert np.array_equal(found.pixels, pixels) and (found.seconds, found.strides) == (0.25, {1: 0.75, 2: 0.25})
    data = (tmp_path / "a.npz").read_bytes()
    for length in (0, 50, len(data) - 30):
        (tmp_path / "a.npz").write_bytes(data[:length])
        with pytest.raises(RunError, match="damaged: remove it"):
            read_block(tmp_path / "a.npz")


def test_seconds_are_those_of_a_megapixel(tmp_path):
    blocks = [[Block(np.zeros((256, 512, 3), np.uint8), seconds, {1: 1.0}) for seconds in (1.0, 3.0)]]
    write_sidd_mat(tmp_path / "a.mat", blocks, {"MethodName": "x"})
    assert scipy.io.loadmat(tmp_path / "a.mat")["TimeMPSrgb"].item() == 16


def test_sidd_validation(sidd, call):
    root, noisy, clean = sidd
    line = f"sidd-validation --checkpoint {STUDENT} --noisy {root}/n.mat --clean {root}/c.mat --json {root}/r/r.json"
    code, out, err = call(line)
    assert code == 0 and "means of 4 blocks" in out
    assert "has 2 pictures of 2 blocks, the benchmark 40 of 32" in err
    record = json.loads((root / "r" / "r.json").read_text())
    for k, row in enumerate(record["blocks"]):
        place = divmod(k, 2)
        assert (row["picture"] - 1, row["block"] - 1, row["strides"]) == (*place, {"1": 1.0})
        result = np.rint(255 * expected(noisy[place] / 255)) / 255
        assert row["distilled"]["psnr"] == pytest.approx(psnr(clean[place] / 255, result), abs=1e-3)
        assert row["noisy"]["psnr"] == pytest.approx(psnr(clean[place] / 255, noisy[place] / 255))
    mean = record["mean"]["distilled"]
    assert mean["psnr"] == pytest.approx(np.mean([row["distilled"]["psnr"] for row in record["blocks"]]))
    assert f"{mean['psnr']:.2f}  {mean['ssim']:.4f}" in out and mean["psnr"] > record["mean"]["noisy"]["psnr"] + 2
    assert record["models"][0]["stage"] == 2 and record["blocks_of_strides"] == {"1": 4}


@pytest.mark.slow
def test_a_block_is_denoised_as_test_py_does(call, run, tmp_path):
    """Noise that neighbours share, of which the stride follows, in a block that is dark."""
    clean = np.rint(30 + astronaut()[:96, 200:296] / 8)
    noise = gaussian_filter(np.random.default_rng(0).normal(0, 20, clean.shape), (0.7, 0.7, 0))
    clean, noisy = (array.clip(0, 255).astype(np.uint8) for array in (clean, np.rint(clean + noise)))
    for name, array in (("clean", clean), ("noisy", noisy)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    write_v5(tmp_path / "n.mat", {NOISY: noisy[None, None]})
    write_v5(tmp_path / "c.mat", {CLEAN: clean[None, None]})
    names = {"color-hg-blind-full": "distilled", "color-hg-blind": "posterior", "color-photo-full": "distilled"}
    for name, method in names.items():
        files = f"--noisy {tmp_path}/n.mat --clean {tmp_path}/c.mat --json {tmp_path}/a.json"
        ok(call(f"sidd-validation --checkpoint {name} {files}"))
        files = f"--data {tmp_path}/noisy.png --clean {tmp_path}/clean.png --json {tmp_path}/b.json"
        ok(run("test", f"--checkpoint {name} --amp off {files}"))
        files = ("a.json", "blocks"), ("b.json", "images")
        (one,), (two,) = (json.loads((tmp_path / f).read_text())[key] for f, key in files)
        assert one["strides"] == two["strides"][name] != {"1": 1.0}
        assert one[method]["psnr"] == pytest.approx(two[method]["psnr_uint8"], abs=1e-3)
        assert one["noisy"]["ssim"] == pytest.approx(two["noisy"]["ssim"])


def test_sidd_benchmark(sidd, call):
    root, noisy, _ = sidd
    line = f"sidd-benchmark --checkpoint {STUDENT} --noisy {root}/n.mat --out {root}/out --authors Nobody"
    assert "SubmitSrgb.csv" in ok(call(line))
    csv.field_size_limit(2**24)
    with (root / "out" / "SubmitSrgb.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["ID", "BLOCK"] and [row[0] for row in rows[1:]] == ["0", "1", "2", "3"]
    submitted = scipy.io.loadmat(root / "out" / "SubmitSrgb.mat")
    cells = submitted["DenoisedBlocksSrgb"]
    assert cells.shape == (2, 2) and cells.dtype == object and submitted["TimeMPSrgb"].item() > 0
    about = submitted["OptionalData"][0, 0]
    assert about.dtype.names == ("MethodName", "Authors", "PaperTitle", "Venue") and about["Authors"].item() == "Nobody"
    for k, (_, text) in enumerate(rows[1:]):
        block = np.frombuffer(base64.b64decode(text), np.uint8).reshape(32, 32, 3)
        assert np.array_equal(block, np.rint(255 * expected(noisy[divmod(k, 2)] / 255)))
        cell = cells[divmod(k, 2)]
        assert cell.dtype == np.float32 and np.array_equal(np.rint(255 * cell), block)


def test_sidd_goes_on_where_it_stopped(sidd, call, monkeypatch):
    root, _, _ = sidd
    line = f"sidd-benchmark --checkpoint {STUDENT} --noisy {root}/n.mat --out {root}/out"
    real, asked = sidd_dnd.denoise, []

    def denoise(model, block, opt):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(block)
        return real(model, block, opt)

    monkeypatch.setattr(sidd_dnd, "denoise", denoise)
    assert call(line)[0] == 130
    before = written(root / "out")
    assert sorted(before) == ["blocks/0001_01.npz", "blocks/0001_02.npz", "settings.json"]  # and nothing in part
    asked.clear()
    ok(call(line))
    after = written(root / "out")
    assert len(asked) == 2 and {name: after[name] for name in before} == before and "SubmitSrgb.csv" in after

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(sidd_dnd, "denoise", never)
    ok(call(f"{line} --tile 64"))  # which changes no result


@pytest.mark.parametrize(
    ("changed", "words"),
    [("--stride 2", "another stride"), ("--self-ensemble", "another self_ensemble"), ("other", "another checkpoint")],
)
def test_a_folder_of_other_settings_is_refused(changed, words, sidd, call):
    root, _, _ = sidd
    line = f"sidd-benchmark --noisy {root}/n.mat --out {root}/out"
    ok(call(f"{line} --checkpoint {STUDENT}"))
    before = written(root / "out")
    checkpoint = "color-hg-blind-full" if changed == "other" else f"{STUDENT} {changed}"
    code, _, err = call(f"{line} --checkpoint {checkpoint}")
    assert code == 2 and words in err and "remove this one" in err and written(root / "out") == before
    (root / "out" / "settings.json").write_text("[")
    code, _, err = call(f"{line} --checkpoint {STUDENT}")
    assert code == 2 and "settings.json cannot be read" in err
    (root / "out" / "settings.json").unlink()
    code, _, err = call(f"{line} --checkpoint {STUDENT}")
    assert code == 2 and "holds other files" in err


def test_dnd(dnd, call, tmp_path, monkeypatch):
    root, pictures = dnd
    line = f"dnd --checkpoint {STUDENT} --data {root} --out {tmp_path}/out"
    code, out, err = call(line)
    assert code == 0 and "4 boxes: submit the 2 files of" in out and "the benchmark 50 of 20" in err
    for k, boxes in enumerate(BOXES):
        bundle = scipy.io.loadmat(tmp_path / "out" / "bundled" / f"{k + 1:04d}.mat")
        kinds = {name: kind for name, _, kind in scipy.io.whosmat(tmp_path / "out" / "bundled" / f"{k + 1:04d}.mat")}
        assert kinds == {"Idenoised": "cell", "israw": "logical", "eval_version": "char"}
        assert bundle["Idenoised"].shape == (1, 2) and not bundle["israw"].item()
        assert bundle["eval_version"].item() == "1.0"
        for place, (top, left, bottom, right) in enumerate(boxes):
            crop = scipy.io.loadmat(tmp_path / "out" / f"{k + 1:04d}_{place + 1:02d}.mat")["Idenoised_crop"]
            assert crop.dtype == np.float32 and np.array_equal(bundle["Idenoised"][0, place], crop)
            np.testing.assert_allclose(crop, expected(pictures[k][top - 1 : bottom, left - 1 : right]), atol=1e-6)

    before = written(tmp_path / "out")
    (tmp_path / "out" / "0002_01.mat").unlink()
    real, asked = sidd_dnd.denoise, []
    monkeypatch.setattr(sidd_dnd, "denoise", lambda *args: asked.append(args) or real(*args))
    ok(call(line))
    after = written(tmp_path / "out")
    assert len(asked) == 1 and before.keys() == after.keys()
    assert all(before[name] == after[name] for name in ("0001_01.mat", "0001_02.mat", "0002_02.mat"))
    (tmp_path / "out" / "0002_02.mat").write_bytes(b"nothing")
    code, _, err = call(line)
    assert code == 1 and "0002_02.mat is damaged: remove it" in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "sidd-validation"),
        ("sid", "sidd-validation"),
        ("dnd --data D --out O", "--checkpoint"),
        ("dnd --checkpoint C --data nowhere --out O", "--data nowhere/info.mat"),
        ("dnd --checkpoint C --data D --out D", "holds other files"),
        ("dnd --checkpoint gray-hg-blind-full --data D --out O", "in colour: give one for colour"),
        ("dnd --checkpoint nothing --data D --out O", "no checkpoint 'nothing'"),
        ("dnd --checkpoint C --data D --out O --stride 9", "--stride"),
        ("sidd-benchmark --checkpoint C --noisy S/c.mat --out O", f"has no {BENCHMARK}, only {CLEAN}"),
        ("sidd-validation --checkpoint C --noisy S/n.mat --clean S/n.mat", f"--clean S/n.mat has no {CLEAN}"),
        ("sidd-validation --checkpoint C --noisy S/n.mat --clean S/small.mat", "two files of one download"),
    ],
)
def test_wrong_use_ends_in_one_line(line, words, sidd, dnd, call, tmp_path):
    write_hdf5(tmp_path / "small.mat", {CLEAN: np.zeros((1, 2, 32, 32, 3), np.uint8)})
    before = written(tmp_path)
    names = {" D": f" {dnd[0]}", " O": f" {tmp_path}/out", "S/": f"{tmp_path}/", " C ": f" {STUDENT} "}
    for short, name in names.items():
        line, words = line.replace(short, name), words.replace(short, name)
    code, _, err = call(line)
    message = [text for text in err.splitlines() if text.startswith("error:")]
    assert code == 2 and len(message) == 1 and words in message[0] and written(tmp_path) == before


def test_a_picture_of_dnd_is_missing(dnd, call, tmp_path):
    (dnd[0] / "images_srgb" / "0002.mat").unlink()
    code, _, err = call(f"dnd --checkpoint {STUDENT} --data {dnd[0]} --out {tmp_path}/out")
    assert code == 2 and "0002.mat: give the whole of DND" in err and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(sidd, call):
    root, _, _ = sidd
    (root / "file").touch()
    code, _, err = call(f"sidd-benchmark --checkpoint {STUDENT} --noisy {root}/n.mat --out {root}/file/out")
    assert code == 1 and "--out: cannot create the folder" in err


@pytest.mark.parametrize("command", ["sidd-validation", "sidd-benchmark", "dnd"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        sidd_dnd.main([command, "--help"])
    assert end.value.code == 0 and "--checkpoint " in capsys.readouterr().out
