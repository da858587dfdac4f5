"""The report of a test: one HTML file with all pictures in it, which a browser opens without a network.

Numbers are in the files' own units. Pictures are shown in 8 bits, large ones reduced, crops enlarged and exact.
"""

from __future__ import annotations

import base64
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from data.inputs import Sample
from models.inspection import Inspection, autocorrelation_of
from models.noise.correlation import in_blocks
from utils.advice import Looker, advise, reasons
from utils.files import atomic_write_bytes

if TYPE_CHECKING:
    from utils.report import Row

TEMPLATE = Path(__file__).with_suffix(".html")
LONGEST = 1024  # side in pixels of the pictures that are shown
QUALITY = 90  # of their JPEG
CROP, CROPS = 96, 3  # side in pixels and number of the crops
FULL = 40  # pictures that are shown in full, with those that have warnings; the table has all
SHOWN = 0.05, 99.95  # percentiles of the result that are black and white


@dataclass(frozen=True)
class Crop:
    """row, column: of its first pixel. views: name -> data URI of a picture."""

    row: int
    column: int
    views: dict[str, str]


@dataclass(frozen=True)
class PicturePage:
    """What the report shows of one picture; numbers in file units.

    views: "noisy" and "result" -> data URI. reduced: whether they are smaller than the picture.
    noise: what was found, in words. figure: an SVG of the noise's curve and autocorrelation.
    removed: root mean square of what was removed.
    uncertainty: data URI of the map of the posterior's standard deviation; its range: the values at its ends.
    """

    height: int
    width: int
    views: dict[str, str]
    reduced: bool
    crops: list[Crop]
    found: Inspection
    noise: str
    remarks: tuple[str, ...]
    figure: str
    removed: float
    uncertainty: str | None = None
    uncertainty_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reporter:
    """Adds to a test's rows what the report shows: of every so many pictures one in full, and all with warnings."""

    look: Looker
    every: int

    @classmethod
    def of(cls, pictures: int, look: Looker) -> Reporter:
        return cls(look, max(1, -(-pictures // FULL)))

    def add(self, row: Row, sample: Sample, result: np.ndarray, std: np.ndarray | None) -> None:
        """As page_of; row: where it is added."""
        row.noise = self.look(sample.noisy * sample.white)
        row.removed = sample.white * float(np.sqrt(np.nanmean(np.square(sample.noisy - result))))
        if row.noise and (row.warnings or row.index % self.every == 0):
            row.page = page_of(sample, result, row.noise, std)


def page_of(sample: Sample, result: np.ndarray, found: Inspection, std: np.ndarray | None) -> PicturePage:
    """What the report shows of a picture.

    result, std: (H,W,C), in the sample's units. std: of the first stage-1 model, None where none was tested.
    found: in file units.
    """
    from utils.figures import page_figure, svg

    noisy = sample.noisy
    height, width, channels = noisy.shape
    black, white = (float(v) for v in np.nanpercentile(result, SHOWN))
    removed = np.nan_to_num(noisy - result)

    def seen(image: np.ndarray) -> np.ndarray:
        return in_8_bits(image, black, white)

    scale = min(1.0, LONGEST / max(height, width))
    views = {name: jpeg(seen(image), scale) for name, image in (("noisy", noisy), ("result", result))}
    span = float(np.nanmax(np.abs(removed))) or 1.0
    crops = []
    for row, column in places_of_change(removed):
        here = np.s_[row : row + CROP, column : column + CROP]
        shown = {"noisy": seen(noisy[here]), "result": seen(result[here])}
        if sample.clean is not None:
            shown["clean"] = seen(sample.clean[here])
        limit = 3 * float(removed[here].std()) or span
        shown["removed"] = in_8_bits(removed[here], -limit, limit)
        crops.append(Crop(row, column, {name: png(image) for name, image in shown.items()}))

    y = torch.from_numpy(np.ascontiguousarray(np.nan_to_num(noisy).transpose(2, 0, 1)))
    away = autocorrelation_of(y, torch.from_numpy(np.ascontiguousarray(removed.transpose(2, 0, 1))))
    advice = advise(found, channels, float(np.nanmax(noisy) - np.nanmin(noisy)) * sample.white)
    uncertainty = ends = None
    if std is not None and np.isfinite(std).any():
        of_all = np.sqrt(np.mean(np.square(std), axis=2))
        low, high = (float(v) for v in np.nanpercentile(of_all, (1, 99)))
        colored = cv2.applyColorMap(in_8_bits(of_all[..., None], low, max(high, low + 1e-9)), cv2.COLORMAP_VIRIDIS)
        uncertainty, ends = jpeg(colored[..., ::-1], scale), (low * sample.white, high * sample.white)
    return PicturePage(
        height,
        width,
        views,
        scale < 1,
        crops,
        found,
        reasons([advice]),
        advice.remarks,
        svg(page_figure(found, away)),
        float(np.sqrt(np.mean(np.square(removed)))) * sample.white,
        uncertainty,
        ends,
    )


def places_of_change(removed: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns of the crops of (H,W,C) that changed most by root mean square; they do not overlap."""
    height, width, _ = removed.shape
    size = min(CROP, height), min(CROP, width)
    energy = in_blocks(torch.from_numpy(np.square(removed).mean(2, keepdims=True).transpose(2, 0, 1)), *size)
    across = width // size[1]
    best = energy.mean((1, 2, 3)).topk(min(CROPS, len(energy))).indices.tolist()
    return [(k // across * size[0], k % across * size[1]) for k in best]


def in_8_bits(image: np.ndarray, black: float, white: float) -> np.ndarray:
    """(H,W,C) -> uint8; what is not known is gray."""
    values = (image - black) / (white - black if white > black else 1.0)
    return np.rint(255 * np.nan_to_num(values, nan=0.5).clip(0, 1)).astype(np.uint8)


def jpeg(image: np.ndarray, scale: float) -> str:
    """A data URI of (H,W,C) uint8, reduced by a factor."""
    if scale < 1:
        size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return encoded(image, ".jpg", "jpeg", [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def png(image: np.ndarray) -> str:
    return encoded(image, ".png", "png", [])


def encoded(image: np.ndarray, suffix: str, kind: str, options: list[int]) -> str:
    image = image.reshape(*image.shape[:2], -1)
    data = cv2.imencode(suffix, image[..., ::-1] if image.shape[2] == 3 else image, options)[1]
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def short(name: str) -> str:
    """The name of a checkpoint as a heading has it. Of a file it is the stem, of last.safetensors the run's folder."""
    path = Path(name)
    if path.suffix != ".safetensors":
        return name
    return path.parent.name if path.stem in ("last", "best") else path.stem


def write_page(path: Path, table: dict, rows: list) -> None:
    """Writes the report. table: utils.report.test_record. rows: the utils.report.Row of each picture."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["g"] = lambda value, digits=3: "-" if value is None else f"{value:.{digits}g}"
    environment.filters["short"] = short
    environment.filters["command"] = shlex.join
    environment.filters["db"] = lambda value: "-" if value is None else f"{value:.2f}"
    template = environment.from_string(TEMPLATE.read_text())
    text = template.render(table=table, rows=rows, methods=list(table["mean"]))
    atomic_write_bytes(path, text.encode("utf-8", "replace"))  # names of files may be no UTF-8
