"""Models leave Python: what ONNX Runtime computes is what PyTorch computes."""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from models import MWCNN, BlindSpotDenoiser, Prediction, load_model, posterior
from models import units as units_module
from models.gaussian import Diagonal, Full
from models.graphs import ContextGraph, StudentGraph, origin_and_unit, padded
from models.inference import run as run_model
from models.mwcnn import pad_to_multiple
from scripts import export
from tests.helpers import ROOT, small
from utils.checkpoint import save_checkpoint
from utils.errors import EXIT_FAILURE, EXIT_USAGE, RunError, UsageError

needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="onnx, onnxscript or onnxruntime is missing: pip install -r requirements-dev.txt",
)
SIZES = [(2, 29, 43), (1, 64, 40), (3, 8, 8), (1, 17, 3), (1, 131, 67)]  # N, H, W


def student(channels: int, units: str = "white", blocks: str = "residual") -> MWCNN:
    """A small student whose every weight matters."""
    torch.manual_seed(1)
    model = MWCNN(channels, width=4, units=units, blocks=blocks).requires_grad_(False)
    for p in model.parameters():
        p += 0.05 * torch.randn_like(p)
    return model.eval()


def saved(model, file):
    """The model in a checkpoint file, as training writes it."""
    values = {"config": model.config, "white_level": None, "step": 1}
    save_checkpoint(file, f"stage{model.stage}", model.state_dict(), values)
    return file


def noisy_pictures(size, channels: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Smooth pictures with noise, (N,C,H,W)."""
    count, height, width = size
    random = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 0.7, height)[:, None] * torch.linspace(1, 0.3, width)
    return scale * (ramp + 0.1 * torch.randn(count, channels, height, width, generator=random))


def expected_context(model, y):
    mu, v = model.context(y, model.views(y))
    return mu, v.factor


def assert_near(found, expected, y):
    """Within 1e-5 of the greatest value."""
    for a, b in zip(found, expected, strict=True):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(max(b.abs().max(), y.abs().max())))


def documented(words: str) -> str:
    """The Python example of docs/python.md that has these words."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if words in block]
    return block


# ----------------------------------------------------------------------------------------------- the graph, in PyTorch


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("trained", "used", "blocks"),
    [("white", "white", "residual"), ("white", "noise", "plain"), ("noise", "noise", "residual")],
)
def test_graph_of_a_student_is_the_student(channels, trained, used, blocks):
    model = student(channels, trained, blocks)
    model.units = used
    for size in [*SIZES, (1, 1, 1), (1, 1, 30), (1, 5, 9), (1, 2, 2)]:
        y = noisy_pictures(size, channels)
        assert_near([StudentGraph(model)(y)], [run_model(model, y, None, False).image], y)


@pytest.mark.parametrize(("channels", "noise"), [(1, "awgn"), (3, "hg"), (3, "mg")])
@pytest.mark.parametrize(("trained", "used"), [("white", "white"), ("white", "noise"), ("noise", "noise")])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_graph_of_a_context_is_the_context(channels, noise, trained, used, stride):
    model = small(channels, noise, units=trained, stride=stride)
    model.units = used
    for size in SIZES:
        y = noisy_pictures(size, channels)
        assert_near(ContextGraph(model)(y), expected_context(model, y), y)


@pytest.mark.parametrize("widest", [None, 1.0, 2.0])
def test_scale_in_the_graph(widest, monkeypatch):
    monkeypatch.setattr(units_module, "SAMPLE", 500)  # larger pictures are sampled
    pictures = [
        noisy_pictures((2, 67, 90), 3),
        noisy_pictures((1, 40, 40), 1, scale=3000),
        torch.full((1, 1, 9, 9), 0.3),
    ]
    dark = noisy_pictures((1, 64, 65), 1) + 5
    dark[:, :, :37, :50] = 0  # black surroundings do not count
    for y in [*pictures, dark, -dark]:
        first = units_module.views_of(y, widest)[0]
        for found, expected in zip(origin_and_unit(y, "white" if widest else "noise", widest), first):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_padding_in_the_graph():
    for size in [(1, 1), (4, 9), (5, 9), (9, 4), (3, 17), (8, 16), (15, 10)]:
        y = torch.rand(2, 3, *size)
        assert torch.equal(padded(y, 8), pad_to_multiple(y, 8))


def test_a_student_with_a_stride_has_no_graph():
    model = student(1)
    model.stride = 2
    with pytest.raises(ValueError, match="stride 2"):
        StudentGraph(model)


# ----------------------------------------------------------------------------------------------------------- the files


