"""Crops from disk are those from memory.

Work ahead stays within bounds, and ends in good order.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from data.crops import DiskPool, ImagePool
from data.source import AHEAD, CropSource, DiskSource, crop_source, thread_count
from data.training import look_at
from utils.errors import RunError, UsageError


def test_sources_agree(mixed):
    images = look_at(sorted(mixed.iterdir()), "color", None)
    with crop_source(images.decode().pool(), 16, (7,), 4) as memory, crop_source(images.pool(), 16, (7,), 4) as disk:
        assert type(memory) is CropSource and type(disk) is DiskSource
        for step in (*range(12), 3, 30):  # backwards and far ahead too
            samples = np.arange(4 * step, 4 * step + 4)
            (y, where), (again, there) = memory.crops(samples), disk.crops(samples)
            assert torch.equal(y, again) and y.stride() == again.stride()
            np.testing.assert_array_equal(where.image, there.image)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sources_agree_on_a_gpu(mixed):
    images = look_at(sorted(mixed.glob("*.png")), "color", None)
    with (
        crop_source(images.decode().pool("cuda"), 16, (7,), 4) as memory,
        crop_source(images.pool("cuda"), 16, (7,), 4) as disk,
    ):
        for step in range(50):
            samples = np.arange(4 * step, 4 * step + 4)
            (y, _), (again, _) = memory.crops(samples), disk.crops(samples)
            assert torch.equal(y, again) and again.is_cuda and y.stride() == again.stride()


class Slow(DiskPool):
    """A pool that counts what is asked of it."""

    def __init__(self, seconds=0.0, fault=None):
        super().__init__(np.array([[20, 20]] * 1000), lambda k: ImagePool([np.full((20, 20, 1), k % 256, np.uint8)]))
        self.seconds, self.fault, self.cuts, self.threads = seconds, fault, 0, {}

    def cut(self, where, patch):
        self.threads[threading.current_thread().name] = torch.get_num_threads()
        self.cuts += 1
        time.sleep(self.seconds)
        if self.fault and self.cuts > 30:
            raise self.fault
        return super().cut(where, patch)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_work_ahead_is_bounded(monkeypatch, two_threads):
    monkeypatch.setattr("data.source.processors", lambda: 6)
    pool = Slow()
    with DiskSource(pool, 16, (0,), stride=8, processes=2) as source:
        for step in range(5):
            # of two processes the first: strides of 8, 4 samples of its own
            source.crops(np.arange(8 * step, 8 * step + 4))
            assert len(source.coming) == AHEAD
            deadline = time.monotonic() + 30
            while (
                not all(crop.done() for crops in source.coming.values() for crop in crops)
                and time.monotonic() < deadline
            ):
                time.sleep(0.002)
            time.sleep(0.01)
            assert pool.cuts == 4 * (step + 1 + AHEAD)  # each made once, and no more than these
    # six processors for two processes
    assert 1 <= len(pool.threads) <= 3 and all(name.startswith("decode") for name in pool.threads)
    assert set(pool.threads.values()) == {1} and torch.get_num_threads() == 2  # here as it was


@pytest.mark.parametrize(
    ("side", "processes", "expected"), [(300, 1, 16), (300, 4, 10), (300, 99, 1), (4000, 1, 4), (20000, 1, 1)]
)
def test_thread_count(side, processes, expected, monkeypatch):
    monkeypatch.setattr("data.source.processors", lambda: 40)
    assert thread_count(np.array([[side, side]] * 3), processes) == expected


def test_waiting_is_measured():
    step = lambda k: np.arange(k, k + 1)  # noqa: E731
    with DiskSource(Slow(seconds=0.05), 16, (0,), stride=1) as source:
        for k in range(4):
            source.crops(step(k))
        assert 0.5 < source.share_waited() <= 1
        time.sleep(0.4)
        source.crops(step(4))
        assert source.share_waited() < 0.5
    with CropSource(ImagePool([np.zeros((20, 20, 1), np.uint8)]), 16, (0,)) as source:
        assert source.share_waited() == 0


@pytest.mark.parametrize(
    ("fault", "raised"), [(UsageError("x.png is damaged"), RunError), (ZeroDivisionError("a bug"), ZeroDivisionError)]
)
def test_what_a_thread_raises_comes_back(fault, raised):
    with pytest.raises(raised, match=r"damaged|a bug"), DiskSource(Slow(fault=fault), 16, (0,), stride=4) as source:
        for step in range(100):
            source.crops(np.arange(4 * step, 4 * step + 4))


def test_leaving_does_not_make_what_is_begun():
    pool = Slow(seconds=0.05)
    with DiskSource(pool, 16, (0,), stride=200) as source:
        source.begin(np.arange(200))
        time.sleep(0.02)
    assert pool.cuts < 100
