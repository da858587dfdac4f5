"""The flags of train_dbsn.py."""

from __future__ import annotations

import argparse

from models.dbsn import MDC_FORMS
from models.noise import NOISES
from models.units import UNITS
from options.base import BaseOptions, noise_levels, number

SIGMA_N = ("residual", "envelope", "constrained", "exact", "reward", "split")


def odd(text: str) -> int:
    """An odd number of pixels, 1 to 7."""
    value = number(int, 1, 7)(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{value} is not odd")
    return value


class Stage1Options(BaseOptions):
    prog = "train_dbsn.py"
    description = (
        "Stage 1: train D-BSN and the noise estimator from noisy images alone. Run the same command again to continue."
    )
    stage = "stage1"
    may_change = BaseOptions.may_change | {"val", "images"}  # neither changes what is learned

    def add_options(self) -> None:
        data = self.parser.add_argument_group("images", "each a folder, a file, a glob pattern or a named set")
        source = data.add_mutually_exclusive_group(required=True)
        source.add_argument(
            "--clean", nargs="+", metavar="IMAGES", help="clean images, to which --noise is added: a synthetic study"
        )
        source.add_argument("--noisy", nargs="+", metavar="IMAGES", help="really noisy images")
        data.add_argument("--mode", choices=("gray", "color"), default="gray", help="images are converted to it")
        data.add_argument(
            "--white-level",
            type=number(float, 1e-30),
            default=None,
            help="file value that becomes 1.0; default: 255, 65535, or 1.0 for float images",
        )
        self.add_noise_draw(data, "a clean image")
        data.add_argument(
            "--held-out",
            type=number(float, 0, 0.5),
            default=0.03,
            help="share of the training images kept for the held-out likelihood",
        )
        self.add_augmentation(data)
        self.add_noise(required=True)
        model = self.parser.add_argument_group("model")
        model.add_argument("--width", type=number(int, 1), default=64, help="channels of D-BSN")
        model.add_argument("--blocks", type=number(int, 0), default=3, help="MDC blocks in each of the two branches")
        model.add_argument(
            "--mdc",
            choices=MDC_FORMS,
            default="residual",
            help="form of the block: one 5x5, two 3x3, or with a clean residual path",
        )
        model.add_argument(
            "--units",
            choices=UNITS,
            default=None,
            help="what the network sees. white: the image, 0..1. noise: its difference from the image's mean, in units "
            "of the image's noise, so that results follow brightness and offset exactly. Default: those of "
            "--start-from, else noise",
        )
        model.add_argument(
            "--stride",
            type=number(int, 1, 8),
            default=1,
            help="for noise that neighbours share: the network sees every STRIDE-th pixel, and so none of them",
        )
        model.add_argument(
            "--hole",
            type=odd,
            default=1,
            help="for such noise too: side of the square around each pixel that its prediction does not see, odd, at "
            "most 7. The network then sees most pixels outside the square",
        )
        model.add_argument(
            "--start-from",
            default=None,
            metavar="CHECKPOINT",
            help="start with this stage-1 model's weights, and its size, instead of from scratch; --hole must be its",
        )
        loss = self.parser.add_argument_group("loss")
        loss.add_argument(
            "--sigma-n",
            choices=("auto", *SIGMA_N),
            default="auto",
            help="what finds the noise's covariance. residual: each image's own residual; the others train CNN_est, "
            "which learns one level: by the lower envelope, the paper's likelihood, the exact one, that with a reward "
            "on the noise, or each by its own. auto: residual for a range of levels, for mg and camera, and for "
            "--noisy images of awgn; else envelope",
        )
        loss.add_argument(
            "--quantile",
            type=number(float, above=0, high=0.5),
            default=None,
            help="envelope: the quantile of the predictive variance that is taken for noise; default: 0.05",
        )
        loss.add_argument(
            "--level-weight",
            type=number(float, 0, 2),
            default=None,
            metavar="POWER",
            help="residual: each crop counts by its noise level to this power. The likelihood hardly depends on how "
            "well strong noise is removed; 1 makes the network learn it better. Default: 0",
        )
        loss.add_argument(
            "--mu-steps", type=number(int, 0), default=0, help="first phase: steps for mu alone, by squared error"
        )
        loss.add_argument(
            "--sigma-steps", type=number(int, 0), default=0, help="second phase: steps for the covariances with mu held"
        )
        self.add_training(steps=10_000, batch_size=6, patch_size=64, muon_lr=4e-3, adam_lr=3e-4, warmup=200, clip=10.0)

    def check(self, opt: argparse.Namespace) -> None:
        if NOISES[opt.noise].shared and opt.stride == opt.hole == 1:
            self.parser.error(
                f"--noise {opt.noise} is shared by neighbours, from which the network would read each pixel's own: "
                "give --stride 2, or --hole 3"
            )
        if NOISES[opt.noise].needs_color and opt.mode == "gray":
            self.parser.error(
                f"--noise {opt.noise} describes correlated colour channels and makes no sense with --mode gray: "
                "use --mode color or another noise model"
            )
        if opt.noisy:
            self.refuse(
                opt,
                " ".join(noise_levels()) + " noise_draw",
                "is for synthetic noise on --clean images; with --noisy the level is estimated, so leave it out",
            )
            self.refuse(
                opt,
                "val",
                (
                    "takes clean images and makes them noisy as --clean images are, "
                    "which says nothing of --noisy ones; leave it out"
                ),
            )
        else:
            self.check_levels(opt)
        self.check_augmentation(opt)
        if (opt.enlarge[1] > 1 or opt.tones) and opt.noise_draw != "fresh":
            self.parser.error("--enlarge and --tones need clean crops: use --noise-draw fresh, or leave them out")
        if opt.sigma_n == "auto":
            given = [getattr(opt, name) for name in noise_levels()]
            ranges = any(isinstance(level, tuple) and level[0] < level[1] for level in given)
            estimator = NOISES[opt.noise].estimator(ranges, noisy=bool(opt.noisy))
            opt.sigma_n = "residual" if estimator == "residual" else "envelope"
        if opt.sigma_n != "envelope":
            self.refuse(opt, "quantile", f"is for --sigma-n envelope; here it is {opt.sigma_n}")
        if opt.sigma_n != "residual":
            self.refuse(opt, "level_weight", f"is for --sigma-n residual; here it is {opt.sigma_n}")
        opt.level_weight = opt.level_weight or 0.0
        opt.quantile, opt.noise_draw, opt.mg_seed = opt.quantile or 0.05, opt.noise_draw or "fixed", opt.mg_seed or 0
        if opt.mu_steps + opt.sigma_steps + opt.steps == 0:
            self.parser.error("--mu-steps, --sigma-steps and --steps are all 0: nothing to train")
