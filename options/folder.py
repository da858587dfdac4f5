"""The flags of scripts/denoise_folder.py."""

from __future__ import annotations

from pathlib import Path

from options.base import BaseOptions, number


class FolderOptions(BaseOptions):
    prog = "scripts/denoise_folder.py"
    description = (
        "Denoise pictures of one kind: look at their noise, train on them from the released weights, denoise them and "
        "write a report. Run the same command again to continue."
    )
    named_sets = False

    def add_options(self) -> None:
        self.parser.add_argument("noisy", metavar="NOISY", help="the noisy pictures: a folder, a file or a pattern")
        self.parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
        self.parser.add_argument(
            "clean_pictures",
            nargs="?",
            default=None,
            metavar="CLEAN",
            help="clean pictures of the same kind, other ones",
        )
        self.parser.add_argument(
            "--steps",
            type=number(int, 0),
            default=None,
            help="of training; 0: the released weights denoise as they are. Default: 600, and 0 where the noise is "
            "independent and the same at all intensities, as the released weights know it",
        )
        self.parser.add_argument(
            "--look-at", type=number(int, 1), default=12, metavar="N", help="look at the noise of so many pictures"
        )
