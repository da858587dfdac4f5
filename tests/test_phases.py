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
@pytest.mark.parametrize(("stride", "hole"), [(2, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize("units", ["white", "noise"])
def test_blind_to_the_whole_neighbourhood(path, stride, hole, units):
    """What is predicted at a pixel does not change with any nearer than `apart`, borders included."""
    model = small(1, "awgn", hole=hole).eval()
    model.units = model.config["units"] = units
    model.path, model.stride = path, stride
    apart = model.apart
    assert apart == stride * (hole + 1) // 2
    y = torch.rand(1, 1, 7, 8)
    views = model.views(y)
    before = model.context(y, views)
    for i in range(7):
        for j in range(8):
            near = slice(max(0, i - apart + 1), i + apart), slice(max(0, j - apart + 1), j + apart)
            other = y.clone()
            other[:, :, *near] = torch.rand(other[:, :, *near].shape)
            after = model.context(other, views)
            assert torch.equal(before[0][..., i, j], after[0][..., i, j])
            assert torch.equal(before[1].factor[..., i, j], after[1].factor[..., i, j])
    far = y.clone()
    far[..., 0, 0] += 1
    assert not torch.equal(model.context(far, views)[0][..., apart, 0], before[0][..., apart, 0])


@pytest.mark.parametrize("units", ["white", "noise"])
def test_several_strides_have_weights(units):
    """Each stride sees the image as it does alone, its scale included."""
    student, y = MWCNN(3, 8, units).eval(), torch.rand(2, 3, 21, 26)
    results = []
    for stride in (1, 3, {1: 0.7, 3: 0.3}):
        student.stride = stride
        results.append(denoise_batch(student, y).image)
    torch.testing.assert_close(results[2], 0.7 * results[0] + 0.3 * results[1])


@pytest.mark.parametrize("stride", [2, 3, {1: 0.4, 3: 0.6}])
@pytest.mark.parametrize("kind", ["student", "student in units of noise", "stage 1"])
def test_tiles_equal_the_whole_on_phases(kind, stride, monkeypatch):
    """With a student's receptive field taken for 24 pixels, so that tiles are parts of the picture indeed."""
    if kind == "stage 1":
        if isinstance(stride, dict):
            pytest.skip("of stage 1 one stride is taken")
        model, y = small(3, "hg").eval(), torch.rand(1, 3, 75, 82)
    else:
        model, y = MWCNN(3, 8, "noise" if "units" in kind else "white").eval(), torch.rand(1, 3, 195, 210)
        for convolution in (model.down2[0], model.up2[-1]):  # without its lower levels it sees no farther
            torch.nn.init.zeros_(convolution.weight)
        monkeypatch.setattr(MWCNN, "receptive_radius", 24)
    model.stride = stride
    whole, tiled = denoise_batch(model, y, tile=1000), denoise_batch(model, y, tile=24)
    assert tiled.tiled and not whole.tiled
    torch.testing.assert_close(tiled.image, whole.image, atol=1e-4, rtol=0)


def test_large_pictures_take_no_more_work_on_phases():
    """Tiles are cut from the phases, so a large stride adds no margins: pixels that the network sees."""
    student, seen = MWCNN(1, 4).eval(), []
    student.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    for stride in (1, 4):
        student.stride = stride
        denoise_batch(student, torch.rand(1, 1, 640, 640), tile=320)
    half = len(seen) - 16
    assert sum(seen[half:]) <= sum(seen[:half])
