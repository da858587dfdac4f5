"""The flags of test.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.noise.in_turn import IN_TURN
from options.base import BaseOptions, noise_levels, number


class TestOptions(BaseOptions):
    __test__ = False  # not a pytest class
    prog = "test.py"
    description = (
        "Denoise images and, where clean ones are known, measure: PSNR and SSIM of the noisy input, mu, "
        "the posterior mean and the distilled network."
    )

    def add_options(self) -> None:
        data = self.parser.add_argument_group("images", "each a folder, a file, a glob pattern or a named set")
        data.add_argument(
            "--data",
            nargs="+",
            required=True,
            metavar="IMAGES",
            help="clean images under --protocol published, images to denoise under none",
        )
        data.add_argument(
            "--clean",
            nargs="+",
            default=None,
            metavar="IMAGES",
            help="with --protocol none: the clean images that --data shows, in the same order or by the same names",
        )
        data.add_argument(
            "--mode", choices=("gray", "color"), default=None, help="convert images to it; default: as they are stored"
        )
        data.add_argument(
            "--white-level",
            type=number(float, 1e-30),
            default=None,
            help=(
                "file value that becomes 1.0, for which networks keep the units of their training; default: none is "
                "needed, under --protocol published the greatest of the file's type"
            ),
        )
        data.add_argument(
            "--protocol",
            choices=("published", "laine", "none"),
            default=None,
            help="published: noise on clean images, seeded for each; laine: awgn or poisson noise, also of a range of "
            "levels, drawn image after image with seed 101, as Laine et al. and their followers do; none: images as "
            "they are. Default: published with --noise",
        )
        data.add_argument(
            "--repeats",
            type=number(int, 1, 1000),
            default=1,
            help="with --protocol laine: so many draws of each image",
        )
        data.add_argument(
            "--on-bad",
            choices=("stop", "skip"),
            default="stop",
            help="an image that cannot be used: stop, or go on and list it at the end (exit code 1)",
        )
        data.add_argument(
            "--on-doubt",
            choices=("warn", "keep"),
            default="warn",
            help="a result that may be wrong: say so, or say so and write the picture as it was instead",
        )
        self.add_noise(required=False)
        model = self.parser.add_argument_group("model")
        model.add_argument(
            "--checkpoint",
            nargs="+",
            default=[],
            metavar="CHECKPOINT",
            help="checkpoints of either stage: files, or names of runs or released weights",
        )
        model.add_argument(
            "--baseline",
            nargs="+",
            default=[],
            choices=("wavelet", "nlm", "bm3d"),
            help=(
                "with --protocol published: classical denoisers, which are told the true noise level (HG, MG: "
                "its root mean square over the image)"
            ),
        )
        self.add_inference(model, auto="auto, the default with --protocol none")
        out = self.parser.add_argument_group("output")
        out.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the table in full")
        out.add_argument(
            "--report",
            type=Path,
            default=None,
            metavar="FILE.html",
            help="write a page with the pictures before and after, their noise and all warnings; it also measures the "
            "noise of each, which takes some seconds",
        )
        out.add_argument("--save", type=Path, default=None, metavar="DIR", help="write pictures")
        out.add_argument(
            "--depth",
            choices=("auto", "same", "float"),
            default="auto",
            help="of results: same, the input's; float, 32-bit floats; auto, floats where whole numbers would be too "
            "coarse, as for photon counts, or would cut values",
        )

    def check(self, opt: argparse.Namespace) -> None:
        if opt.protocol is None:
            opt.protocol = "published" if opt.noise else "none"
        if opt.protocol != "none":
            if opt.noise is None:
                self.parser.error(f"--protocol {opt.protocol} needs --noise and its levels")
            if opt.clean:
                self.parser.error(
                    f"--clean is for --protocol none; under the protocol {opt.protocol} --data are the clean images"
                )
            if opt.protocol == "laine" and opt.noise not in IN_TURN:
                self.parser.error(f"--protocol laine is for --noise {' or '.join(IN_TURN)}, not {opt.noise}")
        else:
            self.refuse(
                opt,
                "noise " + " ".join(noise_levels()),
                "is for noise that is added to clean images: give --noise with its levels, and not --protocol none",
            )
            if opt.baseline:
                self.parser.error(
                    f"--baseline {opt.baseline[0]} is told the true noise level, which is known under --protocol "
                    "published only: leave it out"
                )
        if opt.repeats > 1 and opt.protocol != "laine":
            self.parser.error("--repeats is for --protocol laine: under the others each image is drawn once")
        opt.baseline, opt.checkpoint = (list(dict.fromkeys(names)) for names in (opt.baseline, opt.checkpoint))
        self.check_levels(opt, ranges=opt.protocol == "laine")
        opt.mg_seed = opt.mg_seed or 0
        self.check_ending(opt, json=(".json",), report=(".html", ".htm"))
        if opt.report and not (opt.checkpoint or opt.baseline):
            self.parser.error(f"--report {opt.report} shows results: give a --checkpoint")
        if opt.protocol == "none" and not opt.clean and not opt.save and not opt.report:
            self.parser.error(
                "there are no clean images to compare with and no --save DIR or --report FILE to write to"
            )
        if not opt.checkpoint and opt.protocol == "none" and not opt.clean:
            self.parser.error("--checkpoint is needed to denoise images")
