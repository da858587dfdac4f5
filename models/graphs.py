"""Networks as graphs for other software (ONNX), of images of any number and size.

What the modules here compute is what models/inference.py computes of images with one view (models/units.py). It is
written with operations that a graph has. The networks' own layers are used. Only what looks at the size of an image is
written anew: padding, wavelets, phases, and the medians and means of models/units.py.

Shapes: N images, C channels, H x W pixels, T = C (C + 1) / 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import denoiser, mwcnn, units
from models.denoiser import NOISE_SHIFT, WHITE_SHIFT, BlindSpotDenoiser
from models.mwcnn import MULTIPLE, MWCNN
from models.noise import lower_factor
from models.units import BLOCK, MAD, details, fitting, spread

# LL, LH, HL, HH of 2x2 pixels, (4,1,2,2)
HAAR = torch.tensor([[[1, 1], [1, 1]], [[-1, 1], [-1, 1]], [[-1, -1], [1, 1]], [[1, -1], [-1, 1]]])[:, None] / 2


class StudentGraph(nn.Module):
    """A stage-2 model as a graph: noisy images (N,C,H,W), float32 -> denoised ones.

    The model's units and stride are those that it has when this is made. Raises ValueError for a stride above 1.
    """

    names = ("denoised",)

    def __init__(self, model: MWCNN):
        super().__init__()
        if model.stride != 1:
            raise ValueError(f"a student of stride {model.stride} has no graph: set its stride to 1")
        self.model, self.units, self.trained_units = model, model.units, model.config["units"]

    def forward(self, noisy: Tensor) -> Tensor:
        if self.units == "white":
            return self.network(noisy)
        origin, unit = origin_and_unit(noisy, self.trained_units, mwcnn.WIDEST)
        return origin + unit * self.network((noisy - origin) / unit)

    def network(self, y: Tensor) -> Tensor:
        """As MWCNN.network."""
        model = self.model
        bands = dwt(padded(y, MULTIPLE))
        x1 = model.down1(bands)
        x2 = model.down2(dwt(x1))
        x3 = model.down3(dwt(x2))
        x2 = iwt(model.up3(x3)) + x2
        x1 = iwt(model.up2(x2)) + x1
        return iwt(model.last(model.up1(x1)) + bands)[:, :, : y.shape[2], : y.shape[3]]


class ContextGraph(nn.Module):
    """The context of a stage-1 model as a graph: noisy images (N,C,H,W), float32 -> mu (N,C,H,W), factor (N,T,H,W).

    The factor is that of the head's covariance (Full in models/gaussian.py; Prediction says what it means). H and W are
    the model's stride or more. The model's units and stride are those that it has when this is made.
    """

    names = ("mu", "factor")

    def __init__(self, model: BlindSpotDenoiser):
        super().__init__()
        self.model, self.units, self.trained_units = model, model.units, model.config["units"]
        self.stride, self.apart = model.stride, model.apart

    def forward(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.model.channels
        if self.units == "white":
            mu, raw = self.on_phases(noisy)
            return mu, lower_factor(raw, channels, WHITE_SHIFT).factor
        shift = WHITE_SHIFT if self.trained_units == "white" else NOISE_SHIFT
        seen = noisy[:, :, :: self.apart, :: self.apart]
        origin, unit = origin_and_unit(seen, self.trained_units, denoiser.WIDEST)
        mu, raw = self.on_phases((noisy - origin) / unit)
        return origin + unit * mu, lower_factor(raw, channels, shift).factor * unit

    def on_phases(self, y: Tensor) -> tuple[Tensor, ...]:
        """D-BSN and its head on each phase of the images (models/phases.py), one phase at a time."""
        if self.stride == 1:
            return self.network(y)
        places = [(p, q) for p in range(self.stride) for q in range(self.stride)]
        results = [self.network(y[:, :, p :: self.stride, q :: self.stride]) for p, q in places]
        return tuple(interleaved(parts, self.stride, y) for parts in zip(*results))

    def network(self, y: Tensor) -> tuple[Tensor, Tensor]:
        mu, features = self.model.dbsn(y, "plain")
        return mu, self.model.cov_head(features)


def origin_and_unit(y: Tensor, trained_units: str, widest: float) -> tuple[Tensor, Tensor]:
    """Those of the first view of images y (N,C,H,W), (N,1,1,1) each."""
    m, s = scale_of(y)
    return fitting(y, m, s, widest) if trained_units == "white" else (m, s)


def scale_of(y: Tensor) -> tuple[Tensor, Tensor]:
    """models.units.scale_of with operations that a graph has."""
    high, low = (F.max_pool2d(t, BLOCK, ceil_mode=True) for t in (y, -y))
    counts = (high + low > 0).any(1, keepdim=True)  # N,1,h,w
    counts = counts | ~counts.any(2, keepdim=True).any(3, keepdim=True)
    inside = spread(counts, BLOCK, y)  # N,1,H,W
    m = mean_over(y, inside)
    deviation = mean_over((y - m).square(), inside).sqrt()
    d = details(y).abs()
    s = median(d, spread(counts, BLOCK // 2, d)) / MAD
    s = torch.where(s > 0, s, deviation)
    return m, torch.where(s > 0, s, torch.ones_like(s))


def mean_over(y: Tensor, inside: Tensor) -> Tensor:
    """Mean of y (N,C,H,W) over pixels inside (N,1,H,W), bool: (N,1,1,1).

    Row by row, so that no sum in float32 is long.
    """
    share = inside.to(y).mean(3, keepdim=True).mean(2, keepdim=True)
    masked = torch.where(inside, y, torch.zeros_like(y))
    return masked.mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True) / share


def median(values: Tensor, inside: Tensor) -> Tensor:
    """Lower median of values >= 0 (N,C,h,w) inside (N,1,h,w), bool: (N,1,1,1), 0 where there are none.

    Of many values evenly spaced ones, as models.units.scale_of takes them.
    """
    flat = torch.where(inside, values, torch.full_like(values, torch.inf)).flatten(1)  # N,n
    step = (flat.shape[1] + units.SAMPLE - 1) // units.SAMPLE
    flat = flat[:, torch.arange(0, flat.shape[1], torch.sym_max(step, 1), device=flat.device)]
    flat = torch.cat([flat, flat.new_full((flat.shape[0], 1), torch.inf)], 1)  # an image of one row has no details
    ranked = flat.sort(1).values
    middle = ((ranked < torch.inf).sum(1, keepdim=True) - 1).clamp_min(0) // 2
    found = ranked.gather(1, middle)
    return torch.where(found < torch.inf, found, torch.zeros_like(found)).view(-1, 1, 1, 1)


def padded(y: Tensor, multiple: int) -> Tensor:
    """models.mwcnn.pad_to_multiple with operations that a graph has."""
    height, width = y.shape[2:]
    rows, mirrored_rows, mirror_rows = places(height, multiple, y)
    columns, mirrored_columns, mirror_columns = places(width, multiple, y)
    mirror = mirror_rows & mirror_columns
    y = y[:, :, torch.where(mirror, mirrored_rows, rows)]
    return y[..., torch.where(mirror, mirrored_columns, columns)]


def places(length: int, multiple: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the pixels of a padded axis come from: with its edge repeated, mirrored, and whether it can be mirrored."""
    count = (length + multiple - 1) // multiple
    place = torch.arange(multiple * count, device=like.device)
    edge = place.clamp_max(length - 1)
    return edge, (edge - (place - edge)).clamp_min(0), place[-1] - edge[-1] < length


