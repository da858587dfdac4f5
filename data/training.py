"""The images of a training run are found, checked and split.

They are decoded once or left on disk. In a synthetic study they are made noisy.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.crops import DiskPool, ImagePool
from data.files import Header, file_and_page
from data.images import CHANNELS, check_white, gray_of, image_header, read_image, to_float
from data.sets import TEST_SETS, bsd68_names, content_hash, evenly_spaced
from models.noise import NoiseModel
from models.outliers import outlying
from models.units import full_scale
from utils.device import free_memory
from utils.distributed import World
from utils.errors import UsageError
from utils.files import shown
from utils.random import Stream, generator, permutation

LEAST_PATCH = 8  # of --patch-size, as options/base.py has it
LOOKED_AT = 8  # files of a set, where it would take long to decode all
MEASURED, DIM = 256, 0.5  # files whose greatest value is looked for; it is dim below so much of white
OFFSET = 0.5  # how much of the greatest value the least one is, where black is far from 0


@dataclass(frozen=True)
class Images:
    """Decoded images and the files they are from. arrays: (H,W,C), uint8, or float32 0..1."""

    files: list[Path]
    arrays: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, indices) -> Images:
        return Images([self.files[k] for k in indices], [self.arrays[k] for k in indices])

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each, (M,2)."""
        return np.array([array.shape[:2] for array in self.arrays])

    def pool(self, device: torch.device | str = "cpu") -> ImagePool:
        return ImagePool(self.arrays, device)


