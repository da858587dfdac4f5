"""Checks of a picture's noise and of its result: what must alarm, and what must not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.ndimage import shift as ndimage_shift
from skimage.data import astronaut, camera
from skimage.draw import line
from torch.nn import functional as F

import test as test_script
from models.checks import (
    REPEATED,
    Check,
    channels_have_one_noise,
    check_noise,
    doubts,
    neighbours_share_noise,
    shared_by_neighbours,
    shows_no_noise,
)
from models.noise.correlation import Shared, repetition, unevenness
from models.result_checks import Used, check_result
from tests.helpers import ok
from utils import report

GRAY = torch.from_numpy(camera()[100:292, 150:342] / 255.0)[None]
COLOR = torch.from_numpy(astronaut()[:192, 100:292] / 255.0).permute(2, 0, 1)
FLAT = torch.full((1, 192, 192), 0.4, dtype=torch.float64)


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.failed}


def rounded(y: torch.Tensor) -> torch.Tensor:
    return (255 * y.clamp(0, 1)).round() / 255


def normal(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(x.shape, generator=rng, dtype=torch.float64)


def noisy(x: torch.Tensor, noise: str, rng: torch.Generator) -> torch.Tensor:
    """Independent noise of one of the models on a picture x (C,H,W)."""
    if noise == "hg":
        return x + 40 / 255 * x * normal(x, rng) + 10 / 255 * normal(x, rng)
    if noise == "mg":
        mix = torch.tensor([[40, 0, 0], [30, 20, 0], [-10, 20, 30]], dtype=torch.float64) / 255
        return x + torch.einsum("ij,jhw->ihw", mix, normal(x.expand(3, -1, -1), rng))
    if noise == "poisson":
        return torch.poisson(30 * x, generator=rng) / 30
    return x + float(noise) / 255 * normal(x, rng)


@pytest.mark.parametrize("form", ["float", "8 bits"])
@pytest.mark.parametrize("noise", ["5", "15", "25", "50", "hg", "mg", "poisson"])
def test_independent_noise_is_not_doubted(noise, form, rng):
    for x in (GRAY, COLOR, FLAT):
        y = noisy(x, noise, rng)
        assert not failed(check_noise(rounded(y) if form == "8 bits" else y))


@pytest.mark.parametrize("x", [GRAY, COLOR, FLAT], ids=["gray", "color", "flat"])
def test_noise_that_neighbours_share_is_doubted(x, rng):
    n = np.stack([gaussian_filter(plane, 0.8) for plane in normal(x, rng).numpy()])
    y = rounded(x + torch.from_numpy(15 / 255 * n / n.std()))
    assert "neighbours, rows and columns" in failed(check_noise(y))
    assert "neighbouring pixels share" in doubts(check_noise(y))[0]


def grass(rng) -> torch.Tensor:
    """A texture (1,192,192) like grass: blades of two directions, whose strength changes as well."""

    def blurred(*sigma: float) -> np.ndarray:
        n = gaussian_filter(normal(FLAT, rng)[0].numpy(), sigma)
        return n / n.std()

    first = 1 / (1 + np.exp(-4 * blurred(3, 3)))
    blades = first * blurred(0.6, 2) + (1 - first) * blurred(2, 0.6)
    return FLAT + 20 / 255 * torch.from_numpy(blades * np.exp(0.25 * blurred(4, 4)))


def test_texture_is_not_taken_for_noise(rng):
    y = rounded(grass(rng) + 2 / 255 * normal(FLAT, rng))
    assert {"neighbours, rows and columns", "texture"} <= failed(check_noise(y))
    assert neighbours_share_noise(check_noise(y)) is None and shared_by_neighbours(y) is None


@pytest.mark.parametrize("reach", [0.7, 1, 2])
@pytest.mark.parametrize("x", [COLOR, FLAT], ids=["color", "flat"])
def test_noise_is_not_taken_for_texture(x, reach, rng):
    n = np.stack([gaussian_filter(plane, reach) for plane in normal(x, rng).numpy()])
    y = rounded(x + torch.from_numpy(20 / 255 * n / n.std()))
    assert "texture" not in failed(check_noise(y)) and neighbours_share_noise(check_noise(y))
    assert shared_by_neighbours(y).variance > (10 / 255) ** 2


def grating(period: float) -> torch.Tensor:
    at = torch.arange(192, dtype=torch.float64)
    return 0.5 + 50 / 255 * torch.sin(2 * torch.pi * (at + 0.3 * at[:, None]) / period)[None]


@pytest.mark.parametrize("period", [3, 4, 6])
def test_a_pattern_is_not_taken_for_noise(period, rng):
    """A grating is as even as noise, and its flattest blocks are no flatter than the others."""
    y = rounded(grating(period) + 20 / 255 * normal(FLAT, rng))
    assert "texture, pattern" in failed(check_noise(y))
    assert neighbours_share_noise(check_noise(y)) is None and shared_by_neighbours(y) is None


@pytest.mark.parametrize("reach", [0, 0.5, 1, 2, 3])
@pytest.mark.parametrize("side", [96, 400])
def test_noise_does_not_repeat_itself(side, reach, rng):
    n = gaussian_filter(normal(torch.zeros(side, side), rng).numpy(), reach)
    assert repetition(torch.from_numpy(n)[None]) < REPEATED


def test_a_pattern_that_was_removed_is_told(rng):
    x, noise = grating(3), 20 / 255 * normal(FLAT, rng)
    good, bad = (check_result(x + noise, result, level=torch.full((1, 1, 1), 60 / 255)) for result in (x, 0 * x + 0.5))
    assert "pattern" not in failed(good) and "pattern" in failed(bad)
    assert "repeats itself" in doubts(bad)[-1]


def test_a_pattern_is_kept(run, tmp_path, rng):
    clean, y = grating(6), rounded(grating(6) + 20 / 255 * normal(FLAT, rng))
    for name, image in (("a", y), ("clean", clean)):
        Image.fromarray((255 * image)[0].numpy().round().astype(np.uint8)).save(tmp_path / f"{name}.png")
    line = f"--checkpoint gray-awgn-blind-full --data {tmp_path}/a.png --clean {tmp_path}/clean.png"
    code, _, err = run("test", f"{line} --json {tmp_path}/r.json")
    (image,) = json.loads((tmp_path / "r.json").read_text())["images"]
    assert code == 0 and "may be a pattern" in err and not image.get("strides")
    assert image["distilled"]["psnr"] > image["noisy"]["psnr"] + 6


@pytest.mark.parametrize("reach", [0, 0.7, 1.5])
def test_gaussian_noise_is_even(reach, rng):
    n = normal(torch.zeros(1, 384, 384), rng)
    assert unevenness(torch.from_numpy(gaussian_filter(n[0].numpy(), reach))[None]) == pytest.approx(1, abs=0.15)


def test_noise_shared_along_rows_alone_is_doubted(rng):
    n = gaussian_filter1d(normal(FLAT, rng).numpy(), 1.2, axis=2)
    y = FLAT + torch.from_numpy(15 / 255 * n / n.std())
    assert failed(check_noise(y)) >= {"neighbours, rows"}
    assert "neighbours, columns" not in failed(check_noise(y))


def test_stripes_are_doubted_by_name(rng):
    y = noisy(GRAY, "15", rng) + 10 / 255 * normal(GRAY[:, :, :1], rng)
    assert "stripes, rows" in failed(check_noise(y)) and "stripes, columns" not in failed(check_noise(y))
    assert "stripes, columns" in failed(check_noise(y.transpose(1, 2)))


def test_pictures_without_noise_or_size_end_in_numbers():
    for x in (torch.zeros(1, 96, 96), torch.ones(3, 5, 2), torch.rand(1, 1, 1), torch.zeros(1, 64, 300)):
        checks = check_noise(x) + check_result(x, x) + check_result(x, x, torch.full((1, 1, 1), 0.1))
        assert not failed(checks)
        brighter = check_result(x, x + 0.01, independent=True)  # what was removed is one value
        json.dumps([check.record() for check in checks + brighter], allow_nan=False)


@pytest.mark.parametrize("level", [torch.full((1, 1, 1), 15 / 255), None], ids=["level", "none"])
def test_a_good_result_is_not_doubted(level, rng):
    y = noisy(GRAY, "15", rng)
    assert not failed(check_result(y, GRAY, level)) and not failed(check_result(y, y, level))


@pytest.mark.parametrize("level", [torch.full((1, 1, 1), 15 / 255), None], ids=["level", "none"])
def test_a_shift_of_brightness_is_doubted_where_it_is(level, rng):
    y = noisy(GRAY, "15", rng)
    result = GRAY.clone()
    result[:, 64:96, 32:64] += 5 / 255
    found = {check.name: check for check in check_result(y, result, level)}
    block = found["brightness, blocks"]
    assert block.failed and (block.row, block.column) == (64, 32) and block.amount == pytest.approx(5, abs=2)
    assert "brighter" in block.words and "row 64, column 32" in block.words
    assert found["brightness"].failed is False
    everywhere = {check.name: check for check in check_result(y, GRAY - 3 / 255, level)}["brightness"]
    assert everywhere.failed and "darker" in everywhere.words and everywhere.row is None


def test_black_that_is_lifted_is_doubted(rng):
    y = noisy(FLAT, "15", rng)
    y[:, :64] = 0
    result = FLAT.clone()
    result[:, :64] = 0
    assert not failed(check_result(y, result))
    result[:, :64] = 4 / 255
    assert "brightness, blocks" in failed(check_result(y, result))


def test_a_result_that_smooths_the_picture_is_doubted(rng):
    y = noisy(GRAY, "5", rng)
    smooth = F.avg_pool2d(F.pad(y[None], (2, 2, 2, 2), mode="reflect"), 5, 1)[0]
    assert "distance" in failed(check_result(y, smooth, torch.full((1, 1, 1), 5 / 255)))
    assert "distance" in failed(check_result(y, smooth))


def test_thin_lines_that_lose_contrast_are_told(rng):
    x = FLAT.clone()
    for ends in torch.randint(192, (60, 4), generator=rng).tolist():
        x[0][line(*ends)] = 0
    y = noisy(x, "10", rng)
    weaker = 0.6 * x + 0.4 * FLAT
    assert not failed(check_result(y, x, independent=True))
    assert "detail" in failed(check_result(y, weaker, independent=True))
    assert "detail" not in failed(check_result(y, weaker))  # the noise may be such


def test_in_units_of_noise_only_the_ratio_to_the_pictures_spread_counts(monkeypatch):
    monkeypatch.setattr(report, "training_facts", lambda values: {"noise": "awgn", "sigma": [5, 55]})
    model = SimpleNamespace(
        noise="awgn", units="noise", config={"units": "noise"}, values={}, name="mine", level_is_learned=False
    )
    assert report.noise_not_trained_on(model, 0.25, 0.002) is None  # a dim picture
    assert "of the picture's spread" in report.noise_not_trained_on(model, 250, 0.1)
    assert "of the picture's spread" in report.noise_not_trained_on(model, 0.25, 0.2)
    model.units = model.config["units"] = "white"
    assert "of 255, white" in report.noise_not_trained_on(model, 0.25, 0.002)


def test_noise_that_is_too_weak_for_a_student_is_told(monkeypatch):
    facts = {"noise": "awgn", "sigma": [5, 55], "level_scale": 1.0, "level_jitter": 0.1}
    monkeypatch.setattr(report, "training_facts", lambda values: facts)
    student = SimpleNamespace(config={"units": "white"}, values={}, name="mine", channels=3)
    assert report.too_weak_for(student, 2.8) is None
    assert "noise of 1 or less, mine was trained on 4.5 and more" in report.too_weak_for(student, 1.0)
    facts |= {"level_scale": 0.58, "level_jitter": 0.9}
    assert report.too_weak_for(student, 1.0) is None
    assert "noise of 1 or less (of 255" in report.too_weak_for(SimpleNamespace(**vars(student) | {"channels": 1}), 1.0)
    assert "noise of 0.5 or less (of 255" in report.too_weak_for(student, 0.5)
    facts |= {"pairs": "drawn"}  # the levels are those of --noise
    assert "mine was trained on 5 and more" in report.too_weak_for(student, 1.0)
    facts.pop("noise")  # really noisy pictures
    assert report.too_weak_for(student, 0.0) is None


def test_a_student_that_knows_little_noise_tells_of_noise_that_cannot_be_seen(run, tmp_path, rng):
    smooth = torch.from_numpy(gaussian_filter(COLOR.numpy(), (0, 1.5, 1.5)))  # the picture has noise of its own
    y = rounded(noisy(smooth, "0.3", rng))
    Image.fromarray((255 * y).permute(1, 2, 0).numpy().round().astype(np.uint8)).save(tmp_path / "a.png")
    code, _, err = run("test", f"--checkpoint color-hg-blind-full --data {tmp_path}/a.png --save {tmp_path}/out")
    assert code == 0 and "or less (of 255, white): the result may have lost" in err


@pytest.mark.parametrize(
    ("weights", "words"),
    [("color-hg-blind-full", "its channels have the same noise"), ("color-photo-full", "keep noise that channels")],
)
def test_noise_that_channels_have_in_common_is_told(weights, words, run, tmp_path, rng):
    y = (COLOR + 20 / 255 * normal(COLOR[:1], rng)).clamp(0, 1)
    picture = Image.fromarray((255 * y).permute(1, 2, 0).numpy().round().astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=90, subsampling="4:2:0")
    code, _, err = run("test", f"--checkpoint {weights} --data {tmp_path}/a.jpg --save {tmp_path}/out")
    assert code == 0 and words in err
    y = rounded(noisy(COLOR, "20", rng))
    Image.fromarray((255 * y).permute(1, 2, 0).numpy().round().astype(np.uint8)).save(tmp_path / "b.png")
    code, _, err = run("test", f"--checkpoint {weights} --data {tmp_path}/b.png --save {tmp_path}/out")
    assert code == 0 and words not in err


def test_little_noise_is_told_by_a_student_alone(run, tmp_path, rng):
    y = rounded(noisy(GRAY, "0.6", rng))
    Image.fromarray((255 * y)[0].numpy().round().astype(np.uint8)).save(tmp_path / "a.png")
    code, _, err = run("test", f"--checkpoint gray-awgn-blind-full --data {tmp_path}/a.png --save {tmp_path}/out")
    assert code == 0 and "results that may be worse" in err and "was trained on 2.4 and more" in err


@pytest.fixture
def two(tmp_path, rng):
    """A folder of a picture with independent noise and one whose noise neighbours share."""
    folder = tmp_path / "two"
    folder.mkdir()
    n = gaussian_filter(normal(FLAT, rng)[0].numpy(), 1)
    for name, y in (("fine", noisy(FLAT, "15", rng)), ("shared", FLAT + torch.from_numpy(0.06 * n / n.std()))):
        Image.fromarray((255 * rounded(y))[0].numpy().astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("on_doubt", ["warn", "keep"])
def test_doubts_are_told_recorded_and_kept(on_doubt, two, models, run, tmp_path):
    line = f"--checkpoint {models}/s1/last.safetensors {models}/s2/last.safetensors --data {two}"
    line = f"{line} --stride 1 --on-doubt {on_doubt}"
    code, _, err = run("test", f"{line} --save {tmp_path}/out --json {tmp_path}/r.json")
    assert code == 0
    assert "shared.png: neighbouring pixels share" in err and ("written as they were" in err) == (on_doubt == "keep")
    fine, shared = json.loads((tmp_path / "r.json").read_text())["images"]
    assert any("neighbouring pixels share their noise" in words for words in shared["doubts"])
    assert not any("neighbouring pixels share their noise" in words for words in fine["doubts"])
    for image, more in ((fine, {"detail"}), (shared, {"left"})):
        assert len(image["checks"]) == 3  # the input and two results
        for checks in list(image["checks"].values())[1:]:
            names = {"brightness", "brightness, blocks", "distance", "pattern"} | more
            assert {check["check"] for check in checks} == names
            assert all(check["passed"] == (check["value"] <= check["limit"]) for check in checks)
    same = np.array_equal(
        *(np.array(Image.open(f)) for f in (two / "shared.png", tmp_path / "out/shared_denoised.png"))
    )
    assert same == (on_doubt == "keep")


def test_a_black_border_is_no_stripe(rng):
    y = torch.zeros(1, 256, 256)
    y[:, 50:206, 30:226] = 0.4 + 0.06 * torch.randn(1, 156, 196, generator=rng)
    assert not [check for check in check_noise(y) if check.name.startswith("stripes") and check.failed]
    y[:, 50:206, 30:226] += 0.06 * torch.randn(1, 156, 1, generator=rng)
    assert [check.name for check in check_noise(y) if check.failed] == ["stripes, rows"]


def test_independence_is_not_claimed_where_shared_noise_may_pass(rng):
    """In a small picture, and in one whose pixels are clipped but for a few blocks."""
    noise = 0.08 * torch.randn(1, 192, 192, generator=rng)
    assert neighbours_share_noise(check_noise((0.5 + noise).clamp(0, 1))) is False
    assert neighbours_share_noise(check_noise((0.5 + noise[:, :64, :64]).clamp(0, 1))) is None
    clipped = noise.clone()
    clipped[:, :40] += 0.5
    assert neighbours_share_noise(check_noise(clipped.clamp(0, 1))) is None


def test_a_stride_that_was_found_is_not_doubted(two, models, run, tmp_path, monkeypatch):
    """Not even where it is 1: the estimate has seen the noise. Asked for by --stride 1 it is."""
    monkeypatch.setattr(test_script, "stride_for", lambda *_: 1)
    for flag, doubted in (("", False), ("--stride 1", True)):
        files = f"--data {two} --save {tmp_path}/out --json {tmp_path}/r.json"
        line = f"--checkpoint {models}/s2/last.safetensors {files} {flag}"
        ok(run("test", line))
        _, shared = json.loads((tmp_path / "r.json").read_text())["images"]
        assert any("neighbouring pixels share their noise" in words for words in shared["doubts"]) == doubted


@pytest.mark.parametrize("x", [GRAY, COLOR, FLAT], ids=["gray", "color", "flat"])
def test_shared_noise_that_is_left_is_told(x, rng):
    n = np.stack([gaussian_filter(plane, 0.8) for plane in normal(x, rng).numpy()])
    y = x + torch.from_numpy(15 / 255 * n / n.std())
    shared = shared_by_neighbours(y)
    good, bad = check_result(y, x, shared=shared), check_result(y, 0.9 * y + 0.1 * x, shared=shared)
    assert "left" not in failed(good) and "left" in failed(bad)
    row = report.Row(0, "a.png", "a.png", checks={"input": check_noise(y), "mine": bad}, shared=shared)
    assert not any("is left" in words for words in row.doubts)  # that it is kept is told already
    row.known = True
    (words,) = [words for words in row.doubts if "is left" in words]
    assert "% of the noise that neighbouring pixels share is left" in words


def test_pixels_are_taken_apart_where_neighbours_share_their_noise(two, models, run, tmp_path):
    code, _, err = run(
        "test", f"--checkpoint {models}/s2/last.safetensors --data {two} --save {tmp_path}/out --json {tmp_path}/r.json"
    )
    fine, shared = json.loads((tmp_path / "r.json").read_text())["images"]
    assert (
        code == 0
        and "strides" not in fine
        and list(shared["strides"].values()) in ([{"2": 1.0}], [{"3": 1.0}], [{"4": 1.0}])
    )
    assert "shared.png: every" in err and "neighbouring pixels share their noise" not in err
    assert not any("neighbouring pixels share their noise" in words for words in shared["doubts"])


def test_of_added_noise_that_is_shared_pixels_are_taken_apart_too(models, run, tmp_path):
    Image.fromarray((255 * GRAY[0]).numpy().round().astype(np.uint8)).save(tmp_path / "a.png")
    for noise, apart in (("camera --sigma 15 --reach 1", True), ("awgn --sigma 15", False)):
        line = f"--checkpoint {models}/s2 --data {tmp_path}/a.png --noise {noise} --json {tmp_path}/r.json"
        ok(run("test", line))
        (image,) = json.loads((tmp_path / "r.json").read_text())["images"]
        assert bool(image.get("strides")) == apart


def test_weights_for_shared_noise_are_told_of_independent_noise(run, tmp_path, rng):
    Image.fromarray((255 * rounded(noisy(COLOR, "5", rng))).permute(1, 2, 0).numpy().round().astype(np.uint8)).save(
        tmp_path / "a.png"
    )
    code, _, err = run("test", f"--checkpoint color-photo-full --data {tmp_path}/a.png --save {tmp_path}/out")
    assert code == 0 and "a.png: the noise of neighbouring pixels is independent" in err and "color-hg-blind" in err


def test_texture_is_kept_and_told_of(models, run, tmp_path, rng):
    Image.fromarray((255 * rounded(grass(rng)))[0].numpy().round().astype(np.uint8)).save(tmp_path / "a.png")
    for flag, stride in (("", None), ("--stride 3", {"3": 1.0})):
        line = f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/a.png {flag} --save {tmp_path}/out"
        line = f"{line} --json {tmp_path}/r.json"
        code, _, err = run("test", line)
        (image,) = json.loads((tmp_path / "r.json").read_text())["images"]
        assert code == 0 and "it may be texture" in err and "neighbouring pixels share their noise" not in err
        assert list(image.get("strides", {}).values()) == ([stride] if stride else [])


@pytest.mark.parametrize(
    "shared, texture, told",
    [(False, False, "independent"), (None, True, "texture"), (True, False, None), (None, False, None)],
)
def test_weights_for_shared_noise_are_told_of_what_they_smooth(shared, texture, told):
    photo = SimpleNamespace(name="photo", channels=3, independent_noise=False)
    words = report.smoothed(photo, shared, texture, one_noise=False)
    assert words is None if told is None else (told in words and "color-hg-blind-full" in words)
    assert report.smoothed(SimpleNamespace(independent_noise=True), shared, texture, one_noise=False) is None


def test_pictures_without_noise_are_told_from_few_photons():
    scene = camera()[:256, :256] / 255.0
    random = np.random.default_rng(0)
    for y, expected in (
        (scene > 0.5, True),
        ((3 * scene).round(), True),
        (random.poisson(0.05 * scene), False),
        (random.poisson(scene), False),
        (random.random(scene.shape) < scene, False),
        ((255 * scene + random.normal(0, 1, scene.shape)).round(), False),
        (np.zeros((40, 40)), False),
        (np.zeros((4, 4)), False),
    ):
        assert shows_no_noise(torch.from_numpy(np.asarray(y, np.float64))[None]) == expected


def test_salt_and_pepper_is_told(rng):
    noisy = GRAY + 5 / 255 * torch.randn(GRAY.shape, generator=rng)
    salt = torch.where(torch.rand(GRAY.shape, generator=rng) < 0.05, 1.0, noisy)
    assert "impulses" in failed(check_noise(salt)) and "impulses" not in failed(check_noise(noisy))
    for counts in (10 * GRAY, 0.03 * torch.ones_like(GRAY)):
        assert "impulses" not in failed(check_noise(GRAY)) | failed(check_noise(torch.poisson(counts, rng)))


def test_a_narrow_picture_in_an_empty_frame_has_no_stripes(rng):
    y = torch.zeros_like(GRAY)
    y[:, :, 80:110] = noisy(GRAY, "15", rng)[:, :, 80:110]
    assert not {"stripes, rows", "stripes, columns"} & failed(check_noise(y))


def test_noise_that_is_cut_off_at_white_is_told(rng):
    bright = noisy(0.6 + FLAT, "25", rng)
    assert "saturation" in failed(check_noise(bright.clamp(max=1)))
    assert "saturation" not in failed(check_noise(bright)) | failed(check_noise(noisy(GRAY, "25", rng).clamp(max=1)))
    white = noisy(GRAY, "25", rng).clamp(0, 0.99)
    white[:, :100] = 1  # an area without noise
    photons = (torch.poisson(0.5 * torch.ones_like(GRAY), rng)).clamp(max=1)
    assert "saturation" not in failed(check_noise(white)) | failed(check_noise(photons))


@pytest.mark.parametrize("reach", [0, 0.8])
def test_a_part_without_noise_does_not_decide(reach, rng):
    """Texture of the part without noise is what the flattest blocks have. It passes for shared noise."""
    x = torch.from_numpy(camera()[:256, 200:456] / 255.0)[None]
    x = torch.from_numpy(gaussian_filter(x.numpy(), (0, 1, 1)))
    n = gaussian_filter(torch.randn(1, 256, 256, generator=rng).double().numpy(), (0, reach, reach))
    n = torch.from_numpy(25 / 255 * n / n.std())
    n[..., :128] = 0
    assert neighbours_share_noise(check_noise(x + n)) is (reach > 0)


def test_texture_that_photograph_weights_remove_is_told(rng):
    n = np.stack([gaussian_filter(plane, 0.8) for plane in normal(COLOR, rng).numpy()])
    noise, used = torch.from_numpy(3 / 255 * n / n.std()), Used(shared_noise=True, photographs=True)
    smooth = torch.from_numpy(gaussian_filter(COLOR.numpy(), (0, 1.5, 1.5)))
    shared = shared_by_neighbours(COLOR + noise)
    good, bad = (check_result(COLOR + noise, result, shared=shared, used=used) for result in (COLOR, smooth))
    amounts = {"amount", "amount, flat"}
    assert not amounts & failed(good) and amounts <= failed(bad)
    assert not amounts & failed(check_result(COLOR + noise, smooth, shared=shared))


def test_texture_is_told_from_noise_by_its_colours(rng):
    """Sharp gray texture that was removed; not the same amount in all colours, nor such that is blurred as noise is."""
    shared = Shared(reach=0.8, chroma=1.0, chroma_reach=0.0, variance=(5 / 255) ** 2, intensity=torch.full((3,), 0.5))
    texture, colours = 5 / 255 * normal(COLOR[:1], rng).expand(3, -1, -1), 5 / 255 * normal(COLOR, rng)
    blurred = torch.from_numpy(gaussian_filter(texture.numpy(), (0, 0.8, 0.8)))
    blurred *= 5 / 255 / blurred.std()
    for used in (Used(shared_noise=True, photographs=True), Used(shared_noise=True, refined=True)):
        for removed, told in ((texture, True), (colours, False), (blurred, False)):
            checks = check_result(COLOR, COLOR - removed, shared=shared, used=used)
            assert ("amount, gray" in failed(checks)) == told
    assert "amount, gray" not in failed(check_result(COLOR, COLOR - texture, shared=shared))


def test_remedies_are_not_what_is_used_already(rng):
    y = noisy(grating(6), "20", rng)
    for used, words in ((Used(strided=True), True), (Used(), False)):
        pattern = next(c for c in check_result(y, FLAT, independent=True, used=used) if c.name == "pattern")
        assert pattern.failed and ("--stride 1" in pattern.words) == words
    n = torch.from_numpy(gaussian_filter(normal(FLAT, rng).numpy(), (0, 0.8, 0.8)))
    y = FLAT + 15 / 255 * n / n.std()
    for used in (Used(), Used(shared_noise=True)):
        left = next(c for c in check_result(y, y, shared=shared_by_neighbours(y), used=used) if c.name == "left")
        assert left.failed and ("weights for photographs" in left.words) != used.shared_noise
    for stage in (1, 2):
        shift = check_result(y, FLAT, independent=True, used=Used(stage=stage))
        detail = next(c for c in shift if c.name == "detail")
        assert detail.failed and ("stage 1 keeps more" in detail.words) == (stage == 2)
    for refined in (True, False):
        used = Used(shared_noise=True, refined=refined)
        told = [c for c in check_result(y, FLAT + 0.2, shared=shared_by_neighbours(y), used=used) if c.failed]
        told += [c for c in check_result(y, y, shared=shared_by_neighbours(y), used=used) if c.failed]
        assert {"brightness", "distance", "left"} <= {c.name for c in told}
        assert all(("train longer" in c.words) == refined for c in told if "train" in c.words)


def test_a_student_that_removed_little_says_so(run, tmp_path, rng):
    """A frame that was moved by half a pixel has noise that neighbours share a little."""
    x = gaussian_filter(camera()[100:356, 150:406].astype(np.float64), 2)
    moved = ndimage_shift(x + np.random.RandomState(0).normal(0, 9, x.shape), (0.5, 0.5), order=1, mode="nearest")
    Image.fromarray(moved.clip(0, 255).round().astype(np.uint8)).save(tmp_path / "a.png")
    line = f"--checkpoint gray-hg-blind-full --data {tmp_path}/a.png --save {tmp_path}/out"
    _, _, err = run("test", f"{line} --stride 1")
    assert "little was removed" in err and "--stride 2" in err
    assert "--stride 2" not in report.little_removed(1.0, 9.0, strided=True)  # a remedy that was tried


def test_a_frame_of_one_value_is_no_flat_part(rng):
    y = COLOR + 15 / 255 * torch.randn(COLOR.shape, generator=rng)
    y[:, :32] = y[:, -32:] = y[:, :, :32] = y[:, :, -32:] = 0.5
    assert not channels_have_one_noise(y)


def test_hot_pixels_are_counted(run, tmp_path):
    picture = (200 * GRAY[0].numpy()).astype(np.uint16)
    picture[20, 30], picture[60, 70] = 60000, 50000
    np.save(tmp_path / "a.npy", picture)
    flags = f"--checkpoint gray-hg-blind-full --data {tmp_path}/a.npy --save {tmp_path}/out --json {tmp_path}/r.json"
    code, _, err = run("test", flags)
    assert code == 0 and "keep their values" in err
    assert json.loads((tmp_path / "r.json").read_text())["images"][0]["hot_pixels"] == 2
    out = np.load(tmp_path / "out" / "a_denoised.npy")
    assert out[20, 30] == 60000 and out[60, 70] == 50000


def test_a_dim_picture_is_kept_as_it_is(run, tmp_path):
    """Few steps of integers, which are too coarse for a result, are what the file has."""
    (tmp_path / "in").mkdir()
    dim = (camera()[:128, :128] / 255 * 40 + 5).round().astype(np.uint8)
    Image.fromarray(dim).save(tmp_path / "in" / "a.png")
    flags = f"--checkpoint gray-hg-blind-full --data {tmp_path}/in --save {tmp_path}/out --on-doubt keep"
    code, _, err = run("test", flags)
    assert code == 0 and "written as they were" in err and "32-bit floats" not in err
    assert (np.asarray(Image.open(tmp_path / "out" / "a_denoised.png")) == dim).all()


def test_a_mask_is_told_and_kept(run, tmp_path):
    (tmp_path / "in").mkdir()
    mask = np.where(camera()[:128, :128] > 100, 255, 0).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "in" / "mask.png")
    flags = f"--checkpoint gray-hg-blind-full --data {tmp_path}/in --save {tmp_path}/out --on-doubt keep"
    code, _, err = run("test", flags)
    assert code == 0 and "there is no noise to remove" in err
    assert (np.asarray(Image.open(tmp_path / "out" / "mask_denoised.png")) == mask).all()
