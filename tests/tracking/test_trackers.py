"""Tests each tracker of `TRACKERS` in a run that is interrupted and resumed, and what it shows afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minigptv2.run_folder import RunFolder
from minigptv2.tracking.trackers import TRACKERS, TrackedRun

CONFIG = {"stage": "second", "train.steps": 4, "train.learning_rate": 1e-3, "data.recipe": None}
LINEAGE = [{"stage": "first", "steps": 2, "parent": None, "config": {"train.steps": 2}}]


def start(name: str, folder: RunFolder, step: int, losses: dict[int, float]) -> None:
    """One start of a run, which resumes after `step` steps and records a loss and an image for each further one."""
    tracker = TRACKERS[name](TrackedRun(folder, step, CONFIG, LINEAGE))
    for number, loss in losses.items():
        tracker.scalars(number, {"loss": loss, "task_loss/vqa": 2 * loss})
        tracker.images(number, {"heldout/refer": np.full((4, 6, 3), number, np.uint8)})
    tracker.close()


def read_tensorboard(folder: RunFolder) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]:
    """Steps and values of each curve, and the steps of each image, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder.tensorboard))
    board.Reload()
    tags = board.Tags()
    curves = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in tags["scalars"]}
    return curves, {tag: [event.step for event in board.Images(tag)] for tag in tags["images"]}


READERS: dict[str, Callable[[RunFolder], tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]]] = {
    "tensorboard": read_tensorboard
}
"""Reads what a tracker shows, for trackers whose files can be read here."""


@pytest.mark.parametrize("name", TRACKERS)
def test_a_resumed_run_shows_each_step_once(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    start(name, folder, 0, {1: 8.0, 2: 4.0, 3: 9.0})
    start(name, folder, 2, {3: 2.0, 4: 1.0})  # step 3 was not saved, so it is repeated
    if name in READERS:
        curves, images = READERS[name](folder)
        losses = [(1, 8.0), (2, 4.0), (3, 2.0), (4, 1.0)]
        assert curves == {"loss": losses, "task_loss/vqa": [(step, 2 * loss) for step, loss in losses]}
        assert images == {"heldout/refer": [1, 2, 3, 4]}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_fresh_run_shows_nothing_of_earlier_starts(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    start(name, folder, 0, {1: 8.0, 2: 4.0, 3: 2.0})
    folder.clear()
    assert not [file for file in tmp_path.rglob("*") if file.is_file()], "RunFolder.clear removes a tracker's files"
    start(name, folder, 0, {1: 7.0})
    if name in READERS:
        curves, images = READERS[name](folder)
        assert curves["loss"] == [(1, 7.0)] and images == {"heldout/refer": [1]}
