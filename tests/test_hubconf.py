"""torch.hub finds every released model, and the models run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import hubconf
from models import posterior
from tests.helpers import ROOT

RELEASED = sorted(file.stem for file in (ROOT / "checkpoints").glob("*.safetensors"))


def test_every_released_model_has_an_entry_point():
    """torch.hub takes every callable whose name has no leading underscore for an entry point."""
    entry_points = {
        name: value for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")
    }
    assert sorted(entry_points) == [name.replace("-", "_") for name in RELEASED]
    for name, entry_point in entry_points.items():
        stage, color = (
            ("Stage 2" if name.endswith("_full") else "Stage 1"),
            ("RGB" if name.startswith("color") else "gray"),
        )
        assert entry_point.__doc__.startswith(f"{stage}, {color} images, ")


@pytest.mark.parametrize("name", RELEASED)
def test_hub_gives_the_ready_model(name):
    model = torch.hub.load(str(ROOT), name.replace("-", "_"), source="local")
    assert model.file == ROOT / "checkpoints" / f"{name}.safetensors" and not model.training
    y = torch.rand(1, 1 if name.startswith("gray") else 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image = model(y) if name.endswith("-full") else posterior(y, model(y)).mean
    assert image.shape == y.shape and image.isfinite().all()


def test_hub_works_from_another_folder(tmp_path):
    """torch.hub has the project on sys.path only while it loads; the example in hubconf.py runs after that."""
    code = f"""
import torch
model = torch.hub.load({str(ROOT)!r}, "gray_awgn_blind", source="local")
from models import posterior
y = torch.rand(1, 1, 32, 32)
print(*posterior(y, model(y)).mean.shape)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"}
    )
    assert out.returncode == 0 and out.stdout.split() == ["1", "1", "32", "32"], out.stderr
