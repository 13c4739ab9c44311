"""Defines what an experiment tracker does, and lists the trackers by name. Each tracker has a file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from minigptv2.run_folder import RunFolder
from minigptv2.tracking.tensorboard import TensorBoard


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is made from.

    `step` is the number of steps that are done when the run starts. `config` is the resolved config by dotted key.
    `lineage` lists the entries of the parent export's lineage, oldest first. It is empty for a first stage.
    """

    folder: RunFolder
    step: int
    config: Mapping[str, Any] = field(default_factory=dict)
    lineage: Sequence[Mapping[str, Any]] = ()


class Tracker(Protocol):
    """Records curves and images of a run. Only the main rank has one."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step by name."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Record uint8 images [H, W, 3] of a step by name."""

    def close(self) -> None:
        """Write everything and close."""


def _tensorboard(run: TrackedRun) -> Tracker:
    return TensorBoard(run.folder, run.step)


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"tensorboard": _tensorboard}
"""Constructor of each tracker by its name."""
