"""The script of the learning curves measures, continues and draws.

What is written about the curves is what was measured.
"""

from __future__ import annotations

import json
import shutil

import pytest

from options.recipes import COMMON, FLAVOURS
from scripts import learning_curves as curves
from tests.helpers import ROOT
from utils.errors import UsageError

FILE = ROOT / "results" / "learning-curves.json"
PAGE = ROOT / "docs" / "ablations.md"


def test_the_page_shows_what_was_measured():
    rows = json.loads(FILE.read_text())
    page = PAGE.read_text()
    assert page.count(curves.START) == page.count(curves.END) == 1
    assert page.split(curves.START)[1].split(curves.END)[0] == f"\n{curves.table(rows)}"
    for row in rows:
        expected = (curves.STUDENT if row["name"] in curves.STUDENTS else curves.BASE) | curves.ALL[row["name"]]
        assert {key: row[key] for key in expected} == expected, row["name"]
        assert (row["parameters"], row["flops_per_pixel"]) == curves.cost(row)
        assert [p["step"] for p in row["points"]][-1] == row["steps"]


def test_variants_see_equally_many_pixels():
    def pixels(options):
        return options["steps"] * options["batch_size"] * options["patch_size"] ** 2

    # as the last part of a name says; else equal. Other networks see as many as make about the same operations
    longer = {"1200 steps": 3, "2400 steps of batch 4": 3, "600 steps": 1.5, "2000 steps": 5, "4800 steps": 12}
    longer |= {"760 steps": 1.9, "560 steps": 1.4, "300 steps": 0.75}
    longer |= {"3040 steps": 7.6, "2240 steps": 5.6, "8200 steps": 20.5, "2250 steps": 5.625}
    for base, variants in ((curves.BASE, curves.VARIANTS), (curves.STUDENT, curves.STUDENTS)):
        for name, changes in variants.items():
            assert pixels(base | changes) == pixels(base) * longer.get(name.split(", ")[-1], 1), name
    assert {name for _, names in curves.PANELS.values() for name in names} == set(curves.ALL)


def test_a_small_study(monkeypatch, pictures, tmp_path):
    shutil.copytree(pictures / "gray", tmp_path / "bsd432")
    monkeypatch.setattr(curves, "FIXED", "--noise awgn --sigma 25 --device cpu --log-every 1 --amp off")
    tiny = dict(optimizer="adam", lr=2e-3, warmup=2, batch_size=2, patch_size=16, steps=2, seed=0)
    monkeypatch.setattr(curves, "BASE", dict(mdc="residual", width=4, blocks=1, **tiny))
    monkeypatch.setattr(curves, "STUDENT", dict(student_width=4, student_blocks="residual", **tiny))
    monkeypatch.setattr(curves, "VALIDATION_IMAGES", 2)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{curves.START}\nold\n{curves.END}\nafter\n")
    argv = (
        f"--data-root {tmp_path} --checkpoints-dir {tmp_path}/runs --json {tmp_path}/x.json --table {page} "
        f"--plot {tmp_path}/x.png --variants student muon base"
    )
    curves.main(argv.split())
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [(r["name"], r["optimizer"]) for r in rows] == [("base", "adam"), ("muon", "muon"), ("student", "adam")]
    assert rows[0]["points"][-1]["val_psnr"] > 0 and rows[0]["points"][-1]["pixels"] == 2 * 2 * 16**2
    recorded = json.loads((tmp_path / "runs" / "base" / "options.json").read_text())
    assert (
        len(recorded["val"]) == 2 and len(recorded["clean"]) == 8 and not set(recorded["val"]) & set(recorded["clean"])
    )
    assert page.read_text() == f"before\n{curves.START}\n{curves.table(rows)}{curves.END}\nafter\n"
    assert (tmp_path / "x.png").stat().st_size > 1000
    shutil.rmtree(tmp_path / "runs")
    curves.main(argv.split())  # what is measured is not trained again
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(curves, "TIMED", (1, 3))
    assert curves.table(rows).count("| - |") > len(rows)
    page.write_text(f"{curves.START}\n{curves.END}\n")
    assert curves.main([*argv.split(), "--time"]) == 0
    timed = json.loads((tmp_path / "x.json").read_text())
    assert [r.pop("core_seconds_per_step") for r in timed] and timed == rows
    assert page.read_text().count("| - |") < curves.table(rows).count("| - |")
    page.write_text("no markers")
    with pytest.raises(UsageError, match="no markers"):
        curves.main(argv.split())


def test_the_fast_recipes_arithmetic():
    """The page's estimate follows from the recipe's numbers and the counted operations."""
    one, two = (COMMON[stage] | FLAVOURS["fast"][stage] for stage in ("stage1", "stage2"))
    teacher, student = curves.cost(one)[1], curves.cost(two)[1]
    pixels1, pixels2 = (stage["batch_size"] * stage["patch_size"] ** 2 for stage in (one, two))
    steps = pixels1 * teacher, pixels2 * (student + two["noisy_share"] * teacher / 3)
    page = (ROOT / "docs" / "recipes.md").read_text()
    for name, stage, step in zip(("stage 1", "stage 2"), (one, two), steps):
        total = stage["steps"] * step
        assert (
            f"| {name} | {step / 1e12:.1f} TFLOP | {stage['steps']:,} | {total / 1e18:.2f} EFLOP | "
            f"{total / 280e12 / 60:.0f} min |"
        ) in page
