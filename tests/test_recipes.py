"""Every recipe parses, flags override it, and none trains on test images.

The authors' schedule is what was published. The small recipes made the released weights.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from data.sets import SETS
from options.base import noise_levels
from options.recipes import DEFAULTS, LEVELS, PAPER, RECIPES, RELEASED, arguments
from options.stage1 import Stage1Options
from options.stage2 import Stage2Options
from options.test import TestOptions
from tests.helpers import ROOT, ok
from utils.checkpoint import load_checkpoint

TEST_SETS = {"bsd68", "cbsd68", "set12", "kodak24", "mcmaster", "bsd500", "cc15", "cc15_clean", "polyu", "polyu_clean"}
TEST_SETS |= {"fmd24", "fmd24_clean"}
SCRIPTS = ("gray_awgn", "gray_hg", "color_awgn", "color_hg", "color_mg", "gray_poisson")


def stage1(line: str):
    return Stage1Options().parse(f"--name x {line}".split())


def stage2(line: str):
    return Stage2Options().parse(f"--name x --teacher t {line}".split())


def test_there_is_a_recipe_for_every_row_and_for_every_released_model():
    rows = {name.rsplit("-", 1)[0] for name in RECIPES}
    assert rows == {f"{mode}-{row}" for mode in ("gray", "color") for row in LEVELS} - {"gray-mg"}
    released = {file.stem for file in (ROOT / "checkpoints").glob("*.md")}
    assert released == set(RELEASED)
    published = {f"{row}-{flavour}" for row in rows for flavour in ("paper", "fast")}
    published -= {
        name
        for name in published
        if name.endswith("-paper") and name.split("-", 1)[1].removesuffix("-paper") not in PAPER
    }
    assert set(RECIPES) == published | {f"{name}-small" for name in released}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_gives_what_it_says(name):
    for parse, stage in ((stage1, "stage1"), (stage2, "stage2")):
        values, opt = RECIPES[name][stage], vars(parse(f"--recipe {name}"))
        for option, value in values.items():
            level = option in noise_levels()
            assert opt[option] == ((value[0], value[-1]) if level else value), option
        images = {*values["clean"], *values.get("synthetic_noisy", [])}
        assert images <= set(SETS) and not images & TEST_SETS
        assert name.endswith("-paper") or images <= {"bsd432", "general100"}
        assert opt["val"] is None
    one, two = RECIPES[name].values()
    assert name.startswith(one["mode"]) and {k: one.get(k) for k in ("noise", "sigma", "alpha", "delta", "lam")} == {
        k: two.get(k) for k in ("noise", "sigma", "alpha", "delta", "lam")
    }


def test_levels():
    assert stage1("--recipe gray-awgn50-fast").sigma == (50, 50)
    assert stage1("--recipe color-awgn-blind-fast").sigma == (5, 55)
    hg = stage2("--recipe color-hg-fast")
    assert (hg.noise, hg.alpha, hg.delta) == ("hg", (40, 40), (10, 10))
    mg = stage1("--recipe color-mg-paper")
    assert (mg.noise, mg.sigma, mg.mode) == ("mg", (75, 75), "color")


def test_the_papers_schedule():
    """The authors' schedule has 8 crops of 96x96, 100 epochs of 50,000 images, Adam 3e-4 with steps of x0.1.

    Gray HG has steps of x0.5. Then come 32 crops of 160x160, one in eight noisy.
    """
    for name in (n for n in RECIPES if n.endswith("-paper")):
        a, b = stage1(f"--recipe {name}"), stage2(f"--recipe {name}")
        assert (a.width, a.blocks, a.mdc, a.sigma_n) == (96, 8, "release", "constrained")
        assert (a.batch_size, a.patch_size, a.optimizer, a.lr, a.schedule, a.noise_draw) == (
            8,
            96,
            "adam",
            3e-4,
            "step",
            "fresh",
        )
        assert (a.mu_steps + a.sigma_steps + a.steps) * a.batch_size == 100 * 50_000 and min(
            a.mu_steps, a.sigma_steps
        ) > 0
        assert a.lr_decay == (0.5 if name.startswith("gray-hg") else 0.1)
        assert a.clean == b.synthetic_noisy == ["imagenet_val"] and b.clean == ["div2k", "wed"]
        assert (b.batch_size, b.patch_size, b.noisy_share, b.noisy_weight, b.level_jitter, b.student_width) == (
            32,
            160,
            1 / 8,
            0.1,
            0.1,
            160,
        )


# what the cards' commands say, written out: the first models of awgn, those that went on from them, and the students
BLIND1 = (
    "--clean bsd432 --noise awgn --sigma 5 55 --noise-draw fresh --width 64 --blocks 3 --mdc residual --units white"
)
SMALL1 = "--patch-size 64 --batch-size 6 --optimizer muon"
SMALL2 = (
    "--clean bsd432 general100 --synthetic-noisy bsd432 --noise-draw fixed --student-width 64 "
    "--student-blocks residual --patch-size 96 --batch-size 8 --optimizer muon --pairs-loss log --noisy-share 0"
)
HG, MG = "--noise hg --alpha 10 60 --delta 2 20", "--noise mg --sigma 75"
SIZE1 = "--clean bsd432 --noise-draw fresh --width 64 --blocks 3 --mdc residual --units white"
PHOTO = (
    "--clean bsd432 general100 --noise camera --sigma 1 25 --dark 0.2 1.5 --chroma 0.2 1.5 --chroma-reach 0 2 "
    "--enlarge 1.2 3 --tones"
)
PAIRS = (
    "--synthetic-noisy bsd432 --noise-draw fixed --student-width 64 --student-blocks residual --patch-size 96 "
    "--batch-size 8 --optimizer muon --pairs drawn --pairs-loss log --noisy-share 0"
)
CARDS = {
    "gray-awgn-blind": [
        f"--name blind2 --mode gray {BLIND1} {SMALL1} --steps 10000 --lr 4e-3 --warmup 200",
        f"--name blind4 --mode gray --start-from blind2 {BLIND1} {SMALL1} --steps 8000 --lr 3e-3 --warmup 200",
        (
            f"--name blind5 --mode gray --start-from blind4 {BLIND1} {SMALL1} --steps 8400 --lr 3e-3 --warmup 100 "
            "--level-weight 1"
        ),
        (
            f"--name gray-full --teacher gray-awgn-blind --student color-awgn-blind-full {SMALL2} --noise awgn "
            "--sigma 5 55 --steps 22000 --lr 1e-3 --warmup 100"
        ),
        (
            f"--name gray-full2 --teacher gray-awgn-blind --student gray-full --revive {SMALL2} --noise awgn "
            "--sigma 5 55 --steps 16000 --lr 7e-4 --warmup 200 --level-scale 0.8 --level-jitter 0.4 --clean clean "
            "--synthetic-noisy noisy"
        ),
    ],
    "color-awgn-blind": [
        f"--name color-blind --mode color {BLIND1} {SMALL1} --steps 8000 --lr 4e-3 --warmup 200",
        (
            f"--name color-blind2 --mode color --start-from color-blind {BLIND1} {SMALL1} --steps 11000 --lr 3e-3 "
            "--warmup 200"
        ),
        (
            f"--name color-blind3 --mode color --start-from color-blind2 {BLIND1} {SMALL1} --steps 9000 --lr 3e-3 "
            "--warmup 100 --level-weight 1"
        ),
        (
            f"--name color-part1 --teacher color-awgn-blind {SMALL2} --noise awgn --sigma 5 55 --steps 9000 --lr 2e-3 "
            "--warmup 200"
        ),
        (
            f"--name color-part2 --teacher color-awgn-blind --student color-part1 {SMALL2} --noise awgn --sigma 5 55 "
            "--steps 6000 --lr 1.5e-3 --warmup 200"
        ),
        (
            f"--name color-part3 --teacher color-awgn-blind --student color-part2 {SMALL2} --noise awgn --sigma 5 55 "
            "--steps 8000 --lr 1e-3 --warmup 100 --tones --enlarge 1 1.4 --level-scale 0.9 --level-jitter 0.25 "
            "--clean clean t91/ --synthetic-noisy noisy"
        ),
        (
            f"--name color-part4 --teacher color-awgn-blind --student color-part3 {SMALL2} --noise awgn --sigma 5 55 "
            "--steps 3000 --lr 5e-4 --warmup 100 --level-jitter 0.15 --clean clean t91/ "
            "--synthetic-noisy noisy"
        ),
        (
            f"--name color-part5 --teacher color-awgn-blind --student color-part4 {SMALL2} --noise awgn --sigma 5 55 "
            "--steps 3200 --lr 7e-4 --warmup 100 --level-scale 0.8 --level-jitter 0.4 --clean clean t91/ "
            "--synthetic-noisy noisy"
        ),
        (
            f"--name color-part6 --teacher color-awgn-blind --student color-part5 {SMALL2} --noise awgn --sigma 5 55 "
            "--steps 9500 --lr 1e-3 --warmup 100 --level-jitter 0.15 --clean clean t91/ --synthetic-noisy noisy"
        ),
    ],
    "gray-hg-blind": [
        (
            f"--name hg3 --mode gray --start-from gray-awgn-blind {SIZE1} {HG} {SMALL1} --steps 2500 --lr 2e-3 "
            "--warmup 100"
        ),
        (
            f"--name hgres --teacher gray-hg-blind --student gray-awgn-blind-full {SMALL2} {HG} --steps 9000 "
            "--lr 1e-3 --warmup 100 --level-scale 0.58 --level-jitter 0.9 --clean clean --synthetic-noisy noisy"
        ),
        (
            f"--name hgres2 --teacher gray-hg-blind --student hgres {SMALL2} {HG} --steps 3000 --lr 5e-4 "
            "--warmup 100 --level-scale 0.58 --level-jitter 0.9 --clean clean --synthetic-noisy noisy"
        ),
    ],
    "color-hg-blind": [
        (
            f"--name color-hg2 --mode color --start-from color-awgn-blind {SIZE1} {HG} {SMALL1} --steps 2500 "
            "--lr 2e-3 --warmup 100"
        ),
        (
            f"--name color-hg-full4 --teacher color-hg-blind --student color-awgn-blind-full {SMALL2} {HG} "
            "--steps 4000 --lr 1.5e-3 --warmup 100"
        ),
        (
            f"--name color-hg-full5 --teacher color-hg-blind --student color-hg-full4 {SMALL2} {HG} "
            "--steps 4000 --lr 1e-3 --warmup 100 --level-scale 0.58 --level-jitter 0.9"
        ),
    ],
    "color-mg": [
        (
            f"--name mg2 --mode color --start-from color-awgn-blind {SIZE1} {MG} {SMALL1} --steps 2500 --lr 2e-3 "
            "--warmup 100"
        ),
        (
            f"--name mg-full3 --teacher color-mg --student color-awgn-blind-full {SMALL2} {MG} --steps 3000 "
            "--lr 1.5e-3 --warmup 100"
        ),
    ],
    "color-photo": [
        (
            f"--name photo --mode color --start-from color-hg-blind {PHOTO} --units white --width 64 --blocks 3 "
            f"--mdc residual --stride 2 --noise-draw fresh {SMALL1} --reach 0 1.1 --coarse 0 0.4 --steps 500 --lr 2e-3 "
            "--warmup 50"
        ),
        (
            f"--name photo-full --teacher color-hg-blind --student color-awgn-blind-full {PHOTO} {PAIRS} "
            "--reach 0 1.1 --coarse 0 0.4 --steps 5000 --lr 1.5e-3 --warmup 100"
        ),
        (
            f"--name photo-full2 --teacher color-hg-blind --student photo-full {PHOTO} {PAIRS} "
            "--reach 0 1.1 --coarse 0 0.4 --enlarge 1 2.5 --steps 4500 --lr 1e-3 --warmup 100"
        ),
    ],
}


def card_commands(name: str) -> list[list[str]]:
    """The training commands of a released model's card."""
    card = (ROOT / "checkpoints" / f"{name}.md").read_text().replace(" \\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    python (train_.*)$", card, re.M)]


