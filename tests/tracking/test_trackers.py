"""Tests each tracker of `TRACKERS` in a run that is interrupted and resumed, and what it shows afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minigptv2.errors import ConfigError
from minigptv2.run_folder import RunFolder
from minigptv2.tracking.trackers import PACKAGES, TRACKERS, TrackedRun, check_trackers

CONFIG = {"stage": "second", "train.steps": 4, "train.learning_rate": 1e-3, "data.recipe": None}
LINEAGE = [{"stage": "first", "steps": 2, "parent": None, "config": {"train.steps": 2}}]


@pytest.fixture(params=TRACKERS)
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tracker whose package is installed, with its store in a folder of the test."""
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param], reason="`make test-clients` has this package")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    chosen: str = request.param
    return chosen


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


def read_mlflow(folder: RunFolder) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]:
    """Steps and values of each curve, and the steps of each image, by MLflow's own client."""
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("minigptv2").experiment_id])
    assert run.data.params["train.steps"] == "4" and run.info.status == "FINISHED"
    lineage = client.download_artifacts(run.info.run_id, "lineage.json")
    assert json.loads(Path(lineage).read_text()) == LINEAGE
    curves = {
        key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    files = client.list_artifacts(run.info.run_id, "images/heldout/refer")
    return curves, {"heldout/refer": sorted(int(Path(file.path).stem) for file in files)}


def read_wandb(folder: RunFolder) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]:
    """Steps and values of each curve, and the steps of each image, from the files of offline runs."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    curves: dict[str, list[tuple[int, float]]] = {}
    images: dict[str, list[int]] = {}
    identities, configs = set(), []
    for file in sorted(folder.trackers.rglob("*.wandb"), key=lambda file: file.stat().st_mtime):
        store = DataStore()
        store.open_for_scan(str(file))
        while data := store.scan_data():
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                identities.add(record.run.run_id)
                configs.append({item.key: json.loads(item.value_json) for item in record.run.config.update})
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key in set(row) & {"loss", "task_loss/vqa"}:
                curves.setdefault(key, []).append((row["step"], row[key]))
            if "heldout/refer" in row or "heldout/refer/_type" in row:
                images.setdefault("heldout/refer", []).append(row["step"])
    assert len(identities) == 1 and configs[0]["train.steps"] == 4 and configs[0]["lineage"] == LINEAGE
    return curves, images


READERS: dict[str, Callable[[RunFolder], tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}
"""Reads what a tracker shows."""


def test_a_resumed_run_shows_each_step_once(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    start(name, folder, 0, {1: 8.0, 2: 4.0, 3: 2.0})
    start(name, folder, 2, {3: 2.0, 4: 1.0})  # step 3 was not saved, so it is repeated, with an equal result
    curves, images = READERS[name](folder)
    losses = [(1, 8.0), (2, 4.0), (3, 2.0), (4, 1.0)]
    assert curves == {"loss": losses, "task_loss/vqa": [(step, 2 * loss) for step, loss in losses]}
    assert images == {"heldout/refer": [1, 2, 3, 4]}


def test_a_fresh_run_shows_nothing_of_earlier_starts(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    start(name, folder, 0, {1: 8.0, 2: 4.0, 3: 2.0})
    folder.clear()
    assert not [file for file in folder.path.rglob("*") if file.is_file()], "RunFolder.clear removes a tracker's files"
    start(name, folder, 0, {1: 7.0})
    if name != "mlflow":  # its store is not part of the run folder, and keeps the earlier run
        curves, images = READERS[name](folder)
        assert curves["loss"] == [(1, 7.0)] and images == {"heldout/refer": [1]}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["tensorbord"], "did you mean 'tensorboard'"),
        (["tensorboard", "tensorboard"], "names tensorboard twice"),
        (["missing"], "pip install no_such_package"),
    ],
)
def test_an_impossible_tracker_is_refused(names: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "missing", TRACKERS["tensorboard"])
    monkeypatch.setitem(PACKAGES, "missing", "no_such_package")
    with pytest.raises(ConfigError, match=reason):
        check_trackers(names)
    check_trackers([])
