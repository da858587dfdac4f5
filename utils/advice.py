"""The noise of a picture as people want to know it: measured, in words, and as the commands to run."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from models import load_model
from models.checks import as_checked, check_noise, may_be_texture, neighbours_share_noise
from models.denoiser import BlindSpotDenoiser
from models.inspection import LEAST_PIXELS, Inspection, inspect_noise
from models.outliers import known_part
from utils.device import choose_dtype
from utils.files import finite

LITTLE = 0.01  # of the picture's range: the noise of less than 2.5 of 255, in which little can be gained
LOOKERS = {1: "gray-awgn-blind", 3: "color-awgn-blind"}  # released weights that measure the noise of so many channels
CLIPPED = 0.05  # share of the pixels


@dataclass(frozen=True)
class Advice:
    """noise: the noise model to train with. start: released weights of stage 1 to begin with. weights: the student to
    denoise with. pixels, intensities: how the noise of neighbours and of bright parts is, in words. reach: of shared
    noise, in pixels. remarks: what else is to be known, in words. converted: whether the files have another number of
    channels than the weights.
    """

    noise: str
    start: str
    weights: str
    pixels: str
    intensities: str
    reach: float = 0.0
    remarks: tuple[str, ...] = ()
    converted: bool = False

    @property
    def kind(self) -> tuple:
        """Equal for pictures that are to be treated alike."""
        return self.pixels, self.intensities, self.weights, self.noise, self.converted

    def denoising(self, data: list[str]) -> str:
        """The command that denoises images."""
        mode = f" --mode {self.start.split('-')[0]}" if self.converted else ""
        return f"python test.py --checkpoint {self.weights} --data {shlex.join(data)}{mode} --save denoised/"

    def training(self, data: list[str], units_of_noise: bool = False) -> str:
        """The command that trains stage 1 on images."""
        mode = self.start.split("-")[0]
        stride = " --stride 2" if self.noise == "camera" else ""
        units = " --units noise" if units_of_noise else ""
        return (
            f"python train_dbsn.py --name mine --noisy {shlex.join(data)} --noise {self.noise} --mode {mode}{stride} "
            f"--start-from {self.start} --steps 1000{units}"
        )


def advise(found: Inspection, channels: int, span: float, converted: bool = False) -> Advice:
    """found: in a picture of so many channels, whose values span so much. converted: see Advice."""
    mode = "gray" if channels == 1 else "color"
    constant, growing, shared = "the same at all intensities", "grows with the signal", "shared by neighbouring pixels"
    varying = growing if found.grows else "less in bright parts, as gamma leaves it" if found.falls else constant
    remarks = []
    if found.shared:
        pixels = shared
        start = "color-photo" if mode == "color" else "gray-hg-blind"
        noise, weights = "camera", f"{start}-full"
        if mode == "color":
            remarks.append(
                f"texture of sharp pictures with little noise looks the same, and {weights} smooths it: test.py names "
                "most such results, color-hg-blind-full keeps texture"
            )
    else:
        pixels = f"{'taken to be ' if found.texture else ''}independent from pixel to pixel"
        kind = "hg" if found.grows or found.falls else "awgn"
        noise, start = kind, f"{mode}-{kind}-blind"
        weights = f"{start}-full"
        if found.one_noise:
            noise, weights = "mg", "color-photo-full"
            remarks.append(
                "all channels have the same noise, as a JPEG's with subsampled colour: other weights take it for the "
                f"picture, and {weights} may smooth fine detail, so compare the result with the picture"
            )
        elif found.channels_share:
            noise = "mg"
            remarks.append(f"channels share their noise, which {weights} does not know: train with --noise mg")
    if found.texture:
        remarks.append(
            "what neighbouring pixels share may be texture, so it was not counted as noise: compare the results of "
            "test.py with --stride 1 and --stride 3"
        )
    if found.level < LITTLE * span:
        remarks.append(
            f"the noise is {found.level / span:.2%} of the range of the picture: little can be gained, and what looks "
            "like noise may be fine texture"
        )
    for lines, amount in found.stripes.items():
        remarks.append(
            f"{lines} have noise of their own, {amount:.2f} times the pixels', which all weights keep: subtract a "
            "dark frame first"
        )
    if found.impulses:
        remarks.append(
            f"{found.impulses:.1%} of the pixels are alone, far above or below all their neighbours, as salt and "
            "pepper is, and may count as noise here: replace them by the median of their neighbours first"
        )
    low, high = found.clipped
    if low > CLIPPED:
        remarks.append(f"{low:.0%} of the pixels have the least value: noise is cut off there, and less was found")
    if high > CLIPPED:
        remarks.append(f"{high:.0%} of the pixels have the greatest value: noise is cut off there, and less was found")
    return Advice(noise, start, weights, pixels, varying, found.reach, tuple(remarks), converted)


def reasons(alike: list[Advice]) -> str:
    """What was found in pictures of one kind, in words."""
    first, reaches = alike[0], sorted({f"{one.reach:.1f}" for one in alike if one.reach}, key=float)
    blur = f", which blurs it by {' to '.join([reaches[0], *reaches[1:][-1:]])} pixels" if reaches else ""
    return f"{first.pixels}{blur}; {first.intensities}"


@dataclass(frozen=True)
class Looker:
    """Measures the noise of pictures, with the released weights that LOOKERS names."""

    folder: Path
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, opt, device: torch.device) -> Looker:
        """opt: the options of a script."""
        return cls(opt.checkpoints_dir, device, choose_dtype(opt.amp, device))

    def __call__(self, image: np.ndarray) -> Inspection | None:
        """The noise of an image (H,W,C), any units; NaN where there is none.

        None where all of it is one value, or where fewer than LEAST_PIXELS of it are known.
        """
        few = np.isfinite(image).all(2).sum() < LEAST_PIXELS
        if few or not np.nanmax(image, initial=-np.inf) > np.nanmin(image, initial=np.inf):
            return None
        model = released(self.folder, LOOKERS[image.shape[2]], self.device)
        model.dtype = self.dtype
        y = known_part(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
        checks = check_noise(as_checked(y[None])[0])
        failed = [check for check in checks if check.failed]
        stripes = {check.name.split(", ")[1]: check.value for check in failed if check.kind == "stripes"}
        texture, impulses = may_be_texture(checks), sum(check.value for check in failed if check.kind == "impulses")
        return inspect_noise(model, y, neighbours_share_noise(checks) is True, stripes, texture, impulses)


@cache
def released(folder: Path, name: str, device: torch.device) -> BlindSpotDenoiser:
    return load_model(name, device, folder)


def as_record(found: Inspection) -> dict:
    """What was found, as JSON holds it."""
    return finite(as_plain(asdict(found)))


def as_plain(value):
    """Arrays as lists, in dicts and lists of any depth."""
    if isinstance(value, dict):
        return {key: as_plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
