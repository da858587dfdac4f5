"""Noise has the covariance that was asked for.

Crops are functions of (seed, sample). Neither depends on how it is batched.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.crops import Crops, ImagePool, draw_crops
from data.images import read_image, to_float
from data.training import Images, add_noise_once, disjoint, hold_out
from models.noise.awgn import Awgn
from models.noise.hg import Hg
from models.noise.mg import Mg, multivariate_covariance
from models.noise.poisson import Poisson
from tests.conftest import real_data
from utils.errors import UsageError
from utils.metrics import measure
from utils.random import generators

LEVELS = {
    "awgn": Awgn(sigma=(25 / 255,) * 2),
    "hg": Hg(alpha=(40 / 255,) * 2, delta=(10 / 255,) * 2),
    "mg": Mg(sigma=(75 / 255,) * 2),
    "poisson": Poisson(lam=(30.0, 30.0)),
}


@pytest.mark.parametrize("model", LEVELS)
@pytest.mark.parametrize("how", ["add", "published"])
def test_moments_and_covariance(model, how, rng):
    noise, colour = LEVELS[model], torch.tensor([0.2, 0.5, 0.9])
    x = colour.view(1, 3, 1, 1).expand(1, 3, 300, 300)
    y = noise.add(x, [rng]) if how == "add" else torch.from_numpy(noise.published(x[0].double().numpy()))[None]
    n = (y - x)[0].flatten(1).double()
    x64 = colour.double()
    expected = {
        "awgn": torch.eye(3).double() * (25 / 255) ** 2,
        "hg": torch.diag((40 / 255 * x64) ** 2 + (10 / 255) ** 2),
        "mg": (75 / 255) ** 2 * torch.from_numpy(multivariate_covariance(0)),
        "poisson": torch.diag(x64 / 30),
    }[model]
    scale = expected.max().item()
    assert n.mean(1).abs().max() < 0.02 * scale**0.5
    torch.testing.assert_close(torch.cov(n), expected, atol=0.02 * scale, rtol=0.02)
    assert noise.rms(x[0].numpy()) == pytest.approx(expected.diagonal().mean().sqrt().item())


def test_multivariate_covariance_keeps_its_negative_correlations():
    found = [multivariate_covariance(seed) for seed in range(20)]
    for sigma in found:
        assert np.linalg.eigvalsh(sigma).min() > 0 and np.linalg.eigvalsh(sigma).max() < 1
    assert min(sigma.min() for sigma in found) < 0


def test_levels_of_a_range_differ_between_images(rng):
    y = Awgn(sigma=(5 / 255, 55 / 255)).add(torch.zeros(40, 1, 64, 64), [rng] * 40)
    levels = 255 * y.flatten(1).std(1)
    assert 4.5 < levels.min() < 12 and 45 < levels.max() < 56


def test_noisy_psnr_of_bsd68_under_the_published_protocol():
    files = sorted((real_data("bsd68") / "bsd68").glob("*.png"))
    assert len(files) == 68
    images = [to_float(read_image(f, mode="gray")) for f in files]
    for model, expected in (("awgn", 20.19), ("hg", 21.49)):
        found = [
            measure(
                x, LEVELS[model].published(x.transpose(2, 0, 1).astype(np.float64)).transpose(1, 2, 0), clamp=False
            )["psnr"]
            for x in images
        ]
        assert np.mean(found) == pytest.approx(expected, abs=0.006)


def pool(channels=1, dtype=np.uint8):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (h, w, channels)).astype(np.uint8) for h, w in ((20, 31), (16, 16), (40, 18))]
    return images, ImagePool([im.astype(dtype) if dtype == np.uint8 else to_float(im) for im in images])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crops_are_the_symmetries_of_the_image_part(channels, dtype):
    images, p = pool(channels, dtype)
    for symmetry in range(8):
        where = Crops(*(np.array([v]) for v in (2, 7, 1, symmetry)))
        crop = p.crops(where, 12)[0].permute(1, 2, 0).numpy()
        expected = images[2][7:19, 1:13].astype(np.float32) / 255
        rows, columns = (2, 1) if symmetry & 4 else (1, 2)
        expected = expected[:: -1 if symmetry & rows else 1, :: -1 if symmetry & columns else 1]
        expected = expected.transpose(1, 0, 2) if symmetry & 4 else expected
        np.testing.assert_allclose(crop, expected, atol=1e-6)


def test_crops_depend_on_the_sample_alone():
    sizes = np.array([[20, 31], [16, 16], [40, 18]])
    whole = draw_crops(sizes, np.arange(30), 16, (5,))
    parts = [draw_crops(sizes, np.arange(a, a + 6), 16, (5,)) for a in range(0, 30, 6)]
    for name in ("image", "top", "left", "symmetry"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in parts]))
    assert (np.sort(whole.image.reshape(-1, 3)) == [0, 1, 2]).all()  # each pass visits each image once
    assert len({tuple(i) for i in whole.image.reshape(-1, 3)}) > 1  # in changing order
    assert not np.array_equal(whole.top, draw_crops(sizes, np.arange(30), 16, (6,)).top)


def test_crops_are_uniform():
    sizes = np.array([[20, 20]])
    crops = draw_crops(sizes, np.arange(8000), 16, (0,))
    for values, count in ((crops.top, 5), (crops.left, 5), (crops.symmetry, 8)):
        share = np.bincount(values, minlength=count) / len(values)
        assert len(share) == count and abs(share - 1 / count).max() < 0.02


def test_noise_is_drawn_once_per_image():
    _, p = pool()
    noisy = [add_noise_once(p, LEVELS["awgn"], seed=3) for _ in range(2)]
    assert torch.equal(noisy[0].pixels, noisy[1].pixels)
    assert not torch.equal(noisy[0].pixels, add_noise_once(p, LEVELS["awgn"], seed=4).pixels)
    n = noisy[0].image(1) - p.image(1)
    assert 15 < 255 * n.std() < 35 and noisy[0].image(1).min() < 0  # not clipped


def test_held_out_images_are_not_trained_on(tmp_path):
    images = Images([tmp_path / str(k) for k in range(20)], [np.full((4, 4, 1), k, np.uint8) for k in range(20)])
    train, held = hold_out(images, 0.1, seed=0)
    assert len(train) == 18 and len(held) == 2 and not set(train.files) & set(held.files)
    assert len(hold_out(images.subset(range(7)), 0.1, seed=0)[1]) == 0
    assert hold_out(images, 0.1, seed=1)[1].files != held.files


def test_stage_2_sets_share_no_content(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    for k in range(10):
        (folders[0] / f"{k}.png").write_bytes(bytes([k]))
        (folders[1] / f"copy{k + 5}.png").write_bytes(bytes([k + 5]))  # 5..14, of which 5..9 are in a under other names
    a, b = (sorted(f.iterdir()) for f in folders)
    clean, noisy = disjoint(a, b, seed=0, flag="--noisy")
    contents = [{f.read_bytes() for f in files} for files in (clean, noisy)]
    assert not contents[0] & contents[1] and len(contents[0] | contents[1]) == 15
    clean, noisy = disjoint(a, a, seed=0, flag="--noisy")
    assert len(clean) == len(noisy) == 5 and not set(clean) & set(noisy)
    assert disjoint(a, a, seed=1, flag="--noisy")[0] != clean
    with pytest.raises(UsageError, match="same single picture"):
        disjoint(a[:1], a[:1], seed=0, flag="--noisy")


def test_metrics():
    x = np.full((16, 16, 1), 0.5, np.float32)
    found = measure(x, x + 0.1)
    assert found["psnr"] == pytest.approx(20.0, abs=1e-4)
    assert measure(x, x)["psnr"] is None and measure(x, x)["ssim"] == pytest.approx(1)
    assert measure(x, np.full_like(x, 3.0))["psnr"] == pytest.approx(-20 * np.log10(0.5))  # clamped to 1
    assert measure(x[:4], x[:4])["ssim"] is None


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    x = torch.rand(6, 1, 8, 8)
    whole = LEVELS["hg"].add(x, generators("cpu", 1, 2, np.arange(6)))
    parts = [LEVELS["hg"].add(x[k : k + 2], generators("cpu", 1, 2, np.arange(k, k + 2))) for k in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, LEVELS["hg"].add(x, generators("cpu", 1, 3, np.arange(6))))
