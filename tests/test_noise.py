"""Noise models: noise has the covariance that was asked for, and an image's own noise is read from its residual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.data import astronaut, camera
from skimage.filters import gaussian

from data.images import read_image, to_float
from models import denoise, load_model
from models.gaussian import Diagonal, Full, triangle
from models.noise import NOISES
from models.noise import ResidualEstimator as Residual
from models.noise.awgn import Awgn
from models.noise.camera import Camera
from models.noise.hg import Hg
from models.noise.mg import Mg, multivariate_covariance
from models.noise.poisson import Poisson
from tests.helpers import real_data
from utils.metrics import measure
from utils.random import generators

# ---------------------------------------------------------------------------------------------- photon counts


@pytest.mark.parametrize("how", ["add", "published"])
@pytest.mark.parametrize("lam", [0.5, 30, 1e4])
def test_poisson_noise_is_counts_of_photons(how, lam, rng):
    """Whole numbers from 0 on, of the mean and the skewness that counts have; black has no noise."""
    noise, x = Poisson(lam=(lam, lam)), torch.tensor([0.0, 0.2, 1.0]).view(1, 3, 1, 1).repeat(1, 1, 200, 200)
    y = noise.add(x, [rng]).double() if how == "add" else torch.from_numpy(noise.published(x[0].double().numpy()))[None]
    counts = lam * y
    torch.testing.assert_close(counts, counts.round(), atol=2e-3, rtol=0)
    assert counts.min() == 0 and torch.equal(y[:, 0], torch.zeros_like(y[:, 0]))
    for bright in (1, 2):
        n, mean = counts[0, bright].flatten(), lam * x[0, bright, 0, 0].item()
        assert n.mean().item() == pytest.approx(mean, abs=5 * (mean / n.numel()) ** 0.5)
        # the third cumulant of counts is their mean, that of a Gaussian is 0
        if lam < 100:
            assert ((n - mean) ** 3).mean().item() == pytest.approx(mean, rel=0.3)
            assert (n == 0).double().mean().item() == pytest.approx(np.exp(-mean), abs=0.01)


def test_poisson_noise_of_intensities_below_black_is_none(rng):
    x = torch.full((1, 1, 4, 4), -0.5)
    noise = Poisson(lam=(30.0, 30.0))
    assert torch.equal(noise.add(x, [rng]), torch.zeros_like(x)) and (noise.published(x[0].numpy()) == 0).all()


def test_poisson_levels_of_a_range_differ_between_images():
    """Each image's counts are whole in its own unit, which lies in the range."""
    x = torch.full((20, 1, 64, 64), 0.5)
    y = Poisson(lam=(10.0, 100.0)).add(x, generators("cpu", 0, 1, np.arange(20)))
    lam = 0.5 / y.flatten(1).var(1)
    assert 8 < lam.min() < 30 and 70 < lam.max() < 115
    for image in y:
        values = image.unique()
        unit = (values[1:] - values[:-1]).min()  # of one photon
        assert 1 / 101 < unit < 1 / 9.9
        torch.testing.assert_close(image / unit, (image / unit).round(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("picture", "lam"), [(camera, 30.0), (camera, 300.0), (camera, 3000.0), (astronaut, 30.0), (astronaut, 300.0)]
)
def test_poisson_level_of_a_smooth_picture_is_read_from_its_residual(picture, lam, rng):
    """Of photons alone and a mu that is nearly right, the variance is x / lam and no more."""
    smooth = gaussian(np.atleast_3d(picture() / 255), 3, channel_axis=2)
    x = torch.from_numpy(smooth.astype(np.float32)).permute(2, 0, 1)[None]
    y = Poisson(lam=(lam, lam)).add(x, [rng])
    v = (0.1 / lam) ** 0.5 * 0.1  # mu errs by a tenth of the noise of a pixel of a tenth of white
    mu = x + v * torch.randn(x.shape, generator=rng)
    estimator = Residual(x.shape[1], Poisson)
    theta = estimator.estimate(y, mu, Diagonal(torch.full_like(x, v * v)))
    constant, slope, low, high = theta.view(x.shape[1], 4).unbind(1)
    torch.testing.assert_close(1 / slope, torch.full_like(slope, lam), rtol=0.05, atol=0)
    assert (constant - slope * low < 0.02 / lam).all()  # at x = 0
    assert (low < 0.15).all() and (high > 0.9 * x.amax()).all()
    inside = (x > low.view(1, -1, 1, 1)) & (x < high.view(1, -1, 1, 1)) & (x > 0.1)
    found = estimator.covariance(theta, x).variance
    torch.testing.assert_close(found[inside], (x / lam)[inside], rtol=0.1, atol=0)


@pytest.mark.parametrize("black", [-2.0, 0.5, 10.0])
def test_photon_noise_of_pictures_with_an_offset(black, rng):
    """Of a sensor's black level nothing is known: the noise is read as it is without one."""
    x = torch.from_numpy(gaussian(camera() / 255, 3).astype(np.float32))[None, None]
    y = Poisson(lam=(30.0, 30.0)).add(x, [rng])
    mu, v = x + 0.005 * torch.randn(x.shape, generator=rng), Diagonal(torch.full_like(x, 0.005**2))
    estimator = Residual(1, Poisson)
    found, moved = (estimator.covariance(estimator.estimate(y + b, mu + b, v), mu + b) for b in (0, black))
    torch.testing.assert_close(moved.variance, found.variance, rtol=0.01, atol=0)
    torch.testing.assert_close(moved.variance.mean(), x.mean() / 30, rtol=0.03, atol=0)


LEVELS = {
    "awgn": Awgn(sigma=(25 / 255,) * 2),
    "hg": Hg(alpha=(40 / 255,) * 2, delta=(10 / 255,) * 2),
    "mg": Mg(sigma=(75 / 255,) * 2),
    "poisson": Poisson(lam=(30.0, 30.0)),
    "camera": Camera(*((level, level) for level in (10 / 255, 0.5, 0.0, 0.0, 0.6, 0.0))),
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
        "camera": ((10 / 255) ** 2 * (0.25 + 0.75 * x64)).sqrt().outer((0.25 + 0.75 * x64).sqrt() * 10 / 255)
        * (torch.eye(3) + (1 - torch.eye(3)) * (1 - 0.36) / (1 + 2 * 0.36)).double(),
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


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    x = torch.rand(6, 1, 8, 8)
    whole = LEVELS["hg"].add(x, generators("cpu", 1, 2, np.arange(6)))
    parts = [LEVELS["hg"].add(x[k : k + 2], generators("cpu", 1, 2, np.arange(k, k + 2))) for k in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, LEVELS["hg"].add(x, generators("cpu", 1, 3, np.arange(6))))


@pytest.mark.parametrize(
    ("channels", "noise"), [(1, "awgn"), (3, "awgn"), (3, "mg"), (1, "hg"), (3, "hg"), (1, "poisson")]
)
def test_residual_estimator_finds_the_noise_of_quiet_pixels(channels, noise, rng):
    """Half of the pixels are predicted exactly, half badly, and the covariance says which: only the first count."""
    size = (1, channels, 200, 300)
    mu = torch.rand(size[0], 1, *size[2:], generator=rng).expand(size)
    if noise == "mg":
        cov_n = Full(torch.tensor([0.2, 0.05, 0.1, -0.03, 0.02, 0.15]).view(1, 6, 1, 1))
    else:
        variance = {"awgn": torch.full(size, 0.1**2), "hg": 0.05**2 + (0.2 * mu).square(), "poisson": 0.1**2 + mu / 30}[
            noise
        ]
        cov_n = Diagonal(variance)
    texture = (torch.arange(size[3]) % 2).float().expand(size) * 0.3
    random = lambda: torch.randn(size, generator=rng)  # noqa: E731
    y = mu + cov_n.sample(random()) + texture * random()
    uncertain = torch.exp(0.1 * random()) * (0.01 + texture.square())  # not known exactly
    estimator = Residual(channels, NOISES[noise])
    found = estimator.covariance(estimator.estimate(y, mu, Diagonal(uncertain)), mu)
    wanted = (
        cov_n.entries().expand(-1, -1, *found.variance.shape[2:]) if noise != "awgn" else cov_n.entries()[..., :1, :1]
    )
    torch.testing.assert_close(found.entries(), wanted, atol=0.1 * wanted.abs().max().item(), rtol=0.15)
    half = estimator.estimate(y, mu, Diagonal(uncertain), gain=1.0)  # as large a share of the variance is mu's own
    if found.variance.shape[2:] == (1, 1):
        torch.testing.assert_close(half, estimator.estimate(y, mu, Diagonal(uncertain)) / 2)


def test_residual_estimator_of_intensities_that_few_pixels_have(rng):
    """Noise grows with the signal, in an image that is dark but for a little.

    What is bright has as much noise as the polynomial says there.
    """
    size = (1, 1, 200, 300)
    mu = torch.rand(size, generator=rng) ** 4
    cov_n = Diagonal(0.02**2 + (0.3 * mu).square())
    y = mu + cov_n.sample(torch.randn(size, generator=rng))
    estimator = Residual(1, NOISES["hg"])
    found = estimator.covariance(estimator.estimate(y, mu, cov_n), mu)
    bright = mu > 0.9
    assert 0 < bright.float().mean() < 0.03
    torch.testing.assert_close(found.variance[bright].sqrt(), cov_n.variance[bright].sqrt(), rtol=0.03, atol=0)


@pytest.mark.parametrize("texture", [0, 0.3])
def test_residual_estimator_uses_more_than_the_quietest_pixels(texture, rng):
    """Over 64 small images the estimate scatters less than a mean over the lowest fiftieth could.

    It does so with texture or without, and is not biased by it.
    """
    size = (64, 1, 64, 96)
    mu = torch.full(size, 0.5)
    variance = 0.1**2 + (texture * torch.rand(size, generator=rng)).square()
    y = mu + variance.sqrt() * torch.randn(size, generator=rng)
    variance = variance * torch.exp(0.05 * torch.randn(size, generator=rng))  # not known exactly
    error = Residual(1, NOISES["awgn"]).estimate(y, mu, Diagonal(variance)).sqrt().flatten() / 0.1 - 1
    assert abs(error.mean().item()) < 0.02
    assert error.std().item() < 0.7 / (2 * 0.02 * 64 * 96) ** 0.5


def test_residual_estimator_of_mg_gives_a_covariance(rng):
    """Where the lines through the entries do not meet in a covariance, the mean over the lowest pixels is one.

    The lines may fail to meet in an image of few pixels.
    """
    size = (200, 3, 6, 6)
    mu = torch.zeros(size)
    cov = Diagonal(torch.rand(size, generator=rng) + 0.5)
    y = torch.randn(size[0], 1, *size[2:], generator=rng) * torch.tensor([1.0, 0.9, -0.5]).view(
        3, 1, 1
    ) + 0.05 * torch.randn(size, generator=rng)
    level = Residual(3, NOISES["mg"]).estimate(y, mu, cov).flatten(1)
    matrix = torch.zeros(200, 3, 3)
    for k, (i, j) in enumerate(triangle(3)):
        matrix[:, i, j] = matrix[:, j, i] = level[:, k]
    assert torch.linalg.eigvalsh(matrix).min() > -1e-6


@pytest.mark.parametrize(("channels", "noise"), [(1, "awgn"), (3, "mg"), (1, "hg")])
def test_residual_estimator_avoids_clipped_places(channels, noise, rng):
    """A third is black, and nothing of it may count.

    There the file's range cuts half of the noise off and the context is the surest.
    """
    size = (1, channels, 200, 300)
    x = torch.linspace(0.4, 0.8, 300).expand(size).clone()
    x[..., :100] = 0
    clipped = (x + 0.1 * torch.randn(size, generator=rng)).clamp(0, 1)
    mu = torch.where(x > 0, x, 0.04)
    cov = Diagonal(torch.where(x > 0, 0.01, 0.0034).expand(size))
    estimator = Residual(channels, NOISES[noise])
    found = estimator.covariance(estimator.estimate(clipped, mu, cov), mu)
    assert found.variance[..., -1].mean().sqrt().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("noise", ["hg", "poisson"])
@pytest.mark.parametrize(("share", "counts"), [(0.1, False), (0.5, True)])
def test_residual_estimator_leaves_out_what_was_drawn_into_the_picture(noise, share, counts, rng):
    """Text and scale bars have no noise and are brighter than the picture. If half is such, the picture has none."""
    drawn = torch.arange(100 * 100).view(1, 1, 100, 100) < share * 100 * 100
    mu = torch.where(drawn, 0.8, torch.linspace(0.1, 0.3, 100).expand(1, 1, 100, 100))
    y = mu + 0.05 * torch.randn(mu.shape, generator=rng) * ~drawn
    y[..., -1, -1] = 1.0  # so that the text is not taken for clipped
    estimator = Residual(1, NOISES[noise])
    theta = estimator.estimate(y, mu, Diagonal(torch.where(drawn, 1e-6, 1e-4)))
    level = estimator.covariance(theta, torch.full((1, 1, 1, 1), 0.15)).variance.sqrt().item()
    assert level < 0.01 if counts else level == pytest.approx(0.05, rel=0.2)


def test_residual_estimator_of_flat_and_tiny_images():
    for channels, noise in ((1, "awgn"), (1, "hg"), (3, "mg")):
        estimator = Residual(channels, NOISES[noise])
        for size in ((1, channels, 1, 1), (2, channels, 3, 5), (1, channels, 40, 40)):
            y = torch.full(size, 0.5)
            cov = estimator.covariance(estimator.estimate(y, y, Diagonal(torch.ones(size))), y)
            assert torch.isfinite(cov.variance).all() and (cov.variance > 0).all()


def test_text_on_a_clipped_picture_leaves_a_curve(rng):
    """All ranges but the text's are clipped for more than CLEAR of their pixels."""
    y = (8 + 20 * torch.randn((1, 1, 192, 192), generator=rng)).clamp(0, 255)
    y[..., :24] = 200 + 0.3 * torch.randn((1, 1, 192, 24), generator=rng)
    result = denoise(load_model("gray-hg-blind"), y[0, 0].numpy().astype("float32"))
    assert result[:, 40:].std() < 0.5 * y[..., 40:].std()
