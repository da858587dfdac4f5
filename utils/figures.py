"""Figures of what was measured: the noise's curve against intensity and its autocorrelation. matplotlib draws them."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from statistics import NormalDist

import numpy as np

from models.inspection import Inspection
from utils.files import atomic_path

COLORS = {1: ("#333333",), 3: ("#c0392b", "#1e8449", "#2457a6")}
MOST = 8  # pictures that one figure shows


def noise_figure(pictures: list[tuple[str, Inspection]]):
    """A matplotlib figure: for each picture (name, what was found), at most MOST, a row of two plots.

    Left, the standard deviation against intensity with 95% intervals and the fitted curve, in the picture's units.
    Right, the autocorrelation of the noise along rows and columns.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, nothing global

    pictures = pictures[:MOST]
    figure = Figure(figsize=(9, 2.8 * len(pictures)), layout="constrained")
    for (name, found), (left, right) in zip(pictures, figure.subplots(len(pictures), 2, squeeze=False)):
        draw_curves(left, found)
        left.set_title(name, fontsize=9)
        draw_autocorrelation(right, {"noise": found.autocorrelation})
    return figure


def page_figure(found: Inspection, removed: dict[str, list[float]] | None):
    """The same of one picture, beside the autocorrelation of what was removed from it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(left, found)
    left.set_title("noise at each intensity", fontsize=10)
    draw_autocorrelation(right, {"noise": found.autocorrelation, "removed": removed})
    right.set_title("what neighbours share, in flat parts", fontsize=10)
    return figure


def draw_curves(axes, found: Inspection) -> None:
    top = 0.0
    for curve, color in zip(found.curves, COLORS[len(found.curves)]):
        x = curve.counted
        std, low, high = (t[curve.clear] for t in (curve.std, curve.low, curve.high))
        axes.errorbar(x, std, [std - low, high - std], fmt=".", color=color, elinewidth=0.8, markersize=4)
        line = np.linspace(x.min(), x.max(), 100)
        axes.plot(line, curve.fitted(line), color=color, linewidth=1)
        top = max(top, float(high.max()), float(curve.fitted(line).max()))
    axes.set(xlabel="intensity (file values)", ylabel="noise (standard deviation)", ylim=(0, 1.1 * top))
    axes.grid(alpha=0.25)


def draw_autocorrelation(axes, measured: dict[str, dict[str, list[float]] | None]) -> None:
    """measured: name -> direction -> correlation at distances 1, 2, .."""
    axes.axhline(0, color="0.5", linewidth=0.8)
    for (name, directions), color in zip(measured.items(), ("#333333", "#2457a6", "#c0392b")):
        for (direction, values), style in zip((directions or {}).items(), ("-o", "--s")):
            at = np.arange(len(values) + 1)
            axes.plot(at, [1, *values], style, color=color, markersize=3, linewidth=1, label=f"{name}, {direction}")
    axes.set(xlabel="distance (pixels)", ylabel="correlation", ylim=(-0.5, 1.05))
    axes.grid(alpha=0.25)
    if any(measured.values()):
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "too few flat parts", ha="center", transform=axes.transAxes)


def uncertainty_figure(shares: dict[str, dict[str, float]]):
    """A reliability plot: the shares of true values within multiples of the standard deviation, and those of a normal
    distribution. shares: label -> multiple as text -> share.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    line = np.linspace(0, 3.2, 200)
    normal = [2 * NormalDist().cdf(z) - 1 for z in line]
    axes.fill_between(line, np.subtract(normal, 0.05), np.add(normal, 0.05), color="0.9", label="within 5 points")
    axes.plot(line, normal, color="0.4", label="normal")
    for (label, found), marker in zip(shares.items(), itertools.cycle("osv^D*Px")):
        axes.plot([float(z) for z in found], list(found.values()), marker, markersize=4, label=label)
    axes.set(xlabel="standard deviations", ylabel="share of the true values", xlim=(0, 3.2), ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def svg(figure) -> str:
    """The figure as an SVG element."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def write_figure(path: Path, figure) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=120)
