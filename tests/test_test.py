"""test.py: the images it takes, what it measures, what it writes."""

from __future__ import annotations

import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.helpers import LEVELS, TINY, ok, real_data


def test_noisy_images_with_clean_references(run, pictures, tmp_path):
    noisy = tmp_path / "noisy"
    shutil.copytree(pictures / "gray", noisy)
    out = ok(run("test", f"--data {noisy} --clean {pictures}/gray"))
    assert "noisy" in out and "inf" not in out


def test_clean_references_of_equal_names_go_in_order(run, pictures, tmp_path):
    for k in range(2):
        for folder in ("noisy", "clean"):
            (tmp_path / f"{folder}{k}").mkdir()
            shutil.copy(pictures / "gray" / f"{2 * k}.png", tmp_path / f"{folder}{k}" / "same.png")
    line = (
        f"--data {tmp_path}/noisy0 {tmp_path}/noisy1 --clean {tmp_path}/clean0 {tmp_path}/clean1 "
        f"--json {tmp_path}/r.json"
    )
    ok(run("test", line))
    assert [row["noisy"]["ssim"] for row in json.loads((tmp_path / "r.json").read_text())["images"]] == [1, 1]


def test_clean_images_of_other_names_are_paired_in_order(run, pictures, tmp_path):
    for name in "ab":
        shutil.copy(pictures / "gray" / f"{'ab'.index(name)}.png", tmp_path / f"{name}.png")
    line = f"--data {tmp_path}/a.png {tmp_path}/b.png --clean {pictures}/gray/0.png {pictures}/gray/1.png"
    _, _, err = run("test", line)
    assert "pairs are made in order: a.png with 0.png .. b.png with 1.png" in err
    code, _, err = run("test", f"--data {tmp_path}/a.png --clean {tmp_path}/a.png")
    assert code == 2 and "a.png is an image of --data too" in err


def test_one_clean_image_may_be_that_of_several(run, pictures, tmp_path):
    clean = pictures / "gray" / "0.png"
    shutil.copy(clean, tmp_path / "a.png")
    shutil.copy(clean, tmp_path / "b.png")
    ok(run("test", f"--data {tmp_path}/a.png {tmp_path}/b.png --clean {clean} {clean} --json {tmp_path}/r.json"))
    assert [row["noisy"]["ssim"] for row in json.loads((tmp_path / "r.json").read_text())["images"]] == [1, 1]


def test_noisy_input_alone(run, pictures, tmp_path):
    ok(run("test", f"--data {pictures}/gray {LEVELS['awgn']} --json {tmp_path}/r.json"))
    table = json.loads((tmp_path / "r.json").read_text())
    assert list(table["mean"]) == ["noisy"] and table["mean"]["noisy"]["psnr"] == pytest.approx(20.17, abs=0.3)


