"""denoise() of arrays: kinds, types and orders of axes, units that do not matter, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut

from models import MWCNN, BlindSpotDenoiser, denoise, load_model
from models.inference import denoise_batch
from tests.helpers import ROOT

REAL = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def network(kind: str, channels: int = 1):
    torch.manual_seed(0)
    if kind == "student":
        return MWCNN(channels, width=8).eval()
    model = BlindSpotDenoiser(channels, kind, width=8, blocks=1, estimator="residual").eval()
    torch.nn.init.normal_(model.cov_head.last.weight, std=0.01)
    return model


@pytest.fixture(scope="module", params=["awgn", "hg", "poisson", "student"])
def model(request):
    return network(request.param)


@pytest.fixture(scope="module")
def student():
    return network("student")


def picture(*shape: int) -> np.ndarray:
    """Whole numbers from 0 to 120, float64."""
    random = np.random.default_rng(0)
    ramp = np.linspace(30, 90, shape[-1]) + np.zeros(shape)
    return np.rint(ramp + 8 * random.standard_normal(shape)).clip(0, 120)


@pytest.mark.parametrize(
    ("channels", "shape", "order"),
    [
        (1, (20, 30), None),
        (1, (20, 30, 1), (2, 0, 1)),
        (1, (1, 20, 30), (0, 1, 2)),
        (3, (20, 30, 3), (2, 0, 1)),
        (3, (3, 20, 30), (0, 1, 2)),
    ],
)
def test_axes(channels, shape, order):
    """Whatever the order, the result is that of (N,C,H,W)."""
    model, array = network("student", channels), picture(*shape)
    batch = array[None, None] if order is None else array.transpose(order)[None]
    expected = denoise(model, batch)
    assert expected.shape == batch.shape and expected.std() > 0
    for given in (array, array[..., ::-1][..., ::-1], np.asfortranarray(array)):
        result = denoise(model, given)
        assert result.shape == shape
        np.testing.assert_array_equal(
            result[None, None] if order is None else result.transpose(order)[None], expected, strict=True
        )
    tensor = denoise(model, torch.from_numpy(array))
    np.testing.assert_array_equal(tensor.numpy(), denoise(model, array))


@pytest.mark.parametrize("dtype", REAL)
def test_types(student, dtype):
    array = picture(16, 18)
    expected = denoise(student, array)
    for given in (array.astype(dtype), torch.from_numpy(array).to(getattr(torch, dtype))):
        kept = dtype if dtype.startswith("float") else "float32"
        result = denoise(student, given)
        assert type(result) is type(given) and str(result.dtype).removeprefix("torch.") == kept
        np.testing.assert_allclose(np.asarray(result), expected, atol=0.1 if kept == "float16" else 1e-4)


def test_less_usual_types(student):
    array = picture(16, 18)
    expected = denoise(student, array)
    for dtype in (">f4", ">u2", "longdouble"):
        result = denoise(student, array.astype(dtype))
        assert result.dtype == (np.float32 if dtype == ">u2" else np.dtype(dtype))
        np.testing.assert_allclose(result.astype(float), expected, atol=1e-4)
    result = denoise(student, torch.from_numpy(array).bfloat16())
    assert result.dtype == torch.bfloat16
    result = denoise(student, torch.from_numpy(array).requires_grad_())
    assert not result.requires_grad


@pytest.mark.parametrize("a, b", [(1 / 255, 0), (1e-6, 0), (1000, 0), (1, -60), (0.3, 40), (257, -32768), (1e-3, 5e6)])
def test_brightness_and_offset_do_not_matter(model, a, b):
    array = picture(40, 36)
    expected, result = denoise(model, array), denoise(model, a * array + b)
    np.testing.assert_allclose((result - b) / a, expected, atol=0.02)


def test_signed_bytes_and_floats_are_the_same(model):
    array = picture(40, 36)
    expected = denoise(model, array.astype(np.float32))
    np.testing.assert_array_equal(denoise(model, array.astype(np.uint8)), expected)
    np.testing.assert_allclose(denoise(model, (array - 60).astype(np.int8)) + 60, expected, atol=1e-3)


def test_black_and_white_are_0_and_1_to_the_network(model):
    array = picture(24, 26)
    y = torch.from_numpy((array - 10) / 200).float()[None, None]
    expected = 10 + 200 * denoise_batch(model, y).image[0, 0].numpy()
    np.testing.assert_allclose(denoise(model, array, black=10, white=210), expected, atol=1e-4)
    np.testing.assert_array_equal(denoise(model, array, white=255), denoise(model, array, black=0, white=255))
    with pytest.raises(ValueError, match="give both, or none"):  # it would change nothing
        denoise(network("hg"), array, black=0)


@pytest.mark.parametrize("tile", [0, -5, 1.5])
def test_a_tile_is_a_number_of_pixels(model, tile):
    with pytest.raises(ValueError, match=r"tile is .*: give a whole number of pixels"):
        denoise(model, picture(24, 26), tile=tile)


def test_a_learned_level_holds_for_the_scale_of_its_training():
    torch.manual_seed(0)
    learned = BlindSpotDenoiser(1, "hg", width=8, blocks=1).eval()
    dim = picture(40, 36)
    y = torch.from_numpy(dim / 255).float()[None, None]
    expected = 255 * denoise_batch(learned, y).image[0, 0].numpy()
    np.testing.assert_allclose(denoise(learned, dim.astype(np.uint8)), expected, atol=1e-3)
    np.testing.assert_allclose(255 * denoise(learned, dim / 255), expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"values from 12 to 107, and 1 is white to the model: say with white="):
        denoise(learned, dim)
    with pytest.raises(ValueError, match=r"the array holds int32 values, .*: say with white="):
        denoise(learned, dim.astype(np.int32))
    np.testing.assert_allclose(denoise(learned, dim, white=255), expected, atol=1e-3)
    learned.values = {"white_level": 4095.0}
    sixteen = 16 * dim.astype(np.uint16)
    np.testing.assert_array_equal(denoise(learned, sixteen), denoise(learned, sixteen, white=4095))
    with pytest.raises(ValueError, match=r"has 8 bits, .* 4095 is white: say with white="):
        denoise(learned, dim.astype(np.uint8))
    with pytest.raises(ValueError, match="4095 is white to the model"):
        denoise(learned, dim / 255)


def test_images_of_a_batch_do_not_touch_each_other(model):
    batch = picture(3, 1, 24, 20) * np.array([1, 100, 0.01]).reshape(3, 1, 1, 1) + 7
    together = denoise(model, batch)
    for image, result in zip(batch, together):
        np.testing.assert_array_equal(denoise(model, image), result)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (2, 2), (33, 5)])
@pytest.mark.parametrize("value", [0, 7, -3])
def test_constant_and_tiny_arrays_stay_as_they_are(model, shape, value):
    result = denoise(model, np.full(shape, value, np.int16))
    assert result.shape == shape and np.isfinite(result).all() and result.std() <= 1


def test_neither_the_array_nor_the_model_changes(model):
    array = picture(16, 18)
    array.flags.writeable = False
    before, units = array.copy(), model.units
    model.train()
    try:
        result = denoise(model, array)
        assert model.training and model.dbsn.training if model.stage == 1 else model.training
    finally:
        model.eval()
    assert model.units == units == "white"
    np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(denoise(model, array), result)
    with pytest.raises(ValueError):
        denoise(model, np.full((4, 4), np.nan))
    assert model.units == "white"


def test_tiles_and_the_self_ensemble(student):
    array = picture(300, 280)
    np.testing.assert_allclose(denoise(student, array, tile=64), denoise(student, array), atol=0.01)
    array = picture(24, 20)
    np.testing.assert_allclose(
        denoise(student, array.T, self_ensemble=True), denoise(student, array, self_ensemble=True).T, atol=1e-3
    )


IMAGE = np.ones((8, 9))


@pytest.mark.parametrize(
    ("channels", "array", "words"),
    [
        (1, IMAGE > 0, "convert it to real numbers"),
        (1, torch.ones(8, 9, dtype=torch.bool), "convert it to real numbers"),
        (1, IMAGE + 1j, "convert it to real numbers"),
        (1, torch.ones(8, 9, dtype=torch.complex64), "convert it to real numbers"),
        (1, IMAGE.astype(object), "convert it to real numbers"),
        (1, np.ma.masked_equal(IMAGE, 1), "array.filled"),
        (1, np.ones((0, 9)), "at least one pixel"),
        (3, torch.ones(0, 3, 8, 9), "at least one pixel"),
        (1, np.where(np.eye(8), np.nan, 1), "replace them"),
        (1, torch.full((8, 9), torch.inf), "replace them"),
        (1, np.float64(3), "not float64"),
        (1, np.ones(()), r"give \(H,W\)"),
        (1, np.ones(8), r"give \(H,W\)"),
        (1, np.ones((1, 1, 1, 8, 9)), r"give \(H,W\)"),
        (3, IMAGE, "a model for gray images"),
        (1, np.ones((8, 9, 3)), "a model for RGB images"),
        (1, np.ones((3, 8, 9)), "a model for RGB images"),
        (1, np.ones((8, 9, 2)), "C = 1"),
        (1, np.ones((7, 8, 9)), r"many images are \(N,1,H,W\)"),
        (3, np.ones((8, 9, 4)), "C = 3"),
        (1, np.ones((1, 8, 1)), r"give \(1,1,H,W\)"),
        (3, np.ones((3, 8, 3)), r"give \(1,3,H,W\)"),
        (3, np.ones((2, 8, 9, 3)), "channels in axis 1"),
        (1, np.ones((2, 3, 8, 9)), "channels in axis 1"),
        (1, IMAGE.tolist(), "numpy.asarray"),
        (1, None, "numpy.asarray"),
    ],
)
def test_what_is_refused(channels, array, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        denoise(MWCNN(channels, width=4), array)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError) == isinstance(array, np.ndarray | torch.Tensor)


@pytest.mark.parametrize(
    "levels", [{"white": 0}, {"black": 5, "white": 5}, {"black": 9, "white": 5}, {"white": np.nan}, {"black": -np.inf}]
)
def test_levels_that_make_no_sense(student, levels):
    with pytest.raises(ValueError, match="the array's own units"):
        denoise(student, IMAGE, **levels)


@pytest.mark.parametrize("stride", [0, -1, 9, 1.5, True, "2"])
def test_strides_that_make_no_sense(student, stride):
    with pytest.raises(ValueError, match="whole number from 1 to 8"):
        denoise(student, IMAGE, stride=stride)


def test_noise_that_neighbours_share_is_found():
    """As in test.py: the result is nearer to the picture than that of neighbouring pixels together."""
    clean = astronaut()[:128, 180:308].astype(np.float64)
    noise = gaussian_filter(np.random.default_rng(0).normal(0, 30, clean.shape), (0.8, 0.8, 0))
    model = load_model("color-hg-blind-full")
    found, together = (denoise(model, clean + noise, white=255, stride=stride) for stride in (None, 1))
    assert np.square(found - clean).mean() < 0.9 * np.square(together - clean).mean()
    assert model.stride == 1


def test_after_torch_hub_from_another_folder(tmp_path):
    code = f"""
import numpy as np, torch
model = torch.hub.load({str(ROOT)!r}, "gray_awgn_blind_full", source="local")
from models import denoise
print(denoise(model, np.arange(600, dtype=np.uint16).reshape(20, 30)).shape)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"}
    )
    assert out.returncode == 0 and out.stdout.split() == ["(20,", "30)"], out.stderr
