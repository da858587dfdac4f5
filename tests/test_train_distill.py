"""Stage 2: what the teacher gives the student, and a run from its start to its end."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from argparse import Namespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

import data.training
import train_distill
from data.crops import Crops, ImagePool
from data.images import write_image
from data.training import look_at
from models import MWCNN, load_model
from tests.helpers import (
    LEVELS,
    TINY,
    TINY2,
    assert_same_run,
    ok,
    pool,
    small,
    stats,
)
from train_distill import Lessons, Material
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import EXIT_RESUME


def test_targets_of_crops_lack_the_surroundings_at_their_borders(rng):
    """Images in memory are denoised whole, images on disk crop by crop.

    Further from a crop's border than the teacher looks, both give the same; nearer to it they do not. The teacher
    is one of which every result depends on the pixels around it alone.
    """
    teacher = small(noise="hg")
    radius = teacher.dbsn.receptive_radius
    pool = ImagePool([torch.rand(60, 50, 1, generator=rng).numpy() for _ in range(2)])
    opt = Namespace(patch_size=32, seed=0, streams=2, level_jitter=0.1, level_scale=1.0, pairs="learned")
    material = Material([], [], None, None, pool)
    where = Crops(*(np.array(values) for values in ([0, 1], [14, 20], [9, 11], [0, 0])))
    y = pool.crops(where, 32)
    whole, crop = (Lessons(teacher, material, whole, opt).targets(y, where) for whole in (True, False))
    inside = slice(radius, -radius)
    assert 2 * radius < 32
    torch.testing.assert_close(crop[..., inside, inside], whole[..., inside, inside], atol=1e-5, rtol=0)
    assert (crop - whole).abs().amax(1).flatten(1).max(1).values.min() > 1e-3
    assert not torch.allclose(whole, y, atol=1e-2)  # and the teacher does something


@pytest.mark.parametrize("noise", ["awgn", "poisson"])
def test_learned_and_read_noise_follow_the_samples_alone(noise, rng):
    """A crop's synthetic noise does not depend on the batch that it is in."""
    teacher = small(noise=noise, estimator="cnn" if noise == "awgn" else "residual")
    pool = ImagePool([torch.rand(30, 30, 1, generator=rng).numpy() for _ in range(3)])
    opt = Namespace(patch_size=16, seed=0, streams=2, level_jitter=0.1, level_scale=1.0, pairs="learned")
    lessons = Lessons(teacher, Material([], [], None, None, pool), True, opt)
    x = torch.rand(4, 1, 16, 16, generator=rng)
    batch = lessons.make_noisy(x, np.arange(4))
    for k in range(4):
        torch.testing.assert_close(lessons.make_noisy(x[k : k + 1], np.arange(k, k + 1))[0], batch[k])
    assert not torch.equal(batch, lessons.make_noisy(x, np.arange(4, 8)))


@pytest.mark.parametrize(("scale", "jitter"), [(1.0, 0.0), (2.0, 0.0), (0.8, 0.4)])
def test_levels_of_pairs_are_the_teachers_scaled_and_spread(scale, jitter, rng):
    """level_scale (1 +- level_jitter) times what it found, uniform between these."""
    teacher = small(estimator="residual")
    opt = Namespace(patch_size=16, seed=0, streams=2, level_jitter=jitter, level_scale=scale, pairs="learned")
    pool = ImagePool([torch.rand(30, 30, 1, generator=rng).numpy()])
    lessons = Lessons(teacher, Material([], [], None, None, pool), False, opt, [[0.1**2]])
    x = torch.rand(300, 1, 16, 16, generator=rng)
    levels = (lessons.make_noisy(x, np.arange(300)) - x).square().mean((1, 2, 3)).sqrt() / 0.1
    assert levels.mean().item() == pytest.approx(scale, rel=0.03)
    noise = 1 / np.sqrt(2 * 256)  # of a level that is measured on so many pixels
    assert levels.std().item() / scale == pytest.approx(np.hypot(jitter / np.sqrt(3), noise), rel=0.1)


def test_a_signal_before_the_first_step_ends_the_run(run, pictures, tmp_path, monkeypatch):
    ok(run("train_dbsn", f"--name s1 --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1"))
    noisy = f"--clean {pictures}/gray --synthetic-noisy {pictures}/gray {LEVELS['awgn']}"
    line = f"--name s2 --teacher s1 {noisy} {TINY2} --steps 1"
    with monkeypatch.context() as patch:
        patch.setattr(train_distill, "Lessons", lambda *_: signal.raise_signal(signal.SIGTERM))
        code, *_ = run("train_distill", line)
    assert code == EXIT_RESUME and not (tmp_path / "s2" / "last.safetensors").exists()
    ok(run("train_distill", line))
    assert (tmp_path / "s2" / "last.safetensors").is_file()


