"""scripts/texture_study.py takes the square with the most texture, and counts what the checks say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import camera

from scripts import texture_study as study
from tests.test_checks import grass


def test_the_square_with_the_most_texture_is_taken(rng):
    x = torch.full((1, 256, 320), 0.4, dtype=torch.float64)
    x[:, 32:192, 96:256] = grass(rng)[:, :160, :160]
    assert torch.equal(study.most_textured(x, 160), x[:, 32:192, 96:256])


def test_texture_and_noise_are_counted(rng):
    flat = torch.full((1, 160, 160), 0.4, dtype=torch.float64)
    noise = study.blurred_noise(flat, 1.0, rng)
    assert float(noise.std()) == pytest.approx(1)
    assert study.taken_for_texture(flat + 15 / 255 * noise) == [False]
    assert study.taken_for_texture(flat + 15 / 255 * torch.randn(flat.shape, generator=rng, dtype=flat.dtype)) == []
    assert study.taken_for_texture(grass(rng)) == [True]


def test_the_table_has_a_line_for_gray_and_for_colour(tmp_path, capsys):
    Image.fromarray(camera()[:192, :192]).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "small.png")
    assert study.main(["--data", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["texture", "gray", "color"]
