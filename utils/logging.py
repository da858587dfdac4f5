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

    def panel(self, name: str, images: list[Tensor], step: int) -> None:
        """Images (N,C,H,W) side by side, one row for each of the N; black and white as the first one's shown_range."""
        if self.writer:
            images = [im.detach().float().cpu() for im in images]
            low, high = shown_range(images[0].numpy())
            # N,3,H,W'
            rows = torch.cat([((im - low) / (high - low)).clamp(0, 1).expand(-1, 3, -1, -1) for im in images], 3)
            self.writer.add_image(name, self.grid(rows, nrow=1, pad_value=1.0), step)  # the rows one below the other

    def close(self) -> None:
        if self.writer:
            self.writer.close()
