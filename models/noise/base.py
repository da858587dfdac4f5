"""What a noise model has to say. Each model is one file of this package and one line in NOISES.

Units: images are 0..1, and so are levels here. The command line divides by `Level.unit` once.
Noise is independent from pixel to pixel, and never clipped or quantised, but for camera.py.

Level is a number on the command line that sets how much noise there is: sigma, alpha, delta, lam. theta (N,K,1,1) is
all that has to be known of an image's noise beside the intensity. An estimator finds it on one image. It can make noise
for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.gaussian import Covariance, Diagonal, Full, triangle
from utils.random import normal, uniform

Range = tuple[float, float]  # (v, v) is a fixed level
FLOOR = 1e-3  # least standard deviation of estimated noise, in the network's units: a quarter of a level of 255
CNN_SHIFT = 4  # CNN_est's first level is softplus(-4) + FLOOR, about 4.9 of 255


@dataclass(frozen=True)
class Level:
    """A flag of the command line.

    unit: the flag's value for 1.0 in the network's units.
    whole: an integer, not a range.
    """

    name: str
    meaning: str
    unit: float = 255.0
    low: float = 0.0
    high: float = 255.0
    default: float | None = None
    whole: bool = False


class NoiseModel:
    """A noise model. An instance has levels and makes noise. The class itself says how the noise is estimated.

    Subclasses are frozen dataclasses. Their fields are their levels: ranges in 0..1 units, drawn once for each image.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    levels: ClassVar[tuple[Level, ...]]
    needs_color: ClassVar[bool] = False
    shared: ClassVar[bool] = False  # whether neighbouring pixels share it
    image_wide: ClassVar[bool]  # Sigma_n is one matrix for the image; else it is one for each pixel
    hidden: ClassVar[int] = 32  # channels of CNN_est and of the covariance head
    draws: ClassVar[int] = 2  # how many uniform values decide where the levels are within their ranges

    # --------------------------------------------------------------------------------------------- noise that is made

    def covariance(self, x: Tensor, position: Tensor) -> Covariance:
        """Sigma_n at clean images x (N,C,H,W). position (N,draws), 0..1: where the levels are within their ranges."""
        raise NotImplementedError

    def add(self, x: Tensor, random: list[torch.Generator]) -> Tensor:
        """Clean images x (N,C,H,W) -> noisy ones. Generator k, on x's device, draws image k's levels and noise."""
        return x + self.covariance(x, uniform(self.draws, x, random)).sample(normal(x, random))

    def published(self, x: np.ndarray) -> np.ndarray:
        """Makes one clean image x (C,H,W), float, noisy by the published protocol.

        That is NumPy's legacy generator, seeded with 0 for each image. Levels must be fixed.
        """
        raise NotImplementedError

    def rms(self, x: np.ndarray) -> float:
        """Root mean square of the noise over a clean image x (C,H,W), 0..1 units. Levels must be fixed."""
        cov = self.covariance(torch.from_numpy(np.ascontiguousarray(x))[None].double(), torch.zeros(1, self.draws))
        return float(cov.variance.mean().sqrt())

    # ---------------------------------------------------------------------------------- noise that CNN_est has learned

    @classmethod
    def cnn_outputs(cls, channels: int) -> int:
        """How many values CNN_est gives."""
        return channels

    @classmethod
    def cnn_statistic(cls, raw: Tensor) -> Tensor:
        """CNN_est's output (N,K,H,W) -> what is averaged over the image where Sigma_n is image-wide."""
        return raw

    @classmethod
    def cnn_covariance(cls, raw: Tensor, channels: int) -> Covariance:
        """Sigma_n from CNN_est's output, or from its mean over the image."""
        return Diagonal(positive(raw, CNN_SHIFT).square().expand(-1, channels, -1, -1))

    # ------------------------------------------------------------------------- noise that is read from the residual

    @classmethod
    def read(cls, seen, gain: Tensor | float) -> Tensor:
        """theta (N,K,1,1) of images, from their residuals (residual.Seen)."""
        raise NotImplementedError

    @classmethod
    def sigma_n(cls, theta: Tensor, image: Tensor) -> Covariance:
        """Sigma_n of theta (N,K,1,1) at an image (N,C,H,W); H = W = 1 where it is image-wide."""
        raise NotImplementedError

    @classmethod
    def draw(cls, theta: Tensor, cov_n: Covariance, x: Tensor, random: list[torch.Generator]) -> Tensor:
        """Noise (N,C,H,W) of theta for clean images x, whose Sigma_n is cov_n. Generator k draws image k's."""
        return cov_n.sample(normal(x, random))

    @classmethod
    def recorded(cls, y: Tensor) -> Tensor:
        """Images as the files hold them whose noise this is."""
        return y

    # ------------------------------------------------------------------------------------------ what scripts say of it

    @classmethod
    def estimator(cls, ranges: bool, noisy: bool) -> str:
        """--sigma-n auto: CNN_est learns one level. Where levels differ, each image's residual is read."""
        return "residual" if ranges else "cnn"

    @classmethod
    def trained_range(cls, levels: Mapping[str, Range]) -> Range | None:
        """Least and greatest rms, 0..255, of noise of these levels (as on the command line).

        None: it has no one level.
        """
        return None

    @classmethod
    def label(cls, record: Mapping[str, float]) -> str:
        """How a table names the noise of a record {"model": .., level: value, ..}; a value may be a range."""
        values = [record[level.name] for level in cls.levels if level.name in record]
        return f"{cls.name.upper()} " + ",".join(
            f"{v[0]:g}..{v[1]:g}" if isinstance(v, list) else f"{v:g}" for v in values
        )


def within(bounds: Range, position: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * position


def fraction(position: Tensor, k: int, x: Tensor) -> Tensor:
    """Column k of the positions (N,draws), as (N,1,1,1) of x's device and dtype."""
    return position[:, k].view(-1, 1, 1, 1).to(x)


def positive(raw: Tensor, shift: float) -> Tensor:
    """softplus(raw - shift) + FLOOR: raw network output -> standard deviation, 0..1 units."""
    return F.softplus(raw - shift) + FLOOR


def lower_factor(raw: Tensor, channels: int, shift: float) -> Full:
    """Raw output (N,T,H,W) -> covariance L L^T. The diagonal of L is made positive, the rest stays as it is."""
    pairs = zip(raw.split(1, dim=1), triangle(channels))
    return Full(torch.cat([positive(e, shift) if i == j else e for e, (i, j) in pairs], 1))
