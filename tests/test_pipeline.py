"""Both stages and the test run end to end at a tiny size, on images made here.

Runs resume. Every wrong use must end in one line.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import train_dbsn
from data.sets import bsd68_names
from models import Prediction, load_model, noise_level, posterior
from models.gaussian import Diagonal
from options.stage1 import SIGMA_N, Stage1Options
from tests.conftest import LEVELS, ROOT, SCRIPTS, TINY, TINY2, contents, ok, read_tensors
from utils.checkpoint import load_checkpoint
from utils.errors import UsageError
from utils.logging import Board


@pytest.mark.parametrize(
    ("mode", "noise"),
    [("gray", "awgn"), ("gray", "hg"), ("color", "awgn"), ("color", "hg"), ("color", "mg"), ("gray", "poisson")],
)
def test_both_stages_and_the_test(mode, noise, run, pictures, tmp_path):
    images, levels = pictures / mode, LEVELS[noise]
    ok(
        run(
            "train_dbsn",
            (
                f"--name s1 --mode {mode} --clean {images} {levels} {TINY} --mu-steps 2 --sigma-steps 2 --steps 4 "
                f"--val {images}/0.png --val-every 4"
            ),
        )
    )
    ok(
        run(
            "train_distill",
            (
                f"--name s2 --teacher s1 --clean {images} --synthetic-noisy {images} {levels} {TINY2} --steps 3 "
                f"--val {images}/0.png"
            ),
        )
    )
    out = ok(run("test", f"--checkpoint s1 s2 --data {images} {levels} --json {tmp_path}/r.json --save {tmp_path}/out"))
    table = json.loads((tmp_path / "r.json").read_text())
    assert table["protocol"] == "published" and table["noise"]["model"] == noise
    assert list(table["mean"]) == ["noisy", "mu", "posterior", "distilled"] and len(table["images"]) == 10
    for method, figures in table["mean"].items():
        assert set(figures) == {"psnr", "psnr_uint8", "ssim"} and all(np.isfinite(v) for v in figures.values())
        assert figures["psnr"] == pytest.approx(np.mean([row[method]["psnr"] for row in table["images"]]))
        assert f"{figures['psnr']:.2f}" in out
    row = table["images"][0]
    assert row["name"] == "0.png" and row["noise_level"]["estimated"] > 0
    assert row["noise_level"]["true"] == pytest.approx(25, abs=0.01) or noise != "awgn"
    strip = np.asarray(Image.open(tmp_path / "out" / "0_all.png"))
    assert strip.shape[:2] == (37 + 22, 5 * 40 + 4 * 4) or strip.shape[:2] == (40 + 22, 5 * 37 + 4 * 4)
    assert {f"0_{part}.png" for part in ("all", "denoised", "std", "level")} <= {
        f.name for f in (tmp_path / "out").iterdir()
    }
    stats = [json.loads(line) for line in (tmp_path / "s1" / "stats.jsonl").read_text().splitlines()]
    assert [s["phase"] for s in stats if "phase" in s] == ["mu"] * 2 + ["sigma"] * 2 + ["joint"] * 4
    assert any("held_out_nll" in s for s in stats) and any("val_psnr" in s for s in stats)
    assert list((tmp_path / "s1" / "tensorboard").glob("events*"))


@pytest.mark.parametrize("loss", [name for name in SIGMA_N if name != "residual"])
def test_losses_train_and_phases_hold_what_they_should(loss, run, pictures, tmp_path):
    common = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --sigma-n {loss} --ema 0"
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


def test_library_interface(run, pictures, tmp_path):
    ok(run("train_dbsn", f"--name s1 --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1"))
    model = load_model(tmp_path / "s1" / "last.safetensors", device="cpu")
    y = torch.rand(2, 1, 19, 23)
    p = model(y)
    assert p.mu.shape == y.shape and p.cov_mu.variance.shape == y.shape and p.cov_n.variance.shape == (2, 1, 1, 1)
    assert posterior(y, p).mean.shape == posterior(y, p).std.shape == y.shape
    ok(
        run(
            "train_distill",
            f"--name s2 --teacher s1 --clean {pictures}/gray --noisy {pictures}/gray/*.png {TINY2} --steps 1",
        )
    )
    assert load_model(tmp_path / "s2" / "last.safetensors")(y).shape == y.shape


def test_really_noisy_images(run, pictures, tmp_path):
    """16-bit TIFFs of a camera with 12 bits are trained on, distilled with and denoised.

    They are saved with their own depth and format.
    """
    (tmp_path / "noisy").mkdir()
    random = np.random.default_rng(0)
    for k in range(4):
        tifffile.imwrite(
            tmp_path / "noisy" / f"{k}.tif",
            (2000 + 300 * random.standard_normal((33, 29))).clip(0, 4095).astype(np.uint16),
        )
    ok(run("train_dbsn", f"--name s1 --noisy {tmp_path}/noisy --noise hg --white-level 4095 {TINY} --steps 2"))
    ok(
        run(
            "train_distill",
            f"--name s2 --teacher s1 --clean {pictures}/gray --noisy {tmp_path}/noisy {TINY2} --steps 2",
        )
    )
    ok(run("test", f"--checkpoint s1 s2 --data {tmp_path}/noisy --save {tmp_path}/out --json {tmp_path}/r.json"))
    table = json.loads((tmp_path / "r.json").read_text())
    assert table["protocol"] == "none" and table["mean"] == {} and table["images"][0]["noise_level"]["true"] is None
    result = tifffile.imread(tmp_path / "out" / "0_denoised.tif")
    assert result.dtype == np.uint16 and result.shape == (33, 29)
    source = tifffile.imread(tmp_path / "noisy" / "0.tif")
    # in the units of the input, not of 16 bits
    assert result.max() < 3 * 4095 and abs(result.astype(float).mean() - source.mean()) < 2500


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


@pytest.mark.parametrize("script", ("train_dbsn", "train_distill"))
def test_training_takes_denormal_numbers_for_zero(run, script, monkeypatch):
    """On a CPU they slow the optimizer's steps tenfold, once units have died. Afterwards all is as before."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor has no such switch")
    product = lambda: torch.tensor([2e-38]).mul(0.3).item()  # noqa: E731
    found = []
    monkeypatch.setattr(SCRIPTS[script], "train", lambda *_: found.append(product()) or 0)
    ok(
        run(
            script,
            (
                "--name a --clean x --noise awgn --sigma 25 "
                f"{'--teacher t --synthetic-noisy x' if script == 'train_distill' else ''}"
            ),
        )
    )
    assert found == [0] and product() > 0


