"""Records the curves and images of a run with Weights & Biases (`pip install wandb`).

The account, the project and the mode come from wandb's own variables: WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE=offline.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minigptv2.run_folder import RunFolder
from minigptv2.secrets import redact_all
from minigptv2.tracking.remembered import Remembered

if TYPE_CHECKING:
    import numpy as np

PROJECT = "minigptv2"
"""The project if WANDB_PROJECT names none."""


class WeightsAndBiases:
    """One run of Weights & Biases for all starts of a run folder. Its files are in `<run_dir>/trackers`.

    The horizontal axis is `step`. A resumed run repeats the steps after its checkpoint with equal results, so steps
    that are recorded already are not sent again.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], lineage: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        self._wandb = wandb
        self._known = Remembered(folder.trackers / "wandb.json", lambda: uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=wandb.Settings().project or PROJECT,
            id=self._known.identity,
            resume="allow",
            name=folder.path.name,
            dir=str(folder.trackers),
            config=redact_all({**config, "lineage": list(lineage)}),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step by name."""
        if new := self._known.new(step, values):
            self._run.log({"step": step, **new})

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Record uint8 images [H, W, 3] of a step by name."""
        if new := self._known.new(step, images):
            self._run.log({"step": step, **{name: self._wandb.Image(image) for name, image in new.items()}})

    def close(self) -> None:
        """Write everything and close."""
        self._run.finish()
