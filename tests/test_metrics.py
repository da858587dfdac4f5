"""PSNR and SSIM."""

from __future__ import annotations

import numpy as np
import pytest

from utils.metrics import measure, shares_within


def test_metrics():
    x = np.full((16, 16, 1), 0.5, np.float32)
    found = measure(x, x + 0.1)
    assert found["psnr"] == pytest.approx(20.0, abs=1e-4)
    assert measure(x, x)["psnr"] is None and measure(x, x)["ssim"] == pytest.approx(1)
    assert measure(x, np.full_like(x, 3.0))["psnr"] == pytest.approx(-20 * np.log10(0.5))  # clamped to 1
    assert measure(x[:4], x[:4])["ssim"] is None


def test_shares_within_multiples_of_the_standard_deviation():
    error = np.random.RandomState(0).normal(0, 2, (300, 300, 1))
    found = shares_within(error, np.full_like(error, 2.0))
    assert found["1"] == pytest.approx(0.683, abs=0.01) and found["2"] == pytest.approx(0.954, abs=0.01)
    half = np.full_like(error, 2.0)
    half[:150] = 0  # no noise
    error[:150] = np.nan
    assert shares_within(error, half)["1"] == pytest.approx(0.683, abs=0.01)
    assert shares_within(error, np.zeros_like(error)) is None
