"""Flags that every script has, and how their values are checked.

An option class builds an argument parser and turns a command line into a namespace. Parsing reads no file and creates
nothing. A wrong value ends with one line that names the flag, exit code 2. Levels stay in 0..255 units here; scripts
divide by 255 where options become arguments.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from models.noise import NOISES, Level, NoiseModel
from options.recipes import RECIPES, arguments
from options.records import MAY_CHANGE


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        message = " ".join(message.split())  # a line break in an argument must not break the line
        self.exit(2, f"error: {message} (see python {self.prog} --help)\n")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one and the text does not tell it already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        # 0 equals False, but it is a value to show
        empty = action.default is None or action.default is False or action.default == []
        return action.help if empty or "default" in action.help.lower() else super()._get_help_string(action)


def number(kind: type, low: float | None = None, high: float | None = None, above: float | None = None):
    """An argparse type: a finite int or float within bounds.

    The error names the bounds. Integers are below 2^31 in any case.
    """
    high = 2**31 - 1 if kind is int and high is None else high

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None
        if (
            (low is not None and not value >= low)
            or (high is not None and not value <= high)
            or (above is not None and not value > above)
        ):
            bounds = [
                f"at least {low:g}" if low is not None else "",
                f"above {above:g}" if above is not None else "",
                f"at most {high:g}" if high is not None else "",
            ]
            raise argparse.ArgumentTypeError(f"{text} is out of range: {' and '.join(b for b in bounds if b)}")
        if value != value or value in (float("inf"), float("-inf")):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        return value

    return convert


def stride(text: str) -> int | None:
    """An argparse type: 1..8, or None for "auto"."""
    return None if text == "auto" else number(int, 1, 8)(text)


def noise_levels() -> dict[str, list[Level]]:
    """Flag -> what it means in each noise model that has it."""
    found: dict[str, list[Level]] = {}
    for kind in NOISES.values():
        for level in kind.levels:
            found.setdefault(level.name, []).append(level)
    return found


def noise_of(opt: argparse.Namespace) -> NoiseModel:
    """The noise that the options describe. Levels are divided by their units here, and nowhere else."""
    levels = NOISES[opt.noise].levels
    given = {level.name: getattr(opt, level.name) for level in levels}
    units = {level.name: level.unit for level in levels}
    return NOISES[opt.noise](
        **{k: tuple(x / units[k] for x in v) if isinstance(v, tuple) else v for k, v in given.items()}
    )


class BaseOptions:
    """Subclasses add their flags in `add_options` and check combinations in `check`."""

    prog = ""
    description = ""
    stage = None  # which part of a --recipe is meant; scripts that do not train have none
    named_sets = True  # whether the script takes image sets by name

    may_change = MAY_CHANGE

    def __init__(self):
        self.parser = Parser(
            prog=self.prog, description=self.description, formatter_class=Formatter, allow_abbrev=False
        )
        run = self.parser.add_argument_group("run")
        if self.stage:
            run.add_argument("--name", required=True, help="run folder checkpoints/NAME/")
        run.add_argument("--checkpoints-dir", type=Path, default=Path("checkpoints"), help="folder of the run folders")
        if self.stage:
            run.add_argument(
                "--seed",
                type=number(int, 0, 2**31 - 1),
                default=0,
                help="of the initial weights, the noise, the crops and every split of images",
            )
        run.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one"
        )
        if self.named_sets:
            run.add_argument(
                "--data-root",
                type=Path,
                default=None,
                help="folder of the named image sets; default: $DBSN_DATA, then datasets/",
            )
        run.add_argument(
            "--amp",
            choices=("auto", "bf16", "off"),
            default="auto",
            help="convolutions in bfloat16; auto: where the processor has units for it",
        )
        run.add_argument(
            "--deterministic",
            action="store_true",
            help="on CUDA: the same bits at every run, as on the CPU, somewhat slower",
        )
        self.add_options()

    def add_options(self) -> None:
        raise NotImplementedError

    def check(self, opt: argparse.Namespace) -> None:
        """Ends with self.parser.error on a combination that makes no sense."""

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        argv = sys.argv[1:] if argv is None else list(argv)
        opt = self.parser.parse_args(self.recipe(argv) + argv)
        if self.stage and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*", opt.name):
            self.parser.error(
                f"--name {opt.name!r}: use letters, digits, '.', '_', '+' and '-', with '/' between folders"
            )
        if self.stage and opt.lr is None:
            opt.lr = self.muon_lr if opt.optimizer == "muon" else self.adam_lr
        self.check(opt)
        return opt

    def recipe(self, argv: list[str]) -> list[str]:
        """The command line that a --recipe in argv stands for.

        It goes first, so that what argv says itself overrides it.
        """
        if self.stage is None:
            return []
        first = Parser(prog=self.prog, add_help=False, allow_abbrev=False)
        first.add_argument("--recipe", choices=RECIPES)
        first.add_argument("--noisy", nargs="*")
        first.add_argument("--optimizer")
        first.add_argument("--refine", action="store_true")
        found = first.parse_known_args(argv)[0]
        if not found.recipe:
            return []
        return arguments(found.recipe, self.stage, found.noisy is not None, found.optimizer, found.refine)

    def defaults(self) -> dict:
        """The values that options count as where a run's record lacks them.

        An older version wrote such a record. So the default of an option that some version lacks must stay. Every
        version recorded the sizes of the networks, the steps, the crops and the warm-up, whose defaults did change.
        """
        return {a.dest: a.default for a in self.parser._actions if a.dest != "help"}

    # ------------------------------------------------------------------------------------- flags that scripts share

    def add_inference(self, group: argparse._ArgumentGroup, auto: str = "auto, the default") -> None:
        """How a model denoises. --device and --amp are among those of every script.

        auto: when --stride is found for each picture, in words.
        """
        group.add_argument(
            "--self-ensemble",
            action="store_true",
            help="average over the eight flips and rotations: a little better, eight times slower",
        )
        group.add_argument(
            "--stride",
            type=stride,
            default=None,
            metavar="auto|N",
            help=f"denoise every N-th pixel by itself, for noise that neighbours share. {auto}: N follows from each "
            "picture's noise, and of a student several are mixed; it is that of the training, mostly 1, where "
            "neighbours share none",
        )
        group.add_argument(
            "--tile",
            type=number(int, 16),
            default=None,
            help="denoise in tiles of this side, which bounds memory; default: where the image is large",
        )

    def add_noise(self, required: bool) -> None:
        noise = self.parser.add_argument_group("noise", "levels in units of 0..255; two values are a range")
        titles = ", ".join(f"{name}: {kind.title}" for name, kind in NOISES.items())
        noise.add_argument("--noise", choices=tuple(NOISES), required=required, default=None, help=titles)
        for name, levels in noise_levels().items():
            first = levels[0]
            kind = number(int if first.whole else float, first.low, first.high)
            several = {} if first.whole else dict(nargs="+", metavar=name[0].upper())
            flag = f"--{name.replace('_', '-')}"
            noise.add_argument(
                flag, type=kind, default=None, help="; ".join(level.meaning for level in levels), **several
            )

    def add_noise_draw(self, group: argparse._ArgumentGroup, images: str) -> None:
        group.add_argument(
            "--noise-draw",
            choices=("fixed", "fresh"),
            default=None,
            help=f"draw the noise of {images} once, or anew for every crop; default: fixed",
        )

    def add_augmentation(self, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--enlarge",
            nargs=2,
            type=number(float, 1, 8),
            default=[1.0, 1.0],
            metavar=("LOW", "HIGH"),
            help="enlarge clean crops by a factor in this range: photographs at full size are soft",
        )
        group.add_argument("--tones", action="store_true", help="vary brightness, contrast and colours of clean crops")

    def check_augmentation(self, opt: argparse.Namespace) -> None:
        if opt.enlarge[0] > opt.enlarge[1]:
            self.parser.error(f"--enlarge {opt.enlarge[0]:g} {opt.enlarge[1]:g}: give the low end first")

    def refuse(self, opt: argparse.Namespace, names: str, why: str) -> None:
        """Ends with an error where one of the options was given.

        They are named in one string. Their defaults have to be None.
        """
        for name in names.split():
            if getattr(opt, name) is not None:
                self.parser.error(f"--{name.replace('_', '-')} {why}")

    def check_ending(self, opt: argparse.Namespace, **endings: tuple[str, ...]) -> None:
        """Ends with an error where a file to be written, by its option, does not end as such files do."""
        for name, allowed in endings.items():
            file = getattr(opt, name)
            if file is not None and file.suffix.lower() not in allowed:
                *others, last = allowed
                self.parser.error(f"--{name} {file}: end it in {', '.join(others)}{' or ' if others else ''}{last}")

    def check_levels(self, opt: argparse.Namespace, ranges: bool = True) -> None:
        """Levels fit the noise model. Those that are given become (low, high) pairs."""
        own = {level.name: level for level in NOISES[opt.noise].levels} if opt.noise else {}
        for name in noise_levels():
            flag = f"--{name.replace('_', '-')}"
            if getattr(opt, name) is None and name in own and own[name].default is not None:
                setattr(opt, name, own[name].default if own[name].whole else [own[name].default])
            value = getattr(opt, name)
            if value is None:
                if name in own:
                    self.parser.error(f"--noise {opt.noise} needs {flag}")
                continue
            if name not in own:
                meaning = f"has no meaning with --noise {opt.noise}" if opt.noise else "has no meaning with no --noise"
                self.parser.error(f"{flag} {meaning}")
            if own[name].whole:
                continue
            if len(value) > 2 or (len(value) == 2 and value[0] > value[1]):
                given = " ".join(f"{v:g}" for v in value)
                self.parser.error(f"{flag} {given}: give one level, or a range as its low and high end")
            if len(value) == 2 and not ranges:
                self.parser.error(f"{flag} {value[0]:g} {value[1]:g}: a test needs one level, not a range")
            setattr(opt, name, (value[0], value[-1]))

    def add_training(
        self, steps: int, batch_size: int, patch_size: int, muon_lr: float, adam_lr: float, warmup: int, clip: float
    ) -> None:
        train = self.parser.add_argument_group("training")
        train.add_argument(
            "--recipe",
            choices=RECIPES,
            default=None,
            metavar="NAME",
            help="preset of options, which flags override: docs/recipes.md lists them",
        )
        train.add_argument(
            "--steps", type=number(int, 0), default=steps, help="optimizer steps; in stage 1 those of the joint phase"
        )
        train.add_argument("--batch-size", type=number(int, 1), default=batch_size, help="crops in a step")
        train.add_argument("--patch-size", type=number(int, 8), default=patch_size, help="side of a crop in pixels")
        train.add_argument(
            "--optimizer",
            choices=("muon", "adam", "adamw"),
            default="muon",
            help="muon: orthogonalised momentum for hidden layers, Adam for the others",
        )
        # Muon's for the default width, Adam's for the published one: wide networks take less
        self.muon_lr, self.adam_lr = muon_lr, adam_lr
        train.add_argument(
            "--lr",
            type=number(float, above=0, high=1),
            default=None,
            help=(
                f"highest learning rate, less for a wider network; default: {muon_lr:g} for muon, "
                f"{adam_lr:g} for the others"
            ),
        )
        train.add_argument(
            "--schedule",
            choices=("cosine", "step", "constant"),
            default="cosine",
            help="cosine to zero, or step decay at 20, 40, 60, 70, 80, 90%%",
        )
        train.add_argument(
            "--lr-decay", type=number(float, above=0, high=1), default=0.1, help="factor of the step decay"
        )
        train.add_argument(
            "--warmup", type=number(int, 0), default=warmup, help="steps over which the learning rate rises from zero"
        )
        train.add_argument(
            "--clip-grad", type=number(float, 0), default=clip, help="greatest gradient norm; 0: no clipping"
        )
        train.add_argument(
            "--ema",
            type=number(float, 0, 0.999999),
            default=0.999,
            help="decay of the running average of weights, which is what gets saved for use",
        )
        train.add_argument(
            "--compile",
            nargs="?",
            choices=("off", "on", "graphs"),
            default="off",
            const="on",
            help=(
                "compile the network with torch.compile: a minute or more at the start, faster steps on GPUs; graphs: "
                "on CUDA also replay each step as a CUDA graph"
            ),
        )
        train.add_argument(
            "--images",
            choices=("auto", "memory", "disk"),
            default="auto",
            help=(
                "decode all images once, or each whenever a crop of it is needed; auto: once, "
                "where they take less than half of the free memory"
            ),
        )
        train.add_argument(
            "--on-nonfinite",
            choices=("stop", "skip"),
            default="stop",
            help="a loss or gradient that is not finite: stop, or skip the step, ten times at most",
        )
        train.add_argument(
            "--max-minutes",
            type=number(float, above=0),
            default=None,
            help="stop in good order with a checkpoint after this long",
        )
        train.add_argument("--log-every", type=number(int, 1), default=50, help="steps between lines of stats.jsonl")
        train.add_argument("--save-every", type=number(int, 1), default=500, help="steps between checkpoints")
        train.add_argument(
            "--val-every",
            type=number(int, 1),
            default=1000,
            help="steps between evaluations on held-out and --val images",
        )
        train.add_argument(
            "--val",
            nargs="+",
            default=None,
            metavar="IMAGES",
            help="clean images to report PSNR on while training; never used to choose a model",
        )