@pytest.mark.parametrize("name", CARDS)
def test_a_cards_commands_are_those_written_out(name):
    commands = card_commands(name)
    assert len(commands) == len(CARDS[name])
    for (script, *argv), line in zip(commands, CARDS[name]):
        options = {"train_dbsn.py": Stage1Options, "train_distill.py": Stage2Options}[script]
        short, long = vars(options().parse(argv)), vars(options().parse(line.split()))
        assert short.pop("recipe") == f"{name}-small" and long.pop("recipe") is None
        assert short == long


@pytest.mark.parametrize("name", CARDS)
def test_the_released_weights_were_made_by_their_cards_commands(name):
    """Each stage's last command gives the options that its weights tell."""
    commands = {argv[0]: argv[1:] for argv in card_commands(name)}
    for script, options, file in (
        ("train_dbsn.py", Stage1Options, name),
        ("train_distill.py", Stage2Options, f"{name}-full"),
    ):
        opt = vars(options().parse(commands[script]))
        values = load_checkpoint(ROOT / "checkpoints" / f"{file}.safetensors").values
        size = values["config"]
        assert {k: opt[k] for k in ("width", "blocks", "mdc") if k in opt} == {
            k: size[k] for k in ("width", "blocks", "mdc") if k in opt
        }
        if width := opt.get("student_width"):
            assert (width, opt["student_blocks"]) == (size["width"], size.get("blocks", "plain"))
        told = {
            key: value
            for key, value in values["training"].items()
            if key in opt and key not in ("amp", "images", "start_from", "student")
        }
        assert {"steps", "lr", "warmup", "batch_size", "patch_size", "noise_draw", "ema", "clean"} <= set(told)
        for key, value in told.items():
            value = value.removesuffix(".safetensors") if isinstance(value, str) else value  # a name or a file
            given = list(opt[key]) if isinstance(opt[key], tuple) else opt[key]
            if key in ("clean", "noisy", "synthetic_noisy"):
                given = [Path(one).name for one in given]  # as the weights have them
            assert value == given, key
        for key in ("start_from", "student"):
            assert (values["training"].get(key) is None) == (opt.get(key) is None)


