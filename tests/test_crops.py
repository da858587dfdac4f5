"""Crops are functions of (seed, sample), however they are batched and wherever the images lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.crops import Crops, DiskPool, ImagePool, draw_crops
from data.training import add_noise_once, look_at
from models.noise.hg import Hg
from tests.helpers import pool


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crops_are_the_symmetries_of_the_image_part(channels, dtype):
    images, p = pool(channels, dtype)
    for symmetry in range(8):
        where = Crops(*(np.array([v]) for v in (2, 7, 1, symmetry)))
        crop = p.crops(where, 12)[0].permute(1, 2, 0).numpy()
        expected = images[2][7:19, 1:13].astype(np.float32) / 255
        rows, columns = (2, 1) if symmetry & 4 else (1, 2)
        expected = expected[:: -1 if symmetry & rows else 1, :: -1 if symmetry & columns else 1]
        expected = expected.transpose(1, 0, 2) if symmetry & 4 else expected
        np.testing.assert_allclose(crop, expected, atol=1e-6)


def test_crops_depend_on_the_sample_alone():
    sizes = np.array([[20, 31], [16, 16], [40, 18]])
    whole = draw_crops(sizes, np.arange(30), 16, (5,))
    parts = [draw_crops(sizes, np.arange(a, a + 6), 16, (5,)) for a in range(0, 30, 6)]
    for name in ("image", "top", "left", "symmetry"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in parts]))
    assert (np.sort(whole.image.reshape(-1, 3)) == [0, 1, 2]).all()  # each pass visits each image once
    assert len({tuple(i) for i in whole.image.reshape(-1, 3)}) > 1  # in changing order
    assert not np.array_equal(whole.top, draw_crops(sizes, np.arange(30), 16, (6,)).top)


def test_crops_are_uniform():
    sizes = np.array([[20, 20]])
    crops = draw_crops(sizes, np.arange(8000), 16, (0,))
    for values, count in ((crops.top, 5), (crops.left, 5), (crops.symmetry, 8)):
        share = np.bincount(values, minlength=count) / len(values)
        assert len(share) == count and abs(share - 1 / count).max() < 0.02


@pytest.mark.parametrize("mode", ["gray", "color"])
@pytest.mark.parametrize("white_level", [None, 200.0])
@pytest.mark.parametrize("kind", ["bytes", "mixed"])
def test_pools_agree(mode, white_level, kind, mixed):
    """Values, types and strides: a convolution may choose its algorithm by them."""
    files = sorted(mixed.glob("*.png" if kind == "bytes" else "*"))
    images = look_at(files, mode, white_level)
    held = images.decode()
    np.testing.assert_array_equal(images.sizes, held.sizes)
    # where one is float32, all are
    assert images.memory() == sum(array.nbytes for array in held.arrays) or kind == "mixed"
    assert images.memory(1) == sum(5 * array.size if images.as_bytes else 8 * array.size for array in held.arrays)
    where = draw_crops(images.sizes, np.arange(40), 16, (3,))
    pools = [held.pool(), images.pool()]
    assert (
        isinstance(pools[0], ImagePool)
        and isinstance(pools[1], DiskPool)
        and len(pools[0]) == len(pools[1]) == len(files)
    )
    for memory, disk in (pools, [add_noise_once(p, Hg(alpha=(0.1, 0.2), delta=(0, 0.1)), seed=1) for p in pools]):
        for one, two in (
            (memory.cut(where, 16), disk.cut(where, 16)),
            (memory.crops(where, 16), disk.crops(where, 16)),
            (memory.image(2), disk.image(2)),
        ):
            assert torch.equal(one, two) and one.dtype == two.dtype and one.stride() == two.stride()
