"""Muon's step is what it should be, it learns, and a stopped run goes on to the same bits.

The other optimizers are PyTorch's own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from models import MWCNN, BlindSpotDenoiser
from models.layers import CentrallyMaskedConv2d, Conv2d
from tests.helpers import LEVELS, TINY, TINY2, contents, ok, read_tensors
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UsageError
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


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)).to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "SGD without state": lambda p: torch.optim.SGD(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_three_steps_saved_and_three_more_are_six(tmp_path: Path, kind: str):
    whole = network()
    train(whole, OPTIMIZERS[kind](whole.parameters()), range(6))

    first = network()
    optimizer = OPTIMIZERS[kind](first.parameters())
    train(first, optimizer, range(3))
    tensors = {f"model.{name}": tensor for name, tensor in first.state_dict().items()}
    save_checkpoint(
        tmp_path / "x.safetensors",
        "training-state",
        {**tensors, **optimizer_tensors(optimizer, first.named_parameters())},
        {},
    )

    second = network()
    other = OPTIMIZERS[kind](second.parameters())
    train(second, other, range(7, 9))  # a state of its own, which loading has to replace
    stored = load_checkpoint(tmp_path / "x.safetensors").tensors
    second.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in stored.items() if name.startswith("model.")}
    )
    load_optimizer_tensors(other, second.named_parameters(), stored)
    for mine, theirs in zip(first.parameters(), second.parameters()):
        assert optimizer.state[mine].keys() == other.state[theirs].keys()
        for entry, value in optimizer.state[mine].items():
            loaded = other.state[theirs][entry]
            assert loaded.dtype == value.dtype and loaded.stride() == value.stride() and torch.equal(loaded, value)
    train(second, other, range(3, 6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arguments", [{}, {"fused": True}, {"foreach": True, "capturable": True}], ids=str)
def test_state_lies_where_the_optimizer_had_it(arguments: dict[str, bool]):
    model = network().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), **arguments)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    stored = {name: tensor.cpu() for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items()}
    devices = {name: tensor.device for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items()}
    load_optimizer_tensors(optimizer, model.named_parameters(), stored)
    assert {
        name: tensor.device for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items()
    } == devices
    optimizer.step()


def test_names_of_optimizer_tensors():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    assert optimizer_tensors(optimizer, model.named_parameters()) == {}
    train(model, optimizer, range(1))
    keys = {
        f"optimizer.{entry}.{name}"
        for entry in ("step", "exp_avg", "exp_avg_sq")
        for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    assert set(optimizer_tensors(optimizer, model.named_parameters())) == keys


def test_parameters_without_a_state_stay_without():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model[0].requires_grad_(False)
    train(model, optimizer, range(2))
    stored = optimizer_tensors(optimizer, model.named_parameters())
    assert len(stored) == 6
    model[0].requires_grad_(True)
    train(model, optimizer, range(2))
    load_optimizer_tensors(optimizer, model.named_parameters(), stored)
    assert set(optimizer.state) == {model[2].weight, model[2].bias}
    load_optimizer_tensors(optimizer, model.named_parameters(), {})
    assert len(optimizer.state) == 0


def test_loaded_state_is_a_copy_in_its_own_dtype():
    model = network().to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters())
    stored = {"optimizer.step.0.bias": torch.tensor(3.0), "optimizer.exp_avg.0.bias": torch.full((4,), 0.1)}
    load_optimizer_tensors(optimizer, model.named_parameters(), stored)
    state = optimizer.state[model[0].bias]
    assert state["exp_avg"].dtype == torch.float32
    state["exp_avg"].zero_()
    state["step"] += 1
    assert stored["optimizer.step.0.bias"] == 3 and stored["optimizer.exp_avg.0.bias"][0] == torch.tensor(0.1)


def test_plain_numbers_keep_their_types():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters())
    numbers = {"count": 2**40 + 1, "scale": 0.1, "done": True}
    optimizer.state[model.weight] = dict(numbers)
    stored = optimizer_tensors(optimizer, model.named_parameters())
    optimizer.state.clear()
    load_optimizer_tensors(optimizer, model.named_parameters(), stored)
    loaded = optimizer.state[model.weight]
    assert loaded == numbers and [type(loaded[name]) for name in numbers] == [int, float, bool]
    optimizer.state[model.weight] = {"history": []}
    with pytest.raises(TypeError, match="history of weight"):
        optimizer_tensors(optimizer, model.named_parameters())


def test_optimizer_state_of_another_model():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(UsageError, match=r"exp_avg of 5\.weight"):
        load_optimizer_tensors(optimizer, model.named_parameters(), {"optimizer.exp_avg.5.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="4 parameters, of which 1 are named"):
        optimizer_tensors(optimizer, [("0.bias", model[0].bias)])
    frozen = [*model.named_parameters(), ("frozen", nn.Parameter(torch.ones(1)))]
    assert optimizer_tensors(optimizer, frozen) == {}