def test_the_defaults_are_a_recipe():
    """All that it says but the images, the noise, its levels and its draw; and units, newer than the weights."""
    for options, stage in ((Stage1Options, "stage1"), (Stage2Options, "stage2")):
        given = {
            "stage1": "--name x --clean a --noise awgn --sigma 5 55 --noise-draw fresh",
            "stage2": "--name x --teacher t --clean a --synthetic-noisy b --noise awgn --sigma 5 55",
        }
        plain, by_recipe = (
            vars(options().parse(f"{given[stage]} {more}".split())) for more in ("", f"--recipe {DEFAULTS[stage]}")
        )
        assert {key for key in plain if plain[key] != by_recipe[key]} <= {
            "recipe",
            "units",
            "pairs_loss",
            "noisy_share",
        }


def test_flags_override_wherever_they_stand(tmp_path):
    for line in (
        "--recipe gray-awgn25-fast --lr 5e-4 --clean a b --sigma 30",
        "--lr 5e-4 --clean a b --sigma 30 --recipe=gray-awgn25-fast",
    ):
        opt = stage1(line)
        assert (opt.lr, opt.clean, opt.sigma) == (5e-4, ["a", "b"], (30, 30))
        assert opt.batch_size == RECIPES["gray-awgn25-fast"]["stage1"]["batch_size"]
    plain = stage1("--clean a --noise awgn --sigma 25")
    assert plain.recipe is None and plain.batch_size == RECIPES[DEFAULTS["stage1"]]["stage1"]["batch_size"]


