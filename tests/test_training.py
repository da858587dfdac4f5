"""The schedule, the running average, and what a step does whose loss or gradient is not finite."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.crops import draw_crops
from data.training import Images
from options.stage1 import Stage1Options
from utils.distributed import World
from utils.errors import RunError
from utils.training import DECAY_AT, MAX_SKIPPED, Training, learning_rate, training_tensors, update_average


def test_cosine_reaches_its_peak_at_warmup_and_ends_at_zero():
    rates = [learning_rate(step, 1000, 0.5, "cosine", warmup=10) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05) and rates[9] == rates[10] == max(rates) == 0.5
    assert rates[505] == pytest.approx(0.25)
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 1e-5
    assert learning_rate(1000, 1000, 0.5, "cosine", warmup=10) == 0


def test_step_decays_at_20_to_90_percent():
    rates = [learning_rate(step, 100, 1.0, "step", decay=0.5) for step in range(100)]
    assert [step for step in range(1, 100) if rates[step] != rates[step - 1]] == [20, 40, 60, 70, 80, 90]
    assert rates[0] == 1 and rates[-1] == 0.5 ** len(DECAY_AT)


def test_constant_stays_after_the_warm_up():
    assert [learning_rate(step, 5, 2.0, "constant", warmup=2) for step in range(5)] == [1.0, 2.0, 2.0, 2.0, 2.0]


def test_a_short_run_warms_up_for_half_of_its_steps_at_most():
    rates = [learning_rate(step, 100, 1.0, "cosine", warmup=200) for step in range(100)]
    assert rates[49] == max(rates) == 1 and rates[-1] < 0.01


def test_the_average_forgets_the_start_and_then_decays_as_asked():
    model, average = nn.Linear(1, 1), nn.Linear(1, 1)
    for step, decay in ((0, 0.1), (1, 2 / 11), (10**6, 0.9)):
        nn.init.ones_(model.weight)
        nn.init.zeros_(average.weight)
        update_average(average, model, step, 0.9)
        assert average.weight.item() == pytest.approx(1 - decay)


class Line(nn.Linear):
    config = {"size": 2}  # noqa: RUF012


@pytest.fixture
def begin(tmp_path):
    """begin(on_nonfinite, optimizer) -> a training of four steps."""

    def call(on_nonfinite: str = "skip", optimizer: str = "adam", max_minutes: float | None = None) -> Training:
        rates = dict(lr=0.1, lr_decay=0.1, schedule="constant", warmup=0, ema=0.9)
        ends = dict(max_minutes=max_minutes, save_every=100, on_nonfinite=on_nonfinite, clip_grad=1.0, batch_size=2)
        opt = Namespace(name="a", checkpoints_dir=tmp_path, optimizer=optimizer, compile="off", **rates, **ends)
        torch.manual_seed(0)
        model = Line(2, 2)
        where = (opt, World(), time.monotonic(), torch.device("cpu"), torch.float32)
        return Training(*where, "stage1", 4, model, model, white_level=None, kept={"best": None})

    return call


def opened(training: Training):
    return training.open({"size": 2}, {"images": "0"}, Stage1Options())


def take(training: Training, factor: float = 1.0) -> dict:
    """One step, whose loss and gradient are multiplied by the factor."""
    images = Images([Path("one.png"), Path("two.png")], [np.zeros((9, 9, 1), np.uint8)] * 2)
    training.optimizer.zero_grad()
    loss = factor * training.model(torch.ones(1, 2)).square().sum()
    loss.backward()
    return training.update(loss, {"l2": loss}, [(images, draw_crops(images.sizes, np.arange(8), 4, (0,)))])


def state(training: Training) -> dict[str, torch.Tensor]:
    tensors = training_tensors(training.model, training.average, training.optimizer)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_moves_nothing(begin, optimizer, factor, capsys):
    training = begin(optimizer=optimizer)
    with opened(training):
        for step in training.steps():
            before = state(training)
            take(training, factor if step == 1 else 1.0)
            assert same(before, state(training)) == (step == 1)
    assert (training.step, training.skipped, training.end()) == (4, 1, 0)
    assert "step 2: loss or gradient is not finite" in (out := capsys.readouterr().out) and "one.png, two.png" in out


def test_a_gradient_alone_that_is_not_finite_moves_nothing(begin):
    """As the one of a square root at 0, whose loss is finite."""
    training = begin()
    with opened(training):
        next(training.steps())
        before = state(training)
        for parameter in training.model.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf)
        images = Images([Path("one.png")], [np.zeros((9, 9, 1), np.uint8)])
        training.update(torch.tensor(1.0), {}, [(images, draw_crops(images.sizes, np.arange(2), 4, (0,)))])
        assert same(before, state(training)) and training.skipped == 1


def test_stop_ends_with_the_step_its_terms_and_files(begin):
    training = begin("stop")
    words = r"step 1: .*\(l2 nan, gradient norm nan\); crops of one.png, two.png; begin another .* --on-nonfinite skip$"
    with pytest.raises(RunError, match=words), opened(training):
        next(training.steps())
        take(training, float("nan"))
    assert not list(training.run.path.glob("*.safetensors"))


def test_so_many_steps_are_skipped_and_no_more(begin):
    training = begin()
    training.skipped = MAX_SKIPPED
    with opened(training), pytest.raises(RunError, match="11 steps skipped"):
        next(training.steps())
        take(training, float("nan"))


def test_a_stopped_training_goes_on_where_it_was(begin):
    first = begin(max_minutes=0)
    with opened(first):
        for _ in first.steps():
            first.kept["best"] = take(first)["loss"].item()
    assert first.step == 1
    second = begin()
    first.run.append_stats({"step": 2})  # of a step that was not saved
    with opened(second):
        assert second.step == 1 and second.kept == first.kept and same(state(first), state(second))
        assert (first.run.path / "stats.jsonl").read_text() == ""


def test_a_row_of_statistics(begin):
    training = begin()
    with opened(training):
        for _ in training.steps():
            measured = take(training)
            if training.due(3):
                training.log(measured, 0.5, phase="mu")
        rows = [json.loads(line) for line in (training.run.path / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 4]
    assert list(rows[0]) == ["step", "phase", "lr", "loss", "l2", "grad_norm"] and rows[0]["lr"] == 0.1
