"""Pictures of results for people to look at: images side by side with captions, maps as brightness, and their file names."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

CAPTION = 22  # pixels of height
GAP = 4


def side_by_side(images: dict[str, np.ndarray]) -> np.ndarray:
    """Captioned images (H,W,C) 0..1 of one size -> one strip (H',W',C') uint8; colour where any of them is."""
    channels = max(im.shape[2] for im in images.values())
    columns = []
    for caption, image in images.items():
        pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], channels))
        top = np.full((CAPTION, pixels.shape[1], channels), 255, np.uint8)
        cv2.putText(top, caption, (4, CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0,) * channels, 1, cv2.LINE_AA)
        columns += [np.concatenate([top, pixels]), np.full((CAPTION + pixels.shape[0], GAP, channels), 255, np.uint8)]
    return np.concatenate(columns[:-1], 1)


def as_map(values: np.ndarray, highest: float) -> np.ndarray:
    """Mean over channels of a map (H,W,C), as a gray image (H,W,1) in which `highest` is white."""
    return (values.mean(2, keepdims=True) / highest).clip(0, 1)


def output_names(files: list[Path]) -> list[str]:
    """A name without suffix for each input's outputs: its stem; with its folder's name before it where stems repeat, and a number where that does too."""
    names: list[str] = []
    stems = [f.stem for f in files]
    for file in files:
        name = file.stem if stems.count(file.stem) == 1 else f"{file.parent.name}_{file.stem}".lstrip("_")
        candidate, k = name, 2
        while candidate in names:
            candidate, k = f"{name}_{k}", k + 1
        names.append(candidate)
    return names
