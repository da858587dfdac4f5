"""Stage 1's model: its predictions, its posterior, and the share of the noise that mu takes over."""

from __future__ import annotations

import pytest
import torch

from models import MWCNN, BlindSpotDenoiser, posterior
from models.gaussian import Diagonal, Full
from models.inference import denoise_batch
from tests.helpers import needs_bf16, small


@needs_bf16
def test_bfloat16_stays_close():
    model = small(3, "hg")
    y = torch.rand(1, 3, 32, 32)
    exact = model(y)
    model.dtype = torch.bfloat16
    rounded = model(y)
    assert rounded.mu.dtype == torch.float32
    assert (rounded.mu - exact.mu).abs().max() < 0.05 * exact.mu.abs().max()


@pytest.mark.parametrize("model", [small(1, "hg"), MWCNN(1, width=8)], ids=["stage 1", "student"])
def test_autocast_around_it_changes_nothing(model):
    """`dtype` chooses what is in bfloat16."""
    y = torch.rand(1, 1, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = denoise_batch(model, y)
    assert torch.equal(inside.image, denoise_batch(model, y).image)


@pytest.mark.parametrize(("channels", "noise"), [(1, "awgn"), (3, "awgn"), (1, "hg"), (3, "hg"), (3, "mg")])
@pytest.mark.parametrize("head", ["mu", "total"])
def test_prediction_shapes_and_posterior(channels, noise, head):
    model = small(channels, noise, head=head)
    y = torch.rand(2, channels, 10, 13)
    p = model(y)
    assert p.mu.shape == y.shape
    assert p.cov_n.variance.shape[2:] == ((10, 13) if noise == "hg" else (1, 1))
    x = posterior(y, p)
    assert x.mean.shape == x.std.shape == y.shape
    assert torch.isfinite(x.mean).all() and torch.isfinite(x.std).all()
    # in gray the posterior lies between mu and y
    if channels == 1:
        assert ((x.mean >= torch.minimum(p.mu, y) - 1e-6) & (x.mean <= torch.maximum(p.mu, y) + 1e-6)).all()


def test_multivariate_noise_is_refused_in_gray():
    with pytest.raises(ValueError, match="more than one channel"):
        BlindSpotDenoiser(1, "mg")


@pytest.mark.parametrize("noise", ["awgn", "hg", "mg"])
def test_synthetic_pairs_have_the_estimated_covariance(noise, rng):
    model = small(3, noise)
    x = torch.rand(1, 3, 1, 1).expand(1, 3, 200, 200)
    theta = model.noise_estimator.estimate(x)
    cov = model.noise_estimator.covariance(theta, x)
    n = model.noise_estimator.noise.draw(theta, cov, x, [rng])[0].flatten(1)
    expected = cov.entries()[0, :, 0, 0]
    found = torch.cov(n)[torch.tril_indices(3, 3).unbind()]
    torch.testing.assert_close(found, expected, atol=0.03 * expected.max().item(), rtol=0.05)


def test_gain_is_the_variance_that_mu_takes_over():
    """A context that averages the four neighbours takes over a quarter of the noise's variance."""
    model = small(estimator="residual")
    kernel = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).view(1, 1, 3, 3) / 4

    def average(y, scale=None):
        mu = torch.nn.functional.conv2d(y, kernel, padding=1)
        return mu, Full(torch.full_like(mu, 0.1))

    model.context = average
    for size in ((200, 200), (700, 90)):
        y = 0.5 + 0.1 * torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
        mu, cov = average(y)
        assert model.gain(y, mu, cov).item() == pytest.approx(0.25, rel=0.15)
        level = model.theta(y, mu, cov).item()
        assert level == pytest.approx(0.01, rel=0.1)  # and without the gain a quarter more


@pytest.mark.parametrize("size", [(481, 321), (90, 800), (60, 60)])
def test_gain_is_measured_on_a_part_of_the_image(size, rng, monkeypatch):
    """Little is computed for it, and what is computed there is what the whole image gives."""
    model = small(estimator="residual")
    y = 0.5 + 0.1 * torch.randn(1, 1, *size, generator=rng)
    mu, v = model.context(y)
    places = torch.arange(0, size[0] * size[1], 7)
    windows = model.windows(*size, places)
    for window, core in windows:
        part = model.context(y[:, :, *window])[0][:, :, *core]
        assert part.numel() and torch.allclose(part, mu[:, :, *window][:, :, *core], atol=1e-5)
    pixels = sum((w[0].stop - w[0].start) * (w[1].stop - w[1].start) for w, _ in windows)
    assert pixels == size[0] * size[1] if len(windows) == 1 else pixels < 0.16 * size[0] * size[1]
    few = model.gain(y, mu, v).item()
    monkeypatch.setattr("models.denoiser.GAIN_COST", 0)
    assert (1 + few) / (1 + model.gain(y, mu, v).item()) == pytest.approx(1, abs=0.03)


def test_gain_is_that_of_the_pixels_predicted_best_for_their_noise(rng, monkeypatch):
    """The dark half has the lower covariance but, relative to its little noise, the poorer context.

    That context takes over half of the noise, in the bright half a quarter.
    """
    model = small(noise="hg", estimator="residual")
    bright = (torch.arange(200) >= 100).expand(1, 1, 200, 200)
    two, four = (
        torch.tensor(k).view(1, 1, 3, 3)
        for k in ([[0.0, 0, 0], [0.5, 0, 0.5], [0, 0, 0]], [[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]])
    )

    def context(y, scale=None):
        mu = torch.where(bright, *(torch.nn.functional.conv2d(y, kernel, padding=1) for kernel in (four, two)))
        return mu, Full(torch.where(bright, 0.045, 0.02))

    noise = Diagonal(torch.where(bright, 0.04, 0.01).square())
    model.context = context
    monkeypatch.setattr("models.denoiser.GAIN_COST", 0)  # the whole image
    monkeypatch.setattr(model.noise_estimator, "covariance", lambda *seen: noise)
    y = 0.5 + noise.sample(torch.randn(bright.shape, generator=rng))
    assert model.gain(y, *context(y)).item() == pytest.approx(0.25, rel=0.15)
