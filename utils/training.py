"""What both trainings do beside their method: the run, its steps, the update of the weights, the log and the state."""

from __future__ import annotations

import copy
import math
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from data.crops import Crops
from data.training import ImageFiles, Images
from models.inference import denoise_batch
from models.noise import NoiseModel
from options.base import BaseOptions
from utils.device import device_name
from utils.distributed import World
from utils.errors import EXIT_RESUME, RunError, StopRequest
from utils.logging import Board
from utils.metrics import psnr
from utils.optim import load_optimizer_tensors, make_optimizer, optimizer_tensors
from utils.random import Stream, generator
from utils.run import FollowedRun, RunFolder

# --compile -> mode of torch.compile. Graphs need the gradients to be gone before the next step, so scripts clear them.
COMPILE_MODES = {"on": None, "graphs": "reduce-overhead"}
DECAY_AT = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)  # the paper's epochs 20, 40, 60, 70, 80, 90 of 100
MAX_SKIPPED = 10  # steps whose loss or gradient was not finite, under --on-nonfinite skip
MadeOf = list[tuple[Images | ImageFiles, Crops]]  # the crops of a step, and the images that they are from


@dataclass
class Training:
    """A run of `total` steps. The script computes the loss and its gradient; this does what surrounds them.

        with training.open(..):
            for step in training.steps():
                .. loss ..; loss.backward()
                measured = training.update(loss, terms, crops)

    started: time.monotonic() when the script began, for --max-minutes.
    kind: of the weights' files, "stage1" or "stage2".
    network: the part of the model that --compile compiles.
    white_level: file value of white, which the weights' files record.
    kept: what a state file holds beside the weights, the optimizer and the counts of steps. None: not known yet.
    """

    opt: Namespace
    world: World
    started: float
    device: torch.device
    dtype: torch.dtype
    kind: str
    total: int
    model: nn.Module
    network: nn.Module
    white_level: float | None
    kept: dict[str, float | list | None] = field(default_factory=dict)
    step: int = 0  # how many are done
    skipped: int = 0
    lr: float = 0.0
    stopping: bool = False

    def __post_init__(self) -> None:
        self.model.to(self.device, memory_format=torch.channels_last)
        self.model.dtype = self.dtype
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        if self.opt.compile != "off":
            self.network.compile(mode=COMPILE_MODES[self.opt.compile])  # in place: names of weights stay
        self.optimizer = make_optimizer(self.opt.optimizer, self.model.parameters(), self.opt.lr)

    @contextmanager
    def open(self, facts: dict, digests: dict, options: BaseOptions, assumed: dict | None = None) -> Iterator[None]:
        """Opens the run's folder and goes on from its newest state.

        facts, digests: recorded beside the options, and compared with the record of a run that goes on.
        assumed: what options count as that an older record lacks, where that is not their default. opt.streams is 1 in
        all older ones.
        """
        opt, main = self.opt, self.world.main
        amp = str(self.dtype).removeprefix("torch.")
        recorded = plain_options({**vars(opt), **facts, **digests, "amp": amp})
        self.values = {"config": self.model.config, "white_level": self.white_level, "options": recorded}
        folder = RunFolder if main else FollowedRun
        with folder(opt.checkpoints_dir / opt.name) as self.run, StopRequest() as self.stop:
            with self.world.main_first():
                defaults = plain_options(options.defaults() | {"streams": 1} | (assumed or {}))
                self.run.check_options(recorded, options.may_change, defaults, frozenset(digests))
                if state := self.run.load_state():
                    restore(self.model, self.average, self.optimizer, state.tensors)
                    self.step, self.skipped = state.values["step"], state.values["skipped"]
                    self.kept = {name: state.values.get(name) for name in self.kept}
                self.run.truncate_stats(self.step)
            if main:
                going_on = f", continuing after step {self.step} of {self.total}" if self.step else ""
                tqdm.write(f"{opt.name}: on {device_name(self.device)}, in {amp}{going_on}")
            self.board = Board(self.run.path / "tensorboard", self.step, enabled=main)
            self.stop.nothing_to_save = True  # until the first step: what stage 2 does before it takes long
            yield
            self.board.close()

    def steps(self) -> Iterator[int]:
        """The steps that are left, until `total`, a signal or --max-minutes. Saves on the way and at the end."""
        opt, disable = self.opt, None if self.world.main else True
        self.stop.nothing_to_save = False
        self.bar = tqdm(total=self.total, initial=self.step, desc=opt.name, unit="step", disable=disable)
        while self.step < self.total and not self.stopping:
            self.lr = learning_rate(self.step, self.total, opt.lr, opt.schedule, opt.warmup, opt.lr_decay)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            yield self.step
            if self.step % opt.save_every == 0 and self.step < self.total and not self.stopping:
                self.save()
        self.save()
        self.bar.close()

    def update(self, loss: Tensor, terms: dict[str, Tensor], crops: MadeOf) -> dict[str, Tensor]:
        """Ends a step after the backward pass: clips the gradient, moves the weights and their average.

        Where the loss or the gradient is not finite, in any process, neither moves: the run stops or skips the step.
        crops: what the step was made of, for the message.
        Gives what is worth a row of statistics.
        """
        opt = self.opt
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), opt.clip_grad or float("inf"))
        failed = not (torch.isfinite(loss) & torch.isfinite(norm))  # the one value that is read from the device
        out_of_time = opt.max_minutes is not None and time.monotonic() - self.started > 60 * opt.max_minutes
        failed, self.stopping = self.world.any_of([failed, self.stop.requested or out_of_time], self.device)
        if failed:
            self.skip(terms, norm, crops)
        else:
            self.optimizer.step()
            update_average(self.average, self.model, self.step, opt.ema)
        self.step += 1
        self.bar.update()
        return {"loss": loss, **terms, "grad_norm": norm}

    def skip(self, terms: dict[str, Tensor], norm: Tensor, crops: MadeOf) -> None:
        """Says what was not finite; raises RunError unless --on-nonfinite allows one more such step."""
        names = ", ".join(sorted({images.files[k].name for images, where in crops for k in where.image}))
        shown = ", ".join(f"{k} {v.item():g}" for k, v in terms.items())
        values = f"{shown}, gradient norm {norm.item():g}"
        problem = f"step {self.step + 1}: loss or gradient is not finite ({values}); crops of {names}"
        self.skipped += 1
        if self.opt.on_nonfinite == "stop" or self.skipped > MAX_SKIPPED:
            times = f" ({self.skipped} steps skipped)" if self.skipped > 1 else ""
            skip = ", or give --on-nonfinite skip" if self.opt.on_nonfinite == "stop" else ""
            raise RunError(f"{problem}{times}; begin another run, without such images or with a lower --lr{skip}")
        tqdm.write(f"warning: {problem}; step skipped")

    def due(self, every: int) -> bool:
        """Whether what is done every so many steps is to be done now; the last step is always one."""
        return self.step % every == 0 or self.step == self.total

    def log(self, measured: dict[str, Tensor], waited: float, **facts: str) -> None:
        """A row of statistics, for the file, TensorBoard and the progress bar. waited: share of the time, for data."""
        row = facts | {"lr": self.lr} | self.world.mean(measured)
        rate = (self.bar.format_dict["rate"] or 0.0) * self.opt.batch_size
        self.note(row)
        self.board.scalars({"images_per_second": rate, "share_waiting_for_data": waited}, self.step)
        level = {"level": f"{row['noise_level']:.1f}"} if "noise_level" in row else {}
        shown = {"lr": f"{self.lr:.1e}", "im_s": f"{rate:.1f}", "wait": f"{waited:.0%}"}
        self.bar.set_postfix(loss=f"{row['loss']:.5f}", **level, **shown)

    def note(self, row: dict[str, float | str]) -> None:
        """A row of statistics, for the file and TensorBoard."""
        self.run.append_stats({"step": self.step, **row})
        self.board.scalars({"step": self.step, **row}, self.step)

    def save(self) -> None:
        tensors = training_tensors(self.model, self.average, self.optimizer)
        self.run.save_state(self.step, tensors, {"step": self.step, "skipped": self.skipped, **self.kept})
        self.save_weights("last")

    def save_weights(self, name: str) -> None:
        """Writes the averaged weights, for others to load."""
        self.run.save_weights(name, self.kind, self.average.state_dict(), {**self.values, "step": self.step})

    def end(self) -> int:
        """The last line of output, and the exit code."""
        done = self.step == self.total
        if self.world.main:
            go_on = "" if done else "; run the same command to continue"
            weights = self.run.path / "last.safetensors"
            print(f"{self.opt.name}: {self.step} of {self.total} steps done; weights in {weights}{go_on}")
        return EXIT_RESUME if self.stop.requested and not done else 0


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: int = 0, decay: float = 0.1) -> float:
    """Learning rate of a step in 0..total-1.

    schedule: "cosine" rises linearly over `warmup` steps and falls to zero along a half cosine; "step" multiplies by
    `decay` at 20, 40, 60, 70, 80 and 90% of the way (the paper's); "constant" stays after the warm-up. In a short run
    half of the steps are the warm-up at most.
    """
    warmup = min(warmup, total // 2)
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "step":
        return peak * ramp * decay ** sum(step >= round(at * total) for at in DECAY_AT)
    if schedule == "cosine":
        progress = max(0, step - warmup) / max(1, total - warmup)
        return peak * ramp * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * ramp


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """average <- d average + (1 - d) model, weight by weight.

    d = min(decay, (1 + step) / (10 + step)), so that the start is forgotten quickly.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def validation_psnr(model: nn.Module, val: Images, noise: NoiseModel, seed: int) -> dict[str, float]:
    """Mean PSNR in dB of a model's results on clean images made noisy, and with stage 1 of mu; for watching only."""
    pool, found = val.pool(), {"val_psnr": [], "val_psnr_mu": []}
    for k in range(len(pool)):
        x = pool.image(k)
        out = denoise_batch(model, noise.add(x, [generator("cpu", seed, Stream.VALIDATION, k)]))
        for values, image in zip(found.values(), (out.image, out.mu)):
            if image is not None:
                values.append(psnr(x[0].numpy(), image[0].clamp(0, 1).numpy()))
    known = {name: [value for value in values if value is not None] for name, values in found.items()}  # equal images
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def training_tensors(model: nn.Module, average: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights as `model.*`, their average as `average.*`, and the optimizer's state. restore() takes them back."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    averages = {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    return weights | averages | optimizer_tensors(optimizer, model.named_parameters())


def restore(model: nn.Module, average: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    for prefix, module in (("model.", model), ("average.", average)):
        weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(weights)
    load_optimizer_tensors(optimizer, model.named_parameters(), tensors)


def plain_options(options: Namespace | Mapping) -> dict:
    """Options as JSON has them: paths become text."""
    items = options.items() if isinstance(options, Mapping) else vars(options).items()
    return {name: str(value) if isinstance(value, Path) else value for name, value in items}
