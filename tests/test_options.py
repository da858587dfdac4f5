"""Options: what --help shows, and how numbers are checked."""

from __future__ import annotations

import argparse
import re

import pytest

from options.base import number
from options.sidd_dnd import BenchmarkOptions, DndOptions, ValidationOptions
from options.stage1 import Stage1Options
from options.stage2 import Stage2Options
from options.test import TestOptions
from tests.helpers import SCRIPTS

CLASSES = {
    "stage1": Stage1Options,
    "stage2": Stage2Options,
    "test": TestOptions,
    "sidd-validation": ValidationOptions,
    "sidd-benchmark": BenchmarkOptions,
    "dnd": DndOptions,
}


@pytest.mark.parametrize("stage", CLASSES)
def test_help_shows_every_default_once(stage):
    for action in CLASSES[stage]().parser._actions:
        text = re.sub(
            r"\s+", " ", argparse.HelpFormatter._expand_help(CLASSES[stage]().parser._get_formatter(), action)
        )
        empty = action.default is None or action.default is False or action.default == [] or action.dest == "help"
        assert text.lower().count("default") == 1 if not empty else "(default:" not in text, action.dest
        if "(default:" in text:
            assert text.endswith(f"(default: {action.default})")


def test_help_shows_a_default_of_zero():
    text = re.sub(r"\s+", " ", Stage1Options().parser.format_help())
    for words in ("every split of images (default: 0)", "by squared error (default: 0)", "with mu held (default: 0)"):
        assert words in text


@pytest.mark.parametrize(
    ("kind", "bounds", "good", "bad"),
    [
        (int, dict(low=1), ["1", "2147483647"], ["0", "-1", "1.5", "x", "", "2147483648"]),
        (float, dict(low=0, high=0.5), ["0", "0.5", "1e-3"], ["-1e-9", "0.51", "nan", "inf", "-inf", "x"]),
        (float, dict(above=0), ["1e-9"], ["0", "-1", "nan", "inf"]),
    ],
)
def test_numbers_keep_within_their_bounds(kind, bounds, good, bad):
    convert = number(kind, **bounds)
    assert [convert(text) for text in good] == [kind(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            convert(text)


def test_an_error_names_the_flag_and_its_bounds_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        Stage1Options().parse("--name x --noisy a --noise awgn --held-out 0.6".split())
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1
    assert "--held-out" in err and "0.6 is out of range: at least 0 and at most 0.5" in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit) as end:
        SCRIPTS[script].main(["--help"])
    assert end.value.code == 0 and "--checkpoints-dir" in capsys.readouterr().out


def test_which_estimator_is_chosen():
    def chosen(line):
        return Stage1Options().parse(f"--name a {line}".split()).sigma_n

    assert chosen("--clean x --noise awgn --sigma 25") == "envelope"
    assert chosen("--clean x --noise awgn --sigma 5 55") == "residual"
    assert chosen("--clean x --noise awgn --sigma 5 55 --sigma-n constrained") == "constrained"
    assert chosen("--clean x --noise mg --mode color") == "residual"
    assert chosen("--noisy x --noise awgn") == "residual"
    assert chosen("--noisy x --noise hg") == "envelope"
    assert chosen("--noisy x --noise hg --sigma-n residual") == "residual"
