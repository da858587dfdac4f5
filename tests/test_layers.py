"""The layers of the networks."""

from __future__ import annotations

import torch

from models.dbsn import DBSN


def test_fused_path_uses_the_fused_kernel(monkeypatch):
    from models import layers

    calls = []
    original = layers.ConvReLU.apply
    monkeypatch.setattr(layers.ConvReLU, "apply", lambda *a: calls.append(1) or original(*a))
    net = DBSN(1, width=16, blocks=1)
    for path, expected in (("plain", False), ("fused", True), ("phases", True)):
        calls.clear()
        net(torch.rand(1, 1, 12, 12), path)
        assert bool(calls) == expected
