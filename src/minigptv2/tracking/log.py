"""The log of a run: lines in the terminal, `metrics.jsonl`, TensorBoard. Main rank only; others write nothing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minigptv2.files import write_atomically
from minigptv2.run_folder import RunFolder
from minigptv2.secrets import redact


class RunLog:
    """Writes one run's figures in one line, over interruptions: what lies after `step` is cut from earlier writing.

    `active` False makes every method a no-op, for ranks other than the main one.
    """

    def __init__(self, run: Path, *, step: int, total_steps: int, active: bool) -> None:
        self._active = active
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        run.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(run)
        self._metrics, self._heldout = folder.metrics, folder.heldout
        for file in (self._metrics, self._heldout):
            _cut_after(file, step)
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=step + 1)
        self._stream = open(folder.log, "a")  # noqa: SIM115  # open as long as the run
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True) if terminal else None

    def line(self, text: str) -> None:
        """One line for people: terminal and `log.txt`."""
        if not self._active:
            return
        text = redact(text)
        self._stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._stream.flush()
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Figures of a step: a JSON line, and a TensorBoard scalar for each number (nested names joined by `/`)."""
        if self._active:
            self._add(self._metrics, step, values)

    def heldout(self, step: int, values: dict[str, Any]) -> None:
        """Figures of a look at held-out samples: as `metrics`, in `heldout.jsonl`."""
        if self._active:
            self._add(self._heldout, step, values)

    def _add(self, file: Path, step: int, values: dict[str, Any]) -> None:
        with open(file, "a") as stream:
            stream.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        for name, value in _flatten(values):
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def pictures(self, step: int, images: dict[str, np.ndarray]) -> None:
        """uint8 [H, W, 3] pictures by name."""
        if self._active:
            for name, image in images.items():
                self._board.add_image(name, image, step, dataformats="HWC")

    def progress(self, steps: int, note: str) -> None:
        """Move the bar on by `steps`."""
        if self._active and self._bar is not None:
            self._bar.update(steps)
            self._bar.set_postfix_str(note)

    def close(self) -> None:
        """Flush and close everything."""
        if self._active:
            if self._bar is not None:
                self._bar.close()
            self._board.close()
            self._stream.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All JSON lines of a run, in order; a half-written last line is left out."""
    return _read_lines(RunFolder(run).metrics)


def read_heldout(run: Path) -> list[dict[str, Any]]:
    """The looks at held-out samples of a run, as `read_metrics`."""
    return _read_lines(RunFolder(run).heldout)


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


def _cut_after(file: Path, step: int) -> None:
    if not file.is_file():
        return
    kept = [line for line in _read_lines(file) if line["step"] <= step]
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat.append((f"{prefix}{key}", float(value)))
    return flat
