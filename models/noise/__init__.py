"""The noise models: what noise is, how it is drawn, and how it is estimated.

There is one file for each noise model. To add one, write its file and put it into NOISES. The command line, the
records and the tables read it there.
"""

from __future__ import annotations

from models.noise.awgn import Awgn
from models.noise.base import Level, NoiseModel, lower_factor
from models.noise.camera import Camera
from models.noise.cnn_est import CnnEst
from models.noise.hg import Hg
from models.noise.mg import Mg
from models.noise.poisson import Poisson
from models.noise.residual import ResidualEstimator

NOISES: dict[str, type[NoiseModel]] = {noise.name: noise for noise in (Awgn, Hg, Mg, Poisson, Camera)}
ESTIMATORS = {"cnn": CnnEst, "residual": ResidualEstimator}

__all__ = ["ESTIMATORS", "NOISES", "CnnEst", "Level", "NoiseModel", "ResidualEstimator", "lower_factor"]
