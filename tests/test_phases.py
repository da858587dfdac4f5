"""Networks on phases: blind to whole neighbourhoods, at every pixel, border and path."""

from __future__ import annotations

import pytest
import torch

from models import MWCNN
from models.inference import denoise_batch
from models.phases import on_phases
from tests.helpers import small


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (2, 5), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_phases_are_put_together_as_they_were(size, stride):
    y = torch.arange(2 * 3 * size[0] * size[1], dtype=torch.float32).view(2, 3, *size)
    seen = []

    def f(part):
        seen.append(part)
        return part + 1, part[:, :1]

    plus, first = on_phases(f, y, stride)
    assert torch.equal(plus, y + 1) and torch.equal(first, y[:, :1])
    assert sum(part.numel() for part in seen) == y.numel()


@pytest.mark.parametrize("path", ["plain", "fused", "phases"])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("units", ["white", "noise"])
def test_blind_to_the_whole_neighbourhood(path, stride, units):
    """What is predicted at a pixel does not change with any pixel nearer than the stride, borders included."""
    model = small(1, "awgn").eval()
    model.units = model.config["units"] = units
    model.path, model.stride = path, stride
    y = torch.rand(1, 1, 7, 8)
    scale = model.scale(y)
    before = model.context(y, scale)
    for i in range(7):
        for j in range(8):
            near = slice(max(0, i - stride + 1), i + stride), slice(max(0, j - stride + 1), j + stride)
            other = y.clone()
            other[:, :, *near] = torch.rand(other[:, :, *near].shape)
            after = model.context(other, scale)
            assert torch.equal(before[0][..., i, j], after[0][..., i, j])
            assert torch.equal(before[1].factor[..., i, j], after[1].factor[..., i, j])
    far = y.clone()
    far[..., 0, 0] += 1
    assert not torch.equal(model.context(far, scale)[0][..., stride, 0], before[0][..., stride, 0])


@pytest.mark.parametrize("units", ["white", "noise"])
def test_several_strides_have_weights(units):
    student, y = MWCNN(3, 8, units).eval(), torch.rand(1, 3, 21, 26)
    scale, results = (torch.full((1, 3, 1, 1), 0.4), torch.full((1, 1, 1, 1), 0.1)), []
    for stride in (1, 2, {1: 0.7, 2: 0.3}):
        student.stride = stride
        results.append(student(y, scale))
    torch.testing.assert_close(results[2], 0.7 * results[0] + 0.3 * results[1])


@pytest.mark.parametrize("stride", [2, 3, {2: 0.5, 3: 0.5}])
def test_tiles_equal_the_whole_on_phases(stride):
    y = torch.rand(1, 3, 75, 82)
    for model in (small(3, "hg").eval(), MWCNN(3, 8).eval()):
        if model.stage == 1 and isinstance(stride, dict):
            continue
        model.stride = stride
        whole, tiled = denoise_batch(model, y, tile=100), denoise_batch(model, y, tile=24)
        torch.testing.assert_close(tiled.image, whole.image, atol=1e-4, rtol=0)
