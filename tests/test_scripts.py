"""What the scripts do one after the other, and what they have in common."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from data.sets import bsd68_names
from models import load_model, noise_level
from tests.helpers import LEVELS, SCRIPTS, TINY, TINY2, ok, read_tensors
from utils.checkpoint import load_checkpoint


@pytest.mark.parametrize(
    ("mode", "noise"),
    [
        ("gray", "awgn"),
        ("gray", "hg"),
        ("color", "awgn"),
        ("color", "hg"),
        ("color", "mg"),
        ("gray", "poisson"),
        ("color", "camera"),
    ],
)
def test_both_stages_and_the_test(mode, noise, run, pictures, tmp_path):
    images, levels = pictures / mode, LEVELS[noise]
    hidden = "--stride 2" if noise == "camera" else ""
    ok(
        run(
            "train_dbsn",
            (
                f"--name s1 --mode {mode} --clean {images} {levels} {hidden} {TINY} "
                f"--mu-steps 2 --sigma-steps 2 --steps 4 --val {images}/0.png --val-every 4"
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
    for row in table["images"]:  # the noise that was added is of the level that is told
        assert row["noisy"]["psnr"] == pytest.approx(-20 * np.log10(row["noise_level"]["true"] / 255), abs=0.5)
    strip = np.asarray(Image.open(tmp_path / "out" / "0_all.png"))
    assert strip.shape[:2] == (37 + 22, 5 * 40 + 4 * 4)
    assert {f"0_{part}.png" for part in ("all", "denoised", "std", "level")} <= {
        f.name for f in (tmp_path / "out").iterdir()
    }
    stats = [json.loads(line) for line in (tmp_path / "s1" / "stats.jsonl").read_text().splitlines()]
    assert [s["phase"] for s in stats if "phase" in s] == ["mu"] * 2 + ["sigma"] * 2 + ["joint"] * 4
    assert any("held_out_nll" in s for s in stats) and any("val_psnr" in s for s in stats)
    assert list((tmp_path / "s1" / "tensorboard").glob("events*"))


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
    ok(
        run(
            "test",
            f"--checkpoint s1 s2 --data {tmp_path}/noisy --save {tmp_path}/out --json {tmp_path}/r.json --depth same",
        )
    )
    table = json.loads((tmp_path / "r.json").read_text())
    assert table["protocol"] == "none" and table["mean"] == {} and table["images"][0]["noise_level"]["true"] is None
    result = tifffile.imread(tmp_path / "out" / "0_denoised.tif")
    assert result.dtype == np.uint16 and result.shape == (33, 29)
    source = tifffile.imread(tmp_path / "noisy" / "0.tif")
    # in the units of the input, not of 16 bits
    assert result.max() < 3 * 4095 and abs(result.astype(float).mean() - source.mean()) < 2500


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


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a slow machine beside others takes minutes to compile each kernel
@pytest.mark.parametrize("script", ["train_dbsn", "train_distill"])
def test_compiled_networks_follow_the_same_course(script, run, pictures, models, tmp_path):
    shutil.copytree(models / "s1", tmp_path / "s1")
    line = {
        "train_dbsn": f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 3",
        "train_distill": f"--teacher s1 --clean {pictures}/gray --noisy {pictures}/gray {TINY2} --steps 3",
    }[script]
    rows = []
    for name, flag in (("plain", ""), ("compiled", "--compile")):
        ok(run(script, f"--name {name} {line} {flag}"))
        rows.append([json.loads(text) for text in (tmp_path / name / "stats.jsonl").read_text().splitlines()])
    assert len(rows[0]) == len(rows[1])
    for one, two in zip(*rows):
        if "loss" in one:
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)


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
