"""The released models by name, for torch.hub.

    model = torch.hub.load("path/to/this/folder", "gray_awgn_blind", source="local")
    from models import denoise, posterior  # can be imported once the model is loaded

    image = denoise(model, array)  # NumPy or torch, any real type and brightness

    y = torch.rand(1, 1, 64, 64)  # noisy images (N,C,H,W), float32, 0..1
    image = posterior(y, model(y)).mean

A stage-1 model gives a prediction, which posterior() turns into the image. The models that end in
`_full` (stage 2) give the image itself. The weights are files in checkpoints/; nothing is downloaded.
This project's packages are called models, utils, data and options: a program that already has other
modules of these names cannot load it in the same process.
"""

from pathlib import Path as _Path

from models import load_model as _load_model

dependencies = ["numpy", "safetensors", "scipy", "torch", "tqdm"]

_CHECKPOINTS = _Path(__file__).resolve().parent / "checkpoints"


def _released(entry_point, device):
    """The model in checkpoints/NAME.safetensors, where NAME is the entry point's with - for _."""
    name = entry_point.__name__.replace("_", "-")
    return _load_model(_CHECKPOINTS / f"{name}.safetensors", device)


def gray_awgn_blind(device="cpu"):
    """Stage 1, gray images, Gaussian noise of any level from 5 to 55 (white is 255)."""
    return _released(gray_awgn_blind, device)


def gray_awgn_blind_full(device="cpu"):
    """Stage 2, gray images, Gaussian noise of any level from 5 to 55. Gives the image itself."""
    return _released(gray_awgn_blind_full, device)


def gray_hg_blind(device="cpu"):
    """Stage 1, gray images, noise that grows with the signal (Poisson-Gaussian)."""
    return _released(gray_hg_blind, device)


def gray_hg_blind_full(device="cpu"):
    """Stage 2, gray images, noise that grows with the signal. Gives the image itself."""
    return _released(gray_hg_blind_full, device)


def color_awgn_blind(device="cpu"):
    """Stage 1, RGB images, Gaussian noise of any level from 5 to 55 (white is 255)."""
    return _released(color_awgn_blind, device)


def color_awgn_blind_full(device="cpu"):
    """Stage 2, RGB images, Gaussian noise of any level from 5 to 55. Gives the image itself."""
    return _released(color_awgn_blind_full, device)


def color_hg_blind(device="cpu"):
    """Stage 1, RGB images, noise that grows with the signal (Poisson-Gaussian)."""
    return _released(color_hg_blind, device)


def color_hg_blind_full(device="cpu"):
    """Stage 2, RGB images, noise that grows with the signal. Gives the image itself."""
    return _released(color_hg_blind_full, device)


def color_mg(device="cpu"):
    """Stage 1, RGB images, Gaussian noise of one covariance between the channels."""
    return _released(color_mg, device)


def color_mg_full(device="cpu"):
    """Stage 2, RGB images, Gaussian noise of one covariance. Gives the image itself."""
    return _released(color_mg_full, device)


def color_photo(device="cpu"):
    """Stage 1, RGB images, noise of photographs, which neighbouring pixels share."""
    return _released(color_photo, device)


def color_photo_full(device="cpu"):
    """Stage 2, RGB images, noise of photographs, which neighbouring pixels share. Gives the image itself."""
    return _released(color_photo_full, device)
