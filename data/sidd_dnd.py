"""The files of the benchmarks SIDD and DND: the noisy blocks that they give, and the submissions that they take.

MATLAB's files are of two kinds. Those of version 5 are read and written with scipy. Those of version 7.3 are HDF5 files
with the axes in reversed order, and are read with h5py.

    SIDD   Abdelhamed, Lin, Brown 2018, "A High-Quality Denoising Dataset for Smartphone Cameras"
    DND    Ploetz, Roth 2017, "Benchmarking Denoising Algorithms with Real Photographs"
"""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from utils.errors import RunError, UsageError
from utils.files import atomic_path, atomic_write_bytes, shown

HDF5 = b"\x89HDF\r\n\x1a\n"  # opens an HDF5 file; MATLAB writes 512 bytes before it
UNREADABLE = (MatReadError, NotImplementedError, ValueError, TypeError, KeyError, EOFError, IndexError, zlib.error)
MEGAPIXEL = 1024 * 1024  # pixels, as the submission kit of SIDD counts

Box = tuple[int, int, int, int]  # top, left, bottom, right: the first row and column, and those after the last


def read_blocks(path: Path, key: str, what: str = "--noisy") -> np.ndarray:
    """The blocks of SIDD in a MATLAB file of version 5 or 7.3: uint8, (pictures, blocks, H, W, 3), RGB.

    key: the array's name in the file. what: the flag, for messages. Raises UsageError where the file is missing or
    damaged, or holds something else, and where h5py is needed and missing.
    """
    named = f"{what} {shown(path)}"
    if is_hdf5(path, what):
        with open_hdf5(path, what) as file:
            array = member(file, key, named)[()].T
    else:
        try:
            found = scipy.io.loadmat(path, variable_names=[key], appendmat=False)
            names = [name for name, _, _ in scipy.io.whosmat(path, appendmat=False)]
        except (OSError, *UNREADABLE) as error:
            raise not_readable(named) from error
        if key not in found:
            raise without(named, key, names)
        array = found[key]
    if array.ndim != 5 or array.shape[4] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise UsageError(
            f"{named}: {key} is {array.dtype} {array.shape}; uint8 blocks (pictures, blocks, rows, columns, 3) are "
            f"needed: give the file {key}.mat of SIDD"
        )
    return array


def read_boxes(root: Path, what: str = "--data") -> list[list[Box]]:
    """The boxes of each picture of DND, in order, from info.mat (version 7.3) in the folder `root`.

    The file counts rows and columns from 1 and names the last ones. Raises UsageError as read_blocks does.
    """
    path = root / "info.mat"
    named = f"{what} {shown(path)}"
    if not is_hdf5(path, what):
        raise UsageError(f"{named} is no MATLAB file of version 7.3: give the folder of DND as it was downloaded")
    with open_hdf5(path, what) as file:
        references = member(file, "info/boundingboxes", named)[()].ravel()
        if references.dtype != object or not len(references):
            raise UsageError(f"{named}: info/boundingboxes refers to no boxes: give the folder of DND")
        boxes = [np.asarray(file[reference]).T for reference in references]  # N,4 each
    for picture, found in enumerate(boxes):
        if (
            found.ndim != 2
            or found.shape[1] != 4
            or not (found[:, :2] >= 1).all()
            or (found[:, 2:] < found[:, :2]).any()
        ):
            raise UsageError(
                f"{named}: the boxes of picture {picture + 1} are no rows of top, left, bottom and right: give the "
                "folder of DND as it was downloaded"
            )
    return [[(int(b[0]) - 1, int(b[1]) - 1, int(b[2]), int(b[3])) for b in found] for found in boxes]


def read_crop(path: Path, box: Box, what: str = "--data") -> np.ndarray:
    """A box of a picture of DND: InoisySRGB in a file of version 7.3, (H,W,3), float32, 0..1, RGB.

    Raises UsageError as read_blocks does, and where the box goes beyond the picture.
    """
    named = f"{what} {shown(path)}"
    top, left, bottom, right = box
    if not is_hdf5(path, what):
        raise UsageError(f"{named} is no MATLAB file of version 7.3: give the folder of DND as it was downloaded")
    with open_hdf5(path, what) as file:
        picture = member(file, "InoisySRGB", named)  # 3,W,H
        if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype.kind != "f":
            raise UsageError(
                f"{named}: InoisySRGB is {picture.dtype} {picture.shape[::-1]}; floats (rows, columns, 3) are needed: "
                "give the folder of DND as it was downloaded"
            )
        if bottom > picture.shape[2] or right > picture.shape[1]:
            size = f"{picture.shape[2]} rows and {picture.shape[1]} columns"
            raise UsageError(f"{named} has {size}, and a box of info.mat ends at {bottom}, {right}: they do not belong")
        crop = np.ascontiguousarray(picture[:, left:right, top:bottom].T, np.float32)
    if not np.isfinite(crop).all():
        raise UsageError(f"{named} has values that are not finite: download the file again")
    return crop


