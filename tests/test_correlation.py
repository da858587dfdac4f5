"""What neighbours and channels share is read from a picture."""

from __future__ import annotations

import pytest
import torch
from skimage.data import astronaut

from models import BlindSpotDenoiser
from models.inference import denoise_batch
from models.noise.camera import Camera
from models.noise.correlation import shared_noise


def picture() -> torch.Tensor:
    return torch.from_numpy(astronaut() / 255).float().permute(2, 0, 1)[None]


def camera(sigma=6 / 255, dark=1.0, reach=0.6, coarse=0.0, chroma=1.0, chroma_reach=0.0) -> Camera:
    levels = (sigma, dark, reach, coarse, chroma, chroma_reach)
    return Camera(*((level, level) for level in levels))


@pytest.mark.parametrize("reach", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("chroma", "chroma_reach"), [(1.0, 0.0), (0.5, 1.0)])
def test_of_a_photograph(reach, chroma, chroma_reach, rng):
    found = shared_noise(camera(reach=reach, chroma=chroma, chroma_reach=chroma_reach).add(picture(), [rng])[0])
    # a blur of 0.35 pixels leaves neighbours a correlation of 0.1
    assert found.reach < 0.4 if reach == 0 else found.reach == pytest.approx(reach, abs=0.11 if reach < 1 else 0.25)
    assert found.chroma == pytest.approx(chroma, rel=0.12)
    assert found.reach + found.chroma_reach == pytest.approx(reach + chroma_reach, abs=0.5)
    assert found.variance == pytest.approx((6 / 255) ** 2, rel=0.5)  # blocks of a photograph are not flat


def test_of_a_gray_picture_and_of_any_scale(rng):
    y = camera(reach=0.7).add(picture().mean(1, keepdim=True), [rng])[0]
    one, other = shared_noise(y), shared_noise(1000 * y - 300)
    assert one.reach == other.reach == pytest.approx(0.7, abs=0.11) and one.chroma == 1 and one.chroma_reach == 0
    assert other.variance == pytest.approx(1e6 * one.variance, rel=1e-3)


def test_not_of_small_or_constant_pictures(rng):
    assert shared_noise(torch.rand(1, 60, 60, generator=rng)) is None
    assert shared_noise(torch.full((3, 200, 200), 0.5)) is None


def test_of_a_gray_picture_in_three_channels(rng):
    """Its channels share all of their noise. Sigma_n must not be singular."""
    y = camera(reach=0.7).add(picture().mean(1, keepdim=True), [rng]).expand(-1, 3, -1, -1)
    found = shared_noise(y[0])
    assert found.chroma == pytest.approx(0.1) and found.reach == pytest.approx(0.7, abs=0.11)
    model = BlindSpotDenoiser(3, "camera", width=4, blocks=1, estimator="residual", stride=2).eval()
    assert denoise_batch(model, y[..., :128, :128]).image.isfinite().all()
