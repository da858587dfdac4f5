"""Muon's step is what it should be, it learns, and a stopped run goes on to the same bits.

The other optimizers are PyTorch's own.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import MWCNN, BlindSpotDenoiser
from models.layers import CentrallyMaskedConv2d, Conv2d
from tests.conftest import LEVELS, TINY, TINY2, contents, ok, read_tensors
from utils.optim import Muon, is_hidden, load_optimizer_tensors, make_optimizer, optimizer_tensors, orthogonalise


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 400), (2, 64, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_orthogonal_means_singular_values_near_one_in_the_same_frame(shape, dtype, rng):
    x = torch.randn(shape, generator=rng)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s.clamp(min=0.05 * s.max())  # the smallest of a square random matrix may be anything
    x = u @ s.diag_embed() @ v
    out = orthogonalise(x.to(dtype))
    assert out.dtype == torch.float32 and out.shape == x.shape
    frame = u.mT @ out @ v.mT
    inside = frame.diagonal(dim1=1, dim2=2)
    assert inside.min() > 0.6 and inside.max() < 1.25
    assert (frame - inside.diag_embed()).abs().max() < (1e-3 if dtype == torch.float32 else 0.3)


def test_every_matrix_of_a_batch_by_itself(rng):
    x = torch.randn(3, 5, 9, generator=rng) * torch.tensor([1e-6, 1.0, 1e6]).view(3, 1, 1)
    for one, of_batch in zip(x, orthogonalise(x)):
        torch.testing.assert_close(orthogonalise(one[None])[0], of_batch)
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_first_step_is_as_large_as_adams_for_every_shape(rng):
    for shape in ((32, 32, 1, 1), (32, 32, 5, 5), (64, 16, 1, 1)):
        weight = nn.Parameter(torch.randn(shape, generator=rng))
        before = weight.detach().clone()
        weight.grad = torch.randn(shape, generator=rng)
        Muon([weight], lr=1e-2).step()
        assert ((weight.detach() - before) / 1e-2).square().mean().sqrt() == pytest.approx(0.2, rel=0.3)
        assert ((weight.detach() - before) * weight.grad).sum() < 0


def test_step_is_pytorchs_muon_on_the_matrix(rng):
    """torch.optim.Muon takes matrices only and multiplies them in bfloat16, hence the tolerance."""
    weight = nn.Parameter(torch.randn(16, 20, 3, 3, generator=rng))
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    ours = Muon([weight], lr=0.01)
    theirs = torch.optim.Muon([matrix], lr=0.01, weight_decay=0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    start = matrix.detach().clone()
    for _ in range(4):
        weight.grad = torch.randn(weight.shape, generator=rng)
        matrix.grad = weight.grad.flatten(1)
        ours.step()
        theirs.step()
    moved, expected = weight.detach().flatten(1) - start, matrix.detach() - start
    assert (moved - expected).norm() < 0.03 * expected.norm()


def test_the_others_step_as_adam_does(rng):
    values = [torch.randn(s, generator=rng) for s in ((16, 1, 3, 3), (16,), (1, 16, 1, 1))]
    ours, theirs = ([nn.Parameter(v.clone()) for v in values] for _ in range(2))
    a, b = Muon(ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01)
    for _ in range(3):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs))


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_a_quadratic_problem_converges(kind, rng):
    """A linear map of 16 channels is found again from its outputs."""
    x = torch.randn(4, 16, 6, 6, generator=rng)
    wanted, conv = Conv2d(16, 16, 3), Conv2d(16, 16, 3)
    optimizer = make_optimizer(kind, conv.parameters(), lr=0.05)
    losses = []
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 100)
        loss = (conv(x) - wanted(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_what_is_hidden():
    model = BlindSpotDenoiser(3, "hg", 32, 1)
    hidden = {name for name, p in model.named_parameters() if is_hidden(p)}
    weights = {name for name, p in model.named_parameters() if p.ndim == 4}
    assert weights - hidden == {
        "dbsn.head.weight",
        "dbsn.mu.last.weight",
        "cov_head.last.weight",
        "noise_estimator.net.hidden.0.weight",
        "noise_estimator.net.last.weight",
    }
    assert not any(name.endswith("bias") for name in hidden)
    student = {name for name, p in MWCNN(3, 16).named_parameters() if p.ndim == 4 and not is_hidden(p)}
    assert student == {"down1.0.weight", "last.weight"}


def test_masked_centres_do_not_move(rng):
    conv = CentrallyMaskedConv2d(16, 16, 5)
    before = conv.weight.detach().clone()
    optimizer = Muon(conv.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        conv(torch.rand(1, 16, 9, 9, generator=rng)).square().mean().backward()
        optimizer.step()
    moved = (conv.weight.detach() != before).any(0).any(0)
    assert not moved[2, 2] and moved.sum() == 24
    conv.requires_grad_(False)
    y = torch.rand(1, 16, 9, 9, generator=rng, requires_grad=True)
    conv(y)[0, :, 4, 4].sum().backward()
    assert y.grad[0, :, 4, 4].count_nonzero() == 0 and y.grad.count_nonzero() > 0


def test_state_is_one_tensor_per_entry_and_parameter(rng):
    model = nn.Sequential(Conv2d(1, 16, 3), Conv2d(16, 16, 3)).to(memory_format=torch.channels_last)
    optimizer = Muon(model.parameters(), lr=0.1)
    model[0].bias.requires_grad_(False)  # a phase that does not train it leaves it without a state
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(1, 1, 9, 9, generator=rng)).square().mean().backward()
        optimizer.step()
    stored = optimizer_tensors(optimizer, model.named_parameters())
    by_adam = {
        f"optimizer.{entry}.{name}" for entry in ("step", "exp_avg", "exp_avg_sq") for name in ("0.weight", "1.bias")
    }
    assert set(stored) == by_adam | {"optimizer.momentum.1.weight"}
    other = Muon(model.parameters(), lr=0.1)
    load_optimizer_tensors(other, model.named_parameters(), stored)
    for name, tensor in optimizer_tensors(other, model.named_parameters()).items():
        assert torch.equal(tensor, stored[name]) and tensor.stride() == stored[name].stride()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_steps_as_the_cpu_does(rng):
    def moved(device: str) -> list[torch.Tensor]:
        parameters = [nn.Parameter(v.to(device, memory_format=torch.channels_last)) for v in values]
        optimizer = Muon(parameters, lr=0.01)
        for step in gradients:
            for p, g in zip(parameters, step):
                p.grad = g.to(p)
            optimizer.step()
        return [p.detach().cpu() for p in parameters]

    values = [torch.randn(s, generator=rng) for s in ((32, 16, 5, 5), (32, 16, 5, 5), (16, 1, 3, 3))]
    gradients = [[torch.randn(v.shape, generator=rng) for v in values] for _ in range(3)]
    for a, b in zip(moved("cpu"), moved("cuda")):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_stopped_and_resumed_is_never_stopped(run, pictures, tmp_path):
    images = f"{pictures}/gray"
    stage1 = (
        f"--clean {images} {LEVELS['awgn']} {TINY} --width 16 --mu-steps 1 --sigma-steps 1 --steps 2 --optimizer muon"
    )
    stage2 = f"--teacher whole1 --clean {images} --noisy {images} {TINY2} --student-width 16 --steps 2 --optimizer muon"
    for script, line, stage, steps in (("train_dbsn", stage1, 1, 4), ("train_distill", stage2, 2, 2)):
        ok(run(script, f"--name whole{stage} {line}"))
        for start in range(1, steps + 1):  # each is given no time: it makes one step, saves and ends
            assert ("continue" in ok(run(script, f"--name parts{stage} {line} --max-minutes 1e-9"))) == (start < steps)
        whole, parts = tmp_path / f"whole{stage}", tmp_path / f"parts{stage}"
        assert contents(whole)["stats.jsonl"] == contents(parts)["stats.jsonl"]
        a, b = (read_tensors(folder / f"state-{steps:08d}.safetensors") for folder in (whole, parts))
        assert any(".momentum." in name for name in a)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    code, _, err = run("train_dbsn", f"--name whole1 {stage1} --optimizer adam")
    assert code == 2 and "--optimizer was muon, now adam" in err
