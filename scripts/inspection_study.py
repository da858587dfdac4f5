"""Measures whether scripts/inspect_noise.py is right, on clean pictures with noise that is known.

    python scripts/inspection_study.py --data set12

For each kind of noise it prints, over the pictures: the error of the level, signed and absolute; that of the curve, its
mean, and its root mean square over the ranges of intensity; and how often the truth is in the 95% interval.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.images import read_image, to_float
from data.sets import find_images
from models.noise import NOISES
from options.base import BaseOptions
from utils.advice import Looker
from utils.device import choose_device
from utils.errors import run_script

WHITE = 255
KINDS = {
    "AWGN 5": NOISES["awgn"](sigma=(5 / WHITE,) * 2),
    "AWGN 25": NOISES["awgn"](sigma=(25 / WHITE,) * 2),
    "AWGN 50": NOISES["awgn"](sigma=(50 / WHITE,) * 2),
    "HG 40,10": NOISES["hg"](alpha=(40 / WHITE,) * 2, delta=(10 / WHITE,) * 2),
    "Poisson 30": NOISES["poisson"](lam=(30.0, 30.0)),
}


class StudyOptions(BaseOptions):
    prog = "scripts/inspection_study.py"
    description = "Measure whether the noise that is found in gray pictures is right."

    def add_options(self) -> None:
        self.parser.add_argument("--data", nargs="+", required=True, metavar="IMAGES", help="clean pictures")


def main(argv: list[str] | None = None) -> int:
    opt = StudyOptions().parse(argv)
    look = Looker.of(opt, choose_device(opt.device, 0, opt.deterministic))
    files = find_images(opt.data, opt.data_root)
    print(f"{'':10}  level: mean  absolute  curve: mean    rms  in the interval")
    for name, noise in KINDS.items():
        rows = np.array([errors(look, noise, file) for file in tqdm(files, desc=name, leave=False, disable=None)])
        level, curve, squared, inside = rows.T
        figures = (level.mean(), np.abs(level).mean(), curve.mean(), np.sqrt(squared.mean()), inside.mean())
        print("{:10}  {:>+11.1%}  {:>8.1%}  {:>+11.1%}  {:>5.1%}  {:>15.0%}".format(name, *figures))
    return 0


def errors(look: Looker, noise, file: Path) -> tuple[float, float, float, float]:
    """Of one picture: the level's relative error, the curve's, its mean square, and the share of true values inside."""
    x = to_float(read_image(file, mode="gray")).transpose(2, 0, 1).astype(np.float64)
    found = look((WHITE * noise.published(x)).transpose(1, 2, 0).astype(np.float32))
    (curve,) = found.curves
    at = curve.counted / WHITE
    true = WHITE * np.array([noise.rms(np.full((1, 1, 1), max(v, 0.0))) for v in at])
    ratio = curve.fitted(curve.counted) / true - 1
    inside = (curve.low[curve.clear] <= true) & (true <= curve.high[curve.clear])
    return found.level / (WHITE * noise.rms(x)) - 1, ratio.mean(), np.square(ratio).mean(), inside.mean()


if __name__ == "__main__":
    run_script(main)