def test_student_from_a_checkpoint(run, pictures, tmp_path):
    common = f"--teacher s1 --clean {pictures}/gray --synthetic-noisy {pictures}/gray {LEVELS['awgn']}"
    ok(run("train_dbsn", f"--name s1 --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1"))
    ok(run("train_distill", f"--name s2 {common} {TINY2} --steps 1"))
    ok(run("train_distill", f"--name s3 {common} {TINY2} --steps 1 --student s2 --lr 1e-9 --ema 0 --noise-draw fresh"))
    a, b = (load_model(tmp_path / n / "last.safetensors").state_dict() for n in ("s2", "s3"))
    for k in a:
        torch.testing.assert_close(a[k], b[k], atol=1e-6, rtol=0)


def test_parts_of_the_student_that_do_nothing_are_named(run, pictures, monkeypatch):
    def starting_student(opt, teacher):
        student = MWCNN(1, 4, blocks="residual")
        student.down2[1].first.weight.data.zero_()
        return student

    monkeypatch.setattr(train_distill, "starting_student", starting_student)
    ok(run("train_dbsn", f"--name s1 --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1"))
    common = f"--teacher s1 --clean {pictures}/gray --synthetic-noisy {pictures}/gray {LEVELS['awgn']} {TINY2}"
    _, out, err = run("train_distill", f"--name s2 {common} --steps 2 --lr 1e-9")
    assert "note: down2.1.first of the student does nothing" in out + err


def test_a_student_of_colour_images_starts_one_of_gray_ones(run, pictures, tmp_path):
    noise = LEVELS["awgn"]
    for mode in ("gray", "color"):
        ok(run("train_dbsn", f"--name {mode} --mode {mode} --clean {pictures}/{mode} {noise} {TINY} --steps 1"))
    both = {m: f"--clean {pictures}/{m} --synthetic-noisy {pictures}/{m} {noise} {TINY2}" for m in ("gray", "color")}
    ok(run("train_distill", f"--name first --teacher color {both['color']} --steps 1"))
    ok(run("train_distill", f"--name second --teacher gray {both['gray']} --student first --steps 1 --lr 1e-9"))
    first, second = (load_model(tmp_path / name / "last.safetensors") for name in ("first", "second"))
    y = torch.rand(1, 1, 24, 32)
    torch.testing.assert_close(second(y), first(y.expand(1, 3, 24, 32)).mean(1, keepdim=True), atol=1e-5, rtol=0)
    code, _, err = run("train_distill", f"--name x --teacher color {both['color']} --student second --steps 1")
    assert code == 2 and "a stage-2 checkpoint for colour images" in err
    refine = f"--teacher gray --student first --noisy {pictures}/gray --refine {TINY2} --noisy-share 0 --steps 1"
    code, _, err = run("train_distill", f"--name x {refine.replace('--student-width 4', '')}")
    assert code == 2 and "a stage-2 checkpoint for gray images" in err


