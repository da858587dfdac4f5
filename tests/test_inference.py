"""Images of any size are denoised: in tiles, over symmetries, and by the released weights."""

from __future__ import annotations

import pytest
import torch
from skimage.data import camera

from models import MWCNN, load_model, posterior
from models.gaussian import Full
from models.inference import denoise_batch, inverse_symmetry, symmetry
from models.outliers import as_seen, filled
from tests.helpers import ROOT, small


def test_blind_in_colour_and_in_tiles():
    model = small(3, "mg")
    y = torch.rand(1, 3, 40, 33)
    changed = y.clone()
    changed[0, :, 17, 20] += 0.5
    for tile in (None, 16):
        before, after = (denoise_batch(model, v, tile=tile).mu for v in (y, changed))
        same = (before == after).all(1)[0]
        assert same[17, 20] and not same[17, 21]


def test_holes_mirror_the_picture_around():
    y = torch.arange(70.0).view(1, 1, 7, 10).repeat(2, 3, 1, 1)
    y[0, :, :, :3] = torch.nan
    y[1, 0, 3, 4] = torch.nan
    full = filled(y)
    assert torch.equal(full[0, :, :, 3:], y[0, :, :, 3:])
    assert torch.equal(full[0, :, :, :3], full[0, :, :, [6, 5, 4]])
    assert not full.isnan().any() and torch.equal(full[1, 1:], y[1, 1:])  # other channels stay as they are
    wide = y[:1].clone()
    wide[..., 2:8] = y[1:2, 1:2, :, 2:8]
    wide[..., :8] = torch.nan  # a hole that is wider than the rest
    assert not filled(wide).isnan().any()
    line = torch.full((1, 1, 9, 9), torch.nan)
    assert torch.equal(filled(line), torch.zeros(1, 1, 9, 9))
    line[..., 4, :] = torch.arange(9.0)  # too thin to be mirrored
    assert torch.equal(filled(line), torch.arange(9.0).expand(1, 1, 9, 9))


@pytest.mark.parametrize("name", ["gray-hg-blind", "gray-awgn-blind", "gray-awgn-blind-full"])
@pytest.mark.parametrize("value", [torch.nan, 0.4, 0.0, -3.0])
def test_holes_and_painted_areas_change_nothing_elsewhere(name, value):
    """Neither the noise that is found nor the picture beside them. Noise reaches beyond 0, so 0 is no black there."""
    model, clean = load_model(name), torch.from_numpy(camera()[150:278, 100:228] / 255).float()[None, None]
    y = clean + 20 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    holed = y.clone()
    holed[..., :50, :50] = value
    known = torch.ones_like(y, dtype=torch.bool)
    known[..., :50, :50] = False
    whole, result = denoise_batch(model, y), denoise_batch(model, holed)
    error, before = ((r.image - clean)[known].square().mean().sqrt() for r in (result, whole))
    assert error < 1.05 * before
    if model.stage == 1:
        level, expected = (r.noise_level.expand_as(y)[known].square().mean().sqrt() for r in (result, whole))
        assert level == pytest.approx(expected.item(), rel=0.05)


def test_what_is_kept_has_no_uncertainty():
    y = torch.from_numpy(camera()[150:214, 100:164] / 255).float()[None, None]
    y = y + 20 / 255 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    y[..., :20, :20], y[..., 40, 40] = torch.nan, 50.0
    std = denoise_batch(load_model("gray-awgn-blind"), y).std
    assert (std[..., :20, :20] == 0).all() and std[..., 40, 40] == 0 and (std[..., 20:40, 20:] > 0).all()


def test_saturated_areas_do_not_leave_the_noise_beside_them():
    """A spot whose middle is saturated, with the noise of photons: as near to the truth as where nothing is cut."""
    at = torch.arange(128.0)
    spot = 1.5 * torch.exp(-((at - 64) ** 2 + (at[:, None] - 64) ** 2) / (2 * 30**2))[None, None]
    y = spot + 0.05 * spot.sqrt() * torch.randn(spot.shape, generator=torch.Generator().manual_seed(0))
    beside = (spot > 0.5) & (spot < 0.85)
    model = load_model("gray-hg-blind-full")
    model.units = "noise"
    cut, whole = (denoise_batch(model, t).image for t in (y.clamp(max=1), y))
    error, before = ((r - spot)[beside].square().mean().sqrt() for r in (cut, whole))
    assert (y.clamp(max=1) == 1).float().mean() > 0.1 and error < 1.3 * before < 0.6 * (y - spot)[beside].std()