def test_student_from_a_checkpoint(run, pictures, tmp_path):
    common = f"--teacher s1 --clean {pictures}/gray --synthetic-noisy {pictures}/gray {LEVELS['awgn']}"
    ok(run("train_dbsn", f"--name s1 --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1"))
    ok(run("train_distill", f"--name s2 {common} {TINY2} --steps 1"))
    ok(run("train_distill", f"--name s3 {common} {TINY2} --steps 1 --student s2 --lr 1e-9 --ema 0 --noise-draw fresh"))
    a, b = (load_model(tmp_path / n / "last.safetensors").state_dict() for n in ("s2", "s3"))
    for k in a:
        torch.testing.assert_close(a[k], b[k], atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------- ---- resuming

STAGE1 = "--name {} --clean {}/gray --noise awgn --sigma 5 55 {} --steps 9 --save-every 2 --val-every 4 --noise-draw {}"
STAGE2 = (
    "--name {} --teacher t --clean {}/gray --synthetic-noisy {}/gray --noise awgn --sigma 25 {} --steps 6 "
    "--save-every 2 --noise-draw {}"
)


@pytest.mark.parametrize("draw", ["fixed", "fresh"])
def test_stopped_and_resumed_is_never_stopped(draw, run, pictures, tmp_path, monkeypatch):
    def lines(name):
        return {
            "train_dbsn": STAGE1.format(name, pictures, TINY, draw),
            "train_distill": STAGE2.format(name, pictures, pictures, TINY2, draw),
        }

    ok(run("train_dbsn", STAGE1.format("t", pictures, TINY, draw)))
    for script in ("train_dbsn", "train_distill"):
        ok(run(script, lines(f"{script}-whole")[script]))
        # each start is given no time: it makes one step, saves and ends in good order
        starts = 0
        while "continue" in ok(run(script, lines(f"{script}-parts")[script] + " --max-minutes 1e-9")):
            starts += 1
        assert starts >= 5
        whole, parts = contents(tmp_path / f"{script}-whole"), contents(tmp_path / f"{script}-parts")
        # options differ in the run's name, so models are compared by their tensors
        assert whole["stats.jsonl"] == parts["stats.jsonl"]
        for name in ("last.safetensors", f"state-{9 if script == 'train_dbsn' else 6:08d}.safetensors"):
            a, b = (read_tensors(tmp_path / f"{script}-{kind}" / name) for kind in ("whole", "parts"))
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_same_seed_same_bits(run, pictures, tmp_path):
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ok(run("train_dbsn", f"--name {name} --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 3 --seed {seed}"))
        found.append(read_tensors(tmp_path / name / "last.safetensors"))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert not all(torch.equal(found[0][k], found[2][k]) for k in found[0])


@pytest.mark.slow
def test_compiled_networks_follow_the_same_course(run, pictures, models, tmp_path):
    shutil.copytree(models / "s1", tmp_path / "s1")
    stage1 = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 3"
    stage2 = f"--teacher s1 --clean {pictures}/gray --noisy {pictures}/gray {TINY2} --steps 3"
    for script, line in (("train_dbsn", stage1), ("train_distill", stage2)):
        rows = []
        for name, flag in ((f"{script}-plain", ""), (f"{script}-compiled", "--compile")):
            ok(run(script, f"--name {name} {line} {flag}"))
            rows.append([json.loads(text) for text in (tmp_path / name / "stats.jsonl").read_text().splitlines()])
        for one, two in zip(*rows):
            if "loss" in one:
                assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)


