"""scripts/denoise_folder.py: one command for a folder, whatever is in it."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut, camera

from data.images import read_image
from scripts import denoise_folder
from scripts.denoise_folder import Kind
from utils.errors import UsageError, run_script

SIDE = 112  # pixels: enough for the training's crops


@pytest.fixture
def noisy(tmp_path):
    folder = tmp_path / "noisy"
    folder.mkdir()
    random = np.random.RandomState(0)
    for k, row in enumerate((0, 120)):
        image = camera()[row : row + SIDE, 200 : 200 + SIDE] + random.normal(0, 25, (SIDE, SIDE))
        cv2.imwrite(str(folder / f"{k}.png"), image.clip(0, 255).astype(np.uint8))
    return folder


def denoise(capsys, *arguments) -> tuple[int, str, str]:
    argv = [*map(str, arguments), "--device", "cpu", "--amp", "off"]
    with pytest.raises(SystemExit) as end:
        run_script(lambda: denoise_folder.main(argv))
    return end.value.code, *capsys.readouterr()


def test_a_folder_is_looked_at_trained_on_and_denoised(noisy, tmp_path, capsys):
    (noisy / "bad.png").write_bytes(b"no picture")
    tifffile.imwrite(noisy / "1.tif", read_image(noisy / "1.png")[..., 0])
    (noisy / "1.png").unlink()
    out = tmp_path / "out"
    code, said, err = denoise(capsys, noisy, out, "--steps", 2)
    assert code == 1 and "1 of 3 images were skipped" in err and err.count("bad.png") == 1
    assert "independent from pixel to pixel" in said and "2 of 2 steps done" in said
    duration = r"(a minute or two|about \d+ minutes|about \d+\.\d hours)"
    assert re.search(rf"training gray-awgn-blind-full for 2 steps on 2 pictures: {duration}", said)
    assert re.search(rf"denoising 2 pictures with \S+: {duration}", said)
    for k, suffix in enumerate((".png", ".tif")):
        files = noisy / f"{k}{suffix}", out / f"{k}_denoised{suffix}"
        before, after = (read_image(file)[..., 0].astype(float) for file in files)
        clean = camera()[120 * k :][:SIDE, 200 : 200 + SIDE]
        assert np.sqrt(np.mean((after - clean) ** 2)) < 0.6 * np.sqrt(np.mean((before - clean) ** 2))
    assert (out / "report.html").is_file() and json.loads((out / "noise.json").read_text())["images"]
    (weights,) = (out / "training").glob("gray-*/last.safetensors")
    assert str(weights) in json.loads((out / "results.json").read_text())["checkpoints"]


@pytest.mark.slow
def test_a_folder_is_trained_on_again_only_where_it_has_changed(noisy, tmp_path, capsys, monkeypatch):
    for measured in ("seconds_per_step", "seconds_per_pixel"):
        monkeypatch.setattr(denoise_folder, measured, lambda *_: 1e-6)
    tifffile.imwrite(noisy / "1.tif", read_image(noisy / "1.png")[..., 0])
    (noisy / "1.png").unlink()
    out = tmp_path / "out"
    denoise(capsys, noisy, out, "--steps", 2)
    (weights,) = (out / "training").glob("gray-*/last.safetensors")
    trained = weights.read_bytes()
    code, said, _ = denoise(capsys, noisy, out, "--steps", 2)
    assert code == 0 and weights.read_bytes() == trained
    # a picture that was changed is another training, though its file is as large as before
    tifffile.imwrite(noisy / "1.tif", 255 - tifffile.imread(noisy / "1.tif"))
    code, said, _ = denoise(capsys, noisy, out, "--steps", 2)
    assert code == 0 and "2 of 2 steps done" in said and len(list((out / "training").glob("gray-*"))) == 2


def result(out, name):
    return out / f"{name}_denoised.png"


@pytest.mark.slow
def test_gray_and_colour_clean_pictures_and_stacks(noisy, tmp_path, capsys):
    (noisy / "1.png").unlink()
    random = np.random.RandomState(1)
    color = astronaut()[:SIDE, 100 : 100 + SIDE] + random.normal(0, 20, (SIDE, SIDE, 3))
    cv2.imwrite(str(noisy / "c.png"), color.clip(0, 255).astype(np.uint8)[..., ::-1])
    holed = (camera()[:SIDE, :SIDE] + random.normal(0, 25, (SIDE, SIDE))).astype(np.float32)
    holed[:9] = np.nan
    tifffile.imwrite(noisy / "holed.tif", holed)
    stack = 1000 + 4 * (camera()[:SIDE, :SIDE] + random.normal(0, 25, (2, SIDE, SIDE)))
    tifffile.imwrite(noisy / "stack.tif", stack.astype(np.uint16), photometric="minisblack")
    (tmp_path / "clean").mkdir()
    cv2.imwrite(str(tmp_path / "clean" / "x.png"), camera()[200:330, 200:330])
    (tmp_path / "clean" / "y.png").write_bytes(b"no picture")
    code, said, err = denoise(capsys, noisy, tmp_path / "out", tmp_path / "clean", "--steps", 1)
    assert code == 0, err
    assert "1 of the pictures in CLEAN are left out" in err and "1 of 1 pictures cannot be trained on" in said
    assert np.isnan(tifffile.imread(tmp_path / "out" / "holed_denoised.tif")[:9]).all()
    out = tmp_path / "out"
    kinds = ("gray-uint8", "gray-uint16", "gray-float32", "color-uint8")
    assert all((out / f"report-{kind}.html").is_file() for kind in kinds)
    assert read_image(out / "c_denoised.png").shape == (SIDE, SIDE, 3)
    pages = tifffile.imread(out / "stack_denoised.tif")
    assert pages.shape == stack.shape and abs(pages.mean() - stack.mean()) < 5
    assert np.abs(pages - 1000 - 4 * camera()[:SIDE, :SIDE].astype(float)).mean() < 60


def test_clean_pictures_are_of_one_type(noisy, tmp_path, capsys):
    (tmp_path / "clean").mkdir()
    cv2.imwrite(str(tmp_path / "clean" / "x.png"), camera()[:SIDE, :SIDE])
    tifffile.imwrite(tmp_path / "clean" / "y.tif", camera()[:SIDE, :SIDE].astype(np.uint16))
    code, _, err = denoise(capsys, noisy, tmp_path / "out", tmp_path / "clean", "--steps", 1)
    assert code == 2 and "several types (uint16, uint8)" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("low", "high", "offset", "white"),
    [(10, 200, False, None), (10, 100, False, 100), (100, 150, True, 50), (-40, -10, True, 30), (-5, 90, False, 90)],
)
def test_where_black_is_far_from_0_white_is_the_range(low, high, offset, white):
    kind = Kind("gray", "uint8", darkest=low, brightest=high)
    assert (kind.offset, kind.white_level) == (offset, white)


def test_clean_pictures_that_cannot_be_used_are_left_out(tmp_path, capsys):
    good, bad, half = (tmp_path / f"{name}.png" for name in ("good", "bad", "half"))
    cv2.imwrite(str(good), camera()[:SIDE, :SIDE])
    bad.write_bytes(good.read_bytes()[:2000])
    cv2.imwrite(str(half), np.full((SIDE, SIDE, 4), 100, np.uint8))
    assert denoise_folder.clean_files(str(tmp_path)) == [good]
    assert "2 of the pictures in CLEAN are left out" in capsys.readouterr().err


def test_noise_is_looked_for_in_others_where_the_first_have_none(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    image = camera()[:70, 200:290] + np.random.RandomState(0).normal(0, 25, (70, 90))
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.full((70, 90), 9, np.uint8))
    cv2.imwrite(str(tmp_path / "in" / "b.png"), image.clip(0, 255).astype(np.uint8))
    code, _, err = denoise(capsys, tmp_path / "in", tmp_path / "out", "--look-at", 1, "--steps", 0)
    assert code == 0 and result(tmp_path / "out", "b").is_file(), err


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0.1, 100])
def test_weights_that_smooth_texture_are_not_taken(limit, tmp_path, capsys, monkeypatch):
    """limit: of how much grayer than noise what is removed from a photograph may be, beside how much it is."""
    monkeypatch.setattr("models.result_checks.AMOUNT_GRAY", limit)
    (tmp_path / "in").mkdir()
    noise = gaussian_filter(np.random.RandomState(0).normal(0, 1, (192, 192, 3)), (0.8, 0.8, 0))
    image = astronaut()[:192, 100:292] + 8 * noise / noise.std()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), image.clip(0, 255).astype(np.uint8))
    code, said, err = denoise(capsys, tmp_path / "in", tmp_path / "out", *([] if limit == 0.1 else ["--steps", 0]))
    assert code == 0, err
    taken = "color-hg-blind-full" if limit == 0.1 else "color-photo-full"
    assert f"denoising 1 picture with {taken}" in said and not (tmp_path / "out" / "training").exists()
    assert ("smooths texture of such pictures" in said) == (limit == 0.1)


def test_noise_that_the_weights_know_needs_no_training(noisy, tmp_path, capsys):
    code, said, err = denoise(capsys, noisy, tmp_path / "out")
    assert code == 0, err
    assert "gray-awgn-blind-full knows such noise" in said and not (tmp_path / "out" / "training").exists()


def test_small_pictures_are_denoised_without_training(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    image = camera()[:70, 200:290] + np.random.RandomState(0).normal(0, 25, (70, 90))
    image = image.clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "in" / "a.png"), image)
    cv2.imwrite(str(tmp_path / "in" / "green.png"), image[..., None] * np.array([0, 1, 0], np.uint8))
    code, said, err = denoise(capsys, tmp_path / "in", tmp_path / "out", "--steps", 5)
    assert code == 0, err
    assert "files in colour that hold one gray picture: 1" in said
    a, green = (read_image(result(tmp_path / "out", name)) for name in ("a", "green"))
    np.testing.assert_array_equal(a, green)
    assert (
        "cannot be trained on" in said
        and result(tmp_path / "out", "a").is_file()
        and not (tmp_path / "out" / "training").exists()
    )


@pytest.mark.parametrize(
    ("make", "arguments", "code", "words"),
    [
        ("", "{0}/nowhere {0}/out", 2, "no such file or folder"),
        ("empty", "{0}/in {0}/out", 2, "the folder holds no image"),
        ("picture", "{0}/in {0}/in", 2, "is the folder of the images themselves"),
        ("picture", "{0}/in {0}/clean {0}/clean", 2, "is the folder of the CLEAN pictures"),
        ("picture", "{0}/in {0}/out {0}/nowhere", 2, "CLEAN"),
        ("picture", "{0}/in {0}/file/out", 1, "cannot create the folder"),
        ("bad", "{0}/in {0}/out", 1, "none of the 1 pictures could be used"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(make, arguments, code, words, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "clean").mkdir()
    cv2.imwrite(str(tmp_path / "clean" / "a.png"), camera()[:100, :100])
    if make == "picture":
        cv2.imwrite(str(tmp_path / "in" / "a.png"), camera()[:100, :100])
    if make == "bad":
        (tmp_path / "in" / "a.png").write_bytes(b"x")
    found, _, err = denoise(capsys, *arguments.format(tmp_path).split())
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert found == code and len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "out").exists()


def test_pictures_of_one_value_stay_as_they_are(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    noise = np.random.RandomState(0).normal(0, 25, (70, 90, 3))
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.full((100, 100), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "in" / "b.png"), (np.array([60, 120, 180]) + noise).clip(0, 255).astype(np.uint8))
    code, out, _ = denoise(capsys, tmp_path / "in", tmp_path / "out", "--steps", 0)
    assert code == 0 and "none of the 1 gray pictures has noise to measure: they have one value everywhere" in out
    assert (cv2.imread(str(result(tmp_path / "out", "a")), cv2.IMREAD_UNCHANGED) == 7).all()
    assert result(tmp_path / "out", "b").is_file()


def test_wrong_usage_of_one_kind_leaves_the_others(tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    noise = np.random.RandomState(0).normal(0, 25, (70, 90, 3))
    cv2.imwrite(str(tmp_path / "in" / "a.png"), (120 + noise[..., 0]).clip(0, 255).astype(np.uint8))
    cv2.imwrite(str(tmp_path / "in" / "b.png"), (np.array([60, 120, 180]) + noise).clip(0, 255).astype(np.uint8))
    do = denoise_folder.denoise_kind

    def but_gray(opt, kind, *rest, **more):
        if kind.mode == "gray":
            raise UsageError("a.png: not this one")
        return do(opt, kind, *rest, **more)

    monkeypatch.setattr(denoise_folder, "denoise_kind", but_gray)
    code, _, err = denoise(capsys, tmp_path / "in", tmp_path / "out", "--steps", 0)
    assert code == 2 and "error: a.png: not this one" in err
    assert result(tmp_path / "out", "b").is_file()