def exported(model, folder, *flags: str):
    """An ONNX Runtime session of the model's file, and the model as it was exported."""
    import onnxruntime

    file = saved(model, folder / "net.safetensors")
    assert export.main([str(file), "--out", str(folder / "model.onnx"), *flags]) == 0
    assert not list(folder.glob("*.tmp"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    model = load_model(file)
    model.units = session.get_modelmeta().custom_metadata_map["units"]
    return session, model


def check_student(session, model, sizes=SIZES):
    for size in sizes:
        y = noisy_pictures(size, model.channels, scale=1 if model.units == "white" else 4000)
        assert_near(session.run(["denoised"], {"noisy": y.numpy()}), [run_model(model, y, None, False).image], y)


def check_context(session, model):
    for size in SIZES:
        y = noisy_pictures(size, model.channels, scale=1 if model.units == "white" else 4000)
        assert_near(session.run(["mu", "factor"], {"noisy": y.numpy()}), expected_context(model, y), y)


@pytest.mark.slow
@needs_onnx
def test_student_in_onnx_runtime(tmp_path, monkeypatch, capsys):
    session, model = exported(student(1), tmp_path)
    check_student(session, model, [*SIZES, (1, 1, 1), (1, 1, 30), (1, 5, 9)])
    assert re.search(r"greatest difference from PyTorch at 3 sizes: [0-9.]+e-0[5-9]", capsys.readouterr().out)
    checkpoint = (tmp_path / "net.safetensors").read_bytes()
    assert session.get_modelmeta().custom_metadata_map == {
        "checkpoint": "net",
        "sha256": hashlib.sha256(checkpoint).hexdigest(),
        "stage": "2",
        "channels": "1",
        "units": "noise",
        "trained_units": "white",
        "white_level": "",
        "multiple": "8",
        "receptive_radius": "116",
        "shared_noise": "False",
        "least_side": "1",
        "sizes": "any N; any H and W of 1 or more; padding is in the graph",
    }
    assert session.get_inputs()[0].shape == ["N", 1, "H", "W"] == session.get_outputs()[0].shape
    data = (tmp_path / "model.onnx").read_bytes()
    assert not any(word in data for word in (b"site-packages", b"stack_trace", str(ROOT).encode()))
    # the example of the documentation
    monkeypatch.chdir(tmp_path)
    noisy = noisy_pictures((2, 30, 21), 1)
    np.save("noisy.npy", noisy.numpy())
    found = {}
    exec(documented("InferenceSession"), found)
    assert_near([found["denoised"]], [run_model(model, noisy, None, False).image], noisy)


@pytest.mark.slow
@needs_onnx
def test_context_in_onnx_runtime(tmp_path):
    session, model = exported(small(3, "hg", estimator="residual"), tmp_path)
    assert model.units == "noise"
    check_context(session, model)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["stage"] == "1" and metadata["head"] == "total" and metadata["estimator"] == "residual"
    assert [output.shape for output in session.get_outputs()] == [["N", 3, "H", "W"], ["N", 6, "H", "W"]]


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(("channels", "trained", "flags"), [(3, "white", ["--units", "white"]), (3, "noise", [])])
def test_other_students_in_onnx_runtime(channels, trained, flags, tmp_path):
    session, model = exported(student(channels, trained), tmp_path, *flags)
    assert model.units == ("white" if flags else "noise")
    check_student(session, model)
    check_student(session, model, [(1, 1300, 1203)])  # of so many pixels the scale takes a sample


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "noise", "kwargs", "units"),
    [
        (1, "awgn", dict(estimator="cnn"), "white"),  # it has learned a level, which holds for its own scale
        (3, "mg", dict(estimator="residual", units="noise", mdc="paper"), "noise"),
        (3, "camera", dict(estimator="residual", stride=2, mdc="residual"), "noise"),
        (1, "hg", dict(stride=3, head="mu"), "white"),
        (1, "camera", dict(estimator="residual", hole=3), "noise"),
    ],
)
def test_other_contexts_in_onnx_runtime(channels, noise, kwargs, units, tmp_path):
    session, model = exported(small(channels, noise, **kwargs), tmp_path)
    assert model.units == units
    check_context(session, model)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gray-awgn-blind-full", "color-photo"])
