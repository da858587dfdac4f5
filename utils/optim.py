"""Both stages train with the optimizers made here: Adam, AdamW, and Muon for the hidden convolutions.

Their state is kept as named tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

from utils.errors import UsageError

# Channels. A layer with fewer on either side holds an image (12 at most: four wavelet bands of three colours) or a
# covariance.
HIDDEN_FROM = 16
NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}  # how an optimizer's plain numbers are stored


def make_optimizer(kind: str, parameters: Iterable[Tensor], lr: float) -> Optimizer:
    """kind: "adam", "adamw" or "muon". All of its groups take the same learning rate."""
    if kind == "muon":
        return Muon(parameters, lr=lr)
    # fused: one pass over each weight instead of ten, on CPUs and GPUs alike
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](parameters, lr=lr, fused=True)


def orthogonalise(x: Tensor) -> Tensor:
    """Makes matrices (B,R,K) about U V^T of each one's singular value decomposition U S V^T, float32.

    A matrix of zeros stays one.

    Five steps of Newton and Schulz are taken with the quintic of Jordan et al. 2024. Its coefficients are the steepest
    at zero and do not settle: singular values that are no less than a hundredth of the Frobenius norm end between 0.6
    and 1.25, which serves as well as 1. A row or column of zeros stays zero, exactly.

    All five are polynomials of the same X X^T and leave its eigenvectors alone, so they are taken on that R x R
    matrix, and X is multiplied but twice: less than half the arithmetic where K is 9 R, as for a 3x3 convolution
    (Gram Newton-Schulz, tridao.me/blog/2026/gram-newton-schulz). It wants products in true float32: the rounding of a
    shorter format makes eigenvalues near zero negative, and the steps after that blow them up.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalise(x.mT).mT
    x = x.float()
    scale = 1 / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = (scale * x) @ (scale * x).mT
    step = product = None
    for _ in range(5):
        if step is not None:
            gram = step @ gram @ step
        step = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        step.diagonal(dim1=1, dim2=2).add_(3.4445)
        product = step if product is None else step @ product
    return (scale * product) @ x


class Muon(Optimizer):
    """Momentum whose matrix is made orthogonal before each step.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".

    A convolution's weight (out,in,k,k) counts as a matrix (out, in k k), which torch.optim.Muon would not take. A
    step is scaled by 0.2 sqrt(max(out, in k k)), so that its root mean square is Adam's and learning rates carry over
    (Liu et al. 2025, "Muon is scalable for LLM training"). First and last layers and biases are trained by Adam.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        parameters = list(parameters)
        hidden = [p for p in parameters if is_hidden(p)]
        groups = [
            {"params": hidden, "muon": True},
            {"params": [p for p in parameters if not is_hidden(p)], "muon": False},
        ]
        super().__init__([g for g in groups if g["params"]], dict(lr=lr, momentum=momentum, betas=betas, eps=eps))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            (self.step_muon if group["muon"] else self.step_adam)(trained, group)

    def step_muon(self, parameters: list[Tensor], group: dict) -> None:
        alike = defaultdict(list)  # weights whose matrices have one shape are orthogonalised together
        for p in parameters:
            alike[len(p), p[0].numel(), p.device].append(p)
        for (rows, columns, _), members in alike.items():
            steps = []
            for p in members:
                if not self.state[p]:
                    self.state[p] = {"momentum": torch.zeros_like(p)}
                average = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                # Nesterov's look ahead. Input channels come last, as convolutions keep their weights: the order of
                # columns does not matter.
                steps.append(p.grad.lerp(average, group["momentum"]).movedim(1, -1).flatten(1))
            scale = -group["lr"] * 0.2 * max(rows, columns) ** 0.5
            for p, step in zip(members, orthogonalise(torch.stack(steps))):
                p.add_(step.view(p.movedim(1, -1).shape).movedim(-1, 1), alpha=scale)

    def step_adam(self, parameters: list[Tensor], group: dict) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        averages, squares, steps = (
            [self.state[p][entry] for p in parameters] for entry in ("exp_avg", "exp_avg_sq", "step")
        )
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in parameters]
        plain = dict(amsgrad=False, weight_decay=0.0, maximize=False)
        adam(
            parameters,
            grads,
            averages,
            squares,
            [],
            steps,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            eps=group["eps"],
            **plain,
        )


def is_hidden(p: Tensor) -> bool:
    return p.ndim > 1 and min(p.shape[:2]) >= HIDDEN_FROM


def optimizer_tensors(optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The optimizer's per-parameter state as named tensors.

    The names are `optimizer.<entry>.<parameter>`, e.g. optimizer.exp_avg.head.weight. Entries that are plain numbers
    become 0-d int64, float64 or bool tensors named `optimizer-number.<entry>.<parameter>`. The tensors are the live
    ones, not copies. What param_groups hold (learning rate, betas) is not here: it follows from the options and the
    step.

    Raises TypeError for an entry that is neither, ValueError for a parameter without a name.
    """
    tensors = {}
    for name, (parameter, _) in trained_parameters(optimizer, named_parameters).items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{entry}.{name}"] = value
            elif type(value) in NUMBERS:
                tensors[f"optimizer-number.{entry}.{name}"] = torch.tensor(value, dtype=NUMBERS[type(value)])
            else:
                raise TypeError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} as {entry} of {name}; "
                    "only tensors and numbers are stored"
                )
    return tensors


def load_optimizer_tensors(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor]
) -> None:
    """Puts what optimizer_tensors gave back, bit for bit.

    The optimizer's own state is lost, and a parameter without entries has none afterwards.

    tensors: may hold others too, the model's for instance; only names that start as above are read, and they are
    copied.

    Raises UsageError for a parameter that the optimizer does not train.
    """
    trained = trained_parameters(optimizer, named_parameters)
    states: dict[str, dict[str, Any]] = {name: {} for name in trained}
    for key, tensor in tensors.items():
        kind, *rest = key.split(".", 2)
        if kind not in ("optimizer", "optimizer-number"):
            continue
        entry, name = rest
        if name not in trained:
            raise UsageError(
                f"the stored optimizer state has {entry} of {name}, which is not trained here: "
                "it belongs to another model"
            )
        states[name][entry] = tensor.item() if kind == "optimizer-number" else placed(entry, tensor, *trained[name])
    for name, (parameter, _) in trained.items():
        optimizer.state.pop(parameter, None)
        if states[name]:
            optimizer.state[parameter] = states[name]


def trained_parameters(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Name -> (parameter, its group) of all that the optimizer trains.

    Every one of them has to be named, others may be.
    """
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: (parameter, groups[parameter]) for name, parameter in named_parameters if parameter in groups}
    if len(trained) != len(groups):
        raise ValueError(f"the optimizer trains {len(groups)} parameters, of which {len(trained)} are named")
    return trained


def placed(entry: str, tensor: Tensor, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of a state's tensor where the optimizer wants it.

    It lies as its parameter does, but the step count is on the CPU unless the kernel reads it. The rule is that of
    torch.optim.Optimizer.load_state_dict, which would also cast to the parameter's dtype.
    """
    if entry == "step" and not (group.get("capturable") or group.get("fused")):
        return tensor.cpu().clone()
    if tensor.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)  # in the parameter's memory format
    return tensor.to(parameter.device, copy=True)
