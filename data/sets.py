"""Finding images: files, folders, glob patterns, and named sets under one data root."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data.files import file_and_page, open_file
from data.images import IMAGE_SUFFIXES, OTHER_SUFFIXES, read_image
from data.stacks import images_of
from utils.errors import UsageError
from utils.files import counted, shown

SKIMAGE_TRAIN = """astronaut.png brick.png cell.png clock_motion.png coins.png grass.png gravel.png
hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png retina.jpg""".split()
SKIMAGE_TEST = "camera.png chelsea.png coffee.png rocket.jpg".split()
SKIMAGE_SETS = {"skimage_train": SKIMAGE_TRAIN, "skimage_test": SKIMAGE_TEST}


def evenly_spaced(number: int, most: int) -> list[int]:
    """Indices of at most so many of `number` images, from the first to the last."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int)).tolist()


@dataclass(frozen=True)
class NamedSet:
    """A set of images that has a name.

    folder: under the data root.
    pattern: which of its files.
    get: what to put there.
    download: scripts/download_data.py fetches it.
    """

    folder: str
    get: str
    pattern: str = "*"
    download: bool = False


SETS = {
    "bsd68": NamedSet("bsd68", "the gray BSD68 test images as 68 PNG files", download=True),
    "cbsd68": NamedSet("cbsd68", "the colour BSD68 test images as 68 PNG files", download=True),
    "set12": NamedSet("set12", "the 12 gray Set12 test images", download=True),
    "kodak24": NamedSet("kodak24", "the 24 Kodak photographs", download=True),
    "mcmaster": NamedSet("mcmaster", "the 18 McMaster images", download=True),
    "bsd500": NamedSet("bsd500", "the 500 photographs of BSDS500", download=True),
    "bsd432": NamedSet("bsd432", "BSDS500 without the 68 photographs of BSD68", download=True),
    "general100": NamedSet("general100", "the 100 clean General-100 images", download=True),
    "t91": NamedSet("t91", "the 91 clean images of T91", download=True),
    "div2k": NamedSet("DIV2K_train_HR", "the DIV2K training images (data.vision.ee.ethz.ch/cvl/DIV2K)"),
    "wed": NamedSet("WED", "the Waterloo Exploration Database (its project page at the University of Waterloo)"),
    "imagenet_val": NamedSet("ILSVRC2012_img_val", "the ImageNet 2012 validation images (image-net.org, with a login)"),
    "cc15": NamedSet("cc15", "the 15 noisy crops of the CC data set", "*_real.*", download=True),
    "cc15_clean": NamedSet("cc15", "the 15 clean crops of the CC data set", "*_mean.*", download=True),
    "fmd24": NamedSet("fmd24", "the 24 noisy fluorescence frames of FMD", "*_noisy.*", download=True),
    "fmd24_clean": NamedSet("fmd24", "the 24 clean means of 50 frames of FMD", "*_clean.*", download=True),
    "polyu": NamedSet("polyu", "the noisy crops of the PolyU data set", "*[Rr]eal.*", download=True),
    "polyu_clean": NamedSet("polyu", "the clean crops of the PolyU data set", "*mean.*", download=True),
}

# Trained on, they would measure nothing. Really noisy pictures (cc15, fmd24, polyu) are not among them: the method may
# learn from those.
TEST_SETS = frozenset({"bsd68", "cbsd68", "set12", "kodak24", "mcmaster", "skimage_test"})


def find_images(
    specs: str | Path | list, data_root: Path | None = None, what: str = "--data", repeats: bool = False
) -> list[Path]:
    """The images that the specs name, in order.

    A TIFF stack gives one for each of its pages (data/stacks.py). A spec is one of these:

    - a named set (the keys of SETS), found under data_root, else $DBSN_DATA, else datasets/ beside the code;
      skimage_train and skimage_test need no root
    - a file
    - a folder: its images by name; hidden files, subfolders and other suffixes are left out
    - a glob pattern

    what: the flag, for messages. repeats: a file that is named several times is there as often, else once.

    Raises UsageError for a spec that names nothing.
    """
    specs = [specs] if isinstance(specs, str | Path) else specs
    images = [image for spec in specs for file in files_of(str(spec), data_root, what) for image in images_of(file)]
    if repeats:
        return images
    files: dict[str, Path] = {}
    for image in images:
        files.setdefault(os.path.realpath(image), image)  # a file may be named in several ways
    return list(files.values())


