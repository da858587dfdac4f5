"""MWCNN and its wavelets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from models import MWCNN, load_model
from models.mwcnn import BLOCKS, ResidualBlock, dwt, iwt, revive, seen_by, shut_off
from tests.helpers import ROOT


def test_wavelets_are_orthonormal_and_inverse():
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    bands = dwt(x)
    torch.testing.assert_close(iwt(bands), x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    basis = dwt(torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(dwt(torch.ones(1, 1, 2, 2))[0, :, 0, 0], torch.tensor([2.0, 0, 0, 0]))
    assert torch.autograd.gradcheck(dwt, x.requires_grad_()) and torch.autograd.gradcheck(iwt, bands.requires_grad_())


def test_wavelets_keep_channels_last(rng):
    """Convolutions are slow otherwise, and bands in the wrong order would go unnoticed by the inverse."""
    x = torch.randn(2, 3, 8, 12, generator=rng).to(memory_format=torch.channels_last)
    bands = dwt(x)
    assert bands.is_contiguous(memory_format=torch.channels_last) and iwt(bands).is_contiguous(
        memory_format=torch.channels_last
    )
    assert torch.equal(bands, dwt(x.contiguous())) and torch.equal(iwt(bands), iwt(bands.contiguous()))
    horizontal = torch.tensor([0.0, 1, 2, 3]).expand(1, 1, 4, 4)
    assert torch.equal(dwt(horizontal)[0, :, 0], torch.tensor([[1.0, 5], [1, 1], [0, 0], [0, 0]]))


@pytest.mark.parametrize("blocks", BLOCKS)
def test_mwcnn_and_its_gradient_compile_to_one_graph(rng, blocks):
    torch.manual_seed(0)
    model, x = MWCNN(1, width=8, blocks=blocks), torch.rand(1, 1, 16, 24, generator=rng)
    gradients = []
    for _ in range(2):
        out = model(x)
        gradients.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
        model.compile(fullgraph=True, backend="aot_eager")  # fails where the graph would break
    torch.testing.assert_close(gradients[1], gradients[0])


def test_mwcnn_is_the_published_size_and_takes_any_image():
    with torch.device("meta"):
        assert 16.0e6 < sum(p.numel() for p in MWCNN(1).parameters()) < 16.3e6
    for blocks in BLOCKS:
        model = MWCNN(1, width=8, blocks=blocks)
        for size in ((1, 1), (7, 5), (8, 8), (33, 17), (9, 64)):
            assert model(torch.rand(1, 1, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize("file", sorted((ROOT / "checkpoints").glob("*-full.safetensors")), ids=lambda file: file.stem)
def test_no_layer_of_a_released_student_is_shut_off(file, rng):
    """Units of each layer respond somewhere in a noisy photograph, and the lower levels tell more than a constant."""
    model = load_model(file)
    if model.blocks == "plain":
        pytest.skip("the lower levels of plain students are shut off: docs/ablations.md")
    x = torch.from_numpy(astronaut()[100:292, 100:292] / np.float32(255)).permute(2, 0, 1)[None]
    x = x.mean(1, keepdim=True) if model.channels == 1 else x
    y = x + 25 / 255 * torch.randn(x.shape, generator=rng)
    known = {  # their cards say so
        "gray-hg-blind-full": ["down2.1.first", "down3.1.first"],
        "color-awgn-blind-full": ["down3.1.first"],
    }
    assert shut_off(model, y) == known.get(file.stem, [])


def test_what_is_shut_off_is_found(rng):
    torch.manual_seed(0)
    model = MWCNN(1, width=8, blocks="residual").eval()
    y = torch.rand(2, 1, 64, 64, generator=rng)
    assert not shut_off(model, y)
    with torch.no_grad():
        model.down2[1].first.weight.zero_()
        model.up3[1].weight.zero_()  # what the lowest level passes on is its bias
    assert shut_off(model, y) == ["down2.1.first", "up3"]


def test_units_that_were_shut_off_are_revived(rng):
    torch.manual_seed(0)
    model = MWCNN(1, width=8, blocks="residual").eval().requires_grad_(False)
    y = torch.rand(2, 1, 64, 64, generator=rng)
    dead = model.down2[1].first.weight[:-1]
    dead.copy_(-dead.abs())
    model.down1[0].bias += 10  # all that the lower blocks see is above zero
    before, alive = model(y), model.down2[1].first.weight[-1].clone()
    off = len(responding(model, y)) - sum(responding(model, y))
    assert off >= len(dead) and revive(model, y, rng) == (off, [])
    assert all(responding(model, y)) and not shut_off(model, y)
    torch.testing.assert_close(model(y), before, atol=1e-5, rtol=1e-5)  # a new unit has no say yet
    assert torch.equal(model.down2[1].first.weight[-1], alive) and revive(model, y, rng) == (0, [])
    model.down2[1].first.weight.copy_(-model.down2[1].first.weight.abs())  # no unit is left to measure new ones by
    assert revive(model, y, rng) == (0, ["down2.1"]) and shut_off(model, y) == ["down2.1.first"]


def responding(model: MWCNN, y: torch.Tensor) -> list[bool]:
    """Whether each unit of the residual blocks responds somewhere."""
    blocks = [block for block in model.modules() if isinstance(block, ResidualBlock)]
    return [u for b in blocks for u in (seen_by(model, b.first, y)[1] > 0).any(3).any(2).any(0).tolist()]


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_network_of_colour_images_becomes_one_of_gray_ones(blocks, rng):
    torch.manual_seed(0)
    student = MWCNN(3, width=8, blocks=blocks).eval()
    y = torch.rand(1, 1, 40, 48, generator=rng)
    wanted = student(y.expand(1, 3, 40, 48)).mean(1, keepdim=True)
    student.take_up_gray()
    torch.testing.assert_close(student(y), wanted)
    made = MWCNN(**student.config)
    made.load_state_dict(student.state_dict())
    torch.testing.assert_close(made.eval()(y), wanted)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_receptive_radius_of_mwcnn(blocks):
    model = MWCNN(1, width=4, blocks=blocks)
    for p in model.parameters():
        torch.nn.init.uniform_(p, 0.01, 0.1)
    r = model.receptive_radius
    worst = 0
    for offset in range(8):  # the wavelet grid makes it depend on the position modulo 8
        y = torch.rand(1, 1, 2 * r + 16, 2 * r + 16, requires_grad=True)
        model(y)[0, 0, r + offset, r + offset].backward()
        worst = max(worst, (y.grad[0, 0].nonzero() - (r + offset)).abs().max().item())
    assert r - 8 < worst <= r
