"""D-BSN, the dilated blind-spot network (paper, section 3.2, Fig. 2).

Two branches see every pixel but the one they predict: a centrally masked k x k convolution (k = 3, 5), then nothing but 1x1 convolutions and
convolutions of dilation d = (k + 1) / 2 (2, 3). The masked kernel reaches offsets that are non-zero modulo d, except those beyond the kernel; dilated
kernels move by multiples of d; so no path returns to offset zero. The input is padded with zeros: a mirrored border would bring a pixel's own value
back among its neighbours.

Shapes: N images, C channels, H x W pixels, F = width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import CentrallyMaskedConv2d, Conv2d, PointwiseNet, relu

MDC_FORMS = ("release", "paper", "residual")


class MDCBlock(nn.Module):
    """Multi-dilated convolution block, (N,F,H,W) -> (N,F,H,W).

    Three paths from the input, a wide and a narrow dilated one and a 1x1, merged and added to the input, then two 1x1 convolutions.
    form: "release" draws the wide path as one 5x5 kernel (the authors' code), "paper" as two 3x3 (their Fig. 2); "residual" is the release's with
    the block input added again after the last convolution, whose weights start a tenth as large, so that a deep stack starts near the identity.
    """

    def __init__(self, width: int, dilation: int, form: str):
        super().__init__()
        self.form = form
        self.opening = Conv2d(width, 3 * width)  # the three opening 1x1 convolutions as one
        wide = [3, 3] if form == "paper" else [5]
        self.wide = nn.ModuleList(Conv2d(width, width, k, dilation) for k in wide)
        self.narrow = Conv2d(width, width, 3, dilation)
        self.merge = Conv2d(3 * width, width)
        self.post = nn.ModuleList(Conv2d(width, width) for _ in range(2))
        if form == "residual":
            with torch.no_grad():
                self.post[-1].weight.mul_(0.1)

    def forward(self, x: Tensor, grid: PhaseGrid | None = None) -> Tensor:
        """grid: x holds the interleaved phases of an image (see PhaseGrid), on which the dilated convolutions are dense."""
        h = relu(self.opening(x))  # N,3F,H,W
        if grid is not None:
            h = grid.zero_outside(h)
        wide, narrow, point = h.chunk(3, dim=1)
        for conv in self.wide:
            if grid is not None and conv is not self.wide[0]:
                wide = grid.zero_outside(wide)
            wide = relu(dilated(conv, wide, grid))
        narrow = relu(dilated(self.narrow, narrow, grid))
        h = relu(self.merge(torch.cat([wide, narrow, point], 1))) + x
        h = relu(self.post[1](relu(self.post[0](h))))
        return h + x if self.form == "residual" else h


def dilated(conv: Conv2d, x: Tensor, grid: PhaseGrid | None) -> Tensor:
    return conv(x) if grid is None else conv.convolve(x, conv.kernel_size[0] // 2)


class PhaseGrid:
    """Splits an image into its d x d interleaved sub-images, on which a convolution of dilation d is a dense one.

    Phase (p, q) holds pixels (p + d i, q + d j). Where d does not divide the size, the last row or column of some phases lies outside the image; dilated
    zero padding means that those read as zero, so they are set to zero before each spatial convolution (biases and ReLUs would fill them).
    """

    def __init__(self, height: int, width: int, dilation: int, device: torch.device, dtype: torch.dtype):
        self.size, self.d = (height, width), dilation
        self.h, self.w = -(-height // dilation), -(-width // dilation)
        self.pad = (0, self.w * dilation - width, 0, self.h * dilation - height)
        self.inside = None
        if any(self.pad):
            ones = torch.ones(1, 1, height, width, device=device, dtype=dtype)
            self.inside = self.split(ones)  # d*d,1,h,w

    def split(self, x: Tensor) -> Tensor:
        """(N,F,H,W) -> (N*d*d,F,h,w)"""
        n, f = x.shape[:2]
        d, h, w = self.d, self.h, self.w
        x = F.pad(x, self.pad) if any(self.pad) else x
        x = x.view(n, f, h, d, w, d) if x.is_contiguous() else x.reshape(n, f, h, d, w, d)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(n * d * d, f, h, w).contiguous(memory_format=layout_of(x, n * d * d))

    def join(self, x: Tensor) -> Tensor:
        """(N*d*d,F,h,w) -> (N,F,H,W)"""
        d, h, w, f = self.d, self.h, self.w, x.shape[1]
        x = x.view(-1, d, d, f, h, w).permute(0, 3, 4, 1, 5, 2).reshape(-1, f, h * d, w * d)
        return x[:, :, : self.size[0], : self.size[1]]

    def zero_outside(self, x: Tensor) -> Tensor:
        """x with what lies outside the image set to zero, (N*d*d,F,h,w)."""
        if self.inside is None:
            return x
        return (x.unflatten(0, (-1, self.d**2)) * self.inside).flatten(0, 1)


def layout_of(x, n):
    return torch.contiguous_format


class Branch(nn.Module):
    """One blind-spot branch, (N,F,H,W) -> (N,F,H,W): masked k x k, two 1x1, `blocks` MDC blocks of dilation (k + 1) / 2, 1x1."""

    def __init__(self, width: int, blocks: int, kernel_size: int, form: str):
        super().__init__()
        self.dilation = (kernel_size + 1) // 2
        self.masked = CentrallyMaskedConv2d(width, width, kernel_size)
        self.pre = nn.ModuleList(Conv2d(width, width) for _ in range(2))
        self.blocks = nn.ModuleList(MDCBlock(width, self.dilation, form) for _ in range(blocks))
        self.out = Conv2d(width, width)

    def forward(self, x: Tensor, phases: bool) -> Tensor:
        x = relu(self.masked(x))
        grid = PhaseGrid(*x.shape[2:], self.dilation, x.device, x.dtype) if phases else None
        if grid is not None:
            x = grid.split(x)
        for conv in self.pre:
            x = relu(conv(x))
        for block in self.blocks:
            x = block(x, grid)
        x = self.out(x)
        return grid.join(x) if grid is not None else x


class DBSN(nn.Module):
    def __init__(self, channels: int, width: int = 96, blocks: int = 8, mdc: str = "release"):
        super().__init__()
        self.head = Conv2d(channels, width)
        self.branches = nn.ModuleList(Branch(width, blocks, k, mdc) for k in (3, 5))
        self.tail = Conv2d(2 * width, width)
        self.mu = PointwiseNet(width, width, channels, depth=3)
        self.path = "phases"

    def forward(self, y):
        x = relu(self.head(y))
        x = self.tail(torch.cat([b(x, self.path == "phases") for b in self.branches], 1))
        return self.mu(x), x