def test_the_default_learning_rate_is_the_optimizers():
    assert [
        stage1(f"--noisy a --noise awgn {o}").lr for o in ("", "--optimizer adam", "--optimizer adam --lr 0.01")
    ] == [4e-3, 3e-4, 0.01]
    assert [stage2(f"--clean a --noisy b {o}").lr for o in ("", "--optimizer adamw", "--lr 0.01")] == [
        2e-3,
        1e-4,
        0.01,
    ]


def test_a_recipe_for_really_noisy_pictures():
    opt = stage1("--recipe gray-hg-fast --noisy mine")
    assert (opt.noisy, opt.clean, opt.noise, opt.alpha, opt.mdc) == (
        ["mine"],
        None,
        "hg",
        None,
        RECIPES["gray-hg-fast"]["stage1"]["mdc"],
    )
    photo = stage1("--recipe color-photo-small --noisy mine")
    assert (photo.noise, photo.stride, photo.enlarge, photo.tones) == ("camera", 2, [1, 1], False)
    assert stage2("--recipe color-photo-small --noisy mine").pairs == "learned"
    opt = stage2("--recipe gray-hg-fast --noisy=mine")
    assert (opt.noisy, opt.synthetic_noisy, opt.noise, opt.clean) == (["mine"], None, None, ["bsd432"])


