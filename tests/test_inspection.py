"""models/inspection.py and utils/advice.py: what a picture says of its noise, and what is advised."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut, camera

from data.images import read_image, to_float
from models import inspection
from models.inspection import photon_noise
from models.noise import NOISES
from models.noise.correlation import correlation_of_channels
from models.noise.mg import multivariate_covariance
from models.noise.residual import Curve
from tests.helpers import real_data
from tests.test_checks import grass
from utils.advice import Looker, advise, as_record, reasons

LOOK = Looker(Path("checkpoints"), torch.device("cpu"), torch.float32)
ARRAY = 255  # pictures have the values of files of 8 bits


def picture(color: bool = False) -> np.ndarray:
    """(H,W,C), 0..1"""
    return astronaut()[:256, 128:384].astype(np.float64) / 255 if color else camera()[:256, 128:384, None] / 255


def noisy(kind: str, color: bool = False, **levels: float) -> np.ndarray:
    x = picture(color).transpose(2, 0, 1)
    noise = NOISES[kind](**{name: (level, level) for name, level in levels.items()})
    return (255 * noise.published(x)).transpose(1, 2, 0).astype(np.float32)


@lru_cache
def looked(kind: str, color: bool = False, **levels: float):
    return LOOK(noisy(kind, color, **levels))


def poisson():
    return looked("poisson", lam=30.0)


@pytest.mark.parametrize("level", [15, 25, 50])
def test_constant_noise(level):
    found = looked("awgn", sigma=level / 255)
    assert found.level == pytest.approx(level, rel=0.04)
    assert found.interval[0] < level < found.interval[1] < 1.15 * level
    assert not found.grows and not found.falls and not found.shared and found.gain is None
    (curve,) = found.curves
    ratio = curve.fitted(curve.counted) / level
    assert abs(ratio.mean() - 1) < 0.04 and np.abs(ratio - 1).max() < 0.15
    inside = (curve.low[curve.clear] <= level) & (level <= curve.high[curve.clear])
    assert inside.mean() >= 0.75


def test_photon_noise_has_its_gain():
    found = poisson()
    assert (
        found.grows and found.gain == pytest.approx(255 / 30, rel=0.1) and found.read_noise < 8
    )  # at white the noise is 47
    (curve,) = found.curves
    true = np.sqrt(255 * curve.counted / 30)
    assert (curve.fitted(curve.counted) / true).mean() == pytest.approx(1, abs=0.03)


def test_read_noise_where_channels_differ():
    """Channels of slopes b_c that are darkest at x_c: at zero the variance is the mean of a - b_c x_c."""
    darkest, slope = np.array([0.0, 0.2, 0.4]), np.array([0.01, 0.02, 0.03])
    x = torch.from_numpy(darkest[:, None] + np.linspace(0, 0.5, 16))
    variance = 1e-4 + torch.from_numpy(slope)[:, None] * x
    clear = torch.ones_like(x, dtype=torch.bool)
    found = photon_noise(Curve(x, variance, None, clear, x), torch.full((3, 1), 1e-12, dtype=torch.float64), 0.0, 255.0)
    assert found["gain"] == pytest.approx(255 * 0.02) and found["read_noise"] == pytest.approx(2.55, rel=1e-3)


def test_noise_of_both_kinds():
    found = looked("hg", alpha=40 / 255, delta=10 / 255)
    assert found.grows and not found.shared
    (curve,) = found.curves
    true = np.hypot(40 / 255 * curve.counted, 10)
    assert (curve.fitted(curve.counted) / true).mean() == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(("factor", "offset"), [(257.0, 0.0), (4.0, 1000.0), (0.001, -3.0)])
def test_numbers_have_the_units_of_the_values(factor, offset):
    usual, other = poisson(), LOOK(factor * noisy("poisson", lam=30.0) + np.float32(offset))
    assert other.level == pytest.approx(factor * usual.level, rel=1e-2)
    assert other.gain == pytest.approx(factor * usual.gain, rel=2e-2)
    (curve,), (moved,) = usual.curves, other.curves
    np.testing.assert_allclose(moved.intensity, factor * curve.intensity + offset, rtol=1e-2)
    np.testing.assert_allclose(moved.std, factor * curve.std, rtol=2e-2)
    if offset > 0:  # photon noise is zero at the black level
        assert other.black == pytest.approx(offset + factor * usual.black, abs=0.15 * factor * 255)


def test_black_below_0_is_not_known():
    found = LOOK(noisy("poisson", lam=30.0) - np.float32(400))
    assert found.gain > 0 and found.black is None and found.read_noise is None


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_part_with_noise_is_looked_at_where_the_middle_is_empty(value, monkeypatch):
    monkeypatch.setattr(inspection, "PART", 96)
    image = noisy("awgn", sigma=20 / 255)
    image[56:200, 56:200] = value
    assert LOOK(image).level == pytest.approx(20, rel=0.12)
    whole = torch.zeros(1, 300, 300)
    whole[:, 130:170, 130:170] = torch.rand(1, 40, 40)
    assert inspection.telling_part(whole).equal(whole[:, 102:198, 102:198])  # the fullest, though most is empty


@pytest.mark.slow
def test_noise_that_neighbours_share():
    levels = dict(sigma=12 / 255, dark=0.6, reach=0.8, coarse=0.0, chroma=1.0, chroma_reach=0.0)
    found = looked("camera", **levels)
    assert found.shared and found.reach == pytest.approx(0.8, abs=0.2)
    assert found.autocorrelation["rows"][0] > 0.4
    x = picture()
    true = 255 * np.sqrt(np.mean((12 / 255) ** 2 * (0.36 + 0.64 * x)))
    assert found.level == pytest.approx(true, rel=0.25)  # less is known of such noise
    assert poisson().autocorrelation["rows"][0] == pytest.approx(0, abs=0.2) and poisson().reach == 0


def test_channels():
    found = looked("awgn", True, sigma=25 / 255)
    assert not found.channels_share and len(found.curves) == 3
    mg = looked("mg", True, sigma=75 / 255)
    assert mg.channels_share
    covariance = multivariate_covariance(0)
    root = np.sqrt(covariance.diagonal())
    np.testing.assert_allclose(mg.channels, covariance / np.outer(root, root), atol=0.12)


def test_noise_that_is_the_same_in_all_channels():
    random = np.random.default_rng(0)
    one = 255 * picture(True) + random.normal(0, 10, (256, 256, 1))
    advice = advise(found := LOOK(one.astype(np.float32)), 3, 255)
    assert found.one_noise and advice.weights == "color-photo-full"
    assert "all channels have the same noise" in advice.remarks[0]
    assert not looked("awgn", True, sigma=5 / 255).one_noise and not looked("awgn", sigma=5 / 255).one_noise


def test_texture_is_not_taken_for_noise_that_channels_share(rng):
    texture = gaussian_filter(torch.randn(256, 256, generator=rng).numpy(), 1)
    gray = torch.from_numpy(0.5 + 10 / 255 * texture / texture.std()).expand(3, -1, -1)
    noise = 8 / 255 * torch.randn(3, 256, 256, generator=rng)
    assert abs(correlation_of_channels(gray + noise, True)[0, 1]) > 0.4  # what counts where neighbours share it
    assert abs(correlation_of_channels(gray + noise, False)[0, 1]) < 0.1


def test_rows_with_noise_of_their_own():
    image = noisy("awgn", sigma=15 / 255) + 10 * np.random.RandomState(1).normal(size=(256, 1, 1)).astype(np.float32)
    found = LOOK(image)
    assert list(found.stripes) == ["rows"] and found.stripes["rows"] == pytest.approx(10 / 15, rel=0.3)
    assert any("rows" in remark and "dark frame" in remark for remark in advise(found, 1, 255).remarks)


def test_salt_and_pepper_is_told():
    image = noisy("awgn", sigma=5 / 255)
    image[np.random.default_rng(0).random(image.shape) < 0.05] = 255
    advice = advise(LOOK(image), 1, 255)
    assert any("salt and pepper" in remark for remark in advice.remarks)


def test_texture_is_not_called_independent_noise():
    y = grass(torch.Generator().manual_seed(0))
    found = LOOK((255 * y).permute(1, 2, 0).numpy().astype(np.float32))
    advice = advise(found, 1, 255)
    assert found.texture and not found.shared
    assert advice.pixels.startswith("taken to be independent") and "may be texture" in advice.remarks[0]


def test_clipped_values_are_counted():
    image = noisy("awgn", sigma=25 / 255).clip(0, 255)
    low, high = LOOK(image).clipped
    assert low == pytest.approx((image == 0).mean()) and high == pytest.approx((image == 255).mean(), abs=1e-6)


def test_blurs_of_pictures_of_one_kind_are_given_from_the_least_to_the_greatest():
    found = looked("camera", sigma=12 / 255, dark=0.6, reach=0.8, coarse=0.0, chroma=1.0, chroma_reach=0.0)
    one, two = (advise(replace(found, reach=reach), 1, 255) for reach in (0.5, 2.0))
    assert one.kind == two.kind and one.kind != advise(poisson(), 1, 255).kind
    assert "blurs it by 0.5 to 2.0 pixels" in reasons([two, one])
    assert "blurs it by 0.5 pixels;" in reasons([one, one]) and "blur" not in reasons([advise(poisson(), 1, 255)])


def test_nothing_to_look_at():
    assert LOOK(np.full((80, 80, 1), 7, np.float32)) is None
    assert LOOK(np.full((80, 80, 1), np.nan, np.float32)) is None


def test_borders_that_are_not_known():
    image = noisy("awgn", sigma=25 / 255)
    image[:20], image[:, -30:] = np.nan, np.nan
    found = LOOK(image)
    assert found.level == pytest.approx(25, rel=0.04) and not found.stripes


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 200, 1), (17, 19, 3)])
def test_small_pictures(shape):
    found = LOOK(np.random.RandomState(0).normal(100, 5, shape).astype(np.float32))
    assert found is None or 0 <= found.level < 20


def test_advice_names_weights_and_noise_models_that_exist():
    cases = {
        ("awgn", "gray-awgn-blind-full"): (looked("awgn", sigma=25 / 255), 1),
        ("hg", "gray-hg-blind-full"): (poisson(), 1),
        ("awgn", "color-awgn-blind-full"): (looked("awgn", True, sigma=25 / 255), 3),
    }
    for (noise, weights), (found, channels) in cases.items():
        advice = advise(found, channels, 255)
        assert (advice.noise, advice.weights) == (noise, weights) and noise in NOISES
        assert Path("checkpoints", f"{weights}.safetensors").is_file()
        assert Path("checkpoints", f"{advice.start}.safetensors").is_file()
    assert advise(looked("mg", True, sigma=75 / 255), 3, 255).noise == "mg"
    assert "'my pictures'" in advice.denoising(["my pictures"])


def test_what_was_found_is_json():
    record = json.loads(json.dumps(as_record(poisson())))
    assert record["gain"] == poisson().gain and len(record["curves"][0]["std"]) == 16


@pytest.mark.slow
def test_camera_pictures_share_their_noise():
    root = real_data("cc15")
    found = LOOK(255 * to_float(read_image(root / "cc15" / "d800_iso6400_1_real.png"))[:256, :256])
    assert found.shared and 0.3 < found.reach < 2 and advise(found, 3, 255).weights == "color-photo-full"


@pytest.mark.slow
def test_levels_of_set12_at_awgn_25():
    root, errors = real_data("set12"), []
    for file in sorted((root / "set12").glob("*.png")):
        x = to_float(read_image(file, mode="gray")).transpose(2, 0, 1)
        y = 255 * NOISES["awgn"](sigma=(25 / 255, 25 / 255)).published(x)
        errors.append(LOOK(y.transpose(1, 2, 0).astype(np.float32)).level / 25 - 1)
    assert len(errors) == 12 and abs(np.mean(errors)) < 0.005 and np.abs(errors).mean() < 0.01
