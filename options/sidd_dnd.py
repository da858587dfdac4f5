"""The flags of scripts/sidd_dnd.py: one class for each of its commands."""

from __future__ import annotations

from pathlib import Path

from options.base import BaseOptions


class BlockOptions(BaseOptions):
    """Subclasses add the files in `add_files`."""

    named_sets = False

    def add_options(self) -> None:
        self.files = self.parser.add_argument_group("files")
        self.add_files()
        model = self.parser.add_argument_group("model")
        model.add_argument(
            "--checkpoint",
            required=True,
            help="a checkpoint of either stage, for colour: a file, or the name of a run or of released weights",
        )
        self.add_inference(model)

    def add_files(self) -> None:
        raise NotImplementedError

    def add_out(self, required: bool, holds: str) -> None:
        self.files.add_argument(
            "--out",
            type=Path,
            required=required,
            default=None,
            metavar="DIR",
            help=f"folder for {holds}; the same command goes on where it stopped",
        )


class ValidationOptions(BlockOptions):
    prog = "scripts/sidd_dnd.py sidd-validation"
    description = "Denoise the validation blocks of SIDD and measure PSNR and SSIM after rounding to 8 bits."

    def add_files(self) -> None:
        self.files.add_argument(
            "--noisy", type=Path, required=True, metavar="FILE", help="ValidationNoisyBlocksSrgb.mat of SIDD"
        )
        self.files.add_argument(
            "--clean", type=Path, required=True, metavar="FILE", help="ValidationGtBlocksSrgb.mat of SIDD"
        )
        self.files.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures in full")
        self.add_out(False, "the denoised blocks")


class BenchmarkOptions(BlockOptions):
    prog = "scripts/sidd_dnd.py sidd-benchmark"
    description = "Denoise the benchmark blocks of SIDD and write its submission, SubmitSrgb.csv and SubmitSrgb.mat."

    def add_files(self) -> None:
        self.files.add_argument(
            "--noisy", type=Path, required=True, metavar="FILE", help="BenchmarkNoisyBlocksSrgb.mat of SIDD"
        )
        self.add_out(True, "the submission and the denoised blocks")
        about = self.parser.add_argument_group("OptionalData of SubmitSrgb.mat")
        about.add_argument("--method-name", default="D-BSN", metavar="TEXT", help="name of the method")
        about.add_argument("--authors", default=None, metavar="TEXT", help="who submits")
        about.add_argument(
            "--paper-title", default="Unpaired Learning of Deep Image Denoising", metavar="TEXT", help="its paper"
        )
        about.add_argument("--venue", default="ECCV 2020", metavar="TEXT", help="where the paper was published")


class DndOptions(BlockOptions):
    prog = "scripts/sidd_dnd.py dnd"
    description = "Denoise the boxes of DND and write its submission, the files of DIR/bundled."

    def add_files(self) -> None:
        self.files.add_argument(
            "--data",
            type=Path,
            required=True,
            metavar="DND",
            help="folder of DND: info.mat and images_srgb/0001.mat and so on",
        )
        self.add_out(True, "the submission")