def test_the_sky_between_stars_is_seen_as_it_is():
    at = torch.arange(96.0)
    star = torch.exp(-((at % 40 - 20).square()) / (2 * 1.6**2))  # at 20 and 60
    y = torch.poisson(60 * star * star[:, None], torch.Generator().manual_seed(0))[None, None]
    seen, _, kept = as_seen(y)
    assert kept.float().mean() > 0.3 and torch.equal(seen, y)
    bordered = y + 500
    bordered[..., :30] = 0  # a border that is no sky
    assert (as_seen(bordered)[0][..., :30] > 0).all()


def test_an_image_of_one_value_stays_as_it_is():
    y = torch.full((2, 1, 40, 40), 0.3)
    y[1] = torch.rand(1, 40, 40)
    seen, _, kept = as_seen(y)
    assert torch.equal(seen, y) and kept[0].all() and not kept[1].any()


@pytest.mark.parametrize("size", [(50, 61), (16, 90)])
@pytest.mark.parametrize(("channels", "noise"), [(1, "awgn"), (1, "hg"), (3, "mg")])
@pytest.mark.parametrize("estimator", ["cnn", "residual"])
def test_tiles_equal_the_whole(channels, noise, estimator, size, monkeypatch):
    monkeypatch.setattr("models.inference.STRIP", 500)
    monkeypatch.setattr("models.noise.cnn_est.STRIP", 500)
    model = small(channels, noise, estimator=estimator)
    y = torch.rand(1, channels, *size)
    whole, tiled = denoise_batch(model, y, tile=1000), denoise_batch(model, y, tile=16)
    p = model(y)
    assert torch.equal(whole.mu, p.mu)
    torch.testing.assert_close(whole.image, posterior(y, p).mean)
    for name in ("image", "mu", "std", "noise_level", "theta"):
        torch.testing.assert_close(getattr(tiled, name), getattr(whole, name), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(150, 301), (64, 260), (20, 275)])
def test_tiles_equal_the_whole_in_mwcnn(size):
    torch.manual_seed(0)
    model = MWCNN(1, width=4)
    for p in model.parameters():
        p.data.mul_(1.5)  # so that what is far away counts
    y = torch.rand(1, 1, *size)
    torch.testing.assert_close(
        denoise_batch(model, y, tile=72).image, denoise_batch(model, y, tile=1000).image, atol=1e-4, rtol=1e-4
    )


def test_the_least_uncertainty_is_the_noise_that_mu_takes_over():
    """Where V says that mu is exact, its share of the noise around is still not known."""
    model = small(estimator="residual")
    y = 0.5 + 0.1 * torch.randn(1, 1, 60, 60, generator=torch.Generator().manual_seed(0))
    kernel = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).view(1, 1, 3, 3) / 4
    model.context = lambda y, views=None: (torch.nn.functional.conv2d(y, kernel, padding=1), Full(0 * y + 1e-3))
    found = denoise_batch(model, y)
    gain = model.gain(y, *model.context(y)).item()
    expected = (gain / (1 + gain)) ** 0.5 * found.noise_level.item()
    assert gain > 0.1
    torch.testing.assert_close(found.std, torch.full_like(y, expected), rtol=1e-3, atol=0)


def test_symmetries_are_undone():
    x = torch.rand(1, 2, 4, 5)
    images = [symmetry(x, k) for k in range(8)]
    assert len({tuple(im.flatten().tolist()) for im in images}) == 8
    for k, im in enumerate(images):
        torch.testing.assert_close(inverse_symmetry(im, k), x)


def test_self_ensemble_is_the_mean_over_symmetries():
    model = small()
    y = torch.rand(1, 1, 12, 15)
    expected = sum(inverse_symmetry(denoise_batch(model, symmetry(y, k)).image, k) for k in range(8)) / 8
    torch.testing.assert_close(denoise_batch(model, y, self_ensemble=True).image, expected)


@pytest.mark.parametrize("sigma", [10, 25])
def test_released_weights_on_a_clipped_photograph(sigma):
    """A photograph has much black, its noise cut off and rounded as a file of 8 bits does.

    The level stays right, and with it the result.
    """
    model = load_model("gray-awgn-blind", checkpoints_dir=ROOT / "checkpoints")
    clean = torch.from_numpy(camera()[:256, :256] / 255).float()[None, None]
    noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    clipped = (255 * noisy).round().clamp(0, 255) / 255
    assert (clipped == 0).float().mean() > 0.01
    found = [denoise_batch(model, y) for y in (noisy, clipped)]
    assert all(255 * d.noise_level.item() == pytest.approx(sigma, rel=0.1) for d in found)
    whole, cut = (-10 * (d.image.clamp(0, 1) - clean).square().mean().log10().item() for d in found)
    assert cut > whole - 1  # black itself is brighter where half of its noise is cut off
