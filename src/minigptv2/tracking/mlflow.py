"""Records the curves and images of a run with MLflow (`pip install mlflow`).

MLFLOW_TRACKING_URI names the server or the store. MLFLOW_EXPERIMENT_NAME names the experiment.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minigptv2.run_folder import RunFolder
from minigptv2.secrets import redact_all
from minigptv2.tracking.remembered import Remembered

if TYPE_CHECKING:
    import numpy as np

EXPERIMENT = "minigptv2"
"""The experiment if MLFLOW_EXPERIMENT_NAME names none."""
MAX_PARAMETER = 500
"""Characters of a parameter that every store takes. The whole config is an artifact."""


class MLflow:
    """One run of MLflow for all starts of a run folder.

    A resumed run repeats the steps after its checkpoint with equal results, so steps that are recorded already are not
    sent again.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], lineage: Sequence[Mapping[str, Any]]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._known = Remembered(folder.trackers / "mlflow.json", lambda: self._create(folder, config, lineage))
        self._run = self._known.identity
        self._client.update_run(self._run, status="RUNNING")

    def _create(self, folder: RunFolder, config: Mapping[str, Any], lineage: Sequence[Mapping[str, Any]]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run: str = self._client.create_run(number, run_name=folder.path.name).info.run_id
        for key, value in redact_all(dict(config)).items():
            self._client.log_param(run, key, str(value)[:MAX_PARAMETER])
        self._client.log_text(run, json.dumps(redact_all(list(lineage)), indent=1), "lineage.json")
        return run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step by name."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        if new := self._known.new(step, values):
            self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in new.items()])

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Record uint8 images [H, W, 3] of a step by name, as artifacts below `images`."""
        from PIL import Image

        for name, image in self._known.new(step, images).items():
            self._client.log_image(self._run, Image.fromarray(image), f"images/{name}/{step:08d}.png")

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run, "FINISHED")