@pytest.mark.parametrize("options", [Stage1Options, Stage2Options])
def test_an_unknown_recipe_is_one_line_with_the_names(options, capsys):
    with pytest.raises(SystemExit) as end:
        options().parse(["--recipe", "gray-awgn26-fast"])
    err = capsys.readouterr().err
    assert (
        end.value.code == 2
        and err.count("\n") == 1
        and err.startswith("error: argument --recipe")
        and all(name in err for name in RECIPES)
    )


def test_a_record_is_completed_by_defaults_and_not_by_the_recipe():
    """They stand for the options that an older version did not record."""
    options = Stage1Options()
    options.parse("--name x --recipe gray-awgn25-fast".split())
    assert (
        options.defaults()["steps"]
        == RECIPES[DEFAULTS["stage1"]]["stage1"]["steps"]
        != RECIPES["gray-awgn25-fast"]["stage1"]["steps"]
    )
    assert options.defaults()["recipe"] is None


def test_both_stages_by_recipe(run, pictures, tmp_path):
    tiny = f"--recipe gray-awgn25-fast --steps 2 --batch-size 2 --patch-size 16 --clean {pictures}/gray --amp off"
    line = f"--name s1 {tiny} --width 8 --blocks 1"
    ok(run("train_dbsn", line))
    recorded = json.loads((tmp_path / "s1" / "options.json").read_text())
    values = RECIPES["gray-awgn25-fast"]["stage1"]
    assert (recorded["steps"], recorded["width"], recorded["batch_size"], recorded["recipe"]) == (
        2,
        8,
        2,
        "gray-awgn25-fast",
    )
    assert all(
        recorded[option] == values[option] for option in ("mdc", "lr", "optimizer", "warmup", "ema", "noise_draw")
    )
    assert recorded["sigma_n"] == "envelope"  # auto, for one level
    # the same options under another name, or written out, are the same run
    ok(run("train_dbsn", line.replace("gray-awgn25-fast", "gray-awgn50-fast") + " --sigma 25"))
    written = " ".join(
        f"--{key.replace('_', '-')} {value}"
        for key, value in values.items()
        if key not in ("clean", "sigma", *line.replace("--", "").replace("-", "_").split())
    )
    ok(run("train_dbsn", f"{line.replace('--recipe gray-awgn25-fast', '')} --sigma 25 {written}"))
    code, _, err = run("train_dbsn", f"{line} --lr 1e-4")
    assert code == 2 and "--lr was" in err
    ok(
        run(
            "train_distill",
            f"--name s2 --teacher s1 {tiny} --student-width 8 --synthetic-noisy {pictures}/gray --noisy-share 0.5",
        )
    )