def test_a_student_is_revived_once(run, pictures, models, tmp_path):
    common = f"--clean {pictures}/gray --synthetic-noisy {pictures}/gray {LEVELS['awgn']} {TINY2}"
    line = f"--teacher {models}/s1 {common} --student-blocks residual --noisy-share 0 --save-every 1"
    ok(run("train_distill", f"--name first {line} --steps 1"))
    weights = load_checkpoint(tmp_path / "first" / "last.safetensors")
    off = weights.tensors["down2.1.first.weight"]
    off[:] = -off.abs() * (torch.arange(len(off)) > 0).view(-1, 1, 1, 1)  # the first unit never responds
    for name in ("down2.0.weight", "down2.0.bias"):
        weights.tensors[name].abs_()
    save_checkpoint(tmp_path / "off.safetensors", weights.kind, weights.tensors, weights.values)
    again = f"{line} --student {tmp_path}/off.safetensors --revive --steps 3"
    err = "".join(map(str, run("train_distill", f"--name whole {again}")[1:]))
    number = int(re.search(r"(\d+) units of the student were shut off, and have new weights", err)[1])
    assert number >= 1
    run("train_distill", f"--name parts {again} --max-minutes 1e-9")
    err = "".join(map(str, run("train_distill", f"--name parts {again}")[1:]))
    assert "new weights" not in err
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_students_of_shared_noise_know_it(run, pictures, tmp_path):
    """Of a teacher that knows it, or of drawn pairs; a student that goes on with other noise does not."""
    common = f"--clean {pictures}/color --synthetic-noisy {pictures}/color"
    line = f"--mode color --clean {pictures}/color {TINY} --steps 1"
    ok(run("train_dbsn", f"--name t {line} {LEVELS['camera']} --stride 2"))
    ok(run("train_distill", f"--name a --teacher t {common} {LEVELS['camera']} {TINY2} --steps 1"))
    drawn = "--pairs drawn --noisy-share 0"
    ok(run("train_dbsn", f"--name u {line} {LEVELS['hg']}"))
    ok(run("train_distill", f"--name b --teacher u {common} {LEVELS['camera']} {drawn} {TINY2} --steps 1"))
    ok(run("train_distill", f"--name c --teacher u --student b {common} {LEVELS['hg']} {TINY2} --steps 1"))
    assert [load_model(name, "cpu", tmp_path).shared_noise for name in "tabc"] == [True, True, True, False]
    assert load_model("t", "cpu", tmp_path).stride == 2


