"""The images of a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.inputs import has_units_of_file, output_names


def test_output_names_are_unique_and_stay_in_their_folder(tmp_path):
    files = [tmp_path / f for f in ("a/x.png", "b/x.png", "c/y.png", "b/x.tif", "x_2.png", "..png")]
    names = output_names(files)
    assert len(set(names)) == len(names) and names[2] == "y"
    for name in names:
        assert (tmp_path / "out" / f"{name}_all.png").resolve().parent == (tmp_path / "out").resolve()


def test_output_names_tell_files_apart():
    files = [Path(f) for f in ("a/x.png", "b/x.png", "b/x.tiff", "b/y.png", "b/y.PNG", "b/z.png")]
    assert output_names(files) == ["a_x", "b_x_png", "x_tiff", "y_png", "y_PNG", "z"]


def test_units_of_clean_floats():
    counts = np.random.RandomState(0).poisson(0.1, (64, 64)) / 65535
    assert has_units_of_file(np.full((64, 64), 0.1), counts, 65535)  # photons, a few in each pixel
    assert not has_units_of_file(np.full((64, 64), 0.1), np.full((64, 64), 0.11), 65535)
    assert has_units_of_file(np.full((64, 64), 300.0), np.full((64, 64), 290 / 65535), 65535)
    assert not has_units_of_file(np.zeros((64, 64)), np.zeros((64, 64)), 65535)
