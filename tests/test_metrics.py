"""PSNR and SSIM."""

from __future__ import annotations

import numpy as np
import pytest

from utils.metrics import measure


def test_metrics():
    x = np.full((16, 16, 1), 0.5, np.float32)
    found = measure(x, x + 0.1)
    assert found["psnr"] == pytest.approx(20.0, abs=1e-4)
    assert measure(x, x)["psnr"] is None and measure(x, x)["ssim"] == pytest.approx(1)
    assert measure(x, np.full_like(x, 3.0))["psnr"] == pytest.approx(-20 * np.log10(0.5))  # clamped to 1
    assert measure(x[:4], x[:4])["ssim"] is None
