"""The stride that suits a picture's shared noise."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import camera as picture

from models import MWCNN, load_model
from models.noise.camera import Camera
from models.noise.correlation import shared_noise
from models.phases import weights_of
from models.stride import STRIDES, STRIDES_OF_HOLES, best_stride, stride_for
from tests.helpers import small


@pytest.fixture(scope="module")
def student():
    return load_model("gray-hg-blind-full")


def noisy(x, sigma, reach, rng):
    levels = (sigma / 255, 1.0, reach, 0.0, 1.0, 0.0)
    return Camera(*((level, level) for level in levels)).add(x, [rng])


@pytest.mark.parametrize("sigma", [5, 20])
def test_the_choice_is_nearly_the_best(student, sigma, rng):
    x = torch.from_numpy(picture()[100:356, 150:406] / 255).float()[None, None]
    y = noisy(x, sigma, 0.7, rng)
    errors = {}
    for stride in STRIDES:
        student.stride = stride
        errors[stride] = (student(y) - x).square().mean().item()
    student.stride = 1
    chosen = best_stride(student, y, shared_noise(y[0]))
    assert errors[chosen] <= 1.1 * min(errors.values()) and student.stride == 1


def test_more_noise_takes_pixels_farther_apart(student, rng):
    x = torch.linspace(0.3, 0.7, 256).expand(1, 1, 256, 256)
    assert best_stride(student, noisy(x, 20, 1.0, rng), shared_noise(noisy(x, 20, 1.0, rng)[0])) > 2


def test_a_refined_student_takes_no_pixels_apart(rng):
    x = torch.from_numpy(picture()[100:228, 150:278] / 255).float()[None, None]
    y = noisy(x, 20, 0.8, rng)
    shared = shared_noise(y[0])
    of_such, of_others = (MWCNN(1, 4, shared_noise=known, refined=True) for known in (True, False))
    assert stride_for(of_such, y, shared) == 1 and stride_for(of_others, y, shared) > 1
    assert stride_for(of_others, y, None) == 1


@pytest.mark.parametrize("soft", [0, 1.5])
def test_a_student_that_knows_shared_noise_mixes_strides(soft, rng):
    """Nearly as good as the best weights, for a sharp picture and for one as soft as a camera's."""
    x = torch.from_numpy(gaussian_filter(picture()[100:356, 150:406] / 255, soft)).float()[None, None]
    x = x.expand(1, 3, 256, 256)
    y, student = noisy(x, 15, 0.8, rng), load_model("color-photo-full")
    assert stride_for(student, y, None) == 1
    mixture = stride_for(student, y, shared_noise(y[0]))
    errors = {}
    for w in (0.0, 0.25, 0.5, 0.75, 1.0, None):
        student.stride = mixture if w is None else {1: w, 2: 1 - w}
        errors[w] = (student(y) - x).square().mean().item()
    assert errors.pop(None) < 1.2 * min(errors.values())
    assert sum(weights_of(mixture).values()) == pytest.approx(1)


def test_a_hole_hides_neighbours_so_no_phases_are_needed(rng):
    x = torch.from_numpy(picture()[100:228, 150:278] / 255).float()[None, None]
    y = noisy(x, 5, 0.5, rng)
    assert best_stride(small(hole=3), y, shared_noise(y[0])) in STRIDES_OF_HOLES
