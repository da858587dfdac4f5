"""Phases: the stride x stride interleaved sub-images of an image.

Neighbours of an image that share their noise are in different phases, and neighbours within a phase are `stride`
pixels apart. A network that sees one phase at a time is blind to all pixels but every stride-th, so to the whole
neighbourhood of each pixel (pixel-shuffle downsampling: Zhou et al. 2020; for blind-spot networks: Lee et al. 2022,
AP-BSN).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Stride = int | dict[int, float]  # of several strides a mean of their results is taken, with these weights


def on_phases(
    f: Callable[[Tensor], tuple[Tensor, ...]], y: Tensor, stride: int, together: bool = True
) -> tuple[Tensor, ...]:
    """Applies f, images (N,C,h,w) -> tensors (N,K,h,w), to each phase of y (N,C,H,W) and puts the results together.

    Phase (p, q) holds the pixels (p + stride i, q + stride j). f sees phases of one size stacked in N, or one phase at
    a time.
    """
    if stride == 1:
        return f(y)
    height, width = y.shape[2:]
    places = [(p, q) for p in range(min(stride, height)) for q in range(min(stride, width))]
    phases = {at: y[:, :, at[0] :: stride, at[1] :: stride] for at in places}
    joined: tuple[Tensor, ...] = ()
    sizes = dict.fromkeys(phase.shape for phase in phases.values())
    groups = (
        [[at for at in places if phases[at].shape == size] for size in sizes] if together else [[at] for at in places]
    )
    for group in groups:
        results = f(torch.cat([phases[at] for at in group]))
        if not joined:
            joined = tuple(t.new_empty(len(y), t.shape[1], height, width) for t in results)
        for whole, t in zip(joined, results):
            for at, part in zip(group, t.split(len(y))):
                whole[:, :, at[0] :: stride, at[1] :: stride] = part
    return joined


def weights_of(stride: Stride) -> dict[int, float]:
    """Stride -> weight of its result; the weights add up to one."""
    return {stride: 1.0} if isinstance(stride, int) else stride
