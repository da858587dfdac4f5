"""MWCNN is the student of stage 2: a U-Net whose poolings are Haar wavelet transforms.

Liu et al., "Multi-level Wavelet-CNN for image restoration".

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.layers import Conv2d, without_autocast
from models.phases import Stride
from models.units import USUAL_MEAN, USUAL_NOISE, View, seen_in, views_of

MULTIPLE = 8  # three halvings
BLOCKS = ("plain", "residual")
WIDEST = 1.0  # the range of values that a network trained on 0..1 bears: it cuts what is beyond


class Haar(torch.autograd.Function):
    """Orthonormal Haar transform, and with `inverse` its inverse.

    The one's gradient is the other, for the transform is a rotation.
    """

    @staticmethod
    def forward(ctx, x: Tensor, inverse: bool) -> Tensor:
        ctx.inverse = inverse
        return from_bands(x) if inverse else to_bands(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return (to_bands(grad) if ctx.inverse else from_bands(grad)), None


def dwt(x: Tensor) -> Tensor:
    """Orthonormal Haar transform, (N,C,H,W) -> (N,4C,H/2,W/2).

    The bands are LL, LH, HL, HH, each of C channels. H and W must be even.
    """
    return Haar.apply(x, False)


def iwt(x: Tensor) -> Tensor:
    """Inverse of dwt, (N,4C,H,W) -> (N,C,2H,2W)."""
    return Haar.apply(x, True)


def to_bands(x: Tensor) -> Tensor:
    """dwt without its gradient; a and b are the even and the odd rows."""
    a, b = x[:, :, 0::2], x[:, :, 1::2]
    top, top_difference = a[..., 0::2] + a[..., 1::2], a[..., 1::2] - a[..., 0::2]
    bottom, bottom_difference = b[..., 0::2] + b[..., 1::2], b[..., 1::2] - b[..., 0::2]
    return torch.cat(
        [top + bottom, top_difference + bottom_difference, bottom - top, bottom_difference - top_difference], 1
    ).div_(2)


def from_bands(x: Tensor) -> Tensor:
    """iwt without its gradient.

    The result lies in memory as x does (channels last or not), for the convolution after it.
    """
    ll, lh, hl, hh = (x / 2).chunk(4, dim=1)
    batch, channels, height, width = ll.shape
    last = x.is_contiguous(memory_format=torch.channels_last)
    out = torch.empty(
        (batch, channels, 2 * height, 2 * width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    for row, total, difference in ((0, ll - hl, lh - hh), (1, ll + hl, lh + hh)):
        out[:, :, row::2, 0::2] = total - difference
        out[:, :, row::2, 1::2] = total + difference
    return out


def pad_to_multiple(x: Tensor, multiple: int = MULTIPLE) -> Tensor:
    """Images whose sides are made multiples of a number at the bottom and right.

    Their mirror image is added, or their edge where they are too small for one.
    """
    height, width = x.shape[2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    return F.pad(x, (0, right, 0, bottom), mode="reflect" if bottom < height and right < width else "replicate")


def convolutions(*sizes: int) -> nn.Sequential:
    """3x3 convolutions through the given channel counts, each with a ReLU."""
    return nn.Sequential(*(Conv2d(a, b, 3, relu=True) for a, b in zip(sizes, sizes[1:])))


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))) with 3x3 convolutions, (N,width,H,W) -> the same shape.

    He et al., "Deep residual learning for image recognition". There are no additive constants: training drives those of
    the lower levels down until no unit there responds.
    """

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = Conv2d(width, width, 3, relu=True, bias=False), Conv2d(width, width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class MWCNN(nn.Module):
    """A U-Net of three wavelet levels. Each has 3x3 convolutions on its way down and on its way up.

    blocks "plain" is the published network: four convolutions down and four up at each level, each with a ReLU. The
    levels have `width`, 1.6 `width` and 1.6 `width` channels (160, 256 and 256 by default). "residual" has residual
    blocks in the place of three or four of these convolutions, two at the upper levels and one at the lowest, and sums
    without a ReLU before them. Its lower levels have 1.5 `width` channels. Long training shuts the lower levels of a
    plain one off (docs/ablations.md).

    The noise is what the network predicts: the input's own wavelet bands are added to the last convolution's.
    Attributes to set freely: `dtype`, float32 or bfloat16, in which the convolutions are computed, `units` (see
    models/units.py) and `stride`, which models.inference takes into account: `forward` sees an image as it is.
    """

    stage = 2
    level_is_learned = False  # it has no noise level

    def __init__(
        self,
        channels: int,
        width: int = 160,
        units: str = "white",
        blocks: str = "plain",
        shared_noise: bool = False,
        independent_noise: bool = False,
        refined: bool = False,
    ):
        """shared_noise: whether it is trained on noise that neighbours share. independent_noise: on other as well.

        refined: whether it is trained on the very pictures that it is for, so that it knows how their noise is shared.
        """
        super().__init__()
        self.config = dict(channels=channels, width=width, units=units)
        # older versions read what has none of these
        given = dict(shared_noise=shared_noise, independent_noise=independent_noise, refined=refined)
        self.config |= {"blocks": blocks} if blocks != "plain" else {}
        self.config |= {name: True for name, value in given.items() if value}
        self.channels, self.dtype, self.units, self.blocks = channels, torch.float32, units, blocks
        self.stride: Stride = 1
        bands = 4 * channels
        f1 = width
        if blocks == "plain":
            f2 = f3 = round(1.6 * width)
            self.down1 = convolutions(bands, f1, f1, f1, f1)
            self.down2 = convolutions(4 * f1, f2, f2, f2, f2)
            self.down3 = convolutions(4 * f2, f3, f3, f3, f3)
            self.up3 = convolutions(f3, f3, f3, f3, 4 * f2)
            self.up2 = convolutions(f2, f2, f2, f2, 4 * f1)
            self.up1 = convolutions(f1, f1, f1, f1)
        else:
            f2 = f3 = round(1.5 * width)
            self.down1 = nn.Sequential(Conv2d(bands, f1, 3), ResidualBlock(f1), ResidualBlock(f1))
            self.down2 = nn.Sequential(Conv2d(4 * f1, f2, 3), ResidualBlock(f2), ResidualBlock(f2))
            self.down3 = nn.Sequential(Conv2d(4 * f2, f3, 3), ResidualBlock(f3))
            self.up3 = nn.Sequential(ResidualBlock(f3), Conv2d(f3, 4 * f2, 3))
            self.up2 = nn.Sequential(ResidualBlock(f2), ResidualBlock(f2), Conv2d(f2, 4 * f1, 3))
            self.up1 = nn.Sequential(ResidualBlock(f1), ResidualBlock(f1))
        self.last = Conv2d(f1, bands, 3)
        for module in self.modules():
            if isinstance(module, Conv2d):
                nn.init.orthogonal_(module.weight)
        # What is added to something else starts small, so that the network starts near the identity. It learns faster
        # so (docs/ablations.md).
        with torch.no_grad():
            for convolution in (self.up3[-1], self.up2[-1], self.last):
                convolution.weight *= 0.1
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.second.weight *= 0.1

    @torch.no_grad()
    def take_up_units_of_noise(self) -> None:
        """Turns a network of white units into one of noise units, which further training then makes better.

        Its results stay what they are for images of the usual mean and noise, but for what zero padding means.
        """
        first, last = self.down1[0], self.last
        first.bias += 2 * USUAL_MEAN * first.weight[:, : self.channels].sum((1, 2, 3))  # a constant is in LL, doubled
        first.weight *= USUAL_NOISE
        last.bias /= USUAL_NOISE
        last.weight /= USUAL_NOISE
        self.units = self.config["units"] = "noise"

    @torch.no_grad()
    def take_up_gray(self) -> None:
        """Turns a network of colour images into one of gray ones, which further training then makes better.

        Its results stay those of the colour network for an image of three equal channels, averaged over the channels.
        """
        first, last = self.down1[0], self.last  # of both the bands come before the channels
        first.weight = nn.Parameter(first.weight.unflatten(1, (4, -1)).sum(2))
        last.weight = nn.Parameter(last.weight.unflatten(0, (4, -1)).mean(1))
        last.bias = nn.Parameter(last.bias.unflatten(0, (4, -1)).mean(1))
        first.in_channels = last.out_channels = 4
        self.channels = self.config["channels"] = 1

    @property
    def shared_noise(self) -> bool:
        """Whether it knows noise that neighbours share."""
        return self.config.get("shared_noise", False)

    @property
    def independent_noise(self) -> bool:
        """Whether it knows noise that neighbours do not share."""
        return self.config.get("independent_noise", not self.shared_noise)

    @property
    def receptive_radius(self) -> int:
        """How far the network sees, in pixels of the image.

        The pixels of the three levels are 2, 4 and 8 of the image. Plain: eight 3x3 convolutions at each level,
        8 (2 + 4 + 8) = 112, and 8 for the wavelets. Residual: 10 (2 + 4) + 6 8 = 108, and 8.
        """
        return 120 if self.blocks == "plain" else 116

    @property
    def multiple(self) -> int:
        """Tiles of an image begin at multiples of it, and its sides are such."""
        return MULTIPLE

    def views(self, y: Tensor) -> list[View] | None:
        """What `forward` needs to know of a whole image y (N,C,H,W) to work on parts of it."""
        if self.units == "white":
            return None
        return views_of(y, WIDEST if self.config["units"] == "white" else None)

    def forward(self, y: Tensor, views: list[View] | None = None) -> Tensor:
        """Noisy images (N,C,H,W), float32, 0..1, any size -> denoised ones."""
        if self.units == "white":
            return self.network(y)

        def in_own_units(y: Tensor, view: View) -> tuple[Tensor]:
            return (view.out_of(self.network(view.into(y))),)

        return seen_in(views or self.views(y), y, in_own_units)[0]

    def network(self, y: Tensor) -> Tensor:
        """Images of the network's units -> denoised ones."""
        height, width = y.shape[2:]
        bands = dwt(pad_to_multiple(y))  # N,4C,H/2,W/2
        with without_autocast(y):
            x1 = self.down1(bands.to(self.dtype).contiguous(memory_format=torch.channels_last))  # N,F1,H/2,W/2
            x2 = self.down2(dwt(x1))  # N,F2,H/4,W/4
            x3 = self.down3(dwt(x2))  # N,F3,H/8,W/8
            x2 = iwt(self.up3(x3)) + x2
            x1 = iwt(self.up2(x2)) + x1
            out = iwt(self.last(self.up1(x1)).float() + bands)
        return out[:, :, :height, :width]


@torch.no_grad()
def shut_off(student: MWCNN, y: Tensor) -> list[str]:
    """Names of the parts of a student that do nothing on noisy images y (N,C,H,W), empty for a healthy one.

    These are layers of which less than a quarter of the units respond anywhere, and the lower levels ("up2", "up3")
    where more than half of what they pass on is the same all over the image. Such a student works as a smaller network.
    """
    found = []

    def look(name: str):
        def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
            if isinstance(module, Conv2d):
                works = (out > 0).any(3).any(2).any(0).float().mean() >= 0.25
            else:
                works = (out.float().std((2, 3)) > 1e-3).float().mean() >= 0.5
            if not works:
                found.append(name)

        return hook

    hooks = [
        module.register_forward_hook(look(name))
        for name, module in student.named_modules()
        if name in ("up2", "up3") or (isinstance(module, Conv2d) and module.relu)
    ]
    try:
        student(y)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def revive(student: MWCNN, y: Tensor, random: torch.Generator) -> tuple[int, list[str]]:
    """Gives new weights to the units of residual blocks that respond nowhere to noisy images y (N,C,H,W).

    What the network gives stays the same, for a new unit has no say in its block's sum before it is trained. Its
    weights are normal, without a response to the mean of its input, and make its response as large as that of the other
    units in the median. Returns the number of new units, and the names of the blocks without any other unit, of which
    nothing is changed.
    """
    number, left = 0, []
    for name, block in student.named_modules():
        if not isinstance(block, ResidualBlock):
            continue
        x, responses = seen_by(student, block.first, y)
        alive = (responses > 0).any(3).any(2).any(0)
        count = int((~alive).sum())
        if not alive.any():
            left.append(name)
        if count in (0, len(alive)):
            continue
        weight = block.first.weight
        new = torch.randn(count, *weight.shape[1:], generator=random).to(weight)
        mean = x.mean((0, 2, 3))[None, :, None, None].expand(1, -1, 3, 3)
        new -= (new * mean).sum((1, 2, 3), keepdim=True) / mean.square().sum().clamp_min(1e-12) * mean
        size = F.conv2d(x, new, padding=1).relu().std((0, 2, 3))
        new *= (responses[:, alive].std((0, 2, 3)).median() / size.clamp_min(1e-12))[:, None, None, None]
        weight[~alive] = new
        block.second.weight[:, ~alive] = 0
        number += count
    return number, left


def seen_by(student: MWCNN, layer: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer of a student takes and gives on images y, float32."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.extend((args[0].float(), out.float())))
    try:
        student(y)
    finally:
        hook.remove()
    return seen[0], seen[1]
