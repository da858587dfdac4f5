"""The images of a test."""

from __future__ import annotations

from pathlib import Path

from data.inputs import output_names


def test_output_names_are_unique_and_stay_in_their_folder(tmp_path):
    files = [tmp_path / f for f in ("a/x.png", "b/x.png", "c/y.png", "b/x.tif", "x_2.png", "..png")]
    names = output_names(files)
    assert len(set(names)) == len(names) and names[2] == "y"
    for name in names:
        assert (tmp_path / "out" / f"{name}_all.png").resolve().parent == (tmp_path / "out").resolve()


def test_output_names_tell_files_apart():
    files = [Path(f) for f in ("a/x.png", "b/x.png", "b/x.tiff", "b/y.png", "b/y.PNG", "b/z.png")]
    assert output_names(files) == ["a_x", "b_x_png", "x_tiff", "y_png", "y_PNG", "z"]
