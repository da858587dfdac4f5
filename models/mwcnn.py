"""MWCNN, the student of stage 2: a U-Net whose poolings are Haar wavelet transforms (Liu et al., "Multi-level Wavelet-CNN for image restoration").

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import Conv2d

MULTIPLE = 8  # three halvings


def dwt(x: Tensor) -> Tensor:
    """Orthonormal Haar transform, (N,C,H,W) -> (N,4C,H/2,W/2): bands LL, LH, HL, HH, each of C channels. H and W must be even."""
    a, b = x[:, :, 0::2] / 2, x[:, :, 1::2] / 2
    a0, a1, b0, b1 = a[..., 0::2], a[..., 1::2], b[..., 0::2], b[..., 1::2]
    return torch.cat([a0 + a1 + b0 + b1, a1 + b1 - a0 - b0, b0 + b1 - a0 - a1, a0 + b1 - a1 - b0], 1)


def iwt(x: Tensor) -> Tensor:
    """Inverse of dwt, (N,4C,H,W) -> (N,C,2H,2W)."""
    ll, lh, hl, hh = (x / 2).chunk(4, dim=1)
    top = torch.stack([ll - lh - hl + hh, ll + lh - hl - hh], -1).flatten(-2)  # N,C,H,2W
    bottom = torch.stack([ll - lh + hl - hh, ll + lh + hl + hh], -1).flatten(-2)
    return torch.stack([top, bottom], -2).flatten(-3, -2)


def pad_to_multiple(x: Tensor) -> Tensor:
    """Images whose sides are made multiples of 8 at the bottom and right: by their mirror image, or their edge where they are too small for one."""
    height, width = x.shape[2:]
    bottom, right = -height % MULTIPLE, -width % MULTIPLE
    if not bottom and not right:
        return x
    return F.pad(x, (0, right, 0, bottom), mode="reflect" if bottom < height and right < width else "replicate")


def convolutions(sizes: list[int], relu_last: bool = True) -> nn.Sequential:
    """3x3 convolutions through the given channel counts, each with a ReLU; the last one's is optional."""
    pairs = list(zip(sizes, sizes[1:]))
    return nn.Sequential(*(Conv2d(a, b, 3, relu=relu_last or k < len(pairs) - 1) for k, (a, b) in enumerate(pairs)))


class MWCNN(nn.Module):
    """Three wavelet levels of `width`, 1.6 `width` and 1.6 `width` channels (160, 256 and 256 by default), four convolutions down and four up at each.

    The noise is what the network predicts: the input's own wavelet bands are added to the last convolution's. `dtype`, float32 or bfloat16, is what the
    convolutions are computed in; free to set.
    """

    stage = 2
    receptive_radius = 120  # 2 * (8 * 1) + 4 * (8 * 1) + 8 * (8 * 1), and what the wavelets add

    def __init__(self, channels: int, width: int = 160):
        super().__init__()
        self.config = dict(channels=channels, width=width)
        self.channels, self.dtype = channels, torch.float32
        f1, f2, f3 = width, round(1.6 * width), round(1.6 * width)
        bands = 4 * channels
        self.down1 = convolutions([bands, f1, f1, f1, f1])
        self.down2 = convolutions([4 * f1, f2, f2, f2, f2])
        self.down3 = convolutions([4 * f2, f3, f3, f3, f3])
        self.up3 = convolutions([f3, f3, f3, f3, 4 * f2])
        self.up2 = convolutions([f2, f2, f2, f2, 4 * f1])
        self.up1 = convolutions([f1, f1, f1, f1])
        self.last = Conv2d(f1, bands, 3)
        for module in self.modules():
            if isinstance(module, Conv2d):
                nn.init.orthogonal_(module.weight)
        # what is added to a skip connection starts small, so that the network starts near the identity: it learns faster (docs/recipes.md)
        with torch.no_grad():
            for convolution in (self.up3[-1], self.up2[-1], self.last):
                convolution.weight *= 0.1

    def forward(self, y: Tensor) -> Tensor:
        """Noisy images (N,C,H,W), float32, 0..1, any size -> denoised ones."""
        height, width = y.shape[2:]
        bands = dwt(pad_to_multiple(y))  # N,4C,H/2,W/2
        x1 = self.down1(bands.to(self.dtype).contiguous(memory_format=torch.channels_last))  # N,F1,H/2,W/2
        x2 = self.down2(dwt(x1))  # N,F2,H/4,W/4
        x3 = self.down3(dwt(x2))  # N,F3,H/8,W/8
        x2 = iwt(self.up3(x3)) + x2
        x1 = iwt(self.up2(x2)) + x1
        out = iwt(self.last(self.up1(x1)).float() + bands)
        return out[:, :, :height, :width]
