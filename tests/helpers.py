"""What several tests use: small settings and networks, and what runs leave behind."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import test as test_script
import train_dbsn
import train_distill
from data.crops import ImagePool
from data.images import to_float
from models import BlindSpotDenoiser
from models.gaussian import triangle
from utils.checkpoint import load_checkpoint
from utils.device import cpu_has_bf16

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SCRIPTS = {"train_dbsn": train_dbsn, "train_distill": train_distill, "test": test_script}
LEVELS = {
    "awgn": "--noise awgn --sigma 25",
    "hg": "--noise hg --alpha 40 --delta 10",
    "mg": "--noise mg",
    "poisson": "--noise poisson --lam 30",
    "camera": "--noise camera --sigma 10",
}
TINY = "--width 4 --blocks 1 --patch-size 16 --batch-size 2 --log-every 1 --warmup 2 --amp off"
TINY2 = "--student-width 4 --student-blocks plain --patch-size 16 --batch-size 8 --log-every 1 --warmup 2 --amp off"
needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bfloat16")


def real_data(name: str) -> Path:
    """A folder of real test images under $DBSN_TEST_DATA or ../shared/data; the test is skipped where it is absent."""
    root = Path(os.environ.get("DBSN_TEST_DATA", SHARED))
    if not (root / name).is_dir():
        pytest.skip(f"the image set {name} is not at {root}")
    return root


def ok(result):
    code, out, err = result
    assert code == 0, err
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on interruptions."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix in (".safetensors", ".jsonl")}


def read_tensors(path):
    return load_checkpoint(path).tensors


def stats(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def assert_same_run(a, b):
    assert (a / "stats.jsonl").read_bytes() == (b / "stats.jsonl").read_bytes()
    states = [sorted(f.name for f in folder.glob("*.safetensors")) for folder in (a, b)]
    assert states[0] == states[1] and len(states[0]) >= 2
    for name in states[0]:  # the files differ in the options that they carry
        one, two = read_tensors(a / name), read_tensors(b / name)
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def script(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def small(channels=1, noise="awgn", **kwargs):
    """A small network whose every weight matters: the zero-initialised last layers are filled."""
    torch.manual_seed(1)
    model = BlindSpotDenoiser(channels, noise, width=6, blocks=1, **kwargs).requires_grad_(False)
    for name, p in model.named_parameters():
        if name in ("cov_head.last.weight", "noise_estimator.net.last.weight"):
            torch.nn.init.normal_(p, std=0.01)  # more would make covariances of correlated channels nearly singular
    return model.eval()


def pool(channels=1, dtype=np.uint8):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (h, w, channels)).astype(np.uint8) for h, w in ((20, 31), (16, 16), (40, 18))]
    return images, ImagePool([im.astype(dtype) if dtype == np.uint8 else to_float(im) for im in images])


def matrix(cov):
    """(N,H,W,C,C)"""
    entries, t = cov.entries(), triangle(cov.channels)
    m = torch.zeros(*entries.shape[:1], *entries.shape[2:], cov.channels, cov.channels, dtype=entries.dtype)
    for k, (i, j) in enumerate(t):
        m[..., i, j] = m[..., j, i] = entries[:, k]
    return m


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
