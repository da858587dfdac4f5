"""Networks and what can be done with their predictions.

    from models import denoise, load_model, posterior

    model = load_model("gray-hg-blind")  # released weights, a run's name or a file
    clean = denoise(model, array)  # NumPy or torch, of any real type and brightness

    p = model(y)
    p.mu, p.cov_mu, p.cov_n
    posterior(y, p).mean, posterior(y, p).std

Here y is (N,C,H,W), float32, 0..1, RGB, and the model is one of stage 1. A stage-2 model gives the denoised image
itself.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from models.arrays import denoise
from models.denoiser import BlindSpotDenoiser, Prediction, noise_level, posterior, posterior_mean
from models.mwcnn import MWCNN
from utils.checkpoint import load_checkpoint
from utils.errors import UsageError

__all__ = [
    "MWCNN",
    "BlindSpotDenoiser",
    "Prediction",
    "check_run_name",
    "denoise",
    "load_model",
    "noise_level",
    "posterior",
    "posterior_mean",
    "resolve_checkpoint",
]

RELEASED = Path(__file__).resolve().parents[1] / "checkpoints"
MODELS = {"stage1": BlindSpotDenoiser, "stage2": MWCNN}


def resolve_checkpoint(name: str | Path, checkpoints_dir: str | Path = "checkpoints") -> Path:
    """A checkpoint file from its path, or from a name.

    A name is that of its run in checkpoints_dir, or that of released weights, there or in the project's own folder.
    Raises a UsageError that lists what was looked for, or where a run has the name of released weights.
    """
    given, root = Path(name), Path(checkpoints_dir)
    run = root / given / "last.safetensors"
    released = [folder / f"{name}.safetensors" for folder in (root, RELEASED)]
    candidates = [given, *released, run, given / "last.safetensors"]
    for candidate in candidates:
        if candidate.is_file():
            if candidate in released and run.is_file():
                raise UsageError(
                    f"{str(name)!r} is the name of released weights and of a run: give the file, {candidate} or {run}"
                )
            return candidate
    names = sorted(file.stem for file in RELEASED.glob("*.safetensors"))
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; released weights: {', '.join(names)}"
    raise UsageError(
        f"no checkpoint {str(name)!r}: looked for {', '.join(str(c) for c in dict.fromkeys(candidates))}{hint}"
    )


def check_run_name(name: str, checkpoints_dir: str | Path = "checkpoints") -> None:
    """Refuses a name for a run that is one of released weights: neither would be found by it."""
    if any((Path(folder) / f"{name}.safetensors").is_file() for folder in (checkpoints_dir, RELEASED)):
        raise UsageError(f"--name {name}: released weights have that name; give another, such as my-{name}")


def load_model(
    name: str | Path, device: str | torch.device = "cpu", checkpoints_dir: str | Path = "checkpoints"
) -> BlindSpotDenoiser | MWCNN:
    """The model of a checkpoint of either stage, ready for inference.

    It has the checkpoint's values as `model.values`, its file as `model.file` and the given name as `model.name`.

    A stage-1 model maps noisy images (N,C,H,W), float32, 0..1, to a Prediction, a stage-2 model to denoised images.
    Nothing in the file is executed. Raises UsageError where the file is missing, damaged, or not one of this project's
    model checkpoints.
    """
    file = resolve_checkpoint(name, checkpoints_dir)
    checkpoint = load_checkpoint(file, kind=tuple(MODELS))
    model = MODELS[checkpoint.kind](**checkpoint.values["config"])
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.tensors.items()})
    if model.stage == 1:
        model.to(memory_format=torch.channels_last)
    model.values, model.file, model.name = checkpoint.values, file, str(name)
    return model.to(device).eval().requires_grad_(False)
