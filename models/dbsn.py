"""D-BSN, the dilated blind-spot network of the paper.

Two branches see pixels around the one they predict, never that one: a centrally masked k x k convolution (k = 3, 5),
then nothing but 1x1 convolutions and convolutions of dilation d = (k + 1) / 2. The masked kernel moves by offsets that
are not multiples of d in both directions (its centre, the only one that is, is masked), the dilated ones by multiples
of d, so no path comes back to offset zero. The input is padded with zeros: a mirrored border would bring a pixel's own
value back among its neighbours.

The paper's hole is that one pixel. Where neighbours share their noise, a hole of h x h pixels, h = 2 r + 1, hides all
of them. The kernels are then k = h + 2, h + 4 with their h x h centre masked, and d = (h + k) / 2 = h + 1, h + 2. An
offset that the masked kernel allows has |a| > r along one axis, and |a| <= (k - 1) / 2 = d - r - 1. Along that axis
the dilated convolutions lead to a + d n. That is farther than r from zero for every n: for n = 0 by the first bound,
for all others because |a + d n| >= d - |a| >= r + 1. So no path comes back into the hole, and no smaller d does that.
Some pixels outside it are reached by neither branch: 3% of them where h = 1, 19% where h = 3, 36% where h = 5.

Shapes: N images, C channels, H x W pixels, F = width.

A network runs on one of three paths, the same function with the same weights:

- plain   dilated convolutions on NCHW tensors, as the formulas read; the oracle of the tests and the baseline of the
  benchmark
- fused   the same channels-last, each ReLU within its convolution's kernel; the fastest on CPUs
- phases  channels-last, each branch on the d x d interleaved sub-images of the picture, where its convolutions are
  dense; the fastest on GPUs

"auto" is phases on CUDA and fused elsewhere. Of widths that are no multiple of LANES it is plain where a CPU computes
gradients in bfloat16: oneDNN has wrong ones there, of dilated channels-last convolutions (seen with PyTorch 2.14).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import CentrallyMaskedConv2d, Conv2d, PointwiseNet

MDC_FORMS = ("release", "paper", "residual")
LANES = 16


class PhaseGrid:
    """Splits images into their d x d interleaved sub-images (phases).

    On these a convolution of dilation d is a dense one.

    Phase (p, q) holds the pixels (p + d i, q + d j). Where d does not divide the size, the last row or column of some
    phases lies outside the image. Dilated zero padding means that those pixels read as zero, so they are set to zero
    before each spatial convolution: biases would fill them.
    """

    def __init__(self, like: Tensor, dilation: int):
        """like: (N,F,H,W), the image to split; its size, device and dtype are taken."""
        self.height, self.width = like.shape[2:]
        self.d = dilation
        self.pad = (0, -self.width % dilation, 0, -self.height % dilation)
        self.inside = self.split(like.new_ones(1, 1, self.height, self.width)) if any(self.pad) else None  # d*d,1,h,w

    def split(self, x: Tensor) -> Tensor:
        """(N,F,H,W) -> (N d d, F, ceil(H/d), ceil(W/d)), channels-last."""
        d = self.d
        x = F.pad(x, self.pad).permute(0, 2, 3, 1)  # N,hd,wd,F
        x = x.unflatten(2, (-1, d)).unflatten(1, (-1, d))  # N,h,d,w,d,F
        return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)

    def join(self, x: Tensor) -> Tensor:
        """(N d d, F, h, w) -> (N,F,H,W), channels-last."""
        d = self.d
        x = x.permute(0, 2, 3, 1).unflatten(0, (-1, d, d))  # N,d,d,h,w,F
        x = x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)  # N,hd,wd,F
        return x[:, : self.height, : self.width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def zero_outside(self, x: Tensor) -> Tensor:
        """x (N d d, F, h, w) with what lies outside the image set to zero."""
        return x if self.inside is None else (x.unflatten(0, (-1, self.d**2)) * self.inside).flatten(0, 1)


class MDCBlock(nn.Module):
    """Multi-dilated convolution block, (N,F,H,W) -> (N,F,H,W).

    Three paths start at the input, each opened by a 1x1 convolution: a wide dilated one, a narrow dilated one and
    nothing more. They are merged and added to the input, then two 1x1 convolutions follow. There are three forms:

    - release   the wide path is one 5x5 kernel (the authors' code)
    - paper     the wide path is two 3x3 kernels (the paper's drawing)
    - residual  the release's, with the block input added again at the end, after a convolution without ReLU whose
      weights start a tenth as large, so that a deep stack starts near the identity
    """

    def __init__(self, width: int, dilation: int, form: str):
        super().__init__()
        self.residual = form == "residual"
        self.opening = nn.ModuleList(Conv2d(width, width, relu=True) for _ in range(3))
        self.wide = nn.ModuleList(
            Conv2d(width, width, k, dilation, relu=True) for k in ([3, 3] if form == "paper" else [5])
        )
        self.narrow = Conv2d(width, width, 3, dilation, relu=True)
        self.merge = Conv2d(3 * width, width, relu=True)
        self.post = nn.Sequential(Conv2d(width, width, relu=True), Conv2d(width, width, relu=not self.residual))
        if self.residual:
            with torch.no_grad():
                self.post[-1].weight.mul_(0.1)

    def forward(self, x: Tensor, grid: PhaseGrid | None) -> Tensor:
        """grid: the phases that x holds (x is then (N d d, F, h, w)); None where x is the image itself."""
        dense = grid is not None
        inside = grid.zero_outside if dense else (lambda h: h)
        wide, narrow, point = (conv(x) for conv in self.opening)
        for conv in self.wide:
            wide = conv(inside(wide), dense)
        narrow = self.narrow(inside(narrow), dense)
        h = self.merge([wide, narrow, point]) + x
        h = self.post(h)
        return h + x if self.residual else h


class Branch(nn.Module):
    """Blind-spot branch, (N,F,H,W) -> (N,F,H,W).

    It is masked k x k, two 1x1, `blocks` MDC blocks of dilation (k + hole) / 2, one 1x1.
    """

    def __init__(self, width: int, blocks: int, kernel_size: int, mdc: str, hole: int = 1):
        super().__init__()
        self.dilation = (kernel_size + hole) // 2
        self.masked = CentrallyMaskedConv2d(width, width, kernel_size, relu=True, hole=hole)
        self.pre = nn.Sequential(*(Conv2d(width, width, relu=True) for _ in range(2)))
        self.blocks = nn.ModuleList(MDCBlock(width, self.dilation, mdc) for _ in range(blocks))
        self.last = Conv2d(width, width)

    def forward(self, x: Tensor, phases: bool) -> Tensor:
        x = self.masked(x)
        grid = PhaseGrid(x, self.dilation) if phases else None
        x = self.pre(grid.split(x) if phases else x)
        for block in self.blocks:
            x = block(x, grid)
        x = self.last(x)
        return grid.join(x) if phases else x


class DBSN(nn.Module):
    """The two branches, their joint features, and mu.

    channels: 1 or 3.
    width: F, 96 in the paper.
    blocks: MDC blocks of each branch, 8 in the paper.
    mdc: see MDCBlock.
    hole: side in pixels of the square around each pixel that its prediction does not see, odd; 1 in the paper.

    With those defaults a gray network has 6,612,289 parameters as "release" and 5,581,633 as "paper".
    """

    def __init__(self, channels: int, width: int = 96, blocks: int = 8, mdc: str = "release", hole: int = 1):
        super().__init__()
        self.hole = hole
        self.head = Conv2d(channels, width, relu=True)
        self.branches = nn.ModuleList(Branch(width, blocks, k, mdc, hole) for k in (hole + 2, hole + 4))
        self.tail = Conv2d(2 * width, width)
        self.mu = PointwiseNet(width, width, channels, depth=3)
        # masked kernel, then `blocks` wide paths: a 5x5 kernel and two 3x3 ones reach equally far
        self.receptive_radius = max(b.masked.kernel_size[0] // 2 + 2 * b.dilation * blocks for b in self.branches)

    def forward(self, y: Tensor, path: str = "auto") -> tuple[Tensor, Tensor]:
        """Gives mu (N,C,H,W) float32 and features (N,F,H,W) in y's dtype.

        y: (N,C,H,W), 0..1, float32 or bfloat16. Both results are blind: pixel i of either does not depend on y in the
        hole around i.
        """
        if path == "auto":
            trained = torch.is_grad_enabled() and y.device.type == "cpu" and y.dtype == torch.bfloat16
            wrong = trained and self.head.out_channels % LANES != 0
            path = "phases" if y.device.type == "cuda" else "plain" if wrong else "fused"
        x = self.head(y)
        if path != "plain":
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.tail([branch(x, path == "phases") for branch in self.branches])
        return self.mu(x), x
