"""The strides that suit a picture's shared noise."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import camera as picture

from models import MWCNN, load_model
from models.inference import denoise_batch
from models.noise.camera import Camera
from models.noise.correlation import Shared, shared_noise
from models.phases import weights_of
from models.stride import MIXED, STRIDES, STRIDES_OF_HOLES, best_mixture, best_stride, least, noise, on_part, stride_for
from tests.helpers import small


def noisy(x, sigma, reach, rng):
    levels = (sigma / 255, 1.0, reach, 0.0, 1.0, 0.0)
    return Camera(*((level, level) for level in levels)).add(x, [rng])


def error(result, x):
    return (result - x).square().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [5, 20])
def test_the_choice_of_stage_1_is_nearly_the_best(sigma, rng):
    x = torch.from_numpy(picture()[100:292, 150:342] / 255).float()[None, None]
    y, model, errors = noisy(x, sigma, 0.7, rng), load_model("gray-hg-blind"), {}
    for stride in STRIDES:
        model.stride = stride
        errors[stride] = error(model.context(y)[0], x)
    model.stride = 1
    chosen = best_stride(model, y, shared_noise(y[0]))
    assert errors[chosen] <= 1.1 * min(errors.values()) and model.stride == 1


@pytest.mark.parametrize("name", ["gray-hg-blind-full", "color-photo-full"])
@pytest.mark.parametrize("soft", [0, pytest.param(1.5, marks=pytest.mark.slow)])
def test_a_mixture_is_nearly_as_good_as_the_best_stride_or_better(name, soft, rng):
    """For a student that knows shared noise and one that does not, for a sharp picture and a soft one."""
    student = load_model(name)
    x = torch.from_numpy(gaussian_filter(picture()[100:292, 150:342] / 255, soft)).float()
    x = x.expand(1, student.channels, 192, 192)
    y = noisy(x, 15, 0.8, rng)
    assert stride_for(student, y, None) == 1
    mixture, errors = stride_for(student, y, shared_noise(y[0])), []
    assert student.stride == 1 and sum(weights_of(mixture).values()) == pytest.approx(1)
    for stride in (mixture, *MIXED):
        student.stride = stride
        errors.append(error(denoise_batch(student, y).image, x))
    assert errors[0] < 1.1 * min(errors[1:])


def test_more_noise_takes_pixels_farther_apart(rng):
    x = torch.linspace(0.3, 0.7, 256).expand(1, 1, 256, 256)
    y = noisy(x, 20, 1.0, rng)
    mixture = stride_for(load_model("gray-hg-blind-full"), y, shared_noise(y[0]))
    assert sum(stride * weight for stride, weight in weights_of(mixture).items()) > 2


def test_trace_of_a_linear_filter(rng, monkeypatch):
    """tr(J Sigma) of a filter with the weights w at the pixel and v at four neighbours: sigma^2 (w + 4 v rho)."""
    w, v = 0.4, 0.15
    kernel = torch.tensor([[0, v, 0], [v, w, v], [0, v, 0]]).view(1, 1, 3, 3)
    monkeypatch.setattr("models.stride.image_of", lambda model, y: torch.nn.functional.conv2d(y, kernel, padding=1))
    model, y = MWCNN(1, 4), torch.rand(1, 1, 256, 256, generator=rng)
    shared = Shared(reach=0.7, chroma=1.0, chroma_reach=0.0, variance=0.01, intensity=torch.tensor([0.5]))
    n = noise(shared, y)
    rho = (n[..., 1:] * n[..., :-1]).mean() / n.square().mean()
    _, found = on_part(model, y, shared, (1,))
    assert 0.3 < rho < 0.8
    assert found[1][1] == pytest.approx(float(n.square().mean() * (w + 4 * v * rho)), rel=0.02)


def test_weights_of_the_least_value():
    """Against a grid of all weights in steps of a hundredth."""
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        factor = torch.randn(3, 5, generator=random, dtype=torch.float64)
        g, t = factor @ factor.T, torch.randn(3, generator=random, dtype=torch.float64)
        w = least(g, t)
        a, b = torch.meshgrid(*(torch.linspace(0, 1, 101, dtype=torch.float64),) * 2, indexing="ij")
        grid = torch.stack([a, b, 1 - a - b])[:, a + b <= 1]
        values = torch.einsum("ki,kl,li->i", grid, g, grid) + 2 * t @ grid
        assert float(w.sum()) == pytest.approx(1) and bool((w >= 0).all())
        assert float(w @ g @ w + 2 * t @ w) <= float(values.min()) + 1e-9
    equal = least(torch.ones(4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    assert float(equal.sum()) == pytest.approx(1)


def test_a_refined_student_takes_no_pixels_apart(rng):
    x = torch.from_numpy(picture()[100:228, 150:278] / 255).float()[None, None]
    y = noisy(x, 20, 0.8, rng)
    shared = shared_noise(y[0])
    of_such, of_others = (MWCNN(1, 4, shared_noise=known, refined=True) for known in (True, False))
    assert stride_for(of_such, y, shared) == 1
    assert stride_for(of_others, y, shared) == best_mixture(of_others, y, shared)
    assert stride_for(of_others, y, None) == 1


def test_a_hole_hides_neighbours_so_no_phases_are_needed(rng):
    x = torch.from_numpy(picture()[100:228, 150:278] / 255).float()[None, None]
    y = noisy(x, 5, 0.5, rng)
    assert best_stride(small(hole=3), y, shared_noise(y[0])) in STRIDES_OF_HOLES