def test_released_weights_in_onnx_runtime(name, tmp_path):
    import onnxruntime

    assert export.main([name, "--out", str(tmp_path / "model.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    model = load_model(name)
    model.units = "noise"
    (check_student if model.stage == 2 else check_context)(session, model)


# ------------------------------------------------------------------------------------------------ the formula in NumPy


@pytest.mark.parametrize("head", ["total", "mu"])
@pytest.mark.parametrize(("channels", "kind"), [(1, "one"), (1, "map"), (3, "one"), (3, "full"), (3, "map")])
def test_documented_posterior_mean(channels, kind, head, rng):
    found = {}
    exec(documented("def posterior_mean"), found)
    shape = (2, channels, 9, 11)
    y, mu = torch.rand(shape, generator=rng).double(), torch.rand(shape, generator=rng).double()
    v = Full(0.1 * torch.rand(2, channels * (channels + 1) // 2, 9, 11, generator=rng).double() + 0.02)
    if kind == "one":
        cov_n, noise = Diagonal(torch.full((2, channels, 1, 1), 0.01).double()), 0.01 * np.eye(channels)
    elif kind == "map":
        cov_n = Diagonal(0.02 * torch.rand(shape, generator=rng).double() + 0.001)
        noise = cov_n.variance.movedim(1, -1).diag_embed().numpy()
    else:
        cov_n = Full(0.1 * torch.rand(2, 6, 1, 1, generator=rng).double() + 0.02)
        root = found["matrices"](cov_n.factor.numpy())
        noise = root @ root.mT
    expected = posterior(y, Prediction(mu, v, head, lambda: cov_n)).mean.numpy()
    result = found["posterior_mean"](y.numpy(), mu.numpy(), v.factor.numpy(), noise, head)
    np.testing.assert_allclose(result, expected, atol=1e-7)
    assert np.abs(result - mu.numpy()).max() > 0.01


def test_documented_level_is_near_the_estimator():
    found = {}
    exec(documented("def one_level"), found)
    model = load_model("gray-awgn-blind")
    y = noisy_pictures((2, 96, 96), 1)
    mu, factor = expected_context(model, y)
    variance = found["one_level"](y.numpy(), mu.numpy(), factor.numpy())
    np.testing.assert_allclose(np.sqrt(variance), 0.1, rtol=0.1)
    image = run_model(model, y, None, False).image
    result = found["posterior_mean"](
        y.numpy(), mu.numpy(), factor.numpy(), variance[:, None, None, None, None] * np.eye(1)
    )
    assert np.abs(result - image.numpy()).mean() < 0.002


# --------------------------------------------------------------------------------------------------------- wrong usage


def refused(words: str, *arguments: str, error: type[Exception] = UsageError):
    with pytest.raises(error, match=words) as caught:
        export.main(list(arguments))
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_wrong_usage(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    file = str(saved(student(1, "noise"), tmp_path / "net.safetensors"))
    before = sorted(tmp_path.iterdir())
    out = str(tmp_path / "model.onnx")
    assert refused(r"name ends in \.onnx", file, "--out", str(tmp_path / "model.bin")).exit_code == EXIT_USAGE
    refused("there is no folder", file, "--out", str(tmp_path / "none" / "model.onnx"))
    refused("--units white: .* trained in units of noise", file, "--out", out, "--units", "white")
    refused("did you mean gray-awgn-blind-full", "gray-awgn-blnd-full", "--out", out)
    (tmp_path / "folder.onnx").mkdir()
    refused("is a folder", file, "--out", str(tmp_path / "folder.onnx"))
    (tmp_path / "folder.onnx").rmdir()
    for flags in ([file], [file, "--out", out, "--units", "grey"]):
        with pytest.raises(SystemExit) as end:
            export.main(flags)
        assert end.value.code == EXIT_USAGE and capsys.readouterr().err.startswith("error: ")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    refused("needs onnx and onnxscript and onnxruntime: pip install -r", file, "--out", out)
    refused("needs onnx and onnxscript: pip install -r", file, "--out", out, "--no-check")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_a_file_that_differs_is_not_written(difference, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: True)
    monkeypatch.setattr(export, "write", lambda model, file, metadata: file.write_bytes(b"onnx"))
    monkeypatch.setattr(export, "greatest_difference", lambda model, file: difference)
    file, out = str(saved(student(1), tmp_path / "net.safetensors")), str(tmp_path / "model.onnx")
    before = sorted(tmp_path.iterdir())
    error = refused("is not written: ONNX Runtime's result differs", file, "--out", out, error=RunError)
    assert error.exit_code == EXIT_FAILURE and sorted(tmp_path.iterdir()) == before
    monkeypatch.setattr(export, "greatest_difference", lambda model, file: 1e-6)
    assert export.main([file, "--out", out]) == 0 and (tmp_path / "model.onnx").read_bytes() == b"onnx"


@needs_onnx
def test_the_check_sees_a_difference(tmp_path, monkeypatch):
    import onnxruntime

    class Wrong:
        def __init__(self, *_, **__): ...

        def run(self, _, feed):
            return [run_model(model, torch.from_numpy(feed["noisy"]), None, False).image.numpy() + 0.01]

    model = student(1)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    assert 0.001 < export.greatest_difference(model, tmp_path / "any.onnx") < 0.02


@needs_onnx
def test_a_file_that_onnx_runtime_cannot_read(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RunError, match=r"ONNX Runtime .* cannot read the file .*requirements-dev"):
        export.greatest_difference(student(1), tmp_path / "model.onnx")


def test_names_of_checkpoints_have_no_folders(tmp_path):
    assert export.name_of(tmp_path / "gray-hg-blind.safetensors") == "gray-hg-blind"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "options.json").write_text("{}")
    assert export.name_of(tmp_path / "mine" / "last.safetensors") == "mine"
    assert export.name_of(tmp_path / "mine" / "best.safetensors") == "mine/best"


def test_default_units_are_those_of_the_test_script():
    for model, units in (
        (student(1), "noise"),
        (student(1, "noise"), "noise"),
        (BlindSpotDenoiser(1, "awgn", 4, 1, estimator="residual"), "noise"),
        (BlindSpotDenoiser(1, "awgn", 4, 1, estimator="cnn"), "white"),
        (BlindSpotDenoiser(1, "awgn", 4, 1, estimator="cnn", units="noise"), "noise"),
    ):
        assert export.chosen_units(model, None) == units
