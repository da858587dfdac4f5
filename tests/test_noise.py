"""Noise models: noise has the covariance that was asked for, and an image's own noise is read from its residual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.data import astronaut, camera
from skimage.filters import gaussian

from models.gaussian import Diagonal
from models.noise import ResidualEstimator as Residual
from models.noise.poisson import Poisson
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
    assert (constant < 0.02 / lam).all() and (low < 0.1).all() and (high > 0.9 * x.amax()).all()
    inside = (x > low.view(1, -1, 1, 1)) & (x < high.view(1, -1, 1, 1)) & (x > 0.1)
    found = estimator.covariance(theta, x).variance
    torch.testing.assert_close(found[inside], (x / lam)[inside], rtol=0.1, atol=0)
