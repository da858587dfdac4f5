"""The images of a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.inputs import Input, keep_inputs, output_names, white_of_floats
from utils.errors import UsageError


def test_output_names_are_unique_and_stay_in_their_folder(tmp_path):
    files = [tmp_path / f for f in ("a/x.png", "b/x.png", "c/y.png", "b/x.tif", "x_2.png", "..png", "_z.png")]
    names = output_names(files)
    assert len(set(names)) == len(names) and names[2] == "y" and names[-1] == "_z"
    for name in names:
        assert (tmp_path / "out" / f"{name}_all.png").resolve().parent == (tmp_path / "out").resolve()


def test_output_names_tell_files_apart():
    files = [Path(f) for f in ("a/x.png", "b/x.png", "b/x.tiff", "b/y.png", "b/y.PNG", "b/z.png")]
    assert output_names(files) == ["a_x", "b_x_png", "x_tiff", "y_png", "y_PNG", "z"]


def test_output_names_fit_into_file_systems():
    files = [Path(f"{'ä' * 120}{k}.png") for k in range(2)] + [Path(f"{'a' * 240}.png/{'a' * 240}_page0002.tif")]
    names = output_names(files)
    assert len(set(names)) == 3 and all(len(name.encode()) <= 200 for name in names) and names[2].endswith("_page0002")


def test_units_of_clean_floats():
    random, ramp = np.random.RandomState(0), np.linspace(0, 1, 64 * 64).reshape(64, 64)
    flat = np.full((64, 64), 0.1)
    assert white_of_floats(flat, random.poisson(flat) / 65535, 65535) == 65535  # photons, a few in each pixel
    assert white_of_floats(flat, flat + 0.01, 65535) == 1
    assert white_of_floats(np.zeros((64, 64)), np.zeros((64, 64)), 65535) == 1
    assert white_of_floats(10 * ramp, random.poisson(10 * ramp) / 65535, 65535) == 65535
    noisy = ramp + random.normal(0, 0.3, ramp.shape)
    assert white_of_floats(ramp, noisy, 65535) == white_of_floats(ramp, noisy, 4095) == 1
    assert white_of_floats(4095 * ramp, noisy, 4095) == 4095
    assert white_of_floats(ramp, noisy * 4095 / 65535, 65535) is None  # 12 bits in a file of 16
    assert white_of_floats(0.02 * ramp, (0.02 * ramp + 0.3 * (noisy - ramp)).clip(0), 255) == 1  # dark, cut off


@pytest.mark.parametrize("output", ["noisy", "clean", "clean/a.png"])
def test_outputs_replace_no_image(output, tmp_path):
    for folder in ("noisy", "clean"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"")
    file = tmp_path / "noisy" / "a.png"
    source = Input(file, file, None, tmp_path / "clean" / "a.png", "a", "a")
    keep_inputs([source], {"--save": tmp_path / "out", "--json": tmp_path / "noisy" / "a.json", "--report": None})
    with pytest.raises(UsageError, match="the images themselves; give"):
        keep_inputs([source], {"--save": tmp_path / output})
