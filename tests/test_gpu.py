"""What only a GPU can show: equal paths, blindness, both stages, and resuming to the same bits. `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

import train_dbsn
import train_distill
from models import MWCNN, BlindSpotDenoiser
from models.inference import denoise_batch
from tests.helpers import LEVELS, TINY, TINY2, contents, read_tensors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def small(channels=1, noise="awgn", estimator="cnn", std=0.3):
    torch.manual_seed(0)
    model = BlindSpotDenoiser(channels, noise, width=16, blocks=2, estimator=estimator)
    torch.nn.init.normal_(model.cov_head.last.weight, std=std)  # zeros would hide what the covariances depend on
    return model.eval().cuda().to(memory_format=torch.channels_last).requires_grad_(False)


@pytest.mark.parametrize("path", ["fused", "phases"])
@pytest.mark.parametrize("size", [(24, 30), (25, 31)])
def test_paths_equal_the_plain_one(path, size, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, y = small(), torch.rand(2, 1, *size, device="cuda")
    outputs = {}
    for model.path in ("plain", path):
        p = model(y)
        outputs[model.path] = (p.mu, p.v.factor)
    torch.testing.assert_close(outputs[path], outputs["plain"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("path", ["plain", "fused", "phases"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blind(path, dtype):
    model = small()
    model.path, model.dtype = path, dtype
    h, w = 7, 11
    y = torch.rand(1, 1, h, w, device="cuda").repeat(h * w, 1, 1, 1).requires_grad_()
    mu, cov = model.context(y)
    i = torch.arange(h * w, device="cuda")
    for out in (mu, cov.factor):
        (grad,) = torch.autograd.grad(out.flatten(2)[i, :, i].sum(), y, retain_graph=True)
        assert (grad.flatten(1)[i, i] == 0).all() and grad.abs().sum() > 0


MODELS = {
    "cnn": small,
    "residual": lambda: small(estimator="residual"),
    "residual of hg": lambda: small(noise="hg", estimator="residual"),
    "residual of camera": lambda: small(3, "camera", "residual", std=0.03),  # with more some V are nearly singular
    "stage 2": lambda: MWCNN(1, width=16).cuda(),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_cuda_equals_cpu_and_tiles_the_whole(model, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    net = model()
    y = torch.rand(1, net.channels, 150, 170)
    whole = denoise_batch(net, y).image
    torch.testing.assert_close(denoise_batch(net, y, tile=64).image, whole, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(denoise_batch(net.cpu(), y).image, whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_both_stages_resume_to_the_same_bits(amp, pictures, tmp_path):
    where = ["--checkpoints-dir", str(tmp_path), "--device", "cuda", "--deterministic", "--amp", amp]
    line = (
        f"--clean {pictures}/color {LEVELS['hg']} --mode color {TINY} --steps 5 --save-every 2 --noise-draw fresh"
    ).replace("--amp off", "")
    line2 = (
        f"--teacher whole --clean {pictures}/color --synthetic-noisy {pictures}/color {LEVELS['hg']} {TINY2} --steps 4"
    ).replace("--amp off", "")
    try:
        for script, options, names, steps in (
            (train_dbsn, line, ("whole", "parts"), 5),
            (train_distill, line2, ("whole2", "parts2"), 4),
        ):
            script.main([*f"--name {names[0]} {options}".split(), *where])
            for _ in range(steps + 1):
                script.main([*f"--name {names[1]} {options} --max-minutes 1e-9".split(), *where])
            a, b = (read_tensors(tmp_path / n / "last.safetensors") for n in names)
            assert all(torch.equal(a[k], b[k]) for k in a)
            assert contents(tmp_path / names[0])["stats.jsonl"] == contents(tmp_path / names[1])["stats.jsonl"]
    finally:
        torch.use_deterministic_algorithms(False)