def test_a_recipes_learning_rate_is_that_of_its_optimizer():
    assert (
        stage1("--recipe gray-awgn25-fast --optimizer adam").lr
        == stage1("--clean x --noise awgn --sigma 25 --optimizer adam").lr
    )
    assert stage2("--recipe gray-awgn25-paper --optimizer muon").lr == stage2("--recipe gray-awgn25-fast").lr
    assert stage1("--recipe gray-awgn25-fast --optimizer adam --lr 0.5").lr == 0.5
    assert stage1("--recipe gray-awgn25-paper --optimizer adam").lr == 3e-4


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("flavour", "blind"), [("", "0"), ("paper", "0"), ("fast", "0"), ("", "1"), ("small", "1")])
def test_scripts_give_command_lines_that_parse(script, flavour, blind, tmp_path):
    """Run with an interpreter that only notes its arguments."""
    if script == "color_mg":
        blind = "0"  # mg has one covariance
    if script == "gray_poisson":
        flavour = "fast" if flavour else ""  # the paper has no such row
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    environment = {
        "PATH": "/usr/bin:/bin",
        "DBSN_PYTHON": str(fake),
        "FLAVOUR": flavour,
        "BLIND": blind,
        "CLEAN": "bsd432 div2k",
    }
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / f"{script}.sh")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    calls = [line.split() for line in Path(tmp_path / "calls").read_text().splitlines()]
    first, second, *tests = calls
    a, b = Stage1Options().parse(first[1:]), Stage2Options().parse(second[1:])
    assert (
        (first[0], second[0]) == ("train_dbsn.py", "train_distill.py")
        and b.teacher == a.name
        and b.name == f"{a.name}-full"
    )
    assert a.clean == b.synthetic_noisy == ["bsd432", "div2k"] and (a.noise, a.sigma, a.alpha, a.delta, a.lam) == (
        b.noise,
        b.sigma,
        b.alpha,
        b.delta,
        b.lam,
    )
    mode, noise = script.split("_")
    assert (a.mode, a.noise) == (mode, noise) and a.recipe == b.recipe
    assert a.recipe.endswith(flavour or ("fast" if (blind == "1" and noise != "mg") or noise == "poisson" else "paper"))
    ranged = any(level and level[0] < level[1] for level in (a.sigma, a.alpha, a.delta, a.lam))
    assert ranged == (blind == "1" and noise != "mg") and len(tests) >= 1
    for call in tests:
        opt = TestOptions().parse(call[1:])
        assert (
            opt.checkpoint == [a.name, b.name]
            and opt.data == ["bsd68" if mode == "gray" else "cbsd68"]
            and opt.noise == noise
        )


@pytest.mark.parametrize(
    ("script", "levels", "name", "tests"),
    [
        ("gray_awgn", {"SIGMA": "5 20"}, "gray-awgn5to20-fast", ["--sigma 5", "--sigma 20"]),
        ("gray_poisson", {"LAM": "10 100"}, "gray-poisson10to100-fast", ["--lam 10", "--lam 100"]),
        (
            "color_hg",
            {"ALPHA": "10 30", "DELTA": "4"},
            "color-hg10to30-4-fast",
            ["--alpha 10 --delta 4", "--alpha 30 --delta 4"],
        ),
    ],
)
def test_a_range_of_ones_own_is_tested_at_its_ends(script, levels, name, tests, tmp_path):
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "DBSN_PYTHON": str(fake), **levels}
    assert subprocess.run(["bash", str(ROOT / "scripts" / f"{script}.sh")], env=environment).returncode == 0
    first, _, *calls = (tmp_path / "calls").read_text().splitlines()
    assert Stage1Options().parse(first.split()[1:]).name == name
    assert len(calls) == len(tests) and all(levels in call for levels, call in zip(tests, calls))


def test_script_of_photographs_gives_command_lines_that_parse(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "DBSN_PYTHON": str(fake)}
    assert subprocess.run(["bash", str(ROOT / "scripts" / "color_photo.sh")], env=environment).returncode == 0
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    options = {"train_dbsn.py": Stage1Options, "train_distill.py": Stage2Options, "test.py": TestOptions}
    parsed = [options[script]().parse(argv) for script, *argv in calls]
    assert [script for script, *_ in calls] == ["train_dbsn.py", "train_distill.py", "test.py"]
    assert parsed[2].checkpoint == [parsed[0].name, parsed[1].name] and parsed[0].stride == 2


def test_scripts_refuse_what_they_would_ignore():
    environment = {"PATH": "/usr/bin:/bin", "DBSN_PYTHON": "/bin/false"}
    for script, given, settings, words in (
        ("gray_awgn", ["--max-minutes", "1"], {}, "takes no arguments"),
        ("color_mg", [], {"BLIND": "1"}, "BLIND=1"),
    ):
        done = subprocess.run(
            ["bash", f"scripts/{script}.sh", *given],
            cwd=ROOT,
            env=environment | settings,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_arguments_are_text():
    for name in RECIPES:
        for stage in ("stage1", "stage2"):
            assert all(isinstance(word, str) and word for word in arguments(name, stage, really_noisy=False))
