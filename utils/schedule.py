"""The learning rate and the running average of weights, each a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

DECAY_AT = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)  # the paper's epochs 20, 40, 60, 70, 80, 90 of 100


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: int = 0, decay: float = 0.1) -> float:
    """Learning rate of a step in 0..total-1.

    schedule: "cosine" rises linearly over `warmup` steps and falls to zero along a half cosine; "step" multiplies by `decay` at 20, 40, 60, 70, 80 and 90%
    of the way (the paper's); "constant" stays after the warm-up.
    """
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "step":
        return peak * ramp * decay ** sum(step >= round(at * total) for at in DECAY_AT)
    if schedule == "cosine":
        progress = max(0, step - warmup) / max(1, total - warmup)
        return peak * ramp * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * ramp


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """average <- d average + (1 - d) model, weight by weight, with d = min(decay, (1 + step) / (10 + step)) so that the start is forgotten quickly."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
