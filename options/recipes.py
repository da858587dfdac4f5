"""Presets for --recipe: one for each row of the paper's tables, and for blind ranges of levels, in two flavours. Why they are as they are: docs/recipes.md.

A recipe is a value for each flag it sets, for either stage. Flags on the command line override it.
"""

from __future__ import annotations

from models.noise import NOISES

LEVELS = {
    "awgn15": dict(noise="awgn", sigma=[15]),
    "awgn25": dict(noise="awgn", sigma=[25]),
    "awgn50": dict(noise="awgn", sigma=[50]),
    "awgn-blind": dict(noise="awgn", sigma=[5, 55]),
    "hg": dict(noise="hg", alpha=[40], delta=[10]),
    "hg-blind": dict(noise="hg", alpha=[10, 60], delta=[2, 20]),
    "mg": dict(noise="mg", sigma=[75]),
    "poisson30": dict(noise="poisson", lam=[30]),
    "poisson-blind": dict(noise="poisson", lam=[5, 50]),
}

PAPER = ("awgn15", "awgn25", "awgn50", "hg", "mg")  # the rows of its tables

# what the flavours share: sizes of the networks and crops, fresh noise, the make-up of stage 2's batches
COMMON = {
    "stage1": dict(noise_draw="fresh", width=96, blocks=8, patch_size=96),
    "stage2": dict(noise_draw="fresh", student_width=160, noisy_share=0.125, noisy_weight=0.1, level_jitter=0.1, batch_size=32, patch_size=160),
}

FLAVOURS = {
    # the authors' schedule and images: 100 epochs of 50,000, of which 30 are for mu alone and 10 for the covariances alone
    "paper": {
        "stage1": dict(
            clean=["imagenet_val"],
            mdc="release",
            loss="constrained",
            mu_steps=187_500,
            sigma_steps=62_500,
            steps=375_000,
            batch_size=8,
            optimizer="adam",
            lr=3e-4,
            schedule="step",
            lr_decay=0.1,
            warmup=0,
            ema=0,
        ),
        "stage2": dict(
            clean=["div2k", "wed"],
            synthetic_noisy=["imagenet_val"],
            steps=200_000,
            optimizer="adam",
            lr=1e-4,
            schedule="step",
            lr_decay=0.5,
            warmup=0,
            ema=0,
        ),
    },
    # one modern GPU, less than an hour for both stages by arithmetic
    "fast": {
        "stage1": dict(
            clean=["bsd432"],
            mdc="residual",
            loss="envelope",
            steps=40_000,
            batch_size=32,
            optimizer="muon",
            lr=2e-3,
            schedule="cosine",
            warmup=1000,
            ema=0.999,
        ),
        "stage2": dict(
            clean=["bsd432"],
            synthetic_noisy=["bsd432"],
            steps=60_000,
            optimizer="muon",
            lr=1e-3,
            schedule="cosine",
            warmup=1000,
            ema=0.999,
        ),
    },
}


def recipe(mode: str, row: str, flavour: str) -> dict[str, dict]:
    """Stage -> option -> value."""
    stage1, stage2 = (COMMON[stage] | FLAVOURS[flavour][stage] | LEVELS[row] for stage in ("stage1", "stage2"))
    stage1["mode"] = mode  # the student's is its teacher's
    if flavour == "paper" and mode == "gray" and row == "hg":
        stage1["lr_decay"] = 0.5
    return {"stage1": stage1, "stage2": stage2}


RECIPES = {
    f"{mode}-{row}-{flavour}": recipe(mode, row, flavour)
    for mode in ("gray", "color")
    for row in LEVELS
    for flavour in FLAVOURS
    if (mode, row) != ("gray", "mg") and (flavour != "paper" or row in PAPER)
}


def arguments(name: str, stage: str, really_noisy: bool = False, optimizer: str | None = None) -> list[str]:
    """A recipe as a command line. really_noisy: --noisy images are given, so all that is for making clean ones noisy is left out. optimizer: the one that is
    given; the learning rate of another is left out."""
    values = dict(RECIPES[name][stage])
    if optimizer not in (None, values["optimizer"]):
        values.pop("lr")
    if really_noisy:
        levels = [level.name for level in NOISES[values["noise"]].levels]
        for option in (*levels, "noise_draw", *(("clean",) if stage == "stage1" else ("synthetic_noisy", "noise"))):
            values.pop(option, None)
    line = []
    for option, value in values.items():
        line += [f"--{option.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return line