def dwt(x: Tensor) -> Tensor:
    """models.mwcnn.dwt: (N,C,2h,2w) -> (N,4C,h,w)."""
    channels = x.shape[1]
    bands = F.conv2d(x, HAAR.repeat(channels, 1, 1, 1), stride=2, groups=channels)  # four of each channel together
    return bands.unflatten(1, (channels, 4)).transpose(1, 2).flatten(1, 2)


def iwt(x: Tensor) -> Tensor:
    """models.mwcnn.iwt: (N,4C,h,w) -> (N,C,2h,2w)."""
    channels = x.shape[1] // 4
    bands = x.unflatten(1, (4, channels)).transpose(1, 2).flatten(1, 2)
    return F.conv_transpose2d(bands, HAAR.repeat(channels, 1, 1, 1), stride=2, groups=channels)


def interleaved(parts: tuple[Tensor, ...], stride: int, like: Tensor) -> Tensor:
    """Phases (N,K,h,w), in the order of rows -> images (N,K,H,W) of the size of `like`."""
    height, width = parts[0].shape[2:]  # the first phase is the largest
    full = [F.pad(t, (0, width - t.shape[3], 0, height - t.shape[2])) for t in parts]
    rows = [torch.stack(full[p * stride : (p + 1) * stride], 4).flatten(3) for p in range(stride)]
    return torch.stack(rows, 3).flatten(2, 3)[:, :, : like.shape[2], : like.shape[3]]
