"""Names the files of a run folder. No other module spells a file name inside `<run_dir>`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minigptv2.errors import ConfigError
from minigptv2.files import remove_tree

_STEP = "step-"
_STEPS, _MODEL = (f"{_STEP}*", f".{_STEP}*"), ("*.json", "*.safetensors", "*.model")
_WRITTEN = (_STEPS, _STEPS, ("events.out.*",), _MODEL, _MODEL)
"""Patterns of what a run writes into each of its `results`."""
_DROPPED = "dropped"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Properties are paths, whether or not something exists there."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, as YAML."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """The log lines of all starts."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def heldout(self) -> Path:
        """One JSON object per evaluation during training."""
        return self.path / "heldout.jsonl"

    @property
    def startups(self) -> Path:
        """One JSON object per start that reached its first step: seconds by phase."""
        return self.path / "startups.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def attempts(self) -> Path:
        """Starts and ends of training, written by the main rank."""
        return self.path / "attempts.jsonl"

    @property
    def slurm_history(self) -> Path:
        """Starts and ends of the Slurm job, written by the batch script."""
        return self.path / "slurm" / "history.jsonl"

    def slurm_logs(self, job: str, restart: int) -> Path:
        """Folder of the ranks' logs of one start of a Slurm job."""
        return self.path / "slurm" / f"{job}.{restart}"

    @property
    def owners(self) -> Path:
        """Folder of the starts that owned this run folder, the newest with the highest number."""
        return self.path / "owner"

    @property
    def failure(self) -> Path:
        """The first cause of the last failed start."""
        return self.path / "failure.json"

    @property
    def dropped(self) -> Path:
        """One JSON object per dropped sample."""
        return self.path / f"{_DROPPED}.jsonl"

    def dropped_of_rank(self, rank: int) -> Path:
        """Dropped samples that a rank could not report before it stopped."""
        return self.path / f"{_DROPPED}.rank{rank}.jsonl"

    @property
    def stacks(self) -> Path:
        """Folder of the stacks that a hang leaves, one file per rank."""
        return self.path / "stacks"

    def stack(self, rank: int) -> Path:
        """Stacks of all threads of a rank."""
        return self.stacks / f"rank{rank}.txt"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.checkpoints / f"{_STEP}{step:08d}"

    def checkpoint_folders(self) -> list[Path]:
        """Checkpoint folders with their final name, newest first."""
        entries = list(self.checkpoints.iterdir()) if self.checkpoints.is_dir() else []
        found = [
            entry for entry in entries if entry.name.removeprefix(_STEP).isdigit() and entry.name.startswith(_STEP)
        ]
        return sorted(found, key=checkpoint_step, reverse=True)

    def unfinished_checkpoints(self) -> list[Path]:
        """Temporary and replaced checkpoint folders that a killed save left."""
        return [*self.checkpoints.glob(f".{_STEP}*.tmp"), *self.checkpoints.glob(f".{_STEP}*.old")]

    @property
    def bundles(self) -> Path:
        """Folder of the skipped steps that are kept for `minigptv2 replay`."""
        return self.path / "bundles"

    def bundle(self, step: int) -> Path:
        """Folder of one skipped step."""
        return self.bundles / f"{_STEP}{step:08d}"

    def bundle_folders(self) -> list[Path]:
        """Folders of all skipped steps that are kept."""
        return sorted(self.bundles.glob(f"{_STEP}*"))

    @property
    def export(self) -> Path:
        """Folder of the finished stage."""
        return self.path / "export"

    @property
    def best(self) -> Path:
        """Export of the best model by the held-out metric of the run."""
        return self.path / "best"

    @property
    def best_record(self) -> Path:
        """Step and value of the best model."""
        return self.path / "best.json"

    @property
    def results(self) -> tuple[Path, ...]:
        """Folders that `clear` removes."""
        return self.checkpoints, self.bundles, self.tensorboard, self.export, self.best

    def clear(self) -> None:
        """Remove the results of earlier starts. Stacks and the Slurm history stay.

        A folder that is a link or a mounted disk is emptied and kept. Of a linked folder only files with names that a
        run writes are removed. Raises `ConfigError` naming what could not be removed.
        """
        files = (
            self.metrics,
            self.heldout,
            self.startups,
            self.best_record,
            self.log,
            self.attempts,
            self.dropped,
            self.failure,
        )
        try:
            for folder, written in zip(self.results, _WRITTEN, strict=True):
                _clear_folder(folder, written)
            for file in (*files, *self.path.glob(f"{_DROPPED}.rank*.jsonl")):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"--fresh: cannot remove {error.filename}: {error.strerror or error}") from error


def _clear_folder(folder: Path, written: tuple[str, ...]) -> None:
    """Remove a folder of results. Raises `OSError` with the file name, and `ConfigError` for a link to nothing."""
    linked = folder.is_symlink()
    if linked and not folder.exists():
        raise ConfigError(
            f"--fresh: {folder} is a link to {os.readlink(folder)}, which does not exist. Make that folder or remove "
            "the link."
        )
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for pattern in written if linked else ("*",):
        for entry in folder.glob(pattern):  # hidden entries too
            if entry.is_symlink() and entry.is_dir():
                _clear_folder(entry, ("*",))  # a step that was moved to another disk and linked back
            remove_tree(entry)
    if not linked:
        with suppress(OSError):  # a mounted disk stays, and below it is checked that it is empty
            folder.rmdir()
    left = [entry for pattern in (written if linked else ("*",)) for entry in _matching(folder, pattern)]
    if left:
        raise ConfigError(f"--fresh: cannot remove {left[0]}")


def _matching(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def checkpoint_step(folder: Path) -> int:
    """The step that a checkpoint folder is named after."""
    return int(folder.name.removeprefix(_STEP))
