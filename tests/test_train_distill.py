"""Stage 2: what the teacher gives the student, and a run from its start to its end."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch

from data.crops import Crops, ImagePool
from tests.test_networks import small
from train_distill import Lessons


def test_targets_of_crops_lack_the_surroundings_at_their_borders(rng):
    """Images in memory are denoised whole, images on disk crop by crop.

    Further from a crop's border than the teacher looks, both give the same; nearer to it they do not. The teacher
    is one of which every result depends on the pixels around it alone.
    """
    teacher = small(noise="hg")
    radius = teacher.dbsn.receptive_radius
    pool = ImagePool([torch.rand(60, 50, 1, generator=rng).numpy() for _ in range(2)])
    opt = Namespace(patch_size=32, seed=0, streams=2, level_jitter=0.1)
    where = Crops(*(np.array(values) for values in ([0, 1], [14, 20], [9, 11], [0, 0])))
    y = pool.crops(where, 32)
    whole, crop = (Lessons(teacher, pool, None, whole, opt).targets(y, where) for whole in (True, False))
    inside = slice(radius, -radius)
    assert 2 * radius < 32
    torch.testing.assert_close(crop[..., inside, inside], whole[..., inside, inside], atol=1e-5, rtol=0)
    assert (crop - whole).abs().amax(1).flatten(1).max(1).values.min() > 1e-3
    assert not torch.allclose(whole, y, atol=1e-2)  # and the teacher does something


@pytest.mark.parametrize("noise", ["awgn", "poisson"])
def test_learned_and_read_noise_follow_the_samples_alone(noise, rng):
    """A crop's synthetic noise does not depend on the batch that it is in."""
    teacher = small(noise=noise, estimator="cnn" if noise == "awgn" else "residual")
    pool = ImagePool([torch.rand(30, 30, 1, generator=rng).numpy() for _ in range(3)])
    lessons = Lessons(teacher, pool, None, True, Namespace(patch_size=16, seed=0, streams=2, level_jitter=0.1))
    x = torch.rand(4, 1, 16, 16, generator=rng)
    batch = lessons.make_noisy(x, np.arange(4))
    for k in range(4):
        torch.testing.assert_close(lessons.make_noisy(x[k : k + 1], np.arange(k, k + 1))[0], batch[k])
    assert not torch.equal(batch, lessons.make_noisy(x, np.arange(4, 8)))
