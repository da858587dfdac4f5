"""--protocol laine: one generator for all images, as in the field's colour tables."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from models.noise import NOISES
from models.noise.in_turn import InTurn
from tests.helpers import ok


def clean(count: int) -> list[np.ndarray]:
    return [np.random.RandomState(k).uniform(0, 1, (7 + k, 9, 3)) for k in range(count)]


def test_draws_follow_one_another():
    np.random.seed(101)
    noise = InTurn(NOISES["awgn"](sigma=(25 / 255, 25 / 255)))
    for x in clean(3):
        expected = x + 25 / 255 * np.random.normal(size=x.shape)
        np.testing.assert_allclose(noise.published(x.transpose(2, 0, 1)).transpose(1, 2, 0), expected, atol=1e-12)


def test_values_a_little_below_black_have_no_photons():
    noise = InTurn(NOISES["poisson"](lam=(30.0, 30.0)))
    x = np.linspace(-0.1, 1, 100).reshape(1, 10, 10)
    y = noise.published(x)
    assert not y[x <= 0].any() and noise.rms(x) == pytest.approx(np.sqrt(x.clip(0).mean() / 30))


def test_levels_of_a_range_are_drawn_before_the_image():
    np.random.seed(101)
    noise = InTurn(NOISES["poisson"](lam=(5.0, 50.0)))
    levels = []
    for x in clean(4):
        lam = np.random.uniform(5, 50)
        expected = np.random.poisson(lam * x) / lam
        np.testing.assert_allclose(noise.published(x.transpose(2, 0, 1)).transpose(1, 2, 0), expected, atol=1e-12)
        levels.append(noise.rms(x.transpose(2, 0, 1)))
        assert levels[-1] == pytest.approx(np.sqrt(x.mean() / lam))
    assert len(set(levels)) == 4


def test_repeats_are_other_draws(run, pictures, tmp_path):
    line = f"--data {pictures}/gray --noise awgn --sigma 5 50 --protocol laine --repeats 2 --json {tmp_path}/r.json"
    ok(run("test", line))
    table = json.loads((tmp_path / "r.json").read_text())
    names = [image["name"] for image in table["images"]]
    assert len(names) == 20 and names[0] == "0.png (1)" and names[10] == "0.png (2)"
    assert table["repeats"] == 2 and table["noise"]["sigma"] == pytest.approx([5, 50])
    levels = [image["noise_level"]["true"] for image in table["images"]]
    assert len(set(levels)) == 20 and min(levels) >= 5 and max(levels) <= 50
    # the second figure is that of the field: after rounding to 8 bits
    np.random.seed(101)
    x = np.atleast_3d(cv2.imread(str(pictures / "gray" / "0.png"), 0)) / np.float32(255)
    y = x + np.random.uniform(5, 50) / 255 * np.random.normal(size=x.shape)
    error = np.rint(255 * y.clip(0, 1)) - np.rint(255 * x)
    assert table["images"][0]["noisy"]["psnr_uint8"] == pytest.approx(
        10 * np.log10(255**2 / np.mean(error**2)), abs=1e-3
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--noise hg --alpha 40 --delta 10 --protocol laine", "is for --noise awgn or poisson, not hg"),
        ("--protocol laine", "--protocol laine needs --noise"),
        ("--noise awgn --sigma 25 --repeats 3", "--repeats is for --protocol laine"),
        ("--noise awgn --sigma 5 50", "a test needs one level"),
    ],
)
def test_wrong_use(line, words, run, pictures):
    code, _, err = run("test", f"--data {pictures}/gray {line}")
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1
