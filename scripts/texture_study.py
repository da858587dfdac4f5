"""Measures how often texture and noise that neighbours share are told apart, on clean pictures.

    python scripts/texture_study.py --data bsd432

Of each picture the square with the most texture is taken, with independent noise of 1, 2 and 4 of 255. Where its
texture passes for shared noise (models/checks.py), the check of texture should say so. The middle of each picture, as
large, with shared noise of 3 to 20 of 255 is not to be taken for texture, where the level is read less than half too
high.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules, from wherever this is run

from data.images import read_image, to_float
from data.sets import find_images
from models.checks import SMALLEST, check_noise, may_be_texture
from models.noise.correlation import SIDE, in_blocks, residuals, shared_noise
from options.base import BaseOptions, number
from utils.errors import run_script

INDEPENDENT = (1, 2, 4)
SHARED = (3, 6, 12, 20)
REACH = (0.6, 2.0)  # pixels
LOWEST = 0.05  # a square has as much texture as this quantile of its blocks


def side(text: str) -> int:
    """An argparse type: a multiple of SIDE that the checks look at."""
    pixels = number(int, SMALLEST)(text)
    if pixels % SIDE:
        raise argparse.ArgumentTypeError(f"{pixels} is no multiple of {SIDE}")
    return pixels


class StudyOptions(BaseOptions):
    prog = "scripts/texture_study.py"
    description = "Measure how often texture and shared noise are told apart."

    def add_options(self) -> None:
        self.parser.add_argument("--data", nargs="+", required=True, metavar="IMAGES", help="clean pictures")
        self.parser.add_argument("--side", type=side, default=160, help="of the squares, in pixels; a multiple of 16")


def main(argv: list[str] | None = None) -> int:
    opt = StudyOptions().parse(argv)
    rng = torch.Generator().manual_seed(0)
    files = find_images(opt.data, opt.data_root)
    print(f"{'':8}{'texture that passes for noise':>32}  recognised{'noise read rightly':>22}  taken for texture")
    for mode in ("gray", "color"):
        textures, noises = [], []  # of each square that shares something: whether it is taken for texture
        for file in tqdm(files, desc=mode, leave=False, disable=None):
            x = torch.from_numpy(to_float(read_image(file, mode=mode)).transpose(2, 0, 1)).double()
            if min(x.shape[1:]) < opt.side:
                continue
            square = most_textured(x, opt.side)
            for level in INDEPENDENT:
                n = torch.randn(square.shape, generator=rng, dtype=x.dtype)
                textures += taken_for_texture(square + level / 255 * n)
            level = SHARED[int(torch.randint(len(SHARED), (), generator=rng))] / 255
            reach = REACH[0] + (REACH[1] - REACH[0]) * float(torch.rand((), generator=rng))
            top, left = ((length - opt.side) // 2 for length in x.shape[1:])
            x = x[:, top : top + opt.side, left : left + opt.side]
            y = x + level * blurred_noise(x, reach, rng)
            read = shared_noise(y)
            if read and read.variance**0.5 < 1.5 * level:
                noises += taken_for_texture(y)
        print(f"{mode:8}{len(textures):>32}{share(textures):>12}{len(noises):>22}{share(noises):>19}")
    return 0


def most_textured(x: Tensor, side: int) -> Tensor:
    """The square of a picture (C,H,W) whose flattest blocks have the most texture."""
    gray = x.mean(0, keepdim=True)
    rows, columns = gray.shape[1] // SIDE, gray.shape[2] // SIDE
    number = side // SIDE
    energy = residuals(in_blocks(gray, SIDE, SIDE)).square().mean((1, 2, 3))
    squares = F.unfold(energy.view(1, 1, rows, columns), number)[0]  # number^2, positions
    at = int(squares.quantile(LOWEST, 0).argmax())
    row, column = (SIDE * k for k in divmod(at, columns - number + 1))
    return x[:, row : row + side, column : column + side]


def blurred_noise(x: Tensor, reach: float, rng: torch.Generator) -> Tensor:
    """White noise of x's shape (C,H,W), blurred by `reach` pixels, of standard deviation 1."""
    at = torch.arange(-8, 9, dtype=x.dtype)
    kernel = torch.exp(-at.square() / (2 * reach**2))
    n = torch.randn(x.shape, generator=rng, dtype=x.dtype)[:, None]
    n = F.conv2d(F.conv2d(n, kernel.view(1, 1, 1, -1), padding="same"), kernel.view(1, 1, -1, 1), padding="same")[:, 0]
    return n / n.std()


def taken_for_texture(y: Tensor) -> list[bool]:
    """[whether a picture y (C,H,W) is taken for texture]; [] where its neighbours share nothing."""
    checks = check_noise((255 * y).round().clamp(0, 255) / 255)
    shared = any(check.failed for check in checks if check.kind == "neighbours")
    return [may_be_texture(checks)] if shared else []


def share(found: list[bool]) -> str:
    return f"{sum(found) / len(found):.0%}" if found else "-"


if __name__ == "__main__":
    run_script(main)
