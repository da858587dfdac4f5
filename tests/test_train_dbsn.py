"""Stage 1 as it is run: its losses, its phases, stops and ends of every kind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tifffile
import torch

import train_dbsn
from data.images import write_image
from models import Prediction, load_model
from models.gaussian import Diagonal
from options.stage1 import SIGMA_N
from tests.helpers import (
    LEVELS,
    ROOT,
    TINY,
    assert_same_run,
    contents,
    ok,
    read_tensors,
)


@pytest.mark.parametrize("loss", [name for name in SIGMA_N if name != "residual"])
def test_losses_train_and_phases_hold_what_they_should(loss, run, pictures, tmp_path):
    common = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --warmup 1 --sigma-n {loss} --ema 0"
    for name, steps in (("a", "--mu-steps 3 --steps 0"), ("b", "--mu-steps 3 --sigma-steps 3 --steps 0")):
        ok(run("train_dbsn", f"--name {name} {common} {steps} --schedule constant"))
    a, b = (load_model(tmp_path / n / "last.safetensors").state_dict() for n in "ab")
    changed = {k.split(".")[0] for k in a if not torch.equal(a[k], b[k])}
    assert changed == {"cov_head", "noise_estimator"}
    ok(run("train_dbsn", f"--name c {common} --steps 3"))


@pytest.mark.parametrize("loss", ["reward", "split"])
def test_losses_that_steer_the_split(loss, rng):
    """What the exact likelihood's gradients become.

    Under "split" that of Sigma_n is the constrained likelihood's. Under "reward" it is moved by the reward.
    """
    y = torch.rand(2, 1, 5, 4, generator=rng)
    mu, m = (
        torch.rand(2, 1, 5, 4, generator=rng).requires_grad_(),
        (0.1 + torch.rand(2, 1, 5, 4, generator=rng)).requires_grad_(),
    )
    n = torch.tensor([0.01, 0.04]).view(2, 1, 1, 1).requires_grad_()
    gradients = {}
    for name in ("exact", "constrained", loss):
        p = Prediction(mu, Diagonal(m), "mu", lambda: Diagonal(n))
        gradients[name] = torch.autograd.grad(sum(train_dbsn.objective(p, y, "joint", name, 0.05).values()), (mu, m, n))
    expected = list(gradients["exact"])
    # a mean over two images
    expected[2] = gradients["constrained"][2] if loss == "split" else expected[2] - 0.1 / (2 * 2 * n.detach().sqrt())
    assert not torch.allclose(gradients["exact"][2], gradients["constrained"][2])
    for found, value in zip(gradients[loss], expected):
        torch.testing.assert_close(found, value)


def test_crops_count_by_their_noise_level(rng):
    """The weight is one number for each crop, which is not learned: its gradients are so many times as large."""
    y, mu, m = (0.1 + torch.rand(2, 1, 5, 4, generator=rng) for _ in range(3))
    n = torch.tensor([0.01, 0.04]).view(2, 1, 1, 1)
    leaves = [t.requires_grad_() for t in (mu, m, n)]
    gradients = {}
    for power in (0, 1, 2):
        p = Prediction(mu, Diagonal(m), "mu", lambda: Diagonal(n))
        terms = train_dbsn.objective(p, y, "joint", "exact", 0, power)
        gradients[power] = torch.autograd.grad(sum(terms.values()), leaves)
    for power in (1, 2):
        weight = (torch.tensor([0.1, 0.2]) / (15 / 255)).view(2, 1, 1, 1) ** power
        for plain, found in zip(gradients[0], gradients[power]):
            torch.testing.assert_close(found, weight * plain)


def test_stage1_from_a_checkpoint(run, pictures, tmp_path):
    """D-BSN and its size come from the checkpoint; a head does where it means the same."""
    common = f"--clean {pictures}/gray {TINY} --steps 1 --lr 1e-9 --ema 0"
    ok(run("train_dbsn", f"--name a {common} {LEVELS['awgn']} --mdc residual --lr 1e-2"))
    ok(run("train_dbsn", f"--name same {common} {LEVELS['awgn']} --width 8 --blocks 2 --start-from a --seed 1"))
    ok(run("train_dbsn", f"--name blind {common} --noise awgn --sigma 5 55 --start-from a --seed 1"))
    ok(run("train_dbsn", f"--name hg {common} {LEVELS['hg']} --start-from a --seed 1"))
    ok(run("train_dbsn", f"--name paper {common} {LEVELS['awgn']} --sigma-n constrained --start-from a --seed 1"))
    a, *others = (load_model(tmp_path / n / "last.safetensors") for n in ("a", "same", "blind", "hg", "paper"))

    def taken(b, part):
        old, new = (getattr(m, part).state_dict() for m in (a, b))
        return old.keys() == new.keys() and all(
            v.shape == new[k].shape and torch.allclose(v, new[k], atol=1e-6) for k, v in old.items()
        )

    assert [taken(b, "dbsn") for b in others] == [True] * 4
    assert [taken(b, "cov_head") for b in others] == [True, True, False, False]
    assert [taken(b, "noise_estimator") for b in others] == [True, False, False, False]
    recorded = [json.loads((tmp_path / n / "options.json").read_text()) for n in ("a", "same")]
    assert len({(r["width"], r["blocks"], r["mdc"]) for r in recorded}) == 1  # what was trained, whatever the line said


STAGE1 = "--name {} --clean {}/gray --noise {} {} --steps 9 --save-every 2 --val-every 4 --noise-draw {}"


@pytest.mark.parametrize(
    ("noise", "draw"),
    [
        ("awgn --sigma 5 55", "fixed"),
        ("awgn --sigma 5 55 --level-weight 1", "fresh"),
        ("poisson --lam 30 60", "fixed"),
        ("poisson --lam 30 60", "fresh"),
        ("camera --sigma 2 20 --reach 0 1 --stride 2 --enlarge 1.2 3 --tones", "fresh"),
        ("camera --sigma 2 20 --reach 0 1 --hole 3", "fixed"),
    ],
)
def test_stopped_and_resumed_is_never_stopped(noise, draw, run, pictures, tmp_path):
    line = f"{STAGE1.format('{}', pictures, noise, TINY, draw)} --val {pictures}/gray/0.png"
    ok(run("train_dbsn", line.format("whole")))
    for step in range(1, 10):  # each start is given no time: it makes one step, saves and ends in good order
        assert f"{step} of 9 steps" in ok(run("train_dbsn", f"{line.format('parts')} --max-minutes 1e-9"))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_same_seed_same_bits(run, pictures, tmp_path):
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ok(run("train_dbsn", f"--name {name} --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 3 --seed {seed}"))
        found.append(read_tensors(tmp_path / name / "last.safetensors"))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert not all(torch.equal(found[0][k], found[2][k]) for k in found[0])


def test_finished_run_reports_at_once(run, pictures, tmp_path):
    line = STAGE1.format("a", pictures, "awgn --sigma 5 55", TINY, "fixed")
    ok(run("train_dbsn", line))
    before = contents(tmp_path / "a")
    assert "9 of 9 steps" in ok(run("train_dbsn", line))
    assert contents(tmp_path / "a") == before


def test_changed_option_is_refused(run, pictures):
    line = STAGE1.format("a", pictures, "awgn --sigma 5 55", TINY, "fixed")
    ok(run("train_dbsn", line))
    for change, name in (
        ("--lr 1e-3", "lr"),
        ("--width 5", "width"),
        ("--seed 3", "seed"),
        ("--patch-size 17", "patch-size"),
    ):
        code, _, err = run("train_dbsn", f"{line} {change}")
        assert code == 2 and name in err and "was" in err
    code, _, err = run("train_dbsn", line.replace("/gray", "/gray/[1-9].png"))
    assert code == 2 and "training images are others than before" in err
    ok(run("train_dbsn", line.replace("/gray", "/gray/")))  # the same images
    ok(run("train_dbsn", f"{line} --max-minutes 5"))


@pytest.mark.slow
def test_signal_saves_and_says_resume(pictures, tmp_path):
    """SIGTERM in mid-training: exit code 75, a checkpoint, and the run goes on from there."""
    command = [
        sys.executable,
        "train_dbsn.py",
        *STAGE1.format("a", pictures, "awgn --sigma 5 55", TINY, "fixed").split(),
        "--steps",
        "100000",
        "--save-every",
        "100000",
    ]
    command += ["--checkpoints-dir", str(tmp_path), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stats = tmp_path / "a" / "stats.jsonl"
    deadline = time.monotonic() + 60
    while not (stats.exists() and stats.stat().st_size > 500) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "continue" in out and list((tmp_path / "a").glob("state-*.safetensors"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--name a --clean P/nowhere --noise awgn --sigma 25", "no such file"),
        ("--name a --clean P/empty --noise awgn --sigma 25", "holds no image"),
        ("--name a --clean bsd432 --data-root P --noise awgn --sigma 25", "bsd432"),
        ("--name a --clean nosuchset --noise awgn --sigma 25", "no set of that name"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --patch-size 39", "--patch-size"),
        ("--name a --clean P/bad --noise awgn --sigma 25 --patch-size 16", "text.png"),
        ("--name a --clean P/gray --noise mg --mode gray", "--mode color"),
        ("--name a --clean P/gray --noise awgn", "--sigma"),
        ("--name a --clean P/gray --noise awgn --sigma 300", "at most 255"),
        ("--name a --clean P/gray --noise awgn --sigma -1", "at least 0"),
        ("--name a --clean P/gray --noise awgn --sigma nan", "out of range"),
        ("--name a --clean P/gray --noise awgn --sigma 55 5", "low and high"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --alpha 3", "--alpha"),
        ("--name a --noisy P/gray --noise awgn --sigma 25", "--sigma"),
        ("--name a --noise awgn --sigma 25", "--clean"),
        ("--clean P/gray --noise awgn --sigma 25", "--name"),
        ("--name ../a --clean P/gray --noise awgn --sigma 25", "--name"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --steps 0", "nothing to train"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --batch-size 1.5", "--batch-size"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --patch-size 16 --start-from s2", "--start-from"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --hole 2", "--hole: 2 is not odd"),
        ("--name a --noisy P/gray --noise camera", "give --stride 2, or --hole 3"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --patch-size 16 --hole 3 --start-from s1", "--hole 3"),
        (
            "--name a --clean P/color --mode color --noise awgn --sigma 25 --patch-size 16 --start-from s1",
            "--start-from",
        ),
        ("--name a --noisy P/gray --noise awgn --val P/gray", "--val"),
        ("--name a --noisy P/gray --noise awgn --noise-draw fresh", "--noise-draw"),
        ("--name a --clean P/gray --noise awgn --sigma 5 55 --quantile 0.1", "--quantile"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --sigma-n exact --quantile 0.1", "--quantile"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --level-weight 1", "--level-weight"),
        ("--name a --clean P/gray --noise awgn --sigma 25 --mg-seed 1", "--mg-seed"),
    ],
)
def test_wrong_use_ends_in_one_line(line, words, wrong_use):
    wrong_use("train_dbsn", line, words)


def test_a_run_cannot_have_the_name_of_released_weights(run, pictures, tmp_path):
    line = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1"
    code, _, err = run("train_dbsn", f"--name gray-hg-blind {line}")
    assert code == 2 and "released weights have that name" in err and not (tmp_path / "gray-hg-blind").exists()
    ok(run("train_dbsn", f"--name my-gray-hg-blind {line}"))


def test_how_often_a_run_logs_and_what_stops_it_may_change(run, pictures, tmp_path):
    line = f"--name a --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 2 --save-every 1"
    ok(run("train_dbsn", f"{line} --max-minutes 1e-9"))
    ok(run("train_dbsn", f"{line} --log-every 7 --on-nonfinite skip"))
    code, _, err = run("train_dbsn", f"{line} --lr 1e-9")
    assert code == 2 and "--lr was" in err


def test_non_finite_loss_stops_before_the_weights_move(run, pictures, tmp_path, monkeypatch):
    original = train_dbsn.objective
    calls = []

    def poisoned(p, y, *args):
        calls.append(1)
        terms = original(p, y, *args)
        return {k: v * float("nan") for k, v in terms.items()} if len(calls) == 4 else terms

    line = f"--name a --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 6 --save-every 1"
    monkeypatch.setattr(train_dbsn, "objective", poisoned)
    code, _, err = run("train_dbsn", line)
    assert code == 1 and "step 4" in err and ".png" in err and "nan" in err
    monkeypatch.undo()
    assert "6 of 6" in ok(run("train_dbsn", line))


def test_the_greatest_value_of_dim_images_is_white_to_models_in_white_units(run, tmp_path, capsys):
    """Beside the range of their files their noise is nothing to such networks, and CNN_est begins with far more."""
    (tmp_path / "dim").mkdir()
    for k in range(2):
        frame = np.random.RandomState(k).poisson(40, (40, 40)) + 100
        write_image(tmp_path / "dim" / f"{k}.tif", frame[..., None], values=np.uint16)
    line = f"--noisy {tmp_path}/dim --noise hg --mode gray --patch-size 16 --batch-size 2 --steps 1 --amp off"
    out = run("train_dbsn", f"--name white {line} --start-from gray-hg-blind")
    assert "of 65535" in "".join(map(str, out[1:])) and "is taken for white" in "".join(map(str, out[1:]))
    assert "give --units noise" in "".join(map(str, out[1:]))  # the least value is two thirds of the greatest
    white = load_model("white", "cpu", tmp_path).values["white_level"]
    assert 150 < white < 180
    ok(run("train_dbsn", f"--name cnn {line} --width 4 --blocks 1"))
    assert load_model("cnn", "cpu", tmp_path).values["white_level"] == white
    out = run("train_dbsn", f"--name noise {line} --start-from gray-hg-blind --units noise")
    assert out[0] == 0 and "units" not in "".join(map(str, out[1:]))
    ok(run("train_dbsn", f"--name noise2 {line} --width 4 --blocks 1 --sigma-n residual"))  # in units of noise too
    assert load_model("noise2", "cpu", tmp_path).values["white_level"] is None
    ok(run("train_dbsn", f"--name bright {line} --start-from gray-hg-blind --white-level 65535 --save-every 1"))
    record = tmp_path / "bright" / "options.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"steps": 2}))
    longer = line.replace("--steps 1", "--steps 2")
    ok(run("train_dbsn", f"--name bright {longer} --start-from gray-hg-blind"))  # a run keeps its white
    assert load_model("bright", "cpu", tmp_path).values["white_level"] == 65535
    refine = f"--teacher gray-hg-blind --student gray-hg-blind-full --refine --noisy {tmp_path}/dim --noisy-share 0"
    ok(run("train_distill", f"--name student {refine} --patch-size 16 --batch-size 2 --steps 1 --amp off"))
    assert load_model("student", "cpu", tmp_path).values["white_level"] == white
    (tmp_path / "clean").mkdir()
    write_image(tmp_path / "clean" / "a.tif", np.full((40, 40, 1), 140) + np.arange(40)[:, None], values=np.uint16)
    pairs = f"--teacher gray-hg-blind --noisy {tmp_path}/dim --clean {tmp_path}/clean --noisy-share 0 --student-width 4"
    pairs = f"--name pairs {pairs} --patch-size 16 --batch-size 2 --amp off --save-every 1 --steps 2"
    run("train_distill", f"{pairs} --max-minutes 1e-9")
    ok(run("train_distill", pairs))
    assert json.loads((tmp_path / "pairs" / "options.json").read_text())["clean_white_level"] == white


def test_dim_images_of_several_types_have_no_common_white(run, tmp_path):
    (tmp_path / "dim").mkdir()
    frame = np.random.RandomState(0).poisson(40, (40, 40, 1))
    write_image(tmp_path / "dim" / "0.tif", frame, values=np.uint16)
    write_image(tmp_path / "dim" / "1.tif", frame, values=np.uint8)
    line = f"--name a --noisy {tmp_path}/dim --noise hg --mode gray --patch-size 16 --batch-size 2 --steps 1 --amp off"
    code, *said = run("train_dbsn", f"{line} --start-from gray-hg-blind")
    err = "".join(said)
    assert code == 0 and "of 65535" in err and "of 255" in err and "train on files of one type" in err
    assert load_model("a", "cpu", tmp_path).values["white_level"] is None


def test_all_bad_training_images_are_named_at_once(run, pictures, tmp_path):
    shutil.copytree(pictures / "gray", tmp_path / "images")
    (tmp_path / "images" / "3.png").write_text("no picture")
    (tmp_path / "images" / "7.png").write_text("no picture")
    code, _, err = run("train_dbsn", f"--name a --clean {tmp_path}/images {LEVELS['awgn']} {TINY} --steps 1")
    assert (
        code == 2
        and "3.png is no PNG" in err
        and "; 1 more cannot be used" in err
        and "7.png" in err
        and err.count("\n") == 1
    )


def test_outlier_of_a_16_bit_image(run, tmp_path):
    """A dark image with one pixel at the maximum: nothing overflows."""
    (tmp_path / "images").mkdir()
    image = np.full((24, 24), 100, np.uint16)
    image[12, 12] = 65535
    for k in range(2):
        tifffile.imwrite(tmp_path / "images" / f"{k}.tif", image)
    ok(run("train_dbsn", f"--name a --noisy {tmp_path}/images --noise hg {TINY} --steps 6"))
    ok(run("test", f"--checkpoint a --data {tmp_path}/images --save {tmp_path}/out"))
    assert tifffile.imread(tmp_path / "out" / "0_denoised.tif").shape == (24, 24)


@pytest.mark.parametrize(
    "images",
    ["--clean P/color --noise-draw fixed", "--clean M --noise-draw fixed", "--clean M --noise-draw fresh", "--noisy M"],
)
def test_stage_1_from_disk_is_that_from_memory(images, run, pictures, mixed, tmp_path):
    levels = f"{LEVELS['awgn']} --val P/color/0.png" if "--clean" in images else "--noise hg"
    line = (
        f"{images} {levels} {TINY} --mode {'gray' if 'P/' in images else 'color'} --steps 6 --save-every 2 "
        "--val-every 3"
    )
    line = line.replace("P/", f"{pictures}/").replace(" M ", f" {mixed} ")
    for place in ("memory", "disk"):
        ok(run("train_dbsn", f"--name {place} {line} --images {place}"))
    assert_same_run(tmp_path / "memory", tmp_path / "disk")
    for k, place in enumerate(("disk", "memory", "disk")):  # a stop after each of the first steps, then on elsewhere
        out = ok(run("train_dbsn", f"--name parts {line} --images {place} --max-minutes 1e-9"))
        assert f"{k + 1} of 6 steps" in out
    ok(run("train_dbsn", f"--name parts {line} --images disk"))
    assert_same_run(tmp_path / "memory", tmp_path / "parts")


def truncate(file):
    """The header stays, half of the pixels go."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", ["pixels", "size", "gone"])
