"""The library interface."""

from __future__ import annotations

import torch

from models import load_model, posterior
from tests.helpers import LEVELS, TINY, TINY2, ok


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
