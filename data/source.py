"""Where a training step gets its crops from: one interface for images in memory and images on disk.

    with crop_source(pool, patch, keys, stride) as source:
        y, where = source.crops(samples)  # (B,C,patch,patch) on the device

What crops() gives is a function of (keys, samples) alone, the same bits either way. From disk it is only made ahead
of time: the samples of the next step are those of this one plus `stride`.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from data.crops import Crops, DiskPool, ImagePool, as_images, draw_crops
from utils.device import processors
from utils.errors import RunError, UsageError

AHEAD = 4  # steps whose crops are made, or being made, before they are needed
MAX_THREADS = 16
MAX_PIXELS = 2**26  # decoded at a time, about; a pixel takes up to 8 bytes meanwhile, in colour with fixed noise 60


class CropSource:
    """Crops of images that are held on the training device, cut when they are asked for."""

    def __init__(self, pool: ImagePool | DiskPool, patch: int, keys: tuple[int, ...]):
        self.pool, self.patch, self.keys = pool, patch, keys
        self.waited, self.since = 0.0, time.perf_counter()

    def __enter__(self) -> CropSource:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def crops(self, samples: np.ndarray) -> tuple[Tensor, Crops]:
        """The crops of sample indices (B,): (B,C,patch,patch) float32 0..1 on the device, and where they are."""
        started = time.perf_counter()
        where = draw_crops(self.pool.sizes, samples, self.patch, self.keys)
        y = self.make(samples, where)
        self.waited += time.perf_counter() - started
        return y, where

    def make(self, samples: np.ndarray, where: Crops) -> Tensor:
        return self.pool.crops(where, self.patch)

    def share_waited(self) -> float:
        """The share, 0..1, of the time since the last call that crops() has taken.

        It is what the training has waited for data.
        """
        now = time.perf_counter()
        share = self.waited / (now - self.since)
        self.waited, self.since = 0.0, now
        return share


class DiskSource(CropSource):
    """Crops of images on disk, made by threads while the training works on the steps before.

    Each crop is a task of its own: decode the image, add its noise where that is fixed, cut. Threads and not
    processes: the decoders (Pillow, OpenCV, zlib) and torch release Python's lock, nothing is copied between
    processes, nothing forks beside CUDA, signals stay with the main thread, and an exception comes back as it is.
    Memory holds the crops of AHEAD + 1 steps and one decoded image for each thread. No image is kept for later: a
    pass over the set visits each once, so a cache would help only if it held most of them.
    """

    def __init__(self, pool: DiskPool, patch: int, keys: tuple[int, ...], stride: int, processes: int = 1):
        super().__init__(pool, patch, keys)
        self.stride = stride
        torch.get_num_threads()  # fixes this thread's number: one that has used none yet would take the next line's
        # the threads are parallel as they are: in each of them torch is to use that one alone
        self.threads = ThreadPoolExecutor(thread_count(pool.sizes, processes), "decode", torch.set_num_threads, (1,))
        # first sample of a step -> its crops, each (1,patch,patch,C) as stored
        self.coming: dict[int, list[Future]] = {}

    def __exit__(self, *exception: object) -> None:
        self.threads.shutdown(cancel_futures=True)  # waits for the images that are being decoded

    def make(self, samples: np.ndarray, where: Crops) -> Tensor:
        for ahead in range(AHEAD + 1):
            self.begin(samples + ahead * self.stride)
        try:
            pixels = torch.cat([crop.result() for crop in self.coming.pop(int(samples[0]))])  # B,patch,patch,C
        except UsageError as error:
            raise RunError(
                f"{error} (met while training: if the file was good before, put it back and run the same command again)"
            ) from error
        if self.pool.device.type == "cuda":
            pixels = pixels.pin_memory()
        return as_images(pixels.to(self.pool.device, non_blocking=True))

    def begin(self, samples: np.ndarray) -> None:
        if int(samples[0]) not in self.coming:
            where = draw_crops(self.pool.sizes, samples, self.patch, self.keys)
            tasks = [self.threads.submit(self.pool.cut, where.single(b), self.patch) for b in range(len(samples))]
            self.coming[int(samples[0])] = tasks


def thread_count(sizes: np.ndarray, processes: int) -> int:
    """How many threads are to decode images of these sizes (M,2) in one of `processes` on this machine."""
    return max(1, min(MAX_THREADS, processors() // processes, int(MAX_PIXELS // sizes.prod(1).mean())))


def crop_source(
    pool: ImagePool | DiskPool, patch: int, keys: tuple[int, ...], stride: int, processes: int = 1
) -> CropSource:
    """The source that fits the pool. keys: of its crops, as draw_crops takes them. stride: from
    the sample indices of one step to those of the next. processes: how many share this machine.
    """
    return (
        DiskSource(pool, patch, keys, stride, processes)
        if isinstance(pool, DiskPool)
        else CropSource(pool, patch, keys)
    )
