"""scripts/soak.py shows that trainings killed and started again end as if never killed.

Its comparison sees every kind of difference.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import soak
from utils.checkpoint import load_checkpoint, save_checkpoint

SOAK = Path(__file__).resolve().parents[1] / "scripts" / "soak.py"


@pytest.mark.slow
def test_killed_runs_end_as_if_never_killed(tmp_path):
    command = [sys.executable, str(SOAK), "--kills", "20", "--keep", str(tmp_path / "kept")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"survived 20 kills in \d+ runs, 0 differences", last)
    (kept,) = (tmp_path / "kept").iterdir()
    for script in ("train_dbsn", "train_distill"):  # both were killed and went on
        assert any("continuing after step" in log.read_text() for log in kept.glob(f"{script}-*.log"))


@pytest.mark.parametrize("line", ["", "--kills 0", "--kills x", "--kills 1 --stage 3", "--kills 1 --fresh-share 2"])
def test_wrong_use(line, capsys):
    with pytest.raises(SystemExit) as end:
        soak.main(line.split())
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: ")


@pytest.fixture
def folders(tmp_path):
    """Two run folders whose only difference is the run's name."""
    for name in ("a", "b"):
        (tmp_path / name / "tensorboard").mkdir(parents=True)
        tensors = {"w": torch.tensor([0.0, 1.0, float("nan")]), "v": torch.arange(3)}
        for file in ("last", "state-00000002"):
            save_checkpoint(
                tmp_path / name / f"{file}.safetensors",
                "stage1",
                tensors,
                {"step": 2, "options": {"name": name, "lr": 1.0}},
            )
        (tmp_path / name / "stats.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        (tmp_path / name / "options.json").write_text(json.dumps({"name": name}))
    return tmp_path / "a", tmp_path / "b"


def test_equal_runs(folders):
    assert soak.compare(*folders) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("tensor", "last.safetensors: tensor w differs"),
        ("dtype", "last.safetensors: tensor v differs"),
        ("missing tensor", "last.safetensors: tensor v is in one of the two only"),
        ("value", "last.safetensors: step differs"),
        ("option", "last.safetensors: options differs"),
        ("damage", "last.safetensors: its contents do not match their checksum"),
        ("state", "state-00000002.safetensors is missing"),
        ("left", ".last.safetensors.ab.tmp is left over"),
        ("row", "stats.jsonl differs from line 2 on"),
        ("rows", "stats.jsonl differs from line 3 on"),
    ],
)
def test_every_difference_is_seen(folders, change, found):
    last, stats = folders[1] / "last.safetensors", folders[1] / "stats.jsonl"
    checkpoint = load_checkpoint(last)
    tensors, values = dict(checkpoint.tensors), dict(checkpoint.values)
    if change == "tensor":
        tensors["w"] = torch.tensor([-0.0, 1.0, float("nan")])
    elif change == "dtype":
        tensors["v"] = tensors["v"].int()
    elif change == "missing tensor":
        del tensors["v"]
    elif change == "value":
        values["step"] = 3
    elif change == "option":
        values["options"] = {**values["options"], "lr": 2.0}
    save_checkpoint(last, "stage1", tensors, values)
    if change == "damage":
        last.write_bytes(last.read_bytes()[:-1] + b"\xff")
    elif change == "state":
        (folders[1] / "state-00000002.safetensors").unlink()
    elif change == "left":
        shutil.copy(last, folders[1] / ".last.safetensors.ab.tmp")
    elif change == "row":
        stats.write_text('{"step": 1}\n{"step": 3}\n')
    elif change == "rows":
        stats.write_text(stats.read_text() + '{"step": 3}\n')
    assert soak.compare(*folders) == [found]
