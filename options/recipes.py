"""Presets for --recipe, in three flavours.

There is one for each row of the paper's tables, and for blind ranges of levels. docs/recipes.md and
docs/ablations.md say why they are as they are.

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
    "photo": dict(
        noise="camera",
        sigma=[1, 25],
        dark=[0.2, 1.5],
        reach=[0, 1.1],
        coarse=[0, 0.4],
        chroma=[0.2, 1.5],
        chroma_reach=[0, 2],
    ),
}

PAPER = ("awgn15", "awgn25", "awgn50", "hg", "mg")  # the rows of its tables: its noise estimator learns one level

# Noise that neighbours share: stage 1 sees every second pixel. Clean pictures are as soft as a camera's. Stage 2 has
# pairs alone, with the noise that is trained on: what stage 1 makes of noisy pictures is no better than the student.
PHOTO = {
    "stage1": dict(clean=["bsd432", "general100"], stride=2, enlarge=[1.2, 3], tones=True),
    "stage2": dict(
        clean=["bsd432", "general100"],
        noise_draw="fixed",
        pairs="drawn",
        pairs_loss="log",
        noisy_share=0,
        enlarge=[1.2, 3],
        tones=True,
    ),
}

# What the flavours share, except where one says otherwise: sizes of the networks and crops, fresh noise, the make-up
# of stage 2's batches.
COMMON = {
    "stage1": dict(noise_draw="fresh", width=96, blocks=8, patch_size=96),
    "stage2": dict(
        noise_draw="fresh",
        student_width=160,
        student_blocks="plain",
        noisy_share=0.125,
        noisy_weight=0.1,
        batch_size=32,
        patch_size=160,
    ),
}

FLAVOURS = {
    # The authors' schedule and images: 100 epochs of 50,000. Of these 30 are for mu alone and 10 for the covariances.
    "paper": {
        "stage1": dict(
            clean=["imagenet_val"],
            mdc="release",
            units="white",
            sigma_n="constrained",
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
            student_blocks="residual",
            steps=60_000,
            optimizer="muon",
            lr=1e-3,
            schedule="cosine",
            warmup=1000,
            ema=0.999,
        ),
    },
    # the released weights, trained on two CPU cores; RELEASED has the rest
    "small": {
        "stage1": dict(
            clean=["bsd432"],
            width=64,
            blocks=3,
            mdc="residual",
            units="white",
            batch_size=6,
            patch_size=64,
            optimizer="muon",
            schedule="cosine",
            ema=0.999,
        ),
        "stage2": dict(
            clean=["bsd432", "general100"],
            synthetic_noisy=["bsd432"],
            noise_draw="fixed",
            pairs_loss="log",
            noisy_share=0,
            student_width=64,
            student_blocks="residual",
            batch_size=8,
            patch_size=96,
            optimizer="muon",
            schedule="cosine",
            ema=0.999,
        ),
    },
}

# How long each released model was trained, and what it started from. Some were trained in several parts: this is the
# first one, and the card has the others. Weights that are named here were those of their day, as the card says.
RELEASED = {
    "gray-awgn-blind": {
        "stage1": dict(steps=10_000, lr=4e-3, warmup=200),
        "stage2": dict(student="color-awgn-blind-full", steps=22_000, lr=1e-3, warmup=100),
    },
    "color-awgn-blind": {
        "stage1": dict(steps=8_000, lr=4e-3, warmup=200),
        "stage2": dict(steps=9_000, lr=2e-3, warmup=200),
    },
    "gray-hg-blind": {
        "stage1": dict(start_from="gray-awgn-blind", steps=2_500, lr=2e-3, warmup=100),
        "stage2": dict(
            student="gray-awgn-blind-full", steps=9_000, lr=1e-3, warmup=100, level_scale=0.58, level_jitter=0.9
        ),
    },
    "color-hg-blind": {
        "stage1": dict(start_from="color-awgn-blind", steps=2_500, lr=2e-3, warmup=100),
        "stage2": dict(student="color-awgn-blind-full", steps=4_000, lr=1.5e-3, warmup=100),
    },
    "color-mg": {
        "stage1": dict(start_from="color-awgn-blind", steps=2_500, lr=2e-3, warmup=100),
        "stage2": dict(student="color-awgn-blind-full", steps=3_000, lr=1.5e-3, warmup=100),
    },
    "color-photo": {
        "stage1": dict(start_from="color-hg-blind", steps=500, lr=2e-3, warmup=50),
        "stage2": dict(student="color-awgn-blind-full", steps=5_000, lr=1.5e-3, warmup=100),
    },
}


def recipe(mode: str, row: str, flavour: str) -> dict[str, dict]:
    """Stage -> option -> value."""
    stage1, stage2 = (COMMON[stage] | FLAVOURS[flavour][stage] | LEVELS[row] for stage in ("stage1", "stage2"))
    stage1["mode"] = mode  # the student's is its teacher's
    if flavour == "paper" and mode == "gray" and row == "hg":
        stage1["lr_decay"] = 0.5
    if row == "photo":
        stage1, stage2 = stage1 | PHOTO["stage1"], stage2 | PHOTO["stage2"]
    if flavour == "small":
        stage1 |= RELEASED[f"{mode}-{row}"]["stage1"]
        stage2 |= RELEASED[f"{mode}-{row}"]["stage2"]
    return {"stage1": stage1, "stage2": stage2}


def exists(mode: str, row: str, flavour: str) -> bool:
    if flavour == "small":
        return f"{mode}-{row}" in RELEASED
    if flavour == "paper" and row not in PAPER:
        return False
    return (mode, row) != ("gray", "mg")


RECIPES = {
    f"{mode}-{row}-{flavour}": recipe(mode, row, flavour)
    for mode in ("gray", "color")
    for row in LEVELS
    for flavour in FLAVOURS
    if exists(mode, row, flavour)
}
# The flags' defaults are those of these recipes. Images, noise, levels, their draw and units are not, and stage
# 2's batches are the paper's.
DEFAULTS = {"stage1": "gray-awgn-blind-small", "stage2": "color-awgn-blind-small"}


def arguments(
    name: str, stage: str, really_noisy: bool = False, optimizer: str | None = None, refine: bool = False
) -> list[str]:
    """Gives a recipe as a command line.

    really_noisy: --noisy images are given, so all that is for making clean ones noisy is left out.
    refine: so is --refine, which makes its own clean images.
    optimizer: the one that is given. The learning rate of another is left out. A paper recipe takes Muon's from the
    fast one, whose networks are of the same size.
    """
    values = dict(RECIPES[name][stage])
    if optimizer not in (None, values["optimizer"]):
        values.pop("lr")
        if optimizer == "muon":
            values["lr"] = FLAVOURS["fast"][stage]["lr"]
    if really_noisy:
        left_out = [level.name for level in NOISES[values["noise"]].levels] + ["noise_draw", "pairs"]
        left_out += ["clean", "enlarge", "tones"] if stage == "stage1" else ["synthetic_noisy", "noise"]
        left_out += ["clean"] if refine else []
        for option in left_out:
            values.pop(option, None)
    line = []
    for option, value in values.items():
        given = [] if value is True else value if isinstance(value, list) else [value]  # a switch stands alone
        line += [f"--{option.replace('_', '-')}", *map(str, given)]
    return line
