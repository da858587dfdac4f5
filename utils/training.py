"""What a training's state is, as named tensors, and its options, as plain values."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from utils.run import load_optimizer_tensors, optimizer_tensors

# --compile -> mode of torch.compile. Graphs need a step's gradients to be gone before the next begins, which is why scripts clear them first.
COMPILE_MODES = {"on": None, "graphs": "reduce-overhead"}


def training_tensors(model: nn.Module, average: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights as `model.*`, their running average as `average.*`, and the optimizer's state; restore() takes them back bit for bit."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    averages = {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    return weights | averages | optimizer_tensors(optimizer, model.named_parameters())


def restore(model: nn.Module, average: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    for prefix, module in (("model.", model), ("average.", average)):
        module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)})
    load_optimizer_tensors(optimizer, model.named_parameters(), tensors)


def plain_options(options: Namespace | Mapping) -> dict:
    """Options as JSON has them: paths become text."""
    items = options.items() if isinstance(options, Mapping) else vars(options).items()
    return {name: str(value) if isinstance(value, Path) else value for name, value in items}