def test_several_checkpoints_of_a_kind_are_told_apart(run, pictures, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        ok(run("train_dbsn", f"--name {name} --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1 --seed {seed}"))
    ok(run("test", f"--checkpoint a b --data {pictures}/gray/0.png {LEVELS['awgn']} --json {tmp_path}/r.json"))
    assert list(json.loads((tmp_path / "r.json").read_text())["mean"]) == [
        "noisy",
        "mu a",
        "posterior a",
        "mu b",
        "posterior b",
    ]


def test_a_checkpoint_that_is_named_twice_is_used_once(run, models, pictures, tmp_path):
    line = (
        f"--checkpoint {models}/s1 {models}/s1 --data {pictures}/gray/0.png {LEVELS['awgn']} --json {tmp_path}/r.json"
    )
    ok(run("test", line))
    table = json.loads((tmp_path / "r.json").read_text())
    assert list(table["mean"]) == ["noisy", "mu", "posterior"] and len(table["models"]) == 1


def test_the_map_of_the_noise_is_that_of_stage_1(run, models, pictures, tmp_path):
    maps = {}
    for checkpoints in ("s1", "s1 s2", "s2 s1", "s2"):
        named, folder = (
            " ".join(f"{models}/{name}" for name in checkpoints.split()),
            tmp_path / checkpoints.replace(" ", ""),
        )
        ok(run("test", f"--checkpoint {named} --data {pictures}/gray/0.png --save {folder}"))
        maps[checkpoints] = [cv2.imread(str(file), 0) for file in folder.glob("*_level.png")]
    assert not maps.pop("s2")
    assert len({image.tobytes() for (image,) in maps.values()}) == 1


def test_noise_does_not_change_the_contrast_of_what_is_shown(run, pictures, tmp_path):
    """At AWGN 75 a picture reaches far beyond 0 and 1; beside it the clean one is shown as it is."""
    ok(run("test", f"--data {pictures}/gray/0.png --noise awgn --sigma 75 --save {tmp_path}/out"))
    shown, clean = (cv2.imread(str(f), 0) for f in (tmp_path / "out" / "0_all.png", pictures / "gray" / "0.png"))
    assert (shown[-len(clean) :, -clean.shape[1] :] == clean).all()


def test_bad_images_are_skipped_on_request(run, models, pictures, tmp_path):
    shutil.copytree(models / "s1", tmp_path / "s1")
    shutil.copytree(pictures / "gray", tmp_path / "images")
    data = (tmp_path / "images" / "2.png").read_bytes()
    (tmp_path / "images" / "2.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "images" / "3.png").write_text("no picture")
    shutil.copy(pictures / "color" / "0.png", tmp_path / "images" / "colour.png")
    line = f"--checkpoint s1 --data {tmp_path}/images {LEVELS['awgn']} --json {tmp_path}/r.json"
    assert run("test", line)[0] == 2 and not (tmp_path / "r.json").exists()
    code, _, err = run("test", f"{line} --on-bad skip")
    assert (
        code == 1 and "3 of 11 images were skipped" in err and all(n in err for n in ("2.png", "3.png", "colour.png"))
    )
    table = json.loads((tmp_path / "r.json").read_text())
    assert len(table["images"]) == 8 and len(table["skipped"]) == 3
    code, _, err = run("test", f"--checkpoint s1 --data {tmp_path}/images/3.png {LEVELS['awgn']} --on-bad skip")
    assert code == 1 and "none of the 1 images" in err


def test_results_do_not_depend_on_the_scale_of_a_file(run, tmp_path):
    """The same picture at full scale, in a small part of 16 bits, and as small floats gives one result.

    Each result is in its own units.
    """
    picture = np.random.default_rng(0).uniform(0.3, 0.7, (40, 40))
    picture[20:30, 20:30] = 1.0
    files = {
        "full": (picture * 40000).astype(np.uint16),
        "dim": (picture * 600).astype(np.uint16),
        "float": (picture * 0.01).astype(np.float32),
    }
    (tmp_path / "in").mkdir()
    for name, pixels in files.items():
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", pixels)
    ok(run("test", f"--checkpoint gray-awgn-blind-full --data {tmp_path}/in --save {tmp_path}/out"))
    full, dim, small = (tifffile.imread(tmp_path / "out" / f"{name}_denoised.tif").astype(float) for name in files)
    np.testing.assert_allclose(dim / 600, full / 40000, atol=0.01)
    np.testing.assert_allclose(small / 0.01, full / 40000, atol=4e-3)


def test_noise_that_a_checkpoint_was_not_trained_on_is_told(run, tmp_path):
    rng = np.random.default_rng(0)
    notes = {}
    for level in (2, 25, 80):
        tifffile.imwrite(
            tmp_path / "a.tif", (0.45 + rng.normal(0, level / 255, (60, 60))).clip(-0.4, 1.4).astype(np.float32)
        )
        code, _, notes[level] = run(
            "test", f"--checkpoint gray-awgn-blind --data {tmp_path}/a.tif --save {tmp_path}/out --white-level 1"
        )
        assert code == 0
    assert (
        re.search(r"a.tif: noise of [12]\b", notes[2])
        and "gray-awgn-blind was trained on 5 to 55 (of 255, white); a --white-level" in notes[2]
    )
    assert (
        "trained on" not in notes[25]
        and re.search(r"a.tif: noise of [78]\d,", notes[80])
        and "--white-level" not in notes[80]
    )


def test_colour_weights_on_a_gray_picture_are_told(run, tmp_path):
    y = np.random.default_rng(0).normal(120, 25, (64, 64, 1)).clip(0, 255).astype(np.uint8)
    for name, image in (("equal", y.repeat(3, 2)), ("green", y * np.array([0, 1, 0], np.uint8))):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        line = f"--data {tmp_path}/{name}.png --save {tmp_path}/out"
        _, _, notes = run("test", f"--checkpoint color-hg-blind-full {line}")
        assert "show one gray picture" in notes and "use gray-hg-blind-full with --mode gray" in notes
        _, _, notes = run("test", f"--checkpoint gray-hg-blind-full --mode gray {line}")
        assert "one gray picture" not in notes
        assert np.asarray(Image.open(tmp_path / "out" / f"{name}_denoised.png")).mean() == pytest.approx(y.mean(), 0.01)


def test_noise_that_text_hides_is_told(run, tmp_path):
    y = np.random.default_rng(0).normal(120, 25, (120, 160)).clip(0, 255).astype(np.uint8)
    y[:40] = 30
    cv2.putText(y, "Scale 10 um", (5, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 230, 2, cv2.LINE_AA)
    Image.fromarray(y).save(tmp_path / "a.png")
    _, _, notes = run("test", f"--checkpoint gray-awgn-blind --data {tmp_path}/a.png --save {tmp_path}/out")
    assert "parts without any, such as text, hide it: use a student" in notes


def test_images_of_the_same_name_are_told_apart(run, pictures, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shutil.copy(pictures / "gray" / "0.png", tmp_path / folder / "0.png")
    ok(run("test", f"--data {tmp_path}/a {tmp_path}/b {LEVELS['awgn']} --json {tmp_path}/r.json"))
    assert [row["name"] for row in json.loads((tmp_path / "r.json").read_text())["images"]] == [
        f"{tmp_path}/{f}/0.png" for f in "ab"
    ]


def test_eight_bits_do_not_take_a_deep_checkpoints_white_level(run, pictures, tmp_path):
    (tmp_path / "in").mkdir()
    for file in (pictures / "gray").iterdir():
        tifffile.imwrite(tmp_path / "in" / f"{file.stem}.tif", np.asarray(Image.open(file)).astype(np.uint16) * 16)
    ok(run("train_dbsn", f"--name a --noisy {tmp_path}/in --noise hg --white-level 4095 {TINY} --steps 1"))
    code, _, err = run("test", f"--checkpoint a --data {pictures}/gray --save {tmp_path}/out")
    assert code == 2 and "--white-level" in err and "4095" in err
    ok(run("test", f"--checkpoint a --data {pictures}/gray --save {tmp_path}/out --white-level 255"))


def test_outputs_that_cannot_be_created(run, pictures, tmp_path):
    (tmp_path / "file").touch()
    for flag in (f"--json {tmp_path}/file/r.json", f"--save {tmp_path}/file/out"):
        code, _, err = run("test", f"--data {pictures}/gray {LEVELS['awgn']} {flag}")
        assert code == 1 and flag.split()[0] in err and err.startswith("error:")


def test_outputs_never_replace_images(run, tmp_path):
    """A page, a table or a plot may have the name of a picture by mistake."""
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(90, 160, (72, 72), np.uint8))
    (tmp_path / "b.json").symlink_to(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    for flags in ("--report a.png", "--json a.png", "--json b.json", "--report a.txt"):
        flag, name = flags.split()
        files = f"--data {tmp_path}/a.png --save {tmp_path}/out {flag} {tmp_path}/{name}"
        code, _, err = run("test", f"--checkpoint gray-hg-blind-full {files}")
        assert code == 2 and f"{flag} {tmp_path}/{name}" in err
    assert (tmp_path / "a.png").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} <= {"a.png", "b.json", "out"}


def test_noisy_and_clean_photographs_are_paired_by_patterns(run, tmp_path):
    """CC's names: .._real.png and .._mean.png; the clean image of each noisy one is found by the order of names."""
    random = np.random.default_rng(0)
    for k in range(3):
        clean = random.integers(40, 200, (12, 14, 3))
        Image.fromarray(clean.astype(np.uint8)).save(tmp_path / f"camera_{k}_mean.png")
        Image.fromarray((clean + k + 1).astype(np.uint8)).save(tmp_path / f"camera_{k}_real.png")
    ok(run("test", f"--data {tmp_path}/*_real.png --clean {tmp_path}/*_mean.png --json {tmp_path}/r.json"))
    rows = json.loads((tmp_path / "r.json").read_text())["images"]
    assert [row["noisy"]["psnr"] for row in rows] == pytest.approx(
        [20 * np.log10(255 / (k + 1)) for k in range(3)], abs=1e-3
    )


@pytest.mark.slow
def test_noisy_input_of_cc(run, tmp_path):
    ok(run("test", f"--data cc15 --clean cc15_clean --data-root {real_data('cc15')} --json {tmp_path}/r.json"))
    table = json.loads((tmp_path / "r.json").read_text())
    assert len(table["images"]) == 15 and table["mean"]["noisy"]["psnr"] == pytest.approx(33.41, abs=0.005)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--data P/gray --noise awgn --sigma 25 --seed 7", "--seed"),
        ("--checkpoint nowhere --data P/gray --noise awgn --sigma 25", "no checkpoint"),
        ("--checkpoint s1 --data P/color --noise awgn --sigma 25", "--mode gray"),
        ("--checkpoint s1 --data P/gray --mode color --noise awgn --sigma 25", "--mode"),
        ("--checkpoint s1 --data P/gray --noise awgn --sigma 5 55", "range"),
        ("--checkpoint s1 --data P/gray", "--save"),
        ("--checkpoint s1 --data P/gray --save P/gray", "overwritten"),
        ("--data P/gray --noise mg", "colour"),
        ("--data P/gray --protocol published", "--noise"),
        ("--data P/gray --clean P/gray/0.png", "one clean image for each"),
        ("--data P/gray/0.png --clean P/color/0.png", "same picture"),
        ("--checkpoint P/gray/0.png --data P/gray --noise awgn --sigma 25", "0.png"),
    ],
)
def test_wrong_use_ends_in_one_line(line, words, wrong_use):
    wrong_use("test", line, words)


def test_noise_of_files_is_told_in_their_own_values(run, tmp_path):
    random = np.random.RandomState(0)
    image = 1000 + 40 * np.sin(np.arange(96) / 9)[:, None] + random.normal(0, 12, (96, 96))
    tifffile.imwrite(tmp_path / "a.tif", image.astype(np.uint16))
    line = f"--checkpoint gray-awgn-blind --data {tmp_path}/a.tif --save {tmp_path}/out --json {tmp_path}/r.json"
    out = ok(run("test", line))
    (found,) = re.findall(r"^a\.tif +(\S+)$", out, re.M)
    assert float(found) == pytest.approx(12, rel=0.1) and "file values" in out
    level = json.loads((tmp_path / "r.json").read_text())["images"][0]["noise_level"]
    assert level["in_file"] == pytest.approx(level["estimated"] / 255 * 65535) == pytest.approx(float(found), rel=1e-3)


def test_a_name_that_is_no_text_is_escaped(run, models, tmp_path):
    """Names are bytes on Linux. Output in UTF-8 cannot hold all of them."""
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"a\xff.png")
    Image.fromarray(np.full((20, 20), 90, np.uint8)).save(tmp_path / "in" / name)
    line = f"--checkpoint {models}/s2/last.safetensors --data {tmp_path}/in --save {tmp_path}/out"
    out = ok(run("test", f"{line} --json {tmp_path}/r.json"))
    assert "a\\udcff.png" in out
    assert json.loads((tmp_path / "r.json").read_text())["images"]
    assert (tmp_path / "out" / os.fsdecode(b"a\xff_denoised.png")).is_file()


def test_wide_integers_have_no_usual_white(run, pictures, tmp_path):
    """A noise level that is learned holds for a scale, and white is not the greatest of 32 bits."""
    noisy = np.asarray(Image.open(next((pictures / "gray").iterdir())))
    tifffile.imwrite(tmp_path / "a.tif", noisy.astype(np.int32))
    line = f"--clean {pictures}/gray {LEVELS['awgn']} --sigma-n constrained --units white {TINY} --steps 1"
    ok(run("train_dbsn", f"--name learned {line}"))
    code, _, err = run("test", f"--checkpoint learned --data {tmp_path}/a.tif --save {tmp_path}/out")
    assert code == 2 and "a.tif holds int32 values" in err and "--white-level" in err
    ok(run("test", f"--checkpoint learned --data {tmp_path}/a.tif --save {tmp_path}/out --white-level 255"))
