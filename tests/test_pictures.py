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


@pytest.mark.parametrize("name, expected", [("a.jpg", np.uint8), ("a.png", np.float32)])
def test_what_is_above_white_is_cut_in_photographs_alone(name, expected):
    noisy = np.random.default_rng(0).integers(200, 256, (32, 32, 3)) / np.float32(255)
    source = SimpleNamespace(path=Path(name), header=SimpleNamespace(dtype=np.dtype(np.uint8)))
    sample = SimpleNamespace(noisy=noisy, unit=255.0, level=None)
    assert file_type(source, sample, noisy + np.float32(0.1), "auto") == expected
