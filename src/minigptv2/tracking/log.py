"""Writes the log of a run: lines for people, `metrics.jsonl`, `heldout.jsonl`, and the experiment trackers."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minigptv2.files import write_atomically
from minigptv2.progress_bars import progress_bar
from minigptv2.redacted_files import json_lines
from minigptv2.run_folder import RunFolder
from minigptv2.secrets import guarded, redact_all
from minigptv2.tracking.trackers import TrackedRun, make_trackers


class RunLog:
    """The log of one start of a run. A resumed run removes the metrics after the step it starts at.

    If `active` is False, every method does nothing. Only the main rank is active.
    """

    def __init__(self, run: TrackedRun, *, total_steps: int, active: bool) -> None:
        self._active = active
        if not active:
            return
        folder = run.folder
        folder.path.mkdir(parents=True, exist_ok=True)
        self._metrics, self._heldout = folder.metrics, folder.heldout
        for file in (self._metrics, self._heldout):
            _remove_after(file, run.step)
        self._trackers = make_trackers(run)
        self._stream = open(folder.log, "a", encoding="utf-8")  # noqa: SIM115  # open as long as the run
        terminal = sys.stderr.isatty()
        self._bar = (
            progress_bar(total=total_steps, initial=run.step, unit="step", dynamic_ncols=True) if terminal else None
        )

    def line(self, text: str) -> None:
        """Write one line to the terminal and to `log.txt`."""
        if not self._active:
            return
        text = guarded(text)
        self._stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._stream.flush()
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a step's metrics as a line of `metrics.jsonl`, and each number to the trackers.

        Nested names are joined by `/` for the trackers.
        """
        if self._active:
            self._write(self._metrics, step, values)

    def heldout(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the metrics of an evaluation during training, as `metrics` does, to `heldout.jsonl`."""
        if self._active:
            self._write(self._heldout, step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pass uint8 images [H, W, 3] by name to the trackers."""
        if self._active:
            for tracker in self._trackers:
                tracker.images(step, images)

    def progress(self, steps: int, note: str) -> None:
        """Advance the progress bar by `steps`, if there is a terminal."""
        if self._active and self._bar is not None:
            self._bar.update(steps)
            self._bar.set_postfix_str(note)

    def close(self) -> None:
        """Close all files and trackers."""
        if self._active:
            if self._bar is not None:
                self._bar.close()
            for tracker in self._trackers:
                tracker.close()
            self._stream.close()

    def _write(self, file: Path, step: int, values: Mapping[str, Any]) -> None:
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(_as_line({"step": step, "time": time.time(), **values}))
        scalars = _flatten(redact_all(values))
        for tracker in self._trackers:
            tracker.scalars(step, scalars)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All metrics of a run folder, oldest first. An incomplete last line is left out."""
    return _read_lines(RunFolder(run).metrics)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines() if file.is_file() else []
    read = []
    for number, line in enumerate(lines):
        try:
            read.append(json.loads(line))
        except ValueError:
            if number + 1 < len(lines):
                raise
    return read


def _remove_after(file: Path, step: int) -> None:
    if not file.is_file():
        return
    kept = [line for line in _read_lines(file) if line["step"] <= step]
    write_atomically(file, "".join(_as_line(line) for line in kept).encode())


def _as_line(values: Mapping[str, Any]) -> str:
    """The values as a line of JSON. A number that is not finite, such as a skipped step's loss, becomes null."""
    return json_lines([finite(values)])


def finite(value: Any) -> Any:
    """Plain data with None for each number that is not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number by its path, for example `task_loss/vqa`."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{key}"] = float(value)
    return flat
