"""Defines what an experiment tracker does, and lists the trackers by name. Each tracker has a file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from minigptv2.errors import ConfigError, nearest
from minigptv2.run_folder import RunFolder
from minigptv2.tracking.mlflow import MLflow
from minigptv2.tracking.tensorboard import TensorBoard
from minigptv2.tracking.wandb import WeightsAndBiases

if TYPE_CHECKING:
    import numpy as np


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
    trackers: Sequence[str] = ("tensorboard",)
    """Names of `TRACKERS`."""


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


def _wandb(run: TrackedRun) -> Tracker:
    return WeightsAndBiases(run.folder, run.config, run.lineage)


def _mlflow(run: TrackedRun) -> Tracker:
    return MLflow(run.folder, run.config, run.lineage)


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
"""Constructor of each tracker by its name."""
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
"""The package that a tracker needs and that is not installed with this one."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a name that is no tracker or that occurs twice, and for a package that is missing."""
    for name in names:
        if name not in TRACKERS:
            known = f"{nearest(name, list(TRACKERS))} Trackers: {', '.join(TRACKERS)}"
            raise ConfigError(f"train.trackers: unknown tracker '{name}'{known}")
        if list(names).count(name) > 1:
            raise ConfigError(f"train.trackers names {name} twice")
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            raise ConfigError(f"train.trackers: {name} needs its package: pip install {PACKAGES[name]}")


def make_trackers(run: TrackedRun) -> list[Tracker]:
    """The trackers of a run, in the order of its config."""
    return [TRACKERS[name](run) for name in run.trackers]