def files_of(spec: str, data_root: Path | None, what: str) -> list[Path]:
    if spec in SKIMAGE_SETS:
        return files_of_skimage(spec, what)
    if spec in SETS:
        return files_of_set(spec, data_root, what)
    named = f"{what} {shown(spec)}"
    if not spec or "\0" in spec:
        raise UsageError(f"{named}: a file, folder, pattern or set is needed")
    path = Path(spec)
    if path.is_dir():
        found, others = images_in(path, named), unreadable_in(path)
        unread = f"{counted(others)} of a type that is not read ({', '.join(sorted(set(others.values())))})"
        remedy = "convert them to PNG or TIFF, camera raw files to DNG"
        if not found:
            deeper = path / "**" / "*"
            hint = f"; its subfolders do: name them with the pattern {shown(deeper)}" if matches(str(deeper)) else ""
            hint = f", but {unread}: {remedy}" if others else hint
            raise UsageError(f"{named}: the folder holds no image ({', '.join(IMAGE_SUFFIXES)}){hint}")
        if others:
            tell_once(f"note: {named}: without {unread}: {remedy}")
        if below := folders_of_images_in(path):
            first = f"{shown(below[0])}{' and others' if below[1:] else ''}"
            tell_once(f"note: {named}: without the images in its subfolders ({first}): give these by name too")
        return found
    if os.path.lexists(file_and_page(path)[0]):  # a broken link is named by whoever reads it
        return [path]
    if glob.has_magic(spec):
        found = matches(spec)
        if not found:
            raise UsageError(f"{named}: the pattern matches no image")
        return found
    known = [*SETS, *SKIMAGE_SETS]
    near = difflib.get_close_matches(spec.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the sets are {', '.join(known)}"
    raise UsageError(f"{named}: no such file or folder, and no set of that name; {hint}")


def files_of_skimage(name: str, what: str) -> list[Path]:
    package = find_spec("skimage")  # finds the folder without importing the package
    folder = Path(package.submodule_search_locations[0]) / "data" if package else Path("skimage", "data")
    files = [folder / file for file in SKIMAGE_SETS[name]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UsageError(
            f"{what} {name}: {shown(folder)} has no {', '.join(missing)}; install scikit-image as requirements.txt "
            "has it"
        )
    return files


def root_folder(data_root: Path | None) -> Path:
    """Where the named sets are."""
    return Path(data_root or os.environ.get("DBSN_DATA") or Path(__file__).resolve().parents[1] / "datasets")


def files_of_set(name: str, data_root: Path | None, what: str) -> list[Path]:
    named = SETS[name]
    root = root_folder(data_root)
    folder = root / named.folder
    found = [f for f in images_in(folder, f"{what} {name}") if f.match(named.pattern)] if folder.is_dir() else []
    if name == "bsd432" and not folder.is_dir() and (root / "bsd500").is_dir():
        found = [f for f in images_in(root / "bsd500", f"{what} {name}") if f.stem not in bsd68_names()]
    if not found:
        problem = "has no images of it" if folder.is_dir() else "does not exist"
        remedy = f"put {named.get} there"
        if named.download:
            remedy = f"get {named.get} with python scripts/download_data.py {name}" + (
                f" --data-root {shlex.quote(str(root))}" if data_root else ""
            )
        raise UsageError(
            f"{what} {name}: {shown(folder)} {problem}; {remedy}, or name another root with --data-root or DBSN_DATA"
        )
    return found


@cache
def bsd68_names() -> frozenset[str]:
    """The photographs of BSDS500 that the BSD68 test images come from, by their number there."""
    return frozenset((Path(__file__).parent / "bsd68_names.txt").read_text().split())


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def matches(pattern: str) -> list[Path]:
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if is_image(path)]


def images_in(folder: Path, named: str) -> list[Path]:
    """named: the flag and the spec, for messages."""
    try:
        return [path for path in sorted(folder.iterdir()) if is_image(path)]
    except OSError as error:
        raise UsageError(f"{named}: cannot list {shown(folder)} ({error.strerror})") from None


def unreadable_in(folder: Path) -> dict[Path, str]:
    """The pictures in a folder that are of OTHER_SUFFIXES, with these."""
    endings = {path: path.suffix.lower() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    return {path: ending for path, ending in endings.items() if ending in OTHER_SUFFIXES}


def folders_of_images_in(folder: Path) -> list[Path]:
    """The folders in a folder that hold images themselves, by name, without hidden ones."""
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = []
    for path in folders:
        with suppress(OSError):
            found += [path] if any(map(is_image, path.iterdir())) else []
    return found


@cache
def tell_once(words: str) -> None:
    """A folder may be looked through several times."""
    print(words, file=sys.stderr)


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes, or of the pixels of a stack's page. Raises UsageError where it cannot be read."""
    if file_and_page(path)[1]:
        return hashlib.sha256(read_image(path, white_level=1.0)).hexdigest()  # whichever value is white
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