def test_damaged_file_is_named_by_the_step_that_needs_it(damage, run, folder, pictures, tmp_path):
    line = f"--name a --clean {folder} {LEVELS['awgn']} {TINY} --steps 16 --save-every 4 --held-out 0 --images disk"
    ok(run("train_dbsn", f"{line} --max-minutes 1e-9"))
    before, original = train_dbsn.objective, (folder / "3.png").read_bytes()

    def damaging(*args):
        if damage == "pixels":
            truncate(folder / "3.png")
        elif damage == "gone":
            (folder / "3.png").unlink(missing_ok=True)
        else:
            write_image(folder / "3.png", np.zeros((50, 50, 1), np.uint8))
        return before(*args)

    train_dbsn.objective = damaging
    try:
        code, out, err = run("train_dbsn", line)
    finally:
        train_dbsn.objective = before
    assert code == 1 and "of 16 steps" not in out
    assert [text for text in err.splitlines() if "error" in text] == [
        text for text in err.splitlines() if text.startswith("error: ") and "3.png" in text
    ]
    (folder / "3.png").write_bytes(original)
    ok(run("train_dbsn", line))
    ok(run("train_dbsn", line.replace("--name a", "--name whole")))
    assert_same_run(tmp_path / "a", tmp_path / "whole")