def test_finished_run_reports_at_once(run, pictures, tmp_path):
    line = STAGE1.format("a", pictures, TINY, "fixed")
    ok(run("train_dbsn", line))
    before = contents(tmp_path / "a")
    assert "9 of 9 steps" in ok(run("train_dbsn", line))
    assert contents(tmp_path / "a") == before


def test_changed_option_is_refused(run, pictures):
    line = STAGE1.format("a", pictures, TINY, "fixed")
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


def test_training_on_test_photographs_is_told(run, pictures, tmp_path):
    shutil.copytree(pictures / "gray", tmp_path / "bsd500")
    shutil.copytree(pictures / "gray", tmp_path / "set12")
    for k, name in enumerate(sorted(bsd68_names())[:40]):  # by the names of the photographs, wherever they are
        shutil.copy(pictures / "gray" / f"{k % 10}.png", tmp_path / "bsd500" / f"{name}.png")
    line = f"--data-root {tmp_path} {LEVELS['awgn']} {TINY} --steps 1"
    for name, images in (("a", "bsd500"), ("b", f"{tmp_path}/bsd500")):
        assert "40 training images have the names of photographs of bsd68" in ok(
            run("train_dbsn", f"--name {name} --clean {images} {line}")
        )
    line = (
        f"--name c --teacher a --clean set12 --synthetic-noisy {pictures}/gray "
        f"--data-root {tmp_path} {LEVELS['awgn']} {TINY2} --steps 1"
    )
    out = ok(run("train_distill", line))
    assert "set12 is a test set" in out and "bsd68" not in out


def test_changed_images_are_refused(run, pictures, tmp_path):
    shutil.copytree(pictures / "gray", tmp_path / "images")
    line = f"--name a --clean {tmp_path}/images {LEVELS['awgn']} {TINY} --steps 1"
    ok(run("train_dbsn", line))
    shutil.copy(pictures / "gray" / "1.png", tmp_path / "images" / "3.png")
    code, _, err = run("train_dbsn", line)
    assert code == 2 and "training images are others than before" in err


