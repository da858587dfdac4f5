"""The TensorBoard log of a run. It is for people who watch; stats.jsonl and the checkpoints hold what must be kept."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.units import shown_range


class Board:
    """Scalars and picture panels for TensorBoard in a run folder.

    It does nothing, after one line, where TensorBoard or torchvision cannot be imported.
    """

    def __init__(self, folder: Path, start: int, enabled: bool = True):
        """start: the last step that counts; events of later ones, written by an interrupted run, are hidden."""
        self.writer = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torchvision.utils import make_grid

            self.writer, self.grid = SummaryWriter(str(folder), purge_step=start + 1), make_grid
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build than torch
            tqdm.write(f"warning: no TensorBoard log ({error})")

    def scalars(self, values: dict[str, float], step: int) -> None:
        if self.writer:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(name, value, step)

    def panel(self, name: str, images: list[Tensor], step: int, spread: Tensor | None = None) -> None:
        """Images (N,C,H,W) side by side, one row for each of the N. Black and white are the first one's shown_range.

        spread: standard deviations, which come last.
        """
        if self.writer:
            low, high = shown_range(images[0].detach().float().cpu().numpy())
            shown = [(im - low) / (high - low) for im in images] + ([] if spread is None else [spread / (high - low)])
            # N,3,H,W'
            rows = torch.cat([im.detach().float().clamp(0, 1).cpu().expand(-1, 3, -1, -1) for im in shown], 3)
            self.writer.add_image(name, self.grid(rows, nrow=1, pad_value=1.0), step)  # the rows one below the other

    def close(self) -> None:
        if self.writer:
            self.writer.close()
