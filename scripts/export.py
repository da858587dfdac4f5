"""Writes a model as an ONNX file, for programs without Python or PyTorch.

    python scripts/export.py gray-hg-blind-full --out model.onnx

A stage-2 model has the input `noisy` and the output `denoised`. A stage-1 model has the outputs `mu` and `factor`.
docs/python.md says what they are and how stage 1's are made into an image. N, H and W are free.
The file is tried in ONNX Runtime before it gets its name.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules, from wherever this is run

from models import MWCNN, BlindSpotDenoiser, load_model
from models.graphs import ContextGraph, StudentGraph
from models.inference import run
from models.units import UNITS, units_in_use
from options.base import Parser
from utils.errors import RunError, UsageError, run_script
from utils.files import atomic_path, shown

TOLERANCE = 1e-4  # of the range of values
SIZES = ((1, 64, 64), (2, 37, 50), (1, 90, 23))  # N, H and W of the pictures that the file is tried on
EXAMPLE = (2, 29, 43)  # N, H and W of what the graph is read from; none of them stays in it
REMEDY = "install the versions of requirements-dev.txt"
MAIN = "last"  # name of the checkpoint of a run


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="scripts/export.py", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="released weights, run or checkpoint file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    parser.add_argument(
        "--units",
        choices=UNITS,
        default=None,
        help="units of the network (models/units.py). white: pictures are 0..1. noise: of any brightness. Default: "
        "those of test.py without --white-level, noise for all but networks that have learned a noise level",
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare the file's results with PyTorch's")
    parser.add_argument("--checkpoints-dir", type=Path, default=Path("checkpoints"))
    opt = parser.parse_args(argv)
    check_out(opt.out)
    check_packages(["onnx", "onnxscript"] + ([] if opt.no_check else ["onnxruntime"]))
    model = load_model(opt.checkpoint, "cpu", opt.checkpoints_dir)
    model.units = chosen_units(model, opt.units)
    metadata = metadata_of(model)
    with atomic_path(opt.out) as temporary:
        write(model, temporary, metadata)
        difference = None if opt.no_check else greatest_difference(model, temporary)
        if difference is not None and not difference <= TOLERANCE:  # nor NaN
            raise RunError(
                f"{shown(opt.out)} is not written: ONNX Runtime's result differs from PyTorch's by {difference:.1e} of "
                f"the range, {TOLERANCE:.0e} is allowed; {REMEDY}"
            )
    print(f"{shown(opt.out)}: {opt.out.stat().st_size / 2**20:.1f} MiB, units of {metadata['units']}")
    if difference is not None:
        print(f"greatest difference from PyTorch at {len(SIZES)} sizes: {difference:.1e} of the range")
    return 0


def check_out(out: Path) -> None:
    """Raises UsageError where no ONNX file can have this name."""
    if out.suffix != ".onnx":
        raise UsageError(f"--out {shown(out)}: give a file whose name ends in .onnx")
    if out.is_dir():
        raise UsageError(f"--out {shown(out)} is a folder: give a file in it")
    if not out.parent.is_dir():
        raise UsageError(f"--out {shown(out)}: there is no folder {shown(out.parent)}; make it first")


def check_packages(names: list[str]) -> None:
    """Raises UsageError where a package is missing."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UsageError(f"the export needs {' and '.join(missing)}: pip install -r requirements-dev.txt")


def chosen_units(model: MWCNN | BlindSpotDenoiser, units: str | None) -> str:
    """The units that the model is to work in, by default those of test.py. UsageError where it does not know them."""
    trained = model.config["units"]
    if units == "white" and trained == "noise":
        raise UsageError(f"--units white: {model.name} was trained in units of noise and knows no others; leave it out")
    return units or units_in_use(model)


def graph_of(model: MWCNN | BlindSpotDenoiser) -> StudentGraph | ContextGraph:
    return (StudentGraph(model) if model.stage == 2 else ContextGraph(model)).eval()


def metadata_of(model: MWCNN | BlindSpotDenoiser) -> dict[str, str]:
    """What the file says of itself: texts by name. docs/python.md explains them."""
    values = {
        "checkpoint": name_of(model.file),
        "sha256": hashlib.sha256(model.file.read_bytes()).hexdigest(),
        "stage": model.stage,
        "channels": model.channels,
        "units": model.units,
        "trained_units": model.config["units"],
        "white_level": model.values.get("white_level") or "",
        "multiple": model.multiple,
        "receptive_radius": model.receptive_radius,
        "shared_noise": model.shared_noise,
        "least_side": model.stride,
        "sizes": f"any N; any H and W of {model.stride} or more; padding is in the graph",
    }
    if model.stage == 1:
        values |= {"noise": model.noise, "head": model.head, "estimator": model.estimator}
    return {name: str(value) for name, value in values.items()}


def name_of(file: Path) -> str:
    """The name of a checkpoint file without the folders of this machine: NAME, or RUN/best for a file of a run."""
    file = file.resolve()
    if not (file.parent / "options.json").is_file():
        return file.stem
    return file.parent.name if file.stem == MAIN else f"{file.parent.name}/{file.stem}"


def write(model: MWCNN | BlindSpotDenoiser, file: Path, metadata: dict[str, str]) -> None:
    """Writes the model's graph with its weights. Raises RunError where this PyTorch cannot."""
    graph = graph_of(model)
    count, height, width = EXAMPLE
    example = torch.zeros(count, model.channels, height * model.stride, width * model.stride)
    try:
        with warnings.catch_warnings(action="ignore"):  # they are about the exporter's own parts
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: "N", 2: "H", 3: "W"},),
                input_names=["noisy"],
                output_names=list(graph.names),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise RunError(
            f"PyTorch {torch.__version__} cannot export the model ({first_line(error)}); {REMEDY}"
        ) from error
    for node in program.model.graph.all_nodes():  # they hold lines and folders of this machine's software
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        value.metadata_props.clear()
        value.shape = type(value.shape)(["N", value.shape[1], "H", "W"])
    program.model.metadata_props.update(metadata)
    program.save(str(file), external_data=False)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def greatest_difference(model: MWCNN | BlindSpotDenoiser, file: Path) -> float:
    """Greatest difference of the file's results from PyTorch's, in units of the range of values.

    Each result has its own range, and at least that of the noisy pictures. These are random, of the SIZES. Raises
    RunError where ONNX Runtime cannot read the file.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class for each kind, and no common one
        problem = f"ONNX Runtime {onnxruntime.__version__} cannot read the file ({first_line(error)})"
        raise RunError(f"{problem}; {REMEDY}") from error
    random, found = torch.Generator().manual_seed(0), []
    for count, height, width in SIZES:
        noisy = torch.rand(count, model.channels, height, width, generator=random)
        results = [torch.from_numpy(t) for t in session.run(None, {"noisy": noisy.numpy()})]
        for result, expected in zip(results, expected_of(model, noisy), strict=True):
            span = max(float(expected.max() - expected.min()), float(noisy.max() - noisy.min()))
            found.append((result - expected).abs().max() / span)
    return float(torch.stack(found).max())  # NaN where any is


@torch.no_grad()
def expected_of(model: MWCNN | BlindSpotDenoiser, noisy: Tensor) -> tuple[Tensor, ...]:
    """What PyTorch makes of pictures (N,C,H,W): (denoised,), or (mu, factor)."""
    if model.stage == 2:
        return (run(model, noisy, None, False).image,)
    mu, covariance = model.context(noisy, model.views(noisy))
    return mu, covariance.factor


if __name__ == "__main__":
    run_script(main)
