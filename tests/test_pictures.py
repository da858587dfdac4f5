"""Pictures of results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.pictures import file_type, side_by_side


def test_side_by_side():
    strip = side_by_side({"gray": np.zeros((9, 7, 1)), "colour": np.ones((9, 7, 3))})
    assert strip.shape[1] == 2 * 7 + 4 and strip.shape[2] == 3 and strip[-1, 0, 0] == 0 and strip[-1, -1, 0] == 255


@pytest.mark.parametrize("name, expected", [("a.jpg", np.uint8), ("a.png", np.uint8), ("a.tif", np.float32)])
def test_what_is_above_white_is_cut_in_photographs_alone(name, expected):
    noisy = np.random.default_rng(0).integers(100, 256, (32, 32, 3)) / np.float32(255)
    source = SimpleNamespace(path=Path(name), header=SimpleNamespace(dtype=np.dtype(np.uint8)))
    sample = SimpleNamespace(noisy=noisy, white=255.0, level=None)
    assert file_type(source, sample, noisy + np.float32(0.1), "auto") == expected


@pytest.mark.parametrize("noise, kind, most", [(3, "u2", 2000), (3, "u1", 200), (30, "u2", 2000), (3, "u2", 60000)])
def test_whole_numbers_are_kept_where_rounding_does_no_harm(noise, kind, most):
    """The error of rounding, 0.29, counts beside noise of 3 in frames of 12 bits; not in photographs."""
    random = np.random.default_rng(0)
    clean = np.linspace(most / 2, most, 64 * 64).reshape(64, 64, 1)
    unit = float(np.iinfo(kind).max)
    noisy = (clean + noise * random.standard_normal(clean.shape)).clip(0, unit).round() / unit
    source = SimpleNamespace(path=Path("a.tif"), header=SimpleNamespace(dtype=np.dtype(kind)))
    sample = SimpleNamespace(noisy=noisy.astype(np.float32), white=unit, level=None)
    found = file_type(source, sample, (clean / unit).astype(np.float32), "auto")
    assert found == (np.float32 if (noise, kind, most) == (3, "u2", 2000) else np.dtype(kind))
