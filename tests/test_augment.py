"""Clean crops with other sharpness and tones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.augment import augmented, enlarged


def crops(count=4, side=32):
    ramp = torch.linspace(0, 1, side)
    return torch.stack([ramp.expand(side, side), ramp.view(-1, 1).expand(side, side), ramp.expand(side, side) ** 2])[
        None
    ].repeat(count, 1, 1, 1)


def test_as_it_is_where_nothing_is_asked_for():
    x = crops()
    assert augmented(x, np.arange(4), (1.0, 1.0), False, 0) is x


def test_function_of_seed_and_sample():
    x = crops()
    whole = augmented(x, np.arange(4), (1.2, 3.0), True, 0)
    parts = [augmented(x[k : k + 2], np.arange(k, k + 2), (1.2, 3.0), True, 0) for k in (0, 2)]
    assert torch.equal(whole, torch.cat(parts)) and whole.shape == x.shape
    assert not torch.equal(whole, augmented(x, np.arange(4), (1.2, 3.0), True, 1))
    assert whole.min() >= 0 and whole.max() <= 1


def test_values_beyond_zero_and_one():
    """Pictures in other units are changed as those in 0..1, and values beyond the ends are no NaN."""
    x, ends = crops(), (-300.0, 4000.0)
    usual, other = (
        augmented(t, np.arange(4), (1.2, 3.0), True, 0, e) for t, e in ((x, (0, 1)), (4300 * x - 300, ends))
    )
    torch.testing.assert_close((other + 300) / 4300, usual, atol=1e-5, rtol=0)
    assert augmented(x - 0.2, np.arange(4), (1.0, 1.0), True, 0).isfinite().all()


def test_enlarging_divides_slopes():
    x = crops(1)
    slope = lambda t: (t[0, 0, 16, 20] - t[0, 0, 16, 10]).item()  # noqa: E731
    assert slope(enlarged(x, 2.0)) == pytest.approx(slope(x) / 2, rel=0.02)
    assert enlarged(x, 1.0).shape == x.shape


def test_tones_keep_gray_gray():
    gray = crops()[:, :1].expand(-1, 3, -1, -1)
    found = augmented(gray, np.arange(4), (1.0, 1.0), True, 0)
    torch.testing.assert_close(found, found[:, :1].expand_as(found))
    assert not torch.allclose(found, gray, atol=0.02)
