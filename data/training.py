"""The images of a training run: decoded once, checked, split and, in a synthetic study, made noisy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.crops import ImagePool, generator, permutation
from data.images import read_image
from data.noise import Noise
from data.sets import content_hash
from utils.errors import UsageError

# what a random stream is for, beside the run's seed
NOISE, HELD_OUT, VALIDATION, WEIGHTS, HALVES, SYNTHESIS, NOISY = range(7)


@dataclass(frozen=True)
class Images:
    """Decoded images and the files they are from. arrays: (H,W,C), uint8, or float32 0..1."""

    files: list[Path]
    arrays: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, indices) -> Images:
        return Images([self.files[k] for k in indices], [self.arrays[k] for k in indices])

    def digest(self) -> str:
        """SHA-256 over all shapes and pixels: the same images in the same order."""
        total = hashlib.sha256()
        for array in self.arrays:
            total.update(f"{array.shape} {array.dtype}".encode())
            total.update(np.ascontiguousarray(array))
        return total.hexdigest()


def read_images(files: list[Path], mode: str, white_level: float | None, smallest: int = 1, what: str = "images") -> Images:
    """Decodes the files as "gray" or "color". white_level: file value that becomes 1.0 (None: 255, 65535, or 1.0 for float files). smallest: least side
    in pixels. Raises UsageError naming the file that cannot be read or is too small."""
    arrays, brightest = [], 0.0
    for file in tqdm(files, desc=f"reading {what}", leave=False, disable=None):
        array = read_image(file, mode=mode, white_level=white_level)
        if min(array.shape[:2]) < smallest:
            raise UsageError(f"{file} is {array.shape[1]}x{array.shape[0]} pixels, smaller than --patch-size {smallest}: use a smaller patch or leave it out")
        brightest = max(brightest, 1.0 if array.dtype == np.uint8 else float(array.max()))
        arrays.append(array)
    if 0 < brightest < 0.125:
        tqdm.write(f"note: the brightest of the {what} is {brightest:.3f} of full scale; --white-level says which file value is white")
    return Images(files, arrays)


def warn_of_test_images(specs: list[str]) -> None:
    """One line where a named training set holds the photographs of a test set."""
    if "bsd500" in specs:
        tqdm.write("warning: bsd500 holds the 68 photographs of bsd68 and cbsd68; results on those will mean nothing. bsd432 is the same without them")


def hold_out(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Splits off `share` of the images, at least one of eight or more, for the held-out likelihood; fewer than eight are all trained on."""
    count = 0 if len(images) < 8 or share == 0 else max(1, round(share * len(images)))
    order = permutation(len(images), seed, HELD_OUT)
    return images.subset(np.sort(order[count:])), images.subset(np.sort(order[:count]))


def add_noise_once(pool: ImagePool, noise: Noise, seed: int, stream: int = NOISE) -> ImagePool:
    """The pool with each image's noise drawn once, a function of (seed, image); drawn on the CPU, so that every device sees the same."""
    return pool.map(lambda k, x: noise.add(x.cpu(), [generator("cpu", seed, stream, k)]).to(x.device))


def disjoint(clean: list[Path], noisy: list[Path], seed: int, flag: str) -> tuple[list[Path], list[Path]]:
    """Clean and noisy files of stage 2 that share no picture, by file content.

    What only one of the two names stays with it; what both name goes to one of them, half each, seeded. UsageError where that leaves one empty.
    """
    contents = {file: content_hash(file) for file in {*clean, *noisy}}
    shared = sorted({contents[f] for f in clean} & {contents[f] for f in noisy})
    order = permutation(len(shared), seed, HALVES) if shared else []
    to_clean = {shared[k] for k in order[: (len(shared) + 1) // 2]}
    to_noisy = set(shared) - to_clean
    clean = [f for f in clean if contents[f] not in to_noisy]
    noisy = [f for f in noisy if contents[f] not in to_clean]
    if not clean or not noisy:
        raise UsageError(f"--clean and {flag} name the same single picture; stage 2 needs at least one image for each that the other does not have")
    if shared:
        tqdm.write(f"note: {len(shared)} images are named by --clean and {flag}: split, so that {len(clean)} are clean and {len(noisy)} noisy")
    return clean, noisy
