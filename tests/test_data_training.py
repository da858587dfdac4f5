"""The images of a training: split, made noisy once, compared with those of an earlier start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.images import to_float
from data.training import Images, add_noise_once, digest, disjoint, hold_out, look_at
from models.noise.awgn import Awgn
from tests.helpers import pool
from utils import device
from utils.errors import UsageError

AWGN = Awgn(sigma=(25 / 255,) * 2)


def test_noise_is_drawn_once_per_image():
    _, p = pool()
    noisy = [add_noise_once(p, AWGN, seed=3) for _ in range(2)]
    assert torch.equal(noisy[0].pixels, noisy[1].pixels)
    assert not torch.equal(noisy[0].pixels, add_noise_once(p, AWGN, seed=4).pixels)
    n = noisy[0].image(1) - p.image(1)
    assert 15 < 255 * n.std() < 35 and noisy[0].image(1).min() < 0  # not clipped


def test_held_out_images_are_not_trained_on(tmp_path):
    images = Images([tmp_path / str(k) for k in range(20)], [np.full((4, 4, 1), k, np.uint8) for k in range(20)])
    train, held = hold_out(images, 0.1, seed=0)
    assert len(train) == 18 and len(held) == 2 and not set(train.files) & set(held.files)
    assert len(hold_out(images.subset(range(7)), 0.1, seed=0)[1]) == 0
    assert hold_out(images, 0.1, seed=1)[1].files != held.files


def test_stage_2_sets_share_no_content(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    for k in range(10):
        (folders[0] / f"{k}.png").write_bytes(bytes([k]))
        (folders[1] / f"copy{k + 5}.png").write_bytes(bytes([k + 5]))  # 5..14, of which 5..9 are in a under other names
    a, b = (sorted(f.iterdir()) for f in folders)
    clean, noisy = disjoint(a, b, seed=0, flag="--noisy")
    contents = [{f.read_bytes() for f in files} for files in (clean, noisy)]
    assert not contents[0] & contents[1] and len(contents[0] | contents[1]) == 15
    clean, noisy = disjoint(a, a, seed=0, flag="--noisy")
    assert len(clean) == len(noisy) == 5 and not set(clean) & set(noisy)
    assert disjoint(a, a, seed=1, flag="--noisy")[0] != clean
    with pytest.raises(UsageError, match="same single picture"):
        disjoint(a[:1], a[:1], seed=0, flag="--noisy")


def test_needed_memory(pictures):
    images = look_at(sorted((pictures / "color").iterdir()), "color", None)
    values = 10 * 37 * 40 * 3
    assert images.memory() == values and images.memory(float_copies=1) == 5 * values
    assert look_at(images.files, "gray", 255.0).memory() == 4 * values // 3
    cpu = torch.device("cpu")
    assert 2**20 < device.free_memory(cpu) < 2**50
    assert device.free_memory(cpu, 4) < device.free_memory(cpu, 2) < device.free_memory(cpu)


def test_digests(folder):
    files = sorted(folder.iterdir())
    on_disk = look_at(files, "gray", None)
    held = on_disk.decode()
    assert digest(held) == digest(on_disk, digest(held)) != digest(held.subset([1, 0, *range(2, 10)]))
    assert digest(on_disk).startswith("files:") and digest(on_disk) == digest(held, digest(on_disk)) != digest(
        on_disk.subset([1, 0, *range(2, 10)])
    )
    pixels = to_float(held.arrays[3])
    pixels[0, 0] = 1 - pixels[0, 0]
    held.arrays[3] = pixels
    assert digest(held) != digest(on_disk, digest(held))