@pytest.mark.parametrize(("what", "words"), [("header", "3.png"), ("small", "--patch-size")])
def test_what_a_header_tells_is_found_before_anything_is_written(what, words, run, folder, tmp_path):
    if what == "header":
        (folder / "3.png").write_text("no picture")
    else:
        write_image(folder / "3.png", np.zeros((50, 15, 1), np.uint8))
    code, _, err = run("train_dbsn", f"--name a --clean {folder} {LEVELS['awgn']} {TINY} --steps 1 --images disk")
    assert code == 2 and words in err and "3.png" in err and not (tmp_path / "a").exists()


def test_signal_in_the_middle(run, pictures, tmp_path, monkeypatch):
    line = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 8 --save-every 3 --images disk"
    ok(run("train_dbsn", f"--name whole {line}"))
    before, calls = train_dbsn.objective, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return before(*args)

    monkeypatch.setattr(train_dbsn, "objective", stopping)
    code, out, _ = run("train_dbsn", f"--name a {line}")
    assert code == 75 and "4 of 8 steps" in out
    assert not [t.name for t in threading.enumerate() if t.name.startswith("decode")]
    assert "8 of 8" in ok(run("train_dbsn", f"--name a {line}"))
    whole, parts = tmp_path / "whole", tmp_path / "a"
    assert (whole / "stats.jsonl").read_bytes() == (parts / "stats.jsonl").read_bytes()
    one, two = (read_tensors(f / "last.safetensors") for f in (whole, parts))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_images_are_recognised_on_either_path(run, folder, tmp_path):
    line = f"{LEVELS['awgn']} {TINY} --clean {folder} --steps 4 --max-minutes 1e-9"
    for name in ("memory", "disk"):
        for place in (name, "memory", "disk"):
            ok(run("train_dbsn", f"--name {name} {line} --images {place}"))
    (folder / "3.png").unlink()
    write_image(folder / "3.png", np.zeros((40, 37, 1), np.uint8))
    for name in ("memory", "disk"):
        for place in ("memory", "disk"):
            code, _, err = run("train_dbsn", f"--name {name} {line} --images {place}")
            assert code == 2 and "training images are others than before" in err


