"""The flags of train_distill.py."""

from __future__ import annotations

import argparse

from models.mwcnn import BLOCKS
from models.noise import NOISES
from models.units import UNITS
from options.base import BaseOptions, noise_levels, number


class Stage2Options(BaseOptions):
    prog = "train_distill.py"
    description = "Stage 2: a frozen stage-1 model teaches MWCNN. Run the same command again to continue."
    stage = "stage2"
    may_change = BaseOptions.may_change | {"val"}  # it does not change what is learned; --images does

    def add_options(self) -> None:
        data = self.parser.add_argument_group("images", "each a folder, a file, a glob pattern or a named set")
        data.add_argument(
            "--teacher", required=True, metavar="CHECKPOINT", help="stage-1 checkpoint, or the name of its run"
        )
        data.add_argument(
            "--clean",
            nargs="+",
            default=[],
            metavar="IMAGES",
            help="clean images, from which the teacher's noise model makes pairs; may be left out with --refine",
        )
        data.add_argument(
            "--refine",
            action="store_true",
            help="what --student makes of the --noisy images, before it is trained, are clean images too; of large "
            "images the middle is taken",
        )
        source = data.add_mutually_exclusive_group(required=True)
        source.add_argument(
            "--noisy", nargs="+", metavar="IMAGES", help="really noisy images, which the teacher denoises"
        )
        source.add_argument(
            "--synthetic-noisy",
            nargs="+",
            metavar="IMAGES",
            help="clean images that --noise is added to first; images also named by --clean are split, half each",
        )
        data.add_argument(
            "--white-level",
            type=number(float, 1e-30),
            default=None,
            help="value in the --noisy files that becomes 1.0; default: the teacher's",
        )
        data.add_argument(
            "--clean-white-level",
            type=number(float, 1e-30),
            default=None,
            help=(
                "value in the --clean, --synthetic-noisy and --val files that becomes 1.0; default: 255, 65535, "
                "or 1.0 for float images"
            ),
        )
        self.add_noise_draw(data, "a --synthetic-noisy image")
        self.add_noise(required=False)
        pairs = self.parser.add_argument_group("pairs of clean crops and noisy ones")
        pairs.add_argument(
            "--pairs",
            choices=("learned", "drawn"),
            default="learned",
            help="their noise is what the teacher finds on noisy images, or is drawn from --noise and its levels",
        )
        pairs.add_argument(
            "--read-noise",
            choices=tuple(name for name, noise in NOISES.items() if not noise.needs_color),
            default=None,
            help="with --noisy: what kind of noise the teacher's residual is read as; camera where neighbours may "
            "share it; default: the kind that the teacher was trained for",
        )
        self.add_augmentation(pairs)
        pairs.add_argument(
            "--pairs-loss",
            choices=("squared", "log"),
            default="squared",
            help="squared error, or its logarithm for each crop: crops of little noise then count as much as others",
        )
        model = self.parser.add_argument_group("model")
        model.add_argument("--student-width", type=number(int, 4), default=64, help="channels of MWCNN's first level")
        model.add_argument(
            "--student-blocks",
            choices=BLOCKS,
            default="residual",
            help="MWCNN's convolutions: plain, as published, or in residual blocks, which learn faster",
        )
        model.add_argument(
            "--student",
            default=None,
            metavar="CHECKPOINT",
            help="start from this MWCNN instead of from scratch; one of colour images serves gray ones too",
        )
        model.add_argument(
            "--units",
            choices=UNITS,
            default=None,
            help="with --noisy: what the networks see, as in train_dbsn.py. noise: for a black that is far from 0. "
            "Default: those of the teacher",
        )
        model.add_argument(
            "--revive",
            action="store_true",
            help="give new weights to the units of --student that its training has shut off, before this one",
        )
        loss = self.parser.add_argument_group("loss")
        loss.add_argument(
            "--noisy-share",
            type=number(float, 0, 1),
            default=0.125,
            help="share of a batch that are noisy images; the rest are clean ones",
        )
        loss.add_argument("--noisy-weight", type=number(float, 0), default=0.1, help="weight of the noisy images' term")
        loss.add_argument(
            "--level-jitter",
            type=number(float, 0, 0.9),
            default=None,
            help="with --pairs learned: noise is scaled by 1 -/+ this, uniformly; default: 0.1",
        )
        loss.add_argument(
            "--level-scale",
            type=number(float, above=0, high=4),
            default=None,
            help="with --pairs learned: noise is so many times what the teacher finds; default: 1",
        )
        self.add_training(steps=9_000, batch_size=8, patch_size=96, muon_lr=2e-3, adam_lr=1e-4, warmup=200, clip=1.0)

    def check(self, opt: argparse.Namespace) -> None:
        if opt.synthetic_noisy:
            if opt.noise is None:
                self.parser.error("--synthetic-noisy needs --noise and its levels")
            self.check_levels(opt)
            self.refuse(
                opt,
                "white_level",
                (
                    "is for --noisy files; of --clean and --synthetic-noisy ones --clean-white-level says which value "
                    "is white"
                ),
            )
        else:
            self.refuse(
                opt,
                "noise noise_draw " + " ".join(noise_levels()),
                "is for --synthetic-noisy; with --noisy the teacher's estimate is used",
            )
            self.refuse(
                opt,
                "val",
                (
                    "takes clean images and makes them noisy as --synthetic-noisy ones are, "
                    "which says nothing of --noisy ones; leave it out"
                ),
            )
        if opt.refine:
            self.refuse(opt, "synthetic_noisy", "is not for --refine, which takes --noisy images and a --student")
            if opt.student is None:
                self.parser.error("--refine needs a --student, whose results are the clean images")
            if opt.images == "disk":
                self.parser.error("--refine keeps its images in memory, of large ones the middle: leave --images out")
        elif not opt.clean:
            self.parser.error("--clean is needed, or --refine, which makes clean images of the --noisy ones")
        if opt.revive and opt.student is None:
            self.parser.error("--revive needs a --student, whose units were shut off")
        if opt.revive and opt.noisy_share == 1:
            self.parser.error("--revive needs clean crops: give a --noisy-share below 1")
        if opt.read_noise and not opt.noisy:
            self.parser.error(f"--read-noise {opt.read_noise} is for --noisy images")
        if opt.synthetic_noisy:
            self.refuse(opt, "units", "is for --noisy images; synthetic noise has levels of white")
        if opt.pairs == "drawn" and not opt.synthetic_noisy:
            self.parser.error("--pairs drawn needs --synthetic-noisy, --noise and its levels")
        if opt.pairs == "drawn":
            self.refuse(
                opt, "level_jitter level_scale", "is for --pairs learned; those drawn have the levels of --noise"
            )
        opt.level_jitter = 0.1 if opt.level_jitter is None else opt.level_jitter
        opt.level_scale = 1.0 if opt.level_scale is None else opt.level_scale
        self.check_augmentation(opt)
        opt.noise_draw, opt.mg_seed = opt.noise_draw or "fixed", opt.mg_seed or 0
        if opt.steps == 0:
            self.parser.error("--steps 0: nothing to train")
        if not 0 < round(opt.noisy_share * opt.batch_size) < opt.batch_size and opt.noisy_share not in (0, 1):
            self.parser.error(
                f"--noisy-share {opt.noisy_share:g} of --batch-size {opt.batch_size} rounds to none or all of the "
                "batch: use 0, 1 or a larger batch"
            )
