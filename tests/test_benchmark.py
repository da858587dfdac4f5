"""The benchmark runs, reports every path, and refuses a path that computes something else.

Nothing here asserts a speed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from options.recipes import RECIPES
from scripts import benchmark
from tests.helpers import ROOT
from utils.device import cpu_has_bf16
from utils.errors import RunError, UsageError

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"

PATHS = {
    "train": {"plain float32", "fused float32", "fused bf16", "phases float32", "phases bf16"},
    "infer": {"plain float32", "fused float32", "fused bf16", "phases float32", "phases bf16"},
    "distill": {"plain float32", "channels-last float32", "channels-last bf16"},
}
if not cpu_has_bf16():
    PATHS = {task: {path for path in paths if not path.endswith("bf16")} for task, paths in PATHS.items()}
POSITIVE = ("seconds", "ratio_to_plain", "flops_share", "pixels_per_second", "images_per_second")
KEYS = {"task", "path", "size", "spread", "peak_memory_mb", "machine", "torch", *POSITIVE}


@pytest.mark.slow
def test_quick_run_reports_every_path(tmp_path):
    file = tmp_path / "benchmark.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--quick",
        "--seconds",
        "1",
        "--device",
        "cpu",
        "--large",
        "--json",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert all(set(r) == KEYS for r in rows)
    large = rows.pop()
    assert large["path"] == "tiled 0.25 megapixel" and large["size"] == "1x500x500" and large["seconds"] > 0
    found = {task: {r["path"] for r in rows if r["task"] == task} for task in PATHS}
    assert found == PATHS and len(rows) == sum(map(len, PATHS.values()))
    for r in rows:
        assert all(r[key] > 0 for key in POSITIVE) and r["spread"] >= 0
        assert r["peak_memory_mb"] is None  # fresh processes are left out of a quick run
        assert r["path"] != "plain float32" or r["ratio_to_plain"] == 1
        assert r["path"] in done.stdout and r["size"] in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["benchmark.json"]


def test_flops_of_the_published_network():
    """Two operations per weight and pixel; a training step takes three times that, less the gradient of the image."""
    scale = benchmark.scale_of(quick=False, device_type="cpu")
    infer, train = (benchmark.flops(task, (1, 96, 96), scale) for task in ("infer", "train"))
    assert infer == pytest.approx(2 * 6_612_289 * 96 * 96, rel=0.01)
    assert train == pytest.approx(3 * infer, rel=0.01)


def test_the_released_size_is_that_of_the_recipe():
    scale = benchmark.scale_of(quick=False, device_type="cpu", network="released")
    one, two = RECIPES["gray-awgn-blind-small"]["stage1"], RECIPES["color-awgn-blind-small"]["stage2"]
    assert (scale.width, scale.blocks, scale.mdc) == (one["width"], one["blocks"], one["mdc"])
    assert (scale.student_width, scale.student_blocks) == (two["student_width"], two["student_blocks"])
    for task, values in (("train", one), ("distill", two)):
        assert scale.sizes[task] == (values["batch_size"], values["patch_size"], values["patch_size"])


def test_paths_use_their_memory_format():
    scale = benchmark.scale_of(quick=True, device_type="cpu")
    for task, paths in PATHS.items():
        for path in paths:
            case = benchmark.Case(task, benchmark.variants_of(task, "cpu")[path], scale, torch.device("cpu"))
            layouts = []
            last = case.model.up1 if task == "distill" else case.model.dbsn.branches[0].last
            last.register_forward_hook(
                lambda module, args, out, layouts=layouts: layouts.append((out.is_contiguous(), out.dtype))
            )
            case.feed((1, 16, 16))
            case.results()
            assert set(layouts) == {
                (path == "plain float32", torch.bfloat16 if path.endswith("bf16") else torch.float32)
            }, (task, path)


def test_path_that_computes_something_else_is_refused():
    right = {"output": torch.ones(5)}
    benchmark.guard("x", {"output": torch.ones(5) + 1e-5}, right, torch.float32)
    for wrong in (torch.ones(5) * 1.01, torch.full((5,), torch.nan)):
        with pytest.raises(RunError, match="'x': output differs"):
            benchmark.guard("x", {"output": wrong}, right, torch.float32)


def test_wrong_json_folder_is_found_before_anything_is_measured(tmp_path):
    with pytest.raises(benchmark.UsageError, match="no folder"):
        benchmark.main(["--quick", "--json", str(tmp_path / "absent" / "x.json")])


def test_performance_page_shows_the_committed_results():
    """docs/performance.md holds what --show prints of the files it names."""
    page = (ROOT / "docs" / "performance.md").read_text()
    shown = re.findall(r"<!-- benchmark (\S+) -->\n```\n(.*?)```\n<!-- /benchmark -->", page, re.DOTALL)
    assert shown
    for file, text in shown:
        assert text == benchmark.table(benchmark.read_rows(ROOT / file)) + "\n"


def test_show_refuses_what_is_no_result(tmp_path):
    with pytest.raises(UsageError, match="none"):
        benchmark.main(["--show", str(tmp_path / "none.json")])
