"""Noise as cameras leave it in photographs: neighbouring pixels share it, channels share it, and files clip it.

White noise z goes through what a camera does with it. It is split into brightness and two colour differences (the
orthonormal matrix OPPONENT), each is blurred by a Gaussian and brought back to a variance of one, and the colour
differences are scaled by `chroma`. Back in red, green and blue it is scaled to the standard deviation

    sigma(x)^2 = sigma^2 (dark^2 + (1 - dark^2) x)

of each channel's intensity x. Sigma_n of a pixel is what this leaves at one place. What is shared by neighbours
is not in Sigma_n: `autocorrelation` has it. The result is clipped and rounded to 8 bits, as a JPEG's values are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.gaussian import Diagonal, Full, cholesky, triangle
from models.noise.base import Level, NoiseModel, Range, fraction, within
from models.noise.residual import Seen, polynomial_at, read_polynomial
from utils.random import normal, uniform

COARSE = 2.0  # pixels by which the coarse part reaches further
MARGIN = 12  # pixels around an image that its noise is drawn for: three times the longest reach
OPPONENT = torch.tensor(  # brightness, red - blue, green - magenta
    [[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]]
)
OPPONENT /= OPPONENT.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class Camera(NoiseModel):
    """All but sigma have no unit, or pixels. chroma and chroma_reach do nothing to gray images."""

    sigma: Range
    dark: Range
    reach: Range
    coarse: Range
    chroma: Range
    chroma_reach: Range

    name = "camera"
    title = "shared by neighbours, as in photographs"
    levels = (
        Level("sigma", "camera: standard deviation at white"),
        Level("dark", "camera: standard deviation at black, relative to white (0.6)", 1.0, 0.0, 3.0, 0.6),
        Level("reach", "camera: pixels by which noise is blurred (0.6)", 1.0, 0.0, 2.0, 0.6),
        Level("coarse", "camera: share of the variance that reaches 2 pixels further (0)", 1.0, 0.0, 1.0, 0.0),
        Level("chroma", "camera: noise of colour relative to that of brightness (1)", 1.0, 0.1, 5.0, 1.0),
        Level("chroma_reach", "camera: pixels by which colour reaches further (0)", 1.0, 0.0, 2.0, 0.0),
    )
    image_wide = False
    draws = 6

    def drawn(self, position: Tensor, x: Tensor) -> list[Tensor]:
        """The levels at positions (N,6), each (N,1,1,1)."""
        ranges = (self.sigma, self.dark, self.reach, self.coarse, self.chroma, self.chroma_reach)
        sigma, *others = (within(bounds, fraction(position, k, x)) for k, bounds in enumerate(ranges))
        low, high = self.sigma
        if low > 0:  # log-uniform: most photographs have little noise
            sigma = low * (high / low) ** fraction(position, 0, x)
        return [sigma, *others]

    def covariance(self, x: Tensor, position: Tensor) -> Diagonal | Full:
        sigma, dark, _, _, chroma, _ = self.drawn(position, x)
        variance = sigma.square() * (dark.square() + (1 - dark.square()) * x)
        variance = variance.clamp_min(torch.finfo(x.dtype).tiny)  # a covariance is positive
        if x.shape[1] == 1:
            return Diagonal(variance)
        shared = (1 - chroma.square()) / (1 + 2 * chroma.square())  # correlation of two channels
        std = variance.sqrt()
        pairs = [std[:, i : i + 1] * std[:, j : j + 1] * (1.0 if i == j else shared) for i, j in triangle(x.shape[1])]
        return cholesky(torch.cat(pairs, 1))

    def add(self, x: Tensor, random: list[torch.Generator]) -> Tensor:
        position = uniform(self.draws, x, random)
        height, width = (side + 2 * MARGIN for side in x.shape[2:])
        z = normal(x.new_empty(len(x), 2 * x.shape[1], height, width), random)
        return self.developed(x, z, position)

    def published(self, x: np.ndarray) -> np.ndarray:
        """NumPy's legacy generator, seeded with 0 for each image."""
        shape = (1, 2 * len(x), *(side + 2 * MARGIN for side in x.shape[1:]))
        z = torch.from_numpy(np.random.RandomState(0).normal(0, 1, shape))
        clean = torch.from_numpy(np.ascontiguousarray(x, np.float64))[None]
        return self.developed(clean, z, torch.zeros(1, self.draws))[0].numpy()

    def developed(self, x: Tensor, z: Tensor, position: Tensor) -> Tensor:
        """Images x (N,C,H,W) with noise of the levels at the positions, as a file of 8 bits has them.

        z: standard normal, (N,2C,H + 2 MARGIN,W + 2 MARGIN); its second half is for the coarse part.
        """
        sigma, dark, reach, coarse, chroma, chroma_reach = self.drawn(position, x)
        fine, rough = z.chunk(2, 1)
        if x.shape[1] == 3:
            further = chroma_reach * z.new_tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
            reach = reach + further
        reach = reach.expand(-1, x.shape[1], -1, -1)
        n = (1 - coarse).sqrt() * blurred(fine, reach) + coarse.sqrt() * blurred(rough, reach + COARSE)
        n = n[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
        if x.shape[1] == 3:
            gains = torch.cat([torch.ones_like(chroma), chroma, chroma], 1) / ((1 + 2 * chroma.square()) / 3).sqrt()
            n = torch.einsum("kc,nkhw->nchw", OPPONENT.to(n), gains * n)
        variance = sigma.square() * (dark.square() + (1 - dark.square()) * x)
        y = x + variance.clamp_min(0).sqrt() * n
        return (255 * y).round().clamp(0, 255) / 255

    @classmethod
    def read(cls, seen: Seen, gain: Tensor | float) -> Tensor:
        """theta, K = 5 C: the function sigma_c^2 = a + b x + c x^2 of each channel, as of Poisson-Gaussian noise."""
        return read_polynomial(seen, gain, powers=(0, 1, 2))

    @classmethod
    def sigma_n(cls, theta: Tensor, image: Tensor) -> Diagonal:
        return polynomial_at(theta, image, powers=(0, 1, 2))


def blurred(z: Tensor, reach: Tensor) -> Tensor:
    """White noise (N,C,H,W) blurred by Gaussians of standard deviation reach (N,C,1,1), its variance kept."""
    count, channels, height, width = z.shape
    at = torch.arange(-MARGIN, MARGIN + 1, device=z.device, dtype=z.dtype)
    kernel = torch.exp(-at.square() / (2 * reach.reshape(-1, 1).square().clamp_min(1e-4)))  # NC,2M+1
    kernel /= kernel.norm(dim=1, keepdim=True)
    planes = z.reshape(1, count * channels, height, width)
    for shape in ((-1, 1, 1, 2 * MARGIN + 1), (-1, 1, 2 * MARGIN + 1, 1)):
        planes = F.conv2d(planes, kernel.view(shape), padding="same", groups=count * channels)
    return planes.view(z.shape)
