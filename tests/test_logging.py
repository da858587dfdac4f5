"""TensorBoard's files."""

from __future__ import annotations

import time

import torch

from utils.logging import Board


def test_a_panel_shows_images_side_by_side_and_one_row_for_each_of_a_batch(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path, 0)
    board.panel("seen", [torch.zeros(2, 1, 10, 12), torch.ones(2, 3, 10, 12)], 1)
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (picture,) = events.Images("seen")
    assert (picture.width, picture.height) == (2 * 12 + 2 * 2, 2 * 10 + 3 * 2)  # margins of two pixels


def test_events_of_the_step_that_training_goes_on_from_stay(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (5, 10, 15)), (10, (20,))):  # stopped after 15, of which 10 were saved
        board = Board(tmp_path, start)
        for step in steps:
            board.scalars({"loss": float(step)}, step)
        board.close()
        time.sleep(1.1)  # event files are ordered by their names, which hold whole seconds
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 20]
