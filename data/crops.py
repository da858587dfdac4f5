"""A sample is a training crop, cut from one of the images.

The crop of a sample is a pure function of (seed, stream, sample index), and sample indices follow from the step.
Nothing depends on how often a generator was called, on the batch a sample is in or on the process that makes it. So a
resumed run sees the crops an uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data.images import to_float
from utils.random import Stream, hashed, permutation


@dataclass(frozen=True)
class Crops:
    """The places of B crops.

    Each has an image index, a top row, a left column, and one of the square's eight symmetries; each (B,) int64.
    """

    image: np.ndarray
    top: np.ndarray
    left: np.ndarray
    symmetry: np.ndarray

    def single(self, b: int) -> Crops:
        """The b-th alone."""
        return Crops(*(values[b : b + 1] for values in (self.image, self.top, self.left, self.symmetry)))


def crop_keys(seed: int, stream: Stream, streams: int) -> tuple[int, ...]:
    """The keys of all crops of a stream. streams: the run's, see STREAMS."""
    if streams == 1:
        return (seed + 6,) if stream == Stream.NOISY_CROPS else (seed,)
    return seed, stream


def draw_crops(sizes: np.ndarray, samples: np.ndarray, patch: int, keys: tuple[int, ...]) -> Crops:
    """The crops of the given sample indices (B,). sizes: height and width of each image, (M,2), none below patch.

    keys: seed and stream. The order of the images has keys of its own, and so have top, left and symmetry.
    Each pass over the images visits every one once, in an order of its own.
    """
    epoch, position = samples // len(sizes), samples % len(sizes)
    image = np.array([permutation(len(sizes), *keys, e)[p] for e, p in zip(epoch.tolist(), position.tolist())])
    top, left, symmetry = (hashed(*keys, samples, part) for part in (1, 2, 3))
    room = (sizes[image] - patch + 1).astype(np.uint64)
    as_int = lambda a: a.astype(np.int64)  # noqa: E731
    return Crops(image, as_int(top % room[:, 0]), as_int(left % room[:, 1]), as_int(symmetry % np.uint64(8)))


def as_images(pixels: Tensor) -> Tensor:
    """Pixels as pools hold them, (B,H,W,C) uint8 or float32 0..1 -> (B,C,H,W) float32 0..1."""
    return pixels.permute(0, 3, 1, 2).float() * (1 / 255 if pixels.dtype == torch.uint8 else 1.0)


class ImagePool:
    """Images of any sizes, held on one device as a flat buffer of pixels.

    images: list of (H,W,C) arrays, uint8 or float32 0..1; kept as bytes where all are uint8.
    """

    def __init__(self, images: list[np.ndarray], device: torch.device | str = "cpu"):
        self.sizes = np.array([im.shape[:2] for im in images])
        self.channels = images[0].shape[2]
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes.prod(1))])
        self.device = torch.device(device)
        as_bytes = all(im.dtype == np.uint8 for im in images)
        self.pixels = torch.empty(
            int(self.offsets[-1]), self.channels, dtype=torch.uint8 if as_bytes else torch.float32, device=device
        )
        for k, im in enumerate(images):
            flat = (im if as_bytes else to_float(im)).reshape(-1, self.channels)
            self.pixels[self.offsets[k] : self.offsets[k + 1]] = torch.tensor(flat, device=device)

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, k: int) -> Tensor:
        """Image k, (1,C,H,W) float32 0..1."""
        return as_images(self.pixels[self.offsets[k] : self.offsets[k + 1]].view(1, *self.sizes[k], self.channels))

    def map(self, f) -> ImagePool:
        """The pool of f(k, image k), f (1,C,H,W) -> (1,C,H,W), one image at a time; float32."""
        other = object.__new__(ImagePool)
        other.__dict__.update(
            self.__dict__, pixels=torch.empty(self.pixels.shape, dtype=torch.float32, device=self.device)
        )
        for k in range(len(self)):
            other.pixels[self.offsets[k] : self.offsets[k + 1]] = (
                f(k, self.image(k)).permute(0, 2, 3, 1).reshape(-1, self.channels)
            )
        return other

    def joined(self, other: ImagePool) -> ImagePool:
        """The pool of its images and the other's, float32."""
        both = object.__new__(ImagePool)
        both.__dict__.update(
            self.__dict__,
            sizes=np.concatenate([self.sizes, other.sizes]),
            offsets=np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
            pixels=torch.cat([p.float() / (255 if p.dtype == torch.uint8 else 1) for p in (self.pixels, other.pixels)]),
        )
        return both

    def crops(self, where: Crops, patch: int) -> Tensor:
        """The crops, (B,C,patch,patch) float32 0..1, on the device."""
        return as_images(self.cut(where, patch))

    def cut(self, where: Crops, patch: int) -> Tensor:
        """The crops as they are held, (B,patch,patch,C) uint8 or float32: one gather on the device."""
        to = lambda a: torch.from_numpy(a).to(self.device, non_blocking=True).view(-1, 1, 1)  # noqa: E731
        symmetry = to(where.symmetry)
        i = torch.arange(patch, device=self.device).view(1, patch, 1)
        j = torch.arange(patch, device=self.device).view(1, 1, patch)
        i, j = torch.where(symmetry & 1 > 0, patch - 1 - i, i), torch.where(symmetry & 2 > 0, patch - 1 - j, j)
        i, j = torch.where(symmetry & 4 > 0, j, i), torch.where(symmetry & 4 > 0, i, j)
        row = to(where.top) + i
        column = to(where.left) + j
        index = to(self.offsets[where.image]) + row * to(self.sizes[where.image, 1]) + column  # B,P,P
        return self.pixels[index]


class DiskPool:
    """An ImagePool of images that do not fit in memory.

    The images are decoded each time they are asked for. The crops are the same, bit for bit.

    sizes: height and width of each image, (M,2).
    decode: k -> ImagePool of image k alone, on the CPU; all of them bytes or all float32.
    device: that of the crops.

    Nothing is kept between calls, as a pass over the images visits each one once. Every method may be called from any
    thread.
    """

    def __init__(self, sizes: np.ndarray, decode: Callable[[int], ImagePool], device: torch.device | str = "cpu"):
        self.sizes = sizes
        self.decode = decode
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, k: int) -> Tensor:
        """Image k, (1,C,H,W) float32 0..1, on the CPU."""
        return self.decode(k).image(0)

    def map(self, f) -> DiskPool:
        """The pool of f(k, image k): f is called, on the whole image, each time the image is asked for."""
        return DiskPool(self.sizes, lambda k: self.decode(k).map(lambda _, x: f(k, x)), self.device)

    def crops(self, where: Crops, patch: int) -> Tensor:
        """The crops, (B,C,patch,patch) float32 0..1, on the device."""
        return as_images(self.cut(where, patch).to(self.device))

    def cut(self, where: Crops, patch: int) -> Tensor:
        """The crops as ImagePool.cut gives them, (B,patch,patch,C), on the CPU."""
        only = np.zeros(1, np.int64)  # the index of an image that is alone in its pool
        crops = [where.single(b) for b in range(len(where.image))]
        return torch.cat([self.decode(int(crop.image[0])).cut(replace(crop, image=only), patch) for crop in crops])
