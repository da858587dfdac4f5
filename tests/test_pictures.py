"""Pictures of results."""

from __future__ import annotations

import numpy as np

from data.pictures import side_by_side


def test_side_by_side():
    strip = side_by_side({"gray": np.zeros((9, 7, 1)), "colour": np.ones((9, 7, 3))})
    assert strip.shape[1] == 2 * 7 + 4 and strip.shape[2] == 3 and strip[-1, 0, 0] == 0 and strip[-1, -1, 0] == 255