@dataclass(frozen=True)
class Block:
    """A denoised block: pixels (H,W,3) uint8, the seconds that it took, and the strides, with their weights."""

    pixels: np.ndarray
    seconds: float
    strides: dict[int, float]


def write_block(path: Path, block: Block) -> None:
    """Raises RunError where the file cannot be written."""
    data = io.BytesIO()
    strides = np.array(list(block.strides.items()))
    np.savez(data, pixels=block.pixels, seconds=block.seconds, strides=strides)
    atomic_write_bytes(path, data.getvalue())


def read_block(path: Path) -> Block:
    """A block that write_block wrote. Raises RunError where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as found:
            strides = {int(stride): float(weight) for stride, weight in found["strides"]}
            return Block(found["pixels"], float(found["seconds"]), strides)
    except (OSError, zipfile.BadZipFile, *UNREADABLE) as error:
        raise RunError(f"{shown(path)} is damaged: remove it and give the command again") from error


def write_mat(path: Path, values: dict) -> None:
    """A MATLAB file of version 5: arrays of objects become cells, dicts structs.

    Raises RunError where it cannot be written.
    """
    with atomic_path(path) as temporary:
        scipy.io.savemat(temporary, values, appendmat=False)


def write_sidd_csv(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """SIDD's submission as its competitions take it: rows of ID, from 0, and BLOCK, a block's bytes in base64.

    blocks: (H,W,3) uint8 each, picture by picture. Raises RunError where the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        file.write("ID,BLOCK\n")
        for k, block in enumerate(blocks):
            file.write(f"{k},{base64.b64encode(block.tobytes()).decode()}\n")


def write_sidd_mat(path: Path, pictures: list[list[Block]], about: dict[str, str]) -> None:
    """SIDD's submission as its MATLAB kit writes it.

    DenoisedBlocksSrgb: cells (pictures, blocks) of single precision, (H,W,3), 0..1. TimeMPSrgb: seconds for a
    megapixel. OptionalData: `about`, a struct. Raises RunError where the file cannot be written.
    """
    blocks = [block for picture in pictures for block in picture]
    cells = np.empty((len(pictures), len(pictures[0])), object)
    for k, block in enumerate(blocks):
        cells.flat[k] = block.pixels / np.float32(255)
    pixels = sum(block.pixels.shape[0] * block.pixels.shape[1] for block in blocks)
    seconds = sum(block.seconds for block in blocks) * MEGAPIXEL / pixels
    write_mat(path, {"DenoisedBlocksSrgb": cells, "TimeMPSrgb": seconds, "OptionalData": about})


def crop_file(folder: Path, picture: int, box: int) -> Path:
    """The file of a box of DND; both are counted from 0, in the name from 1."""
    return folder / f"{picture + 1:04d}_{box + 1:02d}.mat"


def bundle_dnd(folder: Path, picture: int, boxes: int) -> None:
    """Puts the denoised boxes of a picture of DND together as its kit does, in folder/bundled/, from its crop_file's.

    Idenoised: cells (1, boxes) of (H,W,3), single precision. Raises RunError where a file is damaged or cannot be
    written.
    """
    cells = np.empty((1, boxes), object)
    for box in range(boxes):
        path = crop_file(folder, picture, box)
        try:
            cells[0, box] = scipy.io.loadmat(path, appendmat=False)["Idenoised_crop"]
        except (OSError, *UNREADABLE) as error:
            raise RunError(f"{shown(path)} is damaged: remove it and give the command again") from error
    write_mat(
        folder / "bundled" / f"{picture + 1:04d}.mat", {"Idenoised": cells, "israw": False, "eval_version": "1.0"}
    )


def is_hdf5(path: Path, what: str) -> bool:
    """Whether a file is of MATLAB's version 7.3. UsageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(512 + len(HDF5))
    except OSError as error:
        raise UsageError(f"{what} {shown(path)}: cannot be read ({error.strerror}); check the path") from error
    return start.startswith(HDF5) or start[512:] == HDF5


@contextmanager
def open_hdf5(path: Path, what: str) -> Iterator:
    """An HDF5 file, open for reading. What h5py raises in the block becomes a UsageError, and so does its absence."""
    try:
        import h5py  # needed by these files alone
    except ImportError:
        raise UsageError(
            f"{what} {shown(path)} is a MATLAB file of version 7.3, which takes the package h5py: pip install h5py"
        ) from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, *UNREADABLE) as error:
        raise not_readable(f"{what} {shown(path)}") from error


def member(file, key: str, named: str):
    """A dataset of an HDF5 file by its name. UsageError where there is none."""
    if key not in file or not hasattr(file[key], "dtype"):
        raise without(named, key, [name for name in file if not name.startswith("#")])
    return file[key]


def not_readable(named: str) -> UsageError:
    return UsageError(f"{named} is no MATLAB file, or damaged: download it again")


def without(named: str, key: str, names: list[str]) -> UsageError:
    return UsageError(f"{named} has no {key}, only {', '.join(names) or 'nothing'}: give the file that has it")
