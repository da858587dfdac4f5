"""Two processes (gloo, CPU) do what one does.

That is the same losses and weights to rounding, one writer, a resume across world sizes, one merged table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import LEVELS, ROOT, TINY, TINY2, ok, stats
from utils.checkpoint import load_checkpoint
from utils.distributed import World
from utils.errors import UsageError

pytestmark = pytest.mark.slow


def torchrun(script: str, line: str, folder: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        script,
        *line.split(),
    ]
    command += ["--checkpoints-dir", str(folder), "--device", "cpu"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def assert_same_course(a: Path, b: Path):
    rows = list(zip(stats(a), stats(b)))
    assert len(stats(a)) == len(stats(b)) > 5
    for one, two in rows:
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert two[key] == (value if isinstance(value, str) else pytest.approx(value, rel=2e-3, abs=1e-5)), (
                one["step"],
                key,
            )
    one, two = (load_checkpoint(f / "last.safetensors").tensors for f in (a, b))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=1e-2)


def test_stage_1(run, pictures, tmp_path):
    line = (
        f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --mu-steps 2 --sigma-steps 2 --steps 4 --noise-draw fresh "
        "--val-every 4 --save-every 3"
    )
    ok(run("train_dbsn", f"--name one {line}"))
    result = torchrun("train_dbsn.py", f"--name two {line}", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("8 of 8 steps") == 1
    assert_same_course(tmp_path / "one", tmp_path / "two")
    # stopped with two processes, continued with one
    result = torchrun("train_dbsn.py", f"--name both {line} --max-minutes 1e-9", tmp_path)
    assert result.returncode == 0 and "1 of 8 steps" in result.stdout, result.stderr
    assert "8 of 8" in ok(run("train_dbsn", f"--name both {line}"))
    assert_same_course(tmp_path / "one", tmp_path / "both")


def test_stage_2_and_the_test(run, pictures, tmp_path):
    ok(run("train_dbsn", f"--name s1 --clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 1"))
    line = (
        f"--teacher s1 --clean {pictures}/gray --synthetic-noisy {pictures}/gray {LEVELS['awgn']} {TINY2} "
        "--noisy-share 0.25 --steps 6 --noise-draw fresh"
    )
    ok(run("train_distill", f"--name one {line}"))
    result = torchrun("train_distill.py", f"--name two {line}", tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_course(tmp_path / "one", tmp_path / "two")

    line = f"--checkpoint s1 one --data {pictures}/gray {LEVELS['awgn']}"
    alone = ok(run("test", f"{line} --json {tmp_path}/a.json"))
    result = torchrun("test.py", f"{line} --json {tmp_path}/b.json", tmp_path)
    assert result.returncode == 0, result.stderr
    a, b = (json.loads((tmp_path / f).read_text()) for f in ("a.json", "b.json"))
    assert [row["name"] for row in a["images"]] == [row["name"] for row in b["images"]]
    for method in a["mean"]:
        assert a["mean"][method] == pytest.approx(b["mean"][method], rel=1e-5)
    table = lambda text: [x for x in text.splitlines() if x.startswith(("image", "mean"))]  # noqa: E731
    assert table(result.stdout)[0] == table(alone)[0]


def test_shares_make_the_batch():
    for size in (1, 2, 4):
        shares = [World(rank, size).share(24, 8) for rank in range(size)]
        np.testing.assert_array_equal(np.concatenate(shares), np.arange(24, 32))
    with pytest.raises(UsageError, match="multiple of 3"):
        World(0, 3).check_share(8, "--batch-size")


@pytest.mark.slow
def test_two_processes(run, pictures, tmp_path):
    line = f"--clean {pictures}/gray {LEVELS['awgn']} {TINY} --steps 6 --images disk"
    ok(run("train_dbsn", f"--name one {line}"))
    result = torchrun("train_dbsn.py", f"--name two {line}", tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_course(tmp_path / "one", tmp_path / "two")
