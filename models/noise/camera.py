"""Noise as cameras leave it in photographs: neighbouring pixels share it, channels share it, and files clip it.

White noise z goes through what a camera does with it. It is split into brightness and two colour differences (the
orthonormal matrix OPPONENT), each is blurred by a Gaussian and brought back to a variance of one, and the colour
differences are scaled by `chroma`. Back in red, green and blue it is scaled to the standard deviation

    sigma(x)^2 = sigma^2 (dark^2 + (1 - dark^2) x)

of each channel's intensity x. Sigma_n of a pixel is what this leaves at one place. What neighbours share is not in
Sigma_n: models/noise/correlation.py reads it from a picture. The result is clipped and rounded to 8 bits, as the values
of a JPEG file are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.gaussian import Covariance, Diagonal, Full, cholesky, triangle
from models.noise.base import Level, NoiseModel, Range, fraction, within
from models.noise.correlation import OPPONENT, shared_noise
from models.noise.residual import Seen, polynomial_at, read_polynomial
from utils.random import normal, uniform

COARSE = 2.0  # pixels by which the coarse part reaches further
POWERS = (0, 1, 2)
MARGIN = 12  # pixels around an image that its noise is drawn for: twice the longest reach
INDEPENDENT = 0.4  # reach up to which noise counts as independent: pictures themselves look as if they had so much
COARSEST = 0.4  # greatest share of the coarse part in pairs: pictures do not tell how large it is


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
    shared = True
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
        variance = (sigma.square() * (dark.square() + (1 - dark.square()) * x)).clamp_min(torch.finfo(x.dtype).tiny)
        return of_channels(variance, chroma)

    def add(self, x: Tensor, random: list[torch.Generator]) -> Tensor:
        position = uniform(self.draws, x, random)
        return self.developed(x, normal(with_margin(x), random), position)

    def published(self, x: np.ndarray) -> np.ndarray:
        """NumPy's legacy generator, seeded with 0 for each image."""
        clean = torch.from_numpy(np.ascontiguousarray(x, np.float64))[None]
        z = torch.from_numpy(np.random.RandomState(0).normal(0, 1, with_margin(clean).shape))
        return self.developed(clean, z, torch.zeros(1, self.draws))[0].numpy()

    def developed(self, x: Tensor, z: Tensor, position: Tensor) -> Tensor:
        """Images x (N,C,H,W) with noise of the levels at the positions, as files of 8 bits; z as in spread."""
        sigma, dark, *others = self.drawn(position, x)
        variance = sigma.square() * (dark.square() + (1 - dark.square()) * x)
        return self.recorded(x + variance.clamp_min(0).sqrt() * spread(z, *others))

    @classmethod
    def read(cls, seen: Seen, gain: Tensor | float) -> Tensor:
        """theta, K = 5 C + 3: the function sigma_c^2 = a + b (x - low) + c (x - low)^2 of each channel, as of
        Poisson-Gaussian noise, and the levels reach, chroma and chroma_reach.

        mu carries a share of shared noise, so residuals are too small. sigma^2 is therefore scaled to be what the
        flattest blocks have, where those have more. A picture without enough of them, or with a reach that is not above
        INDEPENDENT, counts as one whose pixels do not share their noise.
        """
        polynomial = read_polynomial(seen, gain, POWERS)
        rows = []
        for k, y in enumerate(seen.image):
            found = shared_noise(y)
            if found is None or found.reach + found.chroma_reach <= INDEPENDENT:
                rows.append((1.0, 0.0, 1.0 if found is None else found.chroma, 0.0))
                continue
            at = found.intensity.to(polynomial).view(1, -1, 1, 1)
            more = found.variance / float(polynomial_at(polynomial[k : k + 1], at, POWERS).variance.mean())
            rows.append((max(1.0, more), found.reach, found.chroma, found.chroma_reach))
        more, *levels = polynomial.new_tensor(rows).view(-1, 4, 1, 1).split(1, 1)
        each = polynomial.unflatten(1, (seen.channels, -1))  # N,C,5,1,1
        coefficients, ends = each[:, :, : len(POWERS)] * more[:, None], each[:, :, len(POWERS) :]
        return torch.cat([torch.cat([coefficients, ends], 2).flatten(1, 2), *levels], 1)

    @classmethod
    def sigma_n(cls, theta: Tensor, image: Tensor) -> Diagonal | Full:
        polynomial, _, chroma, _ = theta.split([theta.shape[1] - 3, 1, 1, 1], 1)
        return of_channels(polynomial_at(polynomial, image, POWERS).variance, chroma)

    @classmethod
    def estimator(cls, ranges: bool, noisy: bool) -> str:
        return "residual"

    @classmethod
    def trained_range(cls, levels: Mapping[str, Range]) -> Range:
        (low, high), (least, most) = levels["sigma"], levels["dark"]
        return low * min(1.0, least), high * max(1.0, most)

    @classmethod
    def draw(cls, theta: Tensor, cov_n: Covariance, x: Tensor, random: list[torch.Generator]) -> Tensor:
        """What is not known of the picture is drawn: the share of the coarse part, within COARSEST, where neighbours
        share noise.
        """
        _, reach, chroma, chroma_reach = theta.split([theta.shape[1] - 3, 1, 1, 1], 1)
        coarse = COARSEST * fraction(uniform(1, x, random), 0, x) * (reach + chroma_reach > 0)
        n = spread(normal(with_margin(x), random), reach, coarse, chroma, chroma_reach)
        return cov_n.variance.sqrt() * n

    @classmethod
    def recorded(cls, y: Tensor) -> Tensor:
        """Clipped and rounded to 8 bits."""
        return (255 * y).round().clamp(0, 255) / 255


def of_channels(variance: Tensor, chroma: Tensor) -> Diagonal | Full:
    """Sigma_n of channels with variances (N,C,H,W). The colours' correlation follows from chroma (N,1,1,1).

    (1 - chroma^2) / (1 + 2 chroma^2)
    """
    channels = variance.shape[1]
    if channels == 1:
        return Diagonal(variance)
    shared = (1 - chroma.square()) / (1 + 2 * chroma.square())
    std = variance.sqrt()
    pairs = [std[:, i : i + 1] * std[:, j : j + 1] * (1.0 if i == j else shared) for i, j in triangle(channels)]
    return cholesky(torch.cat(pairs, 1))


def with_margin(x: Tensor) -> Tensor:
    """An empty tensor for the normal values that `spread` needs for images x (N,C,H,W)."""
    height, width = (side + 2 * MARGIN for side in x.shape[2:])
    return x.new_empty(len(x), 2 * x.shape[1], height, width)


def spread(z: Tensor, reach: Tensor, coarse: Tensor, chroma: Tensor, chroma_reach: Tensor) -> Tensor:
    """White noise made into shared noise (N,C,H,W) of variance 1 in each channel.

    z: standard normal, (N,2C,H + 2 MARGIN,W + 2 MARGIN). Its second half is for the coarse part. The levels are
    (N,1,1,1) each.
    """
    fine, rough = z.chunk(2, 1)
    channels = fine.shape[1]
    if channels == 3:
        reach = torch.cat([reach, reach + chroma_reach, reach + chroma_reach], 1)
    n = (1 - coarse).sqrt() * blurred(fine, reach) + coarse.sqrt() * blurred(rough, reach + COARSE)
    n = n[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    if channels == 1:
        return n
    gains = torch.cat([torch.ones_like(chroma), chroma, chroma], 1) / ((1 + 2 * chroma.square()) / 3).sqrt()
    return torch.einsum("kc,nkhw->nchw", OPPONENT.to(n), gains * n)


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