def test_clean_images_of_stage_2_have_a_white_level_of_their_own(run, pictures, models, tmp_path):
    """12 bits in 16-bit files and 8 bits: the same pictures, so the same course."""
    (tmp_path / "deep").mkdir()
    for file in (pictures / "gray").iterdir():
        tifffile.imwrite(tmp_path / "deep" / f"{file.stem}.tif", np.asarray(Image.open(file)).astype(np.uint16) * 16)
    losses = []
    for name, images in (("a", f"{pictures}/gray"), ("b", f"{tmp_path}/deep")):
        # no picture is both, as the halves of shared ones depend on the files' bytes
        named = f"--clean {images}/[0-4].* --synthetic-noisy {images}/[5-9].*"
        line = f"--name {name} --teacher {models}/s1 {named} {LEVELS['awgn']} {TINY2} --steps 2"
        ok(run("train_distill", line + " --clean-white-level 4080" * (name == "b")))
        losses.append([json.loads(text)["loss"] for text in (tmp_path / name / "stats.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 2


def test_pairs_are_recorded_as_the_noisy_files_wherever_these_are_kept(run, pictures, models, tmp_path):
    line = f"--teacher color-hg-blind --clean {pictures}/color/[0-4].* --noisy {pictures}/color/[5-9].* {TINY2}"
    line += " --read-noise camera --noisy-share 0 --steps 2"
    for images in ("memory", "disk"):
        ok(run("train_distill", f"--name {images} {line} --images {images}"))
    memory, disk = (stats(tmp_path / name) for name in ("memory", "disk"))
    assert [row["loss"] for row in memory] == [row["loss"] for row in disk]


FROM_DISK = (
    "--teacher s1 --clean {0}/gray --synthetic-noisy {0}/gray "
    + f"{LEVELS['awgn']} {TINY2} --student-blocks residual --noisy-share 0.25 --steps 5 --save-every 2"
)


@pytest.mark.parametrize("draw", ["fixed", "fresh"])
def test_stage_2_from_disk(draw, run, pictures, models, tmp_path):
    shutil.copytree(models / "s1", tmp_path / "s1")
    line = f"{FROM_DISK.format(pictures)} --noise-draw {draw}"
    for name, flags in (
        ("memory", "--images memory"),
        ("disk", "--images disk"),
        ("parts", "--images disk --max-minutes 1e-9"),
    ):
        ok(run("train_distill", f"--name {name} {line} {flags}"))
    ok(run("train_distill", f"--name parts {line} --images auto"))
    assert_same_run(tmp_path / "disk", tmp_path / "parts")
    # kept, though they would fit
    assert json.loads((tmp_path / "parts" / "options.json").read_text())["images"] == "disk"
    rows = [
        [json.loads(text) for text in (tmp_path / name / "stats.jsonl").read_text().splitlines()]
        for name in ("memory", "disk")
    ]
    assert rows[0][0]["pairs"] == rows[1][0]["pairs"]
    if draw == "fresh":  # the targets are those of crops either way
        assert_same_run(tmp_path / "memory", tmp_path / "disk")
    else:  # those of whole images in memory, of crops from disk, which lack their surroundings
        whole, crop = (row[0]["posterior"] for row in rows)
        assert whole > 0 and crop > 0 and whole != crop
    code, _, err = run("train_distill", f"--name disk {line} --images memory")
    assert code == 2 and "--images was disk, now memory" in err


@pytest.mark.parametrize(("free", "place"), [(10**12, "memory"), (10**5, "disk")])
def test_auto_takes_memory_where_the_images_fit(free, place, run, pictures, models, tmp_path, monkeypatch):
    monkeypatch.setattr(data.training, "free_memory", lambda device, processes: free)
    out = ok(
        run("train_dbsn", f"--name a --clean {pictures}/gray {LEVELS['awgn']} {TINY} --noise-draw fixed --steps 2")
    )
    assert ("read from disk as they are needed" in out) == (place == "disk")
    shutil.copytree(models / "s1", tmp_path / "s1")
    ok(run("train_distill", f"--name s2 {FROM_DISK.format(pictures)}"))
    assert json.loads((tmp_path / "s2" / "options.json").read_text())["images"] == place


PHOTO = "--pairs drawn --pairs-loss log --enlarge 1.2 3 --tones --noisy-share 0"


@pytest.mark.parametrize(("draw", "flags"), [("fixed", ""), ("fresh", ""), ("fixed", PHOTO)])
def test_stopped_and_resumed_is_never_stopped(draw, flags, run, pictures, tmp_path):
    """The teacher reads each image's noise, of which the pairs are made."""
    ok(run("train_dbsn", f"--name t --clean {pictures}/gray --noise awgn --sigma 5 55 {TINY} --steps 2"))
    line = (
        f"--teacher t --clean {pictures}/gray --synthetic-noisy {pictures}/gray {LEVELS['awgn']} {TINY2} --steps 5 "
        f"--save-every 2 --noise-draw {draw} {flags}"
    )
    ok(run("train_distill", f"--name whole {line}"))
    for step in range(1, 6):  # each start is given no time: it makes one step, saves and ends in good order
        assert f"{step} of 5 steps" in ok(run("train_distill", f"--name parts {line} --max-minutes 1e-9"))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_noise_levels_are_read_once(run, pictures, monkeypatch):
    ok(run("train_dbsn", f"--name t --clean {pictures}/gray --noise awgn --sigma 5 55 {TINY} --steps 2"))
    noisy = f"--clean {pictures}/gray --synthetic-noisy {pictures}/gray {LEVELS['awgn']} --noise-draw fresh"
    line = f"--name s2 --teacher t {noisy} {TINY2} --steps 2 --max-minutes 1e-9"
    read, calls = train_distill.noise_thetas, []
    monkeypatch.setattr(train_distill, "noise_thetas", lambda *args: calls.append(args) or read(*args))
    for step in (1, 2):
        assert f"{step} of 2 steps" in ok(run("train_distill", line))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--name a --teacher nowhere --clean P/gray --noisy P/gray", "no checkpoint"),
        ("--name a --teacher s2 --clean P/gray --noisy P/gray", "stage-2"),
        ("--name a --teacher s1 --clean P/gray --synthetic-noisy P/gray", "--noise"),
        ("--name a --teacher s1 --clean P/gray --synthetic-noisy P/gray --noise mg", "gray"),
        ("--name a --teacher s1 --clean P/gray --noisy P/gray --val P/gray", "--val"),
        (
            "--name a --teacher s1 --clean P/gray --synthetic-noisy P/gray --noise awgn --sigma 25 --white-level 9",
            "--clean-white-level",
        ),
        ("--name a --teacher s1 --clean P/gray --noisy P/gray --pairs drawn", "--pairs drawn needs --synthetic-noisy"),
        ("--name a --teacher s1 --clean P/gray --noisy P/gray --enlarge 3 2", "low end first"),
        ("--name a --teacher s1 --clean P/gray/0.png --noisy P/gray/0.png --patch-size 16", "same single picture"),
        ("--name a --teacher s1 --clean P/gray --noisy P/gray --student s1 --patch-size 16", "--student"),
    ],
)
def test_wrong_use_ends_in_one_line(line, words, wrong_use):
    wrong_use("train_distill", line, words)


def test_refining_takes_the_students_own_results_for_clean_pictures(run, pictures, models, tmp_path):
    student = models / "s2" / "last.safetensors"
    line = f"--teacher {models}/s1/last.safetensors --student {student} --noisy {pictures}/gray {TINY2} --steps 2"
    line = f"{line.replace('--student-width 4', '')} --noisy-share 0"
    ok(run("train_distill", f"--name a {line} --refine"))
    ok(run("train_distill", f"--name b {line} --refine"))
    ok(run("train_distill", f"--name c {line} --refine --clean {pictures}/color"))
    ok(run("train_distill", f"--name d {line} --clean {pictures}/color"))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    losses = {name: stats(tmp_path / name)[-1]["loss"] for name in "abcd"}
    assert losses["a"] == losses["b"] and len({losses[name] for name in "acd"}) == 3


def test_refining_in_units_of_noise_does_not_depend_on_an_offset(run, tmp_path, rng):
    for name, offset in (("a", 0), ("b", 30)):
        (tmp_path / f"{name}.in").mkdir()
        y = 0.5 + 0.1 * torch.randn(48, 64, generator=rng.manual_seed(0)).double().numpy()
        np.save(tmp_path / f"{name}.in" / "x.npy", (y + offset).astype(np.float32))
        line = f"--name {name} --teacher gray-awgn-blind --student gray-awgn-blind-full --noisy {tmp_path}/{name}.in"
        line = f"{line} --refine --units noise --patch-size 32 --batch-size 2 --noisy-share 0 --steps 1"
        ok(run("train_distill", line))
    a, b = (stats(tmp_path / name)[-1]["loss"] for name in "ab")
    assert a == pytest.approx(b, rel=0.03)
    assert load_model(tmp_path / "b" / "last.safetensors").config["units"] == "noise"


def test_a_finished_training_refines_no_pictures_again(run, pictures, models, tmp_path, monkeypatch):
    student = models / "s2" / "last.safetensors"
    line = f"--name a --teacher {models}/s1 --student {student} --noisy {pictures}/gray --refine {TINY2} --steps 1"
    line = f"{line.replace('--student-width 4', '')} --noisy-share 0"
    ok(run("train_distill", line))
    weights = (tmp_path / "a" / "last.safetensors").read_bytes()
    monkeypatch.setattr(train_distill, "with_results", lambda *_: pytest.fail("refined again"))
    (tmp_path / "a" / "last.safetensors").unlink()  # as if killed before they were written
    assert "1 of 1 steps done" in ok(run("train_distill", line))
    assert (tmp_path / "a" / "last.safetensors").read_bytes() == weights


def test_refining_takes_the_middle_of_large_pictures(run, pictures, models, tmp_path, monkeypatch):
    monkeypatch.setattr(train_distill, "REFINED", 6000)
    seen = []
    original = train_distill.denoise_picture
    monkeypatch.setattr(train_distill, "denoise_picture", lambda m, y: (seen.append(y.shape), original(m, y))[1])
    student = models / "s2" / "last.safetensors"
    line = f"--name a --teacher {models}/s1 --student {student} --noisy {pictures}/gray --refine {TINY2} --steps 1"
    code, *said = run("train_distill", f"{line.replace('--student-width 4', '')} --noisy-share 0")
    assert code == 0 and "megapixels are taken, from the middle" in "".join(said)
    assert seen and max(height * width for _, _, height, width in seen) <= 6000 // len(list(pictures.glob("gray/*")))


def test_the_middle_of_an_image(tmp_path, rng):
    x = np.arange(60 * 90).reshape(60, 90, 1) % 251
    write_image(tmp_path / "a.png", x, values=np.uint8)
    images = look_at([tmp_path / "a.png"], "gray", None, what="images")
    for pixels, least, (top, left, height, width) in [
        (60 * 90, 8, (0, 0, 60, 90)),
        (900, 8, (15, 30, 30, 30)),
        (900, 40, (10, 25, 40, 40)),
        (60 * 80, 8, (0, 5, 60, 80)),
    ]:
        middle = images.of_the_middle(pixels, least)
        assert middle.sizes.tolist() == [[height, width]]
        assert np.array_equal(middle.read(0), x[top : top + height, left : left + width])


def test_from_disk_the_teacher_removes_no_shared_noise(run, models, tmp_path, rng):
    """It sees crops alone there. Which pixels it takes apart follows from a whole picture."""
    (tmp_path / "noisy").mkdir()
    for k in range(2):
        n = gaussian_filter(torch.randn(160, 160, generator=rng).numpy(), 0.8)
        x = 0.5 + 0.1 * n / n.std()
        write_image(tmp_path / "noisy" / f"{k}.png", 255 * x.clip(0, 1)[..., None], values=np.uint8)
    line = f"--teacher {models}/s1 --noisy {tmp_path}/noisy --clean {tmp_path}/noisy/0.png {TINY2} --steps 1"
    line = f"{line} --images disk"
    code, _, err = run("train_distill", f"--name a {line}")
    assert code == 2 and "share their noise" in err and "--noisy-share 0" in err
    ok(run("train_distill", f"--name a {line} --noisy-share 0"))


def test_refining_does_not_go_on_with_another_student(run, pictures, models, tmp_path):
    """What it makes of the pictures stands for clean ones, so the targets would change within the run."""
    student = tmp_path / "student.safetensors"
    shutil.copy(models / "s2" / "last.safetensors", student)
    line = f"--name a --teacher {models}/s1/last.safetensors --student {student} --noisy {pictures}/gray --refine"
    line = f"{line} {TINY2.replace('--student-width 4', '')} --noisy-share 0 --steps 2"
    ok(run("train_distill", line))
    ok(run("train_distill", line))
    shutil.copy(tmp_path / "a" / "last.safetensors", student)
    code, _, err = run("train_distill", line)
    assert code == 2 and "student weights are others than before" in err


def test_pools_are_joined(rng):
    images, one = pool()
    both = one.joined(one.map(lambda k, x: 1 - x))
    assert len(both) == 6 and both.sizes.tolist() == 2 * [list(im.shape[:2]) for im in images]
    for k in range(3):
        torch.testing.assert_close(both.image(k), one.image(k))
        torch.testing.assert_close(both.image(k + 3), 1 - one.image(k))


def test_noise_is_read_as_asked_for(run, pictures, models, tmp_path):
    line = f"--teacher gray-hg-blind --student gray-hg-blind-full --noisy {pictures}/gray --refine --patch-size 16"
    ok(run("train_distill", f"--name a {line} --read-noise camera --steps 1 --batch-size 2 --noisy-share 0 --amp off"))
    config = load_model(tmp_path / "a" / "last.safetensors").config
    assert config["shared_noise"] and "independent_noise" not in config  # 40 pixels are too few to tell
    assert config["refined"]  # its own pictures' noise it knows without taking pixels apart


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--noisy {pictures}/gray", "--clean is needed, or --refine"),
        ("--clean {pictures}/gray --synthetic-noisy {pictures}/gray --noise awgn --sigma 25 --units noise", "--units"),
        ("--noisy {pictures}/gray --refine", "--refine needs a --student"),
        ("--noisy {pictures}/gray --refine --student {s2} --images disk", "--refine keeps its images in memory"),
        ("--synthetic-noisy {pictures}/gray --noise awgn --sigma 25 --refine --student {s2}", "is not for --refine"),
        ("--noisy {pictures}/gray --clean {pictures}/color --read-noise mg", "invalid choice"),
        (
            "--synthetic-noisy {pictures}/gray --clean {pictures}/color --noise awgn --sigma 25 --read-noise hg",
            "for --noisy",
        ),
        (
            "--synthetic-noisy {pictures}/gray --clean {pictures}/color --noise awgn --sigma 25 --pairs drawn "
            "--level-scale 2",
            "--level-scale is for --pairs learned",
        ),
        ("--noisy {pictures}/gray --clean {pictures}/color --revive", "--revive needs a --student"),
        (
            "--noisy {pictures}/gray --refine --student {s2} --revive --noisy-share 0 --patch-size 16",
            "has no residual blocks",
        ),
    ],
)
def test_wrong_use_of_refining(line, words, run, pictures, models):
    line = line.format(pictures=pictures, s2=models / "s2" / "last.safetensors")
    code, _, err = run("train_distill", f"--name a --teacher {models}/s1/last.safetensors {line}")
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1


def test_the_log_loss_counts_no_error_below_a_quarter_of_a_level():
    flat, dark = torch.zeros(1), torch.full((1,), (0.05 / 255) ** 2)
    assert train_distill.log_loss(flat) == pytest.approx(math.log((0.25 / 255) ** 2))
    assert train_distill.log_loss(dark) - train_distill.log_loss(flat) < 0.05
    bright = torch.full((2,), (20 / 255) ** 2)
    assert train_distill.log_loss(bright) == pytest.approx(2 * math.log(20 / 255), abs=1e-3)
