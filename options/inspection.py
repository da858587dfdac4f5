"""The flags of scripts/inspect_noise.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from options.base import BaseOptions, number


class InspectionOptions(BaseOptions):
    prog = "scripts/inspect_noise.py"
    description = "Say how much noise is in pictures, what kind it is, and which weights to take."

    def add_options(self) -> None:
        self.parser.add_argument(
            "data",
            nargs="+",
            metavar="PICTURES",
            help="each a folder, a file, a glob pattern or a named set",
        )
        self.parser.add_argument(
            "--mode",
            choices=("gray", "color"),
            default=None,
            help="convert pictures to it; default: as they are stored",
        )
        self.parser.add_argument(
            "--on-bad",
            choices=("stop", "skip"),
            default="skip",
            help="a picture that cannot be used: stop, or go on and list it at the end (exit code 1)",
        )
        self.parser.add_argument(
            "--most",
            type=number(int, 1),
            default=None,
            metavar="N",
            help="look at so many of the pictures, evenly spaced; default: all of them",
        )
        self.parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write all that was measured")
        self.parser.add_argument("--plot", type=Path, default=None, metavar="FILE", help="draw it, as PNG, PDF or SVG")

    def check(self, opt: argparse.Namespace) -> None:
        for flag, file in (("--json", opt.json), ("--plot", opt.plot)):
            if file is not None and not file.parent.is_dir():
                self.parser.error(f"{flag} {file}: the folder {file.parent} does not exist; make it first")
        self.check_ending(opt, json=(".json",), plot=(".png", ".pdf", ".svg"))