@dataclass(frozen=True)
class ImageFiles:
    """Images left on disk: their files and headers, and how read_image is to decode them.

    what: their name in messages.
    units: those of the model, white where it learns a noise level. In white units an image beyond 0..1 without a white
    level is refused.
    most: pixels of an image that are taken, of larger ones the middle. None: all.
    """

    files: list[Path]
    headers: list[Header]
    mode: str
    white_level: float | None
    what: str
    units: str
    most: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, indices) -> ImageFiles:
        return replace(self, files=[self.files[k] for k in indices], headers=[self.headers[k] for k in indices])

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of what is taken of each, (M,2)."""
        return np.array([self.size_of(header) for header in self.headers], int).reshape(-1, 2)

    def size_of(self, header: Header) -> tuple[int, int]:
        height, width = header.height, header.width
        if self.most is None or height * width <= self.most:
            return height, width
        height = min(height, math.isqrt(self.most))
        width = min(width, self.most // height)
        return min(header.height, self.most // width), width

    def of_the_middle(self, pixels: int, least: int) -> ImageFiles:
        """The same images with so many pixels in all, the middle of each, but of least x least or more. Tells it."""
        most = max(least**2, pixels // max(1, len(self)))
        larger = sum(header.height * header.width > most for header in self.headers)
        if not larger:
            return self
        tqdm.write(
            f"note: of {larger} of the {len(self)} {self.what} {most / 1e6:.2g} megapixels are taken, from the middle"
        )
        return replace(self, most=most)

    @property
    def as_bytes(self) -> bool:
        """Whether all of them decode to uint8."""
        return self.white_level is None and all(header.dtype == np.uint8 for header in self.headers)

    def memory(self, float_copies: int = 0) -> int:
        """Bytes that they take decoded, with as many copies in float32 beside them, such as one with noise."""
        values = int(self.sizes.prod(1).sum()) * CHANNELS[self.mode]
        return values * ((1 if self.as_bytes else 4) + 4 * float_copies)

    def read(self, k: int) -> np.ndarray:
        """Image k as read_image gives it.

        Raises UsageError where it cannot be decoded, or is not what its header has said.
        """
        array, header = read_image(self.files[k], self.mode, self.white_level), self.headers[k]
        if self.units == "white":
            check_white(self.files[k], array, self.white_level)
        if array.shape[:2] != (header.height, header.width) or (array.dtype == np.uint8) != (
            self.white_level is None and header.dtype == np.uint8
        ):
            raise UsageError(
                f"{self.files[k]} has changed since it was first looked at: it was {header.width}x{header.height} "
                f"pixels of {header.dtype}"
            )
        height, width = self.size_of(header)
        if (height, width) == array.shape[:2]:
            return array
        top, left = (header.height - height) // 2, (header.width - width) // 2
        return array[top : top + height, left : left + width].copy()  # no view: that would keep all of it

    @property
    def arrays(self) -> Iterator[np.ndarray]:
        """All of them, decoded one after the other."""
        return (self.read(k) for k in tqdm(range(len(self)), desc=f"reading {self.what}", leave=False, disable=None))

    def decode(self) -> Images:
        """All of them in memory. Raises UsageError as read() does."""
        return Images(self.files, list(self.arrays))

    def pool(self, device: torch.device | str = "cpu") -> DiskPool:
        as_bytes = self.as_bytes
        return DiskPool(self.sizes, lambda k: ImagePool([self.read(k) if as_bytes else to_float(self.read(k))]), device)


def look_at(
    files: list[Path],
    mode: str,
    white_level: float | None,
    smallest: int = 1,
    what: str = "images",
    units: str = "white",
) -> ImageFiles:
    """The images of the files as "gray" or "color", by their headers alone.

    white_level: file value that becomes 1.0 (None: full_scale of the file's type).
    units: see ImageFiles.
    smallest: least side in pixels.

    Raises UsageError naming the files that are no images, by their headers, or too small.
    """
    headers, bad = [], []
    for file in tqdm(files, desc=f"looking at {what}", leave=False, disable=None):
        try:
            headers.append(header := image_header(file))
            if (side := min(header.height, header.width)) < smallest:
                remedy = "use a smaller patch or leave it out" if side >= LEAST_PATCH else "leave it out"
                size = f"{header.width}x{header.height} pixels"
                raise UsageError(f"{file} is {size}, smaller than --patch-size {smallest}: {remedy}")
        except UsageError as error:
            bad.append((file, error))
    if bad:
        others = (
            (
                f"; {len(bad) - 1} more cannot be used: "
                f"{', '.join(shown(file) for file, _ in bad[1:6])}{' ..' if len(bad) > 6 else ''}"
            )
            if bad[1:]
            else ""
        )
        raise UsageError(f"{bad[0][1]}{others}")
    return ImageFiles(files, headers, mode, white_level, what, units)


def with_white_level(images: ImageFiles, network: str) -> ImageFiles:
    """Images for a model in white units. Of those that fill little of their type's range the greatest is white.

    Such a model would take the noise of dim pictures for none, or too much: its network, or CNN_est, whose levels begin
    at 4.9 of 255. The greatest value is that of MEASURED evenly spaced images at most, without single pixels far
    outside. A note tells it. Images with a white level, and others that reach DIM of full_scale, stay as they are. So
    do files of several types, for which one value cannot be white.

    network: its units. Another note tells where black is far from 0, which white units take for black.
    """
    if images.units != "white" or images.white_level is not None or not len(images):
        return images
    reached = values_reached(images)
    for least, greatest in reached.values():
        if network == "white" and far_from_0(least, greatest):
            tqdm.write(
                f"note: the {images.what} have values from {least:.4g} to {greatest:.4g}: networks in white units take "
                "0 for black, and misjudge the noise of such pictures, so give --units noise"
            )
    dim = {scale: greatest for scale, (_, greatest) in reached.items() if 0 < greatest < DIM * scale}
    if not dim:
        return images
    what = " and ".join(f"{greatest:.4g} of {scale:g}" for scale, greatest in dim.items())
    if len(reached) > 1:
        tqdm.write(
            f"note: {images.what} of several types reach {what}: models in white units misjudge the noise of such "
            "dim ones, so train on files of one type"
        )
        return images
    (greatest,) = dim.values()
    tqdm.write(f"note: the {images.what} reach {what}: {greatest:.4g} is taken for white (--white-level says another)")
    return replace(images, white_level=greatest)


def with_white_of(noisy: ImageFiles, clean: ImageFiles) -> ImageFiles:
    """Clean images with the white level of noisy ones, where they are files of the same type that reach no further.

    A note tells it. Other ones stay as they are.
    """
    white, types = noisy.white_level, {header.dtype for header in [*noisy.headers, *clean.headers]}
    if not white or not len(clean) or clean.white_level is not None or len(types) > 1:
        return clean
    ((_, greatest),) = values_reached(clean).values()
    if greatest > 1.5 * white:
        return clean
    tqdm.write(f"note: in the {clean.what} {white:.4g} is white too (--clean-white-level says another)")
    return replace(clean, white_level=white)


def values_reached(images: ImageFiles) -> dict[float, tuple[float, float]]:
    """Least and greatest value in files of each full scale, without single pixels far outside, of MEASURED at most."""
    reached: dict[float, tuple[float, float]] = {}
    for k in evenly_spaced(len(images), MEASURED):
        x = read_image(images.files[k], images.mode, white_level=1.0)
        seen, _, _ = outlying(torch.from_numpy(x.transpose(2, 0, 1).copy())[None])
        scale = full_scale(images.headers[k].dtype)
        least, greatest = reached.get(scale, (math.inf, -math.inf))
        reached[scale] = min(least, float(seen.min())), max(greatest, float(seen.max()))
    return reached


def far_from_0(least: float, greatest: float) -> bool:
    """Whether the black of images with these values is: their white alone does not say what the values are then."""
    return abs(least) > OFFSET * greatest


def note_conversion(images: ImageFiles) -> None:
    """One line where images are not as their own files have them.

    Gray ones may be in a colour model, or colour ones in a gray one. Another line where files in colour hold one gray
    image each: LOOKED_AT of them are decoded for that, spread over all.
    """
    others = sum(header.channels != CHANNELS[images.mode] for header in images.headers)
    if others:
        tqdm.write(
            f"note: {others} of the {len(images)} {images.what} are "
            f"{'in colour' if images.mode == 'gray' else 'gray'}, and made {images.mode}"
        )
    if images.mode != "color" or not len(images):
        return
    few = [images.files[k] for k in evenly_spaced(len(images), LOOKED_AT)]
    gray = [file for file in few if gray_of(read_image(file, "color")) is not None]
    if gray:
        others = f", as {len(gray)} of the {len(few)} {images.what} that were looked at" if few[1:] else ""
        tqdm.write(
            f"note: {shown(gray[0])} is one gray image{others}, whose noise is the same in all channels: "
            "--mode gray trains weights for such images"
        )


def in_memory(choice: str, needed: int, device: torch.device, world: World) -> bool:
    """Whether images are to be decoded once.

    choice: --images; "auto" decides by the `needed` bytes, for all processes alike.
    """
    if choice != "auto":
        return choice == "memory"
    free = free_memory(device, world.local_size)
    if not world.any(needed > free / 2, device):
        return True
    if world.main:
        tqdm.write(
            f"note: decoded, the images take {needed / 1e9:.3g} GB of the {free / 1e9:.3g} GB that are free: "
            "they are read from disk as they are needed"
        )
    return False


def digest(images: Images | ImageFiles, recorded: str | None = None) -> str:
    """The digest that a run records of its images.

    It refuses others by it: the images have to be the same, in the same order.

    In memory it is SHA-256 over shapes and pixels. On disk it is "files:" and SHA-256 over names, sizes in bytes and
    sizes in pixels, since decoding a large set takes long. That does not tell a file from one of the same sizes that
    has been put in its place. A run that began in memory and goes on from disk has its images decoded once, to compare
    them.

    recorded: the digest that the run began with, whose kind is kept.
    """
    total = hashlib.sha256()
    if str(recorded).startswith("files:") if recorded else isinstance(images, ImageFiles):
        for file, (height, width) in zip(images.files, images.sizes.tolist()):
            total.update(
                os.fsencode(file.name) + f"\0{file_and_page(file)[0].stat().st_size} {height} {width}\n".encode()
            )
        return f"files:{total.hexdigest()}"
    for array in images.arrays:
        total.update(f"{array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array))
    return total.hexdigest()


def warn_of_test_images(specs: list[str], files: list[Path]) -> None:
    """One line for each test set that is trained on.

    A set is found by its name, BSD68 also by the names of its photographs in BSDS500.
    """
    for name in sorted(TEST_SETS.intersection(specs)):
        tqdm.write(f"warning: {name} is a test set; results on what was trained on will mean nothing")
    found = bsd68_names().intersection(file.stem for file in files)
    if len(found) > len(bsd68_names()) / 2:  # a few might be called so by chance
        tqdm.write(
            f"warning: {len(found)} training images have the names of photographs of bsd68 and cbsd68; "
            "results on those will mean nothing. bsd432 has none"
        )


def hold_out(
    images: Images | ImageFiles, share: float, seed: int
) -> tuple[Images, Images] | tuple[ImageFiles, ImageFiles]:
    """Splits off `share` of the images for the held-out likelihood.

    At least one of eight or more is split off. Fewer than eight are all trained on.
    """
    count = 0 if len(images) < 8 or share == 0 else max(1, round(share * len(images)))
    order = permutation(len(images), seed, Stream.HELD_OUT)
    return images.subset(np.sort(order[count:])), images.subset(np.sort(order[:count]))


def add_noise_once(
    pool: ImagePool | DiskPool, noise: NoiseModel, seed: int, stream: Stream = Stream.NOISE
) -> ImagePool | DiskPool:
    """The pool with each image's noise drawn once, a function of (seed, image).

    It is drawn on the CPU, so that every device sees the same.

    From disk the same draw is made again, over the whole image, at every visit. A fixed draw costs memory there or
    time, and it is memory that is short.
    """
    return pool.map(lambda k, x: noise.add(x.cpu(), [generator("cpu", seed, stream, k)]).to(x.device))


def disjoint(clean: list[Path], noisy: list[Path], seed: int, flag: str) -> tuple[list[Path], list[Path]]:
    """Clean and noisy files of stage 2 that share no picture, by file content.

    What only one of the two names stays with it. What both name goes to one of them, half each, seeded. Raises
    UsageError where that leaves one empty.
    """
    contents = {
        file: content_hash(file) for file in tqdm({*clean, *noisy}, desc="comparing files", leave=False, disable=None)
    }
    shared = sorted({contents[f] for f in clean} & {contents[f] for f in noisy})
    order = permutation(len(shared), seed, Stream.HALVES) if shared else []
    to_clean = {shared[k] for k in order[: (len(shared) + 1) // 2]}
    to_noisy = set(shared) - to_clean
    clean = [f for f in clean if contents[f] not in to_noisy]
    noisy = [f for f in noisy if contents[f] not in to_clean]
    if not clean or not noisy:
        raise UsageError(
            f"--clean and {flag} name the same single picture; stage 2 needs at least one image for each that the "
            "other does not have"
        )
    if shared:
        tqdm.write(
            f"note: {len(shared)} images are named by --clean and {flag}: split, "
            f"so that {len(clean)} are clean and {len(noisy)} noisy"
        )
    return clean, noisy
