"""The library interface."""

from __future__ import annotations

import torch

from models import load_model, posterior


def test_library_interface(models):
    model = load_model(models / "s1" / "last.safetensors", device="cpu")
    y = torch.rand(2, 1, 19, 23)
    p = model(y)
    assert p.mu.shape == y.shape and p.cov_mu.variance.shape == y.shape and p.cov_n.variance.shape == (2, 1, 1, 1)
    assert posterior(y, p).mean.shape == posterior(y, p).std.shape == y.shape
    assert load_model("s2", checkpoints_dir=models)(y).shape == y.shape
