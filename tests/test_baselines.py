"""Classical baselines, and what they are told."""

from __future__ import annotations

import importlib.metadata
import json

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut, camera

import test as test_script
import utils.baselines
from tests.helpers import LEVELS, ok
from utils.baselines import PACKAGES, denoise_classically
from utils.metrics import measure


def available(name: str) -> str:
    for package in PACKAGES[name]:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"the package {package} is not installed")
    return name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "gain"), [("wavelet", 4), ("nlm", 5), ("bm3d", 7)])
def test_baselines_improve_a_photograph_and_give_the_same_bits(name, gain, channels):
    available(name)
    clean = (camera()[80:128, 200:248, None] if channels == 1 else astronaut()[60:108, 200:248]).astype(
        np.float32
    ) / 255
    noisy = clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape).astype(np.float32)
    result = denoise_classically(name, noisy, 25 / 255)
    assert result.shape == clean.shape and result.dtype == np.float32
    assert measure(clean, result)["psnr"] > measure(clean, noisy, clamp=False)["psnr"] + gain
    np.testing.assert_array_equal(result, denoise_classically(name, noisy, 25 / 255))
    np.testing.assert_array_equal(noisy, denoise_classically(name, noisy, 0.0))


def test_a_baseline_is_told_the_level_of_each_image(run, pictures, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        test_script, "denoise_classically", lambda name, y, sigma: told.append((name, 255 * sigma)) or y
    )
    out = ok(run("test", f"--baseline nlm --data {pictures}/gray {LEVELS['hg']} --json {tmp_path}/r.json"))
    rows = json.loads((tmp_path / "r.json").read_text())["images"]
    assert (
        told == [("nlm", pytest.approx(row["noise_level"]["true"])) for row in rows]
        and len({level for _, level in told}) > 5
    )
    assert "nlm: told the true level" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--baseline nlm --data P/gray --clean P/gray", "--protocol published only"),
        ("--baseline median --data P/gray --noise awgn --sigma 25", "invalid choice"),
        ("--baseline nlm --data P/small.png --noise awgn --sigma 25", "9x9"),
        ("--baseline bm3d --data P/gray --noise awgn --sigma 25", "pip install bm3d"),
    ],
)
def test_what_baselines_refuse(line, words, run, pictures, tmp_path, monkeypatch):
    (tmp_path / "gray").symlink_to(pictures / "gray")
    Image.fromarray(np.zeros((8, 20), np.uint8)).save(tmp_path / "small.png")

    def version(package):
        if package == "bm3d":
            raise importlib.metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(utils.baselines, "version", version)
    code, _, err = run("test", line.replace("P/", f"{tmp_path}/"))
    assert code == 2 and err.count("error:") == 1 and words in err and "--baseline" in err