def test_other_held_out_images_are_another_run(run, folder, tmp_path):
    """They choose the best weights. The seed chooses them: here the first run has the last of these files."""
    line = f"--name a {LEVELS['awgn']} {TINY} --clean {folder} --steps 4 --max-minutes 1e-9"
    ok(run("train_dbsn", line))
    record = tmp_path / "a" / "options.json"
    recorded = json.loads(record.read_text())
    record.write_text(json.dumps(recorded | {"held_out_images": "others"}))
    code, _, err = run("train_dbsn", line)
    assert code == 2 and "held out images are others than before" in err
    del recorded["held_out_images"]  # as an older version left it
    record.write_text(json.dumps(recorded))
    ok(run("train_dbsn", line))


def test_the_best_weights_are_those_of_the_lowest_held_out_likelihood(run, folder, tmp_path, monkeypatch):
    values = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(train_dbsn, "evaluate", lambda *_: {"held_out_nll": next(values)})
    line = f"{LEVELS['awgn']} {TINY} --clean {folder} --ema 0 --schedule constant"
    ok(run("train_dbsn", f"--name a {line} --steps 3 --val-every 1"))
    monkeypatch.undo()
    ok(run("train_dbsn", f"--name b {line} --steps 2"))
    best, second = (load_model(tmp_path / file).state_dict() for file in ("a/best.safetensors", "b/last.safetensors"))
    assert all(torch.equal(best[name], second[name]) for name in second)


def test_gray_images_in_a_colour_training_are_told(run, pictures):
    line = f"--noise hg {TINY} --steps 1"
    _, out, err = run("train_dbsn", f"--name a --mode color --noisy {pictures}/gray {line}")
    assert "are gray, and made color" in out + err and "is one gray image" in out + err
    _, out, err = run("train_dbsn", f"--name b --mode color --noisy {pictures}/color {line}")
    assert "gray image" not in out + err
    _, out, err = run("train_dbsn", f"--name c --mode color --noisy {pictures}/color {pictures}/gray/1.png {line}")
    assert "1.png is one gray image, as 1 of the" in out + err
