"""CNN_est, the paper's noise estimator: five 1x1 convolutions.

1x1 convolutions cannot tell noise from texture by looking at it. What they learn is the level that explains the
training images, as a function of intensity. So one CNN_est serves one level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.gaussian import Covariance
from models.layers import PointwiseNet
from models.noise.base import NoiseModel

STRIP = 2**20  # pixels that are computed at once


class CnnEst(nn.Module):
    """channels: 1 or 3. noise: the noise model, which says what the output means. Always float32."""

    learned = True  # it finds theta on clean images as it does on noisy ones

    def __init__(self, channels: int, noise: type[NoiseModel]):
        super().__init__()
        self.channels, self.noise = channels, noise
        self.net = PointwiseNet(channels, noise.hidden, noise.cnn_outputs(channels), depth=5)
        nn.init.zeros_(self.net.last.weight)  # starts at one level everywhere, about 4.9 of 255

    def estimate(self, y: Tensor, *_: object, **__: object) -> Tensor:
        """theta (N,K,1,1) of images y (N,C,H,W), 0..1, on any device.

        It is the mean over the image where Sigma_n is image-wide, nothing (K = 0) where it belongs to each pixel.
        What else the residual estimator takes is not looked at.
        """
        if not self.noise.image_wide:
            return y.new_empty(y.shape[0], 0, 1, 1)
        device, total = self.net.last.weight.device, 0.0
        for strip in y.split(max(1, STRIP // (y.shape[0] * y.shape[3])), dim=2):  # memory does not grow with the image
            statistic = self.noise.cnn_statistic(self.net(strip.to(device)))
            total = total + statistic.sum((2, 3), keepdim=True, dtype=torch.float64)
        return (total / (y.shape[2] * y.shape[3])).float()

    def covariance(self, theta: Tensor, image: Tensor) -> Covariance:
        """Sigma_n at an image (N,C,H,W), mu or a clean one; H = W = 1 where it is image-wide."""
        return self.noise.cnn_covariance(theta if self.noise.image_wide else self.net(image), self.channels)
