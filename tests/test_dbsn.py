"""D-BSN: its size, its blindness, and its paths, which compute the same."""

from __future__ import annotations

import pytest
import torch

from models.dbsn import DBSN
from tests.helpers import needs_bf16, small

PATHS = ("plain", "fused", "phases")


@pytest.mark.parametrize(("mdc", "count"), [("release", 6_612_289), ("paper", 5_581_633)])
def test_parameter_count_of_the_published_network(mdc, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in DBSN(1, 96, 8, mdc).parameters()) == count


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mdc", ["release", "paper", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_blind_at_every_pixel(path, mdc, dtype):
    """d mu[i] / d y[i] and d cov[i] / d y[i] are exactly zero at all pixels.

    The image has sides that neither 2 nor 3 divides.
    """
    h, w = 7, 11
    model = small(mdc=mdc)
    model.path, model.dtype = path, dtype
    # one image per pixel: the gradient of output i of image i with respect to its input i
    y = torch.rand(1, 1, h, w).repeat(h * w, 1, 1, 1).requires_grad_()
    mu, cov = model.context(y)
    i = torch.arange(h * w)
    for out in (mu, cov.factor):
        picked = out.flatten(2)[i, :, i].sum()
        (grad,) = torch.autograd.grad(picked, y, retain_graph=True)
        grad = grad.flatten(1)
        assert (grad[i, i] == 0).all()
        assert (grad.abs().amax(1) > 0).float().mean() > 0.5  # and it does look around (small networks have dead ReLUs)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("hole", [3, 5])
def test_blind_to_the_whole_hole(path, hole):
    """No output depends on any pixel of the hole around its own, and some do on the pixels next to the hole."""
    h, w, r = 11, 13, hole // 2
    model = small(mdc="residual", hole=hole)
    model.path = path
    y = torch.rand(1, 1, h, w).repeat(h * w, 1, 1, 1).requires_grad_()
    mu, cov = model.context(y)
    i = torch.arange(h * w)
    for out in (mu, cov.factor):
        (grad,) = torch.autograd.grad(out.flatten(2)[i, :, i].sum(), y, retain_graph=True)
        depends = (grad[:, 0] != 0).view(h, w, h, w)
        rows, columns = torch.arange(h).view(h, 1, 1, 1), torch.arange(w).view(1, w, 1, 1)
        away = torch.maximum((rows - torch.arange(h).view(1, 1, h, 1)).abs(), (columns - torch.arange(w)).abs())
        assert not depends[away <= r].any()
        assert depends[away == r + 1].any()


@pytest.mark.slow
def test_blind_when_compiled():
    """The gradient of every output with respect to its own pixel.

    It is taken through the compiled network and its compiled backward.
    """
    h, w = 5, 7
    model = small()
    model.path = "phases"
    model.dbsn.compile(dynamic=False)
    y = torch.rand(1, 1, h, w).repeat(h * w, 1, 1, 1).requires_grad_()
    i = torch.arange(h * w)
    mu, cov = model.context(y)
    (grad,) = torch.autograd.grad((mu + cov.factor).flatten(2)[i, :, i].sum(), y)
    assert (grad.flatten(1)[i, i] == 0).all() and (grad != 0).any()


@pytest.mark.parametrize("mdc", ["release", "paper", "residual"])
@pytest.mark.parametrize("size", [(12, 12), (13, 17), (5, 6), (1, 1), (3, 8)])
@pytest.mark.parametrize("hole", [1, 3])
def test_fast_paths_equal_the_plain_one(mdc, size, hole):
    torch.manual_seed(0)
    net = DBSN(3, width=8, blocks=2, mdc=mdc, hole=hole)
    y = torch.rand(2, 3, *size)
    expected, grads = {}, {}
    for path in PATHS:
        mu, features = net(y, path)
        net.zero_grad()
        (mu.square().mean() + features.square().mean()).backward()
        expected[path], grads[path] = (mu, features), [p.grad.clone() for p in net.parameters()]
    for path in PATHS[1:]:
        torch.testing.assert_close(expected[path], expected["plain"], atol=1e-4, rtol=1e-4)
        for a, b in zip(grads[path], grads["plain"]):
            torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item() + 1e-7, rtol=1e-3)


@pytest.mark.parametrize("hole", [1, 3])
def test_receptive_radius_is_what_reaches_a_pixel(hole):
    net = DBSN(1, width=4, blocks=2, hole=hole)
    torch.manual_seed(0)
    for p in net.parameters():  # all positive, so that no ReLU hides a path
        torch.nn.init.uniform_(p, 0.01, 0.1)
    r = net.receptive_radius
    y = torch.rand(1, 1, 2 * r + 9, 2 * r + 9, requires_grad=True)
    centre = r + 4
    net(y)[0][0, 0, centre, centre].backward()
    seen = y.grad[0, 0].nonzero()
    assert (seen - centre).abs().max() == r


@needs_bf16
@pytest.mark.parametrize("width", [8, 20, 24, 32, 40, 56])
def test_gradients_in_bfloat16_are_near_those_in_float32(width):
    """Whatever the width: oneDNN has NaN or a third too much at some."""
    torch.manual_seed(0)
    net = DBSN(1, width, 1)
    y = torch.rand(2, 1, 48, 48)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        net.zero_grad()
        mu, features = net(y.to(dtype))
        (mu.square().sum() + features.float().square().sum()).backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert (found[1] - found[0]).norm() < 0.1 * found[0].norm()
