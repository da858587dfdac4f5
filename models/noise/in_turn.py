"""The test noise of Laine et al. 2019, Neighbor2Neighbor and Blind2Unblind: one generator draws image after image."""

from __future__ import annotations

import numpy as np

from models.noise.awgn import Awgn
from models.noise.base import NoiseModel
from models.noise.poisson import Poisson

SEED = 101
IN_TURN = ("awgn", "poisson")


class InTurn:
    """Noise of one kind whose draws follow one another, so that images must be taken in their order.

    Each image's level is drawn first where the noise has a range of levels, then a value for each pixel and channel, in
    the order of (H,W,C). Nothing is clipped.
    """

    def __init__(self, noise: NoiseModel):
        """noise: Awgn or Poisson."""
        self.levels = noise.sigma if isinstance(noise, Awgn) else noise.lam
        self.photons = isinstance(noise, Poisson)
        self.random = np.random.RandomState(SEED)
        self.level = self.levels[0]

    def published(self, x: np.ndarray) -> np.ndarray:
        """A clean image x (C,H,W), float, 0..1, with the next draw."""
        low, high = self.levels
        self.level = float(self.random.uniform(low, high)) if high > low else low
        x = x.transpose(1, 2, 0)
        if self.photons:
            y = self.random.poisson(self.level * x.clip(0)) / self.level  # float files may be a little below black
        else:
            y = x + self.level * self.random.normal(size=x.shape)
        return y.transpose(2, 0, 1)

    def rms(self, x: np.ndarray) -> float:
        """Root mean square of the last image's noise over its clean image x (C,H,W)."""
        return float(np.sqrt(x.clip(0).mean() / self.level)) if self.photons else self.level
