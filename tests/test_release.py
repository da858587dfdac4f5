"""Weights are released: smaller, found by name, with how they were trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from models import load_model
from scripts import release
from tests.helpers import LEVELS, ok
from utils.checkpoint import load_checkpoint
from utils.errors import UsageError
from utils.provenance import training_facts


def test_released_weights_load_by_name(run, pictures, models, tmp_path):
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


def test_released_weights_keep_how_they_were_trained(models, tmp_path):
    release.main(
        ["--run", str(models / "s1"), "--as", "half", "--checkpoints-dir", str(tmp_path), "--trained-on", "one second"]
    )
    source, half = (
        load_checkpoint(models / "s1" / "last.safetensors").values,
        load_checkpoint(tmp_path / "half.safetensors").values,
    )
    assert training_facts(half) == training_facts(source) | {"trained_on": "one second"}
    assert str(models) not in json.dumps(half) and half["training"]["sigma_n"] == source["options"]["sigma_n"]
    assert (
        training_facts({name: half[name] for name in ("config", "white_level", "step")}) is None
    )  # released before the facts were kept
