"""Which files a spec names, and what is said of one that names none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import image_header
from data.inputs import matching
from data.sets import SETS, SKIMAGE_SETS, SKIMAGE_TEST, SKIMAGE_TRAIN, content_hash, find_images
from tests.helpers import ok
from utils.errors import UsageError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(specs, *args):
    return [file.name for file in find_images(specs, *args)]


def test_folder(tmp_path):
    touch(
        tmp_path,
        "b.png",
        "B.png",
        "10.png",
        "9.png",
        "a.JPG",
        ".hidden.png",
        "notes.txt",
        "sub/c.png",
        "folder.png/d.png",
    )
    assert names(str(tmp_path)) == ["10.png", "9.png", "B.png", "a.JPG", "b.png"]
    assert names(str(tmp_path / "*")) == names(str(tmp_path))  # neither hidden files nor folders, and images only
    assert names(str(tmp_path / "**" / "*.png")) == ["10.png", "9.png", "B.png", "b.png", "d.png", "c.png"]
    assert names(tmp_path / "notes.txt") == ["notes.txt"]  # who names a file means it


def test_pictures_of_other_types_are_told(tmp_path, capsys):
    touch(tmp_path, "a.png", "b.GIF", "c.heic", "d.gif", "notes.txt")
    assert names(tmp_path) == names(tmp_path) == ["a.png"]
    told = capsys.readouterr().err
    assert told.count("note:") == 1 and "without 3 pictures of a type that is not read (.gif, .heic)" in told
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError, match=r"holds no image .*, but 3 pictures .*: convert them to PNG"):
        find_images(tmp_path)


def test_pictures_in_subfolders_are_told(tmp_path, capsys):
    touch(tmp_path, "a.png", "sub/b.png", "texts/notes.txt", ".hidden/c.png")
    assert names(tmp_path) == ["a.png"]
    told = capsys.readouterr().err
    assert told.count("note:") == 1 and "without the images in its subfolders" in told and "sub): give" in told


def test_file_named_twice_comes_once(tmp_path, monkeypatch):
    touch(tmp_path, "x/a.png", "x/b.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "x" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert names(["x/b.png", "./x/../x/b.png", str(tmp_path / "x"), "link.png"]) == ["b.png", "a.png"]


def test_brackets_in_a_name_are_no_pattern_where_it_exists(tmp_path):
    touch(tmp_path, "[x]/a[1].png")
    assert names(str(tmp_path / "[x]")) == names(str(tmp_path / "[x]" / "a[1].png")) == ["a[1].png"]


def test_word_is_the_set_and_path_is_the_folder(tmp_path, monkeypatch):
    touch(tmp_path, "root/bsd68/set.png", "bsd68/mine.png")
    monkeypatch.chdir(tmp_path)
    assert names("bsd68", tmp_path / "root") == ["set.png"]
    assert names("./bsd68", tmp_path / "root") == ["mine.png"]


def test_root(tmp_path, monkeypatch):
    touch(tmp_path, "one/set12/a.png", "two/set12/b.png")
    monkeypatch.setenv("DBSN_DATA", str(tmp_path / "one"))
    assert names("set12") == ["a.png"]
    assert names("set12", tmp_path / "two") == ["b.png"]  # the flag before the environment


def test_noisy_and_clean_halves(tmp_path):
    touch(tmp_path, *(f"polyu/{scene}_{kind}.JPG" for scene in ("x_1", "x_11", "x_2") for kind in ("real", "mean")))
    assert names("polyu", tmp_path) == ["x_11_real.JPG", "x_1_real.JPG", "x_2_real.JPG"]
    assert names("polyu_clean", tmp_path) == ["x_11_mean.JPG", "x_1_mean.JPG", "x_2_mean.JPG"]  # in the same order


@pytest.mark.parametrize(
    ("noisy", "clean"), [("_real.JPG", "_mean.JPG"), ("_Real.JPG", "_mean.JPG"), ("_Real.JPG", "mean.JPG")]
)
def test_both_namings_of_polyu_pair_up(noisy, clean, tmp_path):
    scenes = ("Canon5D2_bag_1", "Canon5D2_bag_10", "Canon5D2_bag_2", "Nikon_D800_desk")
    touch(tmp_path, *(f"polyu/{scene}{end}" for scene in scenes for end in (noisy, clean)), "polyu/notes.txt")
    files = find_images("polyu", tmp_path)
    found = {
        file.name: reference.name
        for file, reference in zip(files, matching(files, find_images("polyu_clean", tmp_path)))
    }
    assert found == {f"{scene}{noisy}": f"{scene}{clean}" for scene in scenes}


@pytest.mark.parametrize(("name", "noisy", "clean"), [("cc15", "real", "mean"), ("fmd24", "noisy", "clean")])
def test_results_of_noisy_sets_are_measured_against_their_clean_partners(name, noisy, clean, run, tmp_path):
    """By the protocol of FMD: results rounded to 8 bits, PSNR with 255 as its peak."""
    (tmp_path / name).mkdir()
    for scene, error in (("A_1", 3), ("A_10", 5), ("A_2", 9)):
        pixels = np.full((16, 20), 100, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / f"{scene}_{clean}.png")
        Image.fromarray(pixels + np.uint8(error)).save(tmp_path / name / f"{scene}_{noisy}.png")
    ok(run("test", f"--data {name} --clean {name}_clean --data-root {tmp_path} --json {tmp_path}/r.json"))
    rows = json.loads((tmp_path / "r.json").read_text())["images"]
    assert [row["name"] for row in rows] == [f"A_{k}_{noisy}.png" for k in (10, 1, 2)]
    expected = [20 * np.log10(255 / error) for error in (5, 3, 9)]
    assert [row["noisy"]["psnr_uint8"] for row in rows] == pytest.approx(expected, abs=1e-3)


def test_embedded_photographs():
    assert not set(SKIMAGE_TRAIN) & set(SKIMAGE_TEST)
    for file in find_images(list(SKIMAGE_SETS)):
        header = image_header(file)
        assert min(header.height, header.width) >= 300 and header.dtype == "uint8"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "is needed"),
        ("a\0b", "is needed"),
        ("nowhere/", "no such file"),
        ("new\nline", r"new\\nline"),
        ("./no such file", "no such file"),
        ("bsd86", "did you mean bsd68"),
        ("KODAK24", "did you mean kodak24"),
        ("zzzzzz", "the sets are bsd68"),
        ("*.nothing", "matches no image"),
        ("texts", "holds no image"),
        ("nested", r"its subfolders do: .*nested/\*\*/\*"),
        *((name, "DBSN_DATA") for name in SETS),
    ],
)
def test_nothing_there(spec, words, tmp_path, monkeypatch):
    touch(tmp_path, "texts/a.txt", "nested/deep/a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        find_images(spec, tmp_path / "root", "--clean")
    message = str(caught.value)
    assert message.startswith("--clean ") and message.isprintable()
    if spec in SETS:
        assert str(tmp_path / "root" / SETS[spec].folder) in message and "--data-root" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission(tmp_path):
    (tmp_path / "x").mkdir(mode=0)
    with pytest.raises(UsageError, match="Permission denied"):
        find_images(str(tmp_path / "x"))


def test_content_hash(tmp_path):
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (content_hash(tmp_path / name) for name in "abc")
    assert a == b != c and a == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    with pytest.raises(UsageError, match="does not exist"):
        content_hash(Path(tmp_path / "d"))


def test_clean_images_of_other_names_are_told():
    noisy, clean = ([Path(f"{folder}/{k}.png") for k in names] for folder, names in (("n", "123"), ("c", "234")))
    with pytest.raises(UsageError, match=r"2 of the 3 .*1\.png has none: give every pair one name"):
        matching(noisy, clean)
    assert matching(noisy, [Path(f"c/{k}.png") for k in "xyz"]) == [Path(f"c/{k}.png") for k in "xyz"]  # in order
    assert matching(noisy[:2], [Path("c/2.png"), Path("c/1.png")]) == [Path("c/1.png"), Path("c/2.png")]