@pytest.mark.slow
def test_signal_saves_and_says_resume(pictures, tmp_path):
    """SIGTERM in mid-training: exit code 75, a checkpoint, and the run goes on from there."""
    command = [
        sys.executable,
        "train_dbsn.py",
        *STAGE1.format("a", pictures, TINY, "fixed").split(),
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


# --------------------------------------------------------------------------------------- --- wrong use


@pytest.mark.parametrize(
    ("script", "line", "words"),
    [
        ("train_dbsn", "--name a --clean P/nowhere --noise awgn --sigma 25", "no such file"),
        ("train_dbsn", "--name a --clean P/empty --noise awgn --sigma 25", "holds no image"),
        ("train_dbsn", "--name a --clean bsd432 --data-root P --noise awgn --sigma 25", "bsd432"),
        ("train_dbsn", "--name a --clean nosuchset --noise awgn --sigma 25", "no set of that name"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 25 --patch-size 39", "--patch-size"),
        ("train_dbsn", "--name a --clean P/bad --noise awgn --sigma 25 --patch-size 16", "text.png"),
        ("train_dbsn", "--name a --clean P/gray --noise mg --mode gray", "--mode color"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn", "--sigma"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 300", "at most 255"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma -1", "at least 0"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma nan", "out of range"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 55 5", "low and high"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 25 --alpha 3", "--alpha"),
        ("train_dbsn", "--name a --noisy P/gray --noise awgn --sigma 25", "--sigma"),
        ("train_dbsn", "--name a --noise awgn --sigma 25", "--clean"),
        ("train_dbsn", "--clean P/gray --noise awgn --sigma 25", "--name"),
        ("train_dbsn", "--name ../a --clean P/gray --noise awgn --sigma 25", "--name"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 25 --steps 0", "nothing to train"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 25 --batch-size 1.5", "--batch-size"),
        (
            "train_dbsn",
            "--name a --clean P/gray --noise awgn --sigma 25 --patch-size 16 --start-from s2",
            "--start-from",
        ),
        (
            "train_dbsn",
            "--name a --clean P/color --mode color --noise awgn --sigma 25 --patch-size 16 --start-from s1",
            "--start-from",
        ),
        ("train_dbsn", "--name a --noisy P/gray --noise awgn --val P/gray", "--val"),
        ("train_dbsn", "--name a --noisy P/gray --noise awgn --noise-draw fresh", "--noise-draw"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 5 55 --quantile 0.1", "--quantile"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 25 --sigma-n exact --quantile 0.1", "--quantile"),
        ("train_dbsn", "--name a --clean P/gray --noise awgn --sigma 25 --mg-seed 1", "--mg-seed"),
        ("train_distill", "--name a --teacher nowhere --clean P/gray --noisy P/gray", "no checkpoint"),
        ("train_distill", "--name a --teacher s2 --clean P/gray --noisy P/gray", "stage-2"),
        ("train_distill", "--name a --teacher s1 --clean P/gray --synthetic-noisy P/gray", "--noise"),
        ("train_distill", "--name a --teacher s1 --clean P/gray --synthetic-noisy P/gray --noise mg", "gray"),
        ("train_distill", "--name a --teacher s1 --clean P/gray --noisy P/gray --val P/gray", "--val"),
        (
            "train_distill",
            "--name a --teacher s1 --clean P/gray --synthetic-noisy P/gray --noise awgn --sigma 25 --white-level 9",
            "--clean-white-level",
        ),
        (
            "train_distill",
            "--name a --teacher s1 --clean P/gray/0.png --noisy P/gray/0.png --patch-size 16",
            "same single picture",
        ),
        (
            "train_distill",
            "--name a --teacher s1 --clean P/gray --noisy P/gray --student s1 --patch-size 16",
            "--student",
        ),
        ("test", "--data P/gray --noise awgn --sigma 25 --seed 7", "--seed"),
        ("test", "--checkpoint nowhere --data P/gray --noise awgn --sigma 25", "no checkpoint"),
        ("test", "--checkpoint s1 --data P/color --noise awgn --sigma 25", "--mode gray"),
        ("test", "--checkpoint s1 --data P/gray --mode color --noise awgn --sigma 25", "--mode"),
        ("test", "--checkpoint s1 --data P/gray --noise awgn --sigma 5 55", "range"),
        ("test", "--checkpoint s1 --data P/gray", "--save"),
        ("test", "--checkpoint s1 --data P/gray --save P/gray", "overwritten"),
        ("test", "--data P/gray --noise mg", "colour"),
        ("test", "--data P/gray --protocol published", "--noise"),
        ("test", "--data P/gray --clean P/gray/0.png", "one clean image for each"),
        ("test", "--data P/gray/0.png --clean P/color/0.png", "same picture"),
        ("test", "--checkpoint P/gray/0.png --data P/gray --noise awgn --sigma 25", "0.png"),
    ],
)
def test_wrong_use_ends_in_one_line(script, line, words, run, pictures, models, tmp_path):
    for folder in ("empty", "bad"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bad" / "text.png").write_text("no picture")
    for name in ("gray", "color"):
        (tmp_path / name).symlink_to(pictures / name)
    for name in ("s1", "s2"):
        shutil.copytree(models / name, tmp_path / name)
    before = {f for f in tmp_path.rglob("*") if f.is_file()}
    code, out, err = run(script, line.replace("P/", f"{tmp_path}/").replace("-root P", f"-root {tmp_path}"))
    assert code == 2, (code, out, err)
    message = [text for text in err.splitlines() if text.startswith("error:")]
    assert len(message) == 1 and words in message[0] and "Traceback" not in err
    assert {f for f in tmp_path.rglob("*") if f.is_file()} == before  # nothing was begun


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


@pytest.mark.parametrize("script", ["train_dbsn", "train_distill"])
def test_skipping_steps_is_bounded_and_survives_resuming(script, run, pictures, models, tmp_path, monkeypatch):
    shutil.copytree(models / "s1", tmp_path / "s1")
    line = {
        "train_dbsn": f"--name a --clean {pictures}/gray {LEVELS['awgn']} {TINY}",
        "train_distill": f"--name a --teacher s1 --clean {pictures}/gray --noisy {pictures}/gray {TINY2}",
    }[script]
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def poisoned(parameters, bound):
        calls.append(1)
        return clip(parameters, bound) * (float("inf") if len(calls) % 2 else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    out = ok(run(script, f"{line} --steps 4 --save-every 1 --on-nonfinite skip"))
    assert out.count("step skipped") == 2 and "step 3" in out and "4 of 4" in out
    shutil.rmtree(tmp_path / "a")
    code, _, err = run(script, f"{line} --steps 40 --save-every 1 --on-nonfinite skip")
    assert code == 1 and "11 steps skipped" in err
    state = load_checkpoint(sorted((tmp_path / "a").glob("state-*"))[-1])
    assert (
        state.values["skipped"] == 10
        and torch.isfinite(torch.cat([t.flatten().double() for t in state.tensors.values()])).all()
    )


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
        re.search(r"a: noise of [12]\b", notes[2])
        and "gray-awgn-blind was trained on 5 to 55 (of 255, white); a --white-level" in notes[2]
    )
    assert (
        "trained on" not in notes[25]
        and re.search(r"a: noise of [78]\d,", notes[80])
        and "--white-level" not in notes[80]
    )


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


@pytest.mark.parametrize("value", [0, 255])
def test_constant_images_train_and_denoise(value, run, tmp_path):
    (tmp_path / "flat").mkdir()
    for k in range(2):
        Image.fromarray(np.full((20, 20), value, np.uint8)).save(tmp_path / "flat" / f"{k}.png")
    for noise in ("--noise awgn --sigma 0", "--noise awgn --sigma 200"):
        name = noise.split()[-1]
        ok(run("train_dbsn", f"--name {name} --clean {tmp_path}/flat {noise} {TINY} --steps 4"))
        ok(run("test", f"--checkpoint {name} --data {tmp_path}/flat {noise} --json {tmp_path}/r.json"))
        assert "NaN" not in (tmp_path / "r.json").read_text()
        assert torch.isfinite(
            torch.cat([t.flatten() for t in read_tensors(tmp_path / name / "last.safetensors").values()])
        ).all()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit) as end:
        SCRIPTS[script].main(["--help"])
    assert end.value.code == 0 and "--checkpoints-dir" in capsys.readouterr().out


def test_released_weights_load_by_name(run, pictures, models, tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    import release

    for name in ("s1", "s2"):
        assert (
            release.main(["--run", str(models / name), "--as", f"{name}-half", "--checkpoints-dir", str(tmp_path)]) == 0
        )
        whole, half = (
            load_model(n, checkpoints_dir=d).state_dict() for n, d in ((name, models), (f"{name}-half", tmp_path))
        )
        for key in whole:
            torch.testing.assert_close(half[key], whole[key], atol=1e-3, rtol=1e-3)
    ok(run("test", f"--checkpoint s1-half s2-half --data {pictures}/gray/0.png {LEVELS['awgn']}"))
    shutil.copytree(models / "s1", tmp_path / "s1-half")
    with pytest.raises(UsageError, match="--as s1-half: a run has that name"):
        release.main(["--run", str(models / "s1"), "--as", "s1-half", "--checkpoints-dir", str(tmp_path)])
    with pytest.raises(UsageError, match=r"released weights and of a run.*s1-half\.safetensors or .*last\.safetensors"):
        load_model("s1-half", checkpoints_dir=tmp_path)
    assert load_model(tmp_path / "s1-half.safetensors").stage == 1
    # the project's own are found from everywhere, and a slip of the pen is seen
    assert load_model("gray-awgn-blind", checkpoints_dir=tmp_path).channels == 1
    with pytest.raises(UsageError, match="did you mean gray-awgn-blind"):
        load_model("gray-awgn-blnd", checkpoints_dir=tmp_path)


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


def test_a_panel_shows_images_side_by_side_and_one_row_for_each_of_a_batch(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path, 0)
    board.panel("seen", [torch.zeros(2, 1, 10, 12), torch.ones(2, 3, 10, 12)], 1)
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (picture,) = events.Images("seen")
    assert (picture.width, picture.height) == (2 * 12 + 2 * 2, 2 * 10 + 3 * 2)  # margins of two pixels


def test_events_of_the_step_that_training_goes_on_from_stay(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (5, 10, 15)), (10, (20,))):  # stopped after 15, of which 10 were saved
        board = Board(tmp_path, start)
        for step in steps:
            board.scalars({"loss": float(step)}, step)
        board.close()
        time.sleep(1.1)  # event files are ordered by their names, which hold whole seconds
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 20]


@pytest.mark.parametrize("noise", ["--noise awgn --sigma 5 55", "--noise hg --alpha 10 40 --delta 2 20"])
def test_model_of_a_range_of_levels_finds_each_images_own(run, pictures, tmp_path, noise):
    ok(run("train_dbsn", f"--name blind --clean {pictures}/gray {noise} {TINY} --steps 3"))
    model = load_model(tmp_path / "blind" / "last.safetensors")
    assert model.estimator == "residual" and not list(model.noise_estimator.parameters())
    # black, which even a network of three steps predicts
    y = torch.tensor([0.05, 0.2]).view(2, 1, 1, 1) * torch.randn(
        2, 1, 64, 64, generator=torch.Generator().manual_seed(0)
    )
    low, high = (noise_level(model(y).cov_n).mean((1, 2, 3))).tolist()
    assert 2 < high / low < 6
    losses = {}
    for draw in ("fixed", "fresh"):  # pairs are made with the noise of one of the noisy images
        ok(
            run(
                "train_distill",
                (
                    f"--name {draw} --teacher blind --clean {pictures}/gray --synthetic-noisy {pictures}/gray {noise} "
                    f"{TINY2} --steps 2 --noise-draw {draw}"
                ),
            )
        )
        rows = [json.loads(text) for text in (tmp_path / draw / "stats.jsonl").read_text().splitlines()]
        losses[draw] = [row["pairs"] for row in rows if "pairs" in row]
    assert all(0 < loss < 1 for loss in [*losses["fixed"], *losses["fresh"]])


def test_which_estimator_is_chosen():
    def chosen(line):
        return Stage1Options().parse(f"--name a {line}".split()).sigma_n

    assert chosen("--clean x --noise awgn --sigma 25") == "envelope"
    assert chosen("--clean x --noise awgn --sigma 5 55") == "residual"
    assert chosen("--clean x --noise awgn --sigma 5 55 --sigma-n constrained") == "constrained"
    assert chosen("--clean x --noise mg --mode color") == "residual"
    assert chosen("--noisy x --noise awgn") == "residual"
    assert chosen("--noisy x --noise hg") == "envelope"
    assert chosen("--noisy x --noise hg --sigma-n residual") == "residual"
