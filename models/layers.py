"""Convolutions that D-BSN, the heads and MWCNN share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """nn.Conv2d, stride 1, zero padding that keeps the size; computes in the dtype of its input.

    The weights stay float32: mixed precision is a matter of the tensor that is passed in, with no context manager and no second copy of the weights.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation)
        nn.init.kaiming_normal_(self.weight, mode="fan_in")
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.padding, self.dilation)

    def convolve(self, x: Tensor, padding=0, dilation=1) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), 1, padding, dilation)


class CentrallyMaskedConv2d(Conv2d):
    """Convolution that never sees the pixel it predicts: the centre of the kernel is held at zero."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size)
        mask = torch.ones(1, 1, kernel_size, kernel_size)
        mask[..., kernel_size // 2, kernel_size // 2] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * self.mask).to(x.dtype)
        return F.conv2d(x, weight, self.bias.to(x.dtype), 1, self.padding)


def relu(x: Tensor) -> Tensor:
    """ReLU in place: the input is always a fresh convolution result, whose value nothing else needs."""
    return F.relu(x, inplace=True)


class PointwiseNet(nn.Module):
    """1x1 convolutions with ReLU between them, the last one in float32: (N,in,H,W) -> (N,out,H,W) float32."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, depth: int, zero_last: bool = False):
        super().__init__()
        sizes = [in_channels] + [hidden] * (depth - 1) + [out_channels]
        self.layers = nn.ModuleList(Conv2d(a, b) for a, b in zip(sizes, sizes[1:]))
        if zero_last:
            nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        return self.layers[-1](x.float())
