"""Draws are functions of their keys; every draw of a training has keys of its own, and an older run keeps its keys."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

import data.crops
import train_distill
import utils.random
from data.crops import crop_keys, draw_crops
from tests.helpers import TINY, TINY2, contents, ok
from utils.errors import UsageError
from utils.random import STREAMS, Stream, generator, generators, hashed, permutation, seed_weights, streams_of

# image, top, left and symmetry of the first five crops of seed 5
GOLDEN = {
    Stream.CROPS: [[2, 1, 0, 0, 2], [9, 0, 4, 2, 17], [0, 0, 13, 2, 0], [4, 6, 0, 1, 2]],
    Stream.HELD_OUT_CROPS: [[2, 1, 0, 0, 2], [9, 0, 4, 2, 17], [0, 0, 13, 2, 0], [4, 6, 0, 1, 2]],
    Stream.NOISY_CROPS: [[1, 0, 2, 1, 2], [0, 2, 20, 0, 16], [0, 12, 1, 0, 2], [2, 6, 6, 0, 2]],
}


def test_hash_and_generators_differ_by_every_key():
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2**40)]
    assert len({int(hashed(*k)) for k in keys}) == len(keys)
    draws = [torch.rand(1, generator=generator("cpu", *k)).item() for k in keys]
    assert len(set(draws)) == len(keys)
    assert draws[1] == torch.rand(1, generator=generator("cpu", 0, 1)).item()


def test_generators_are_those_of_the_samples():
    draws = [torch.rand(1, generator=g).item() for g in generators("cpu", 1, Stream.NOISE, np.arange(5, 9))]
    assert draws == [torch.rand(1, generator=generator("cpu", 1, Stream.NOISE, k)).item() for k in range(5, 9)]
    assert len(set(draws)) == 4


def test_permutations_differ_by_every_key():
    found = [permutation(50, *keys).tolist() for keys in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in found) and len(set(map(tuple, found))) == 3


def test_streams_are_distinct():
    draws = {}
    for stream in Stream:
        samples = np.arange(1000)
        draws[stream] = {*hashed(0, stream, samples).tolist(), *(hashed(0, stream, samples, k)[0] for k in range(4))}
    assert sum(map(len, draws.values())) == len(set.union(*draws.values())) == 1004 * len(Stream)


def test_first_weights_are_a_function_of_the_seed():
    drawn = []
    for seed in (0, 1, 0):
        seed_weights(seed)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_clean_noisy_and_held_out_crops_are_others():
    sizes = np.array([[90, 90]] * 20)
    streams = (Stream.CROPS, Stream.NOISY_CROPS, Stream.HELD_OUT_CROPS)
    found = [draw_crops(sizes, np.arange(40), 16, crop_keys(seed, s, STREAMS)) for s in streams for seed in (0, 6)]
    for name in ("image", "top", "left", "symmetry"):
        assert len({tuple(getattr(crops, name)) for crops in found}) == len(found)


@pytest.fixture
def drawn(monkeypatch):
    """How often each draw was made, by its keys."""
    times: Counter = Counter()
    real = utils.random.hashed

    def recording(*keys):
        times.update(zip(*(np.atleast_1d(key).tolist() for key in np.broadcast_arrays(*keys))))
        return real(*keys)

    for module in (utils.random, data.crops, train_distill):
        monkeypatch.setattr(module, "hashed", recording)
    permutation.cache_clear()  # of this process, in which the tests before have drawn
    return times


@pytest.mark.parametrize("draw", ["fixed", "fresh"])
def test_no_two_draws_of_a_training_share_their_keys(draw, run, pictures, drawn):
    noise = f"--noise awgn --sigma 5 55 --noise-draw {draw}"
    line = f"--name s1 --clean {pictures}/gray {noise} {TINY} --steps 12 --val {pictures}/gray/0.png"
    ok(run("train_dbsn", line))
    streams = {Stream.NOISE, Stream.HELD_OUT, Stream.VALIDATION, Stream.WEIGHTS, Stream.CROPS, Stream.HELD_OUT_CROPS}
    assert {keys[1] for keys in drawn} == streams and {keys[0] for keys in drawn} == {0}
    assert set(drawn.values()) == {1}, [keys for keys, times in drawn.items() if times > 1]

    drawn.clear()
    permutation.cache_clear()
    images = f"--clean {pictures}/gray --synthetic-noisy {pictures}/gray --val {pictures}/gray/0.png"
    ok(run("train_distill", f"--name s2 --teacher s1 {images} {noise} {TINY2} --steps 12 --enlarge 1 2"))
    others = (Stream.HELD_OUT, Stream.HELD_OUT_CROPS, Stream.THETA_NOISE, Stream.REVIVED)
    streams = {s for s in Stream if s not in others}
    assert {keys[1] for keys in drawn} == streams | ({Stream.THETA_NOISE} if draw == "fresh" else set())
    assert set(drawn.values()) == {1}, [keys for keys, times in drawn.items() if times > 1]


def test_keys_of_older_runs():
    """What the first version drew."""
    assert streams_of(None) == STREAMS and streams_of({"seed": 0}) == 1 and streams_of({"streams": 2}) == 2
    with pytest.raises(UsageError, match="newer version"):
        streams_of({"streams": STREAMS + 1})
    sizes = np.array([[20, 31], [16, 16], [40, 18]])
    for stream, expected in GOLDEN.items():
        found = draw_crops(sizes, np.arange(5), 16, crop_keys(5, stream, 1))
        assert [found.image.tolist(), found.top.tolist(), found.left.tolist(), found.symmetry.tolist()] == expected


def test_an_older_run_goes_on_with_its_keys(run, pictures, tmp_path, monkeypatch):
    """It ends with the bits of one that the older version never stopped."""
    noise = "--noise awgn --sigma 5 55 --noise-draw fresh"
    ok(run("train_dbsn", f"--name teacher --clean {pictures}/gray {noise} {TINY} --steps 1"))
    lines = {
        "train_dbsn": f"--clean {pictures}/gray {noise} {TINY} --steps 8",
        "train_distill": f"--teacher teacher --clean {pictures}/gray --synthetic-noisy {pictures}/gray {noise} {TINY2}"
        " --steps 8",
    }
    for script, line in lines.items():
        with monkeypatch.context() as older:
            older.setattr(utils.random, "STREAMS", 1)
            white = "--units white" if script == "train_dbsn" else ""  # the older version knew no others
            ok(run(script, f"--name run {line} {white}"))
            whole = contents((tmp_path / "run").rename(tmp_path / f"whole-{script}"))
            ok(run(script, f"--name run {line} {white} --max-minutes 1e-9"))
        file = tmp_path / "run" / "options.json"
        record = json.loads(file.read_text())
        assert record.pop("streams") == 1  # the older version did not record it
        for option in ("units", "level_scale", "level_jitter"):
            record.pop(option, None)
        if sigma_n := record.pop("sigma_n", None):
            assert sigma_n == "residual"
            record |= {"loss": "envelope", "estimator": "residual"}
        file.write_text(json.dumps(record))
        ok(run(script, f"--name run {line}"))
        assert json.loads(file.read_text())["streams"] == 1
        parts = contents((tmp_path / "run").rename(tmp_path / f"parts-{script}"))
        assert {name: parts[name] for name in whole} == whole
