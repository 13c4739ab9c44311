"""Looks at the held-out slice while a run goes on: into the log, and the best model into a folder. All collectives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigptv2.cluster import distributed
from minigptv2.cluster.watchdog import Watchdog
from minigptv2.errors import CheckpointError
from minigptv2.files import write_atomically
from minigptv2.heldout.slice import EXPECTED_IOU, LOSS, Figures, HeldOutSlice
from minigptv2.tracking.log import RunLog

BEST_FOLDER, BEST_FILE = "best", "best.json"


class Looks:
    """`export` writes the model as it is into a folder. `start`: the step the run goes on from: what an interrupted
    run saw after it is forgotten, so that the best is that of the run as if it had never stopped."""

    def __init__(
        self,
        heldout: HeldOutSlice,
        run: Path,
        export: Callable[[Path], Path],
        log: RunLog,
        watch: Watchdog,
        *,
        start: int,
    ) -> None:
        self._heldout = heldout
        self._folder = run / BEST_FOLDER
        self._file = run / BEST_FILE
        self._export = export
        self._log = log
        self._watch = watch
        if heldout.best is not None:
            name = heldout.best.name
            heldout.best.value = distributed.on_main(lambda: best_until(self._file, name, start))

    def losses(self, step: int) -> dict[str, Any]:
        """Held-out losses, as metrics of the log line after `step`; nothing where there is no slice."""
        self._watch.at(f"held-out losses after step {step}")
        figures = self._heldout.losses()
        if not figures:
            return {}
        self._log.line(f"held-out: {describe(figures)}")
        return {"heldout": figures}

    def answers(self, step: int) -> None:
        """Answer, score and draw; keep an export if the named figure is the best so far."""
        self._watch.at(f"evaluation after step {step}")
        seen, best = self._heldout.look(), self._heldout.best
        if seen.figures:
            self._log.line(f"held-out answers: {describe(seen.figures)}")
            self._log.heldout(step, {"answers": seen.figures})
        self._log.pictures(step, seen.pictures)
        if best is None:
            return
        figures = seen.figures
        if best.name.partition("/")[2] in (LOSS, EXPECTED_IOU):  # of no answer; a collective, on all ranks alike
            losses = self._heldout.losses()
            figures = {corpus: {**figures.get(corpus, {}), **losses[corpus]} for corpus in losses}
        if distributed.on_main(lambda: best.better(figures)):
            self._export(self._folder)
            if distributed.is_main():
                _append(self._file, {"step": step, "metric": best.name, "value": best.value})
                self._log.line(f"best so far by {best.name}: {best.value:.4f}, kept in {self._folder}")
            distributed.barrier()


def best_until(file: Path, name: str, step: int) -> float | None:
    """The best value of figure `name` seen up to `step`, as `best.json` tells; None if nothing was kept by then."""
    kept = [row for row in _read(file) if row["step"] <= step and row["metric"] == name]
    if file.is_file():
        write_atomically(file, json.dumps(kept, indent=1).encode())
    return kept[-1]["value"] if kept else None


def describe(figures: Figures) -> str:
    """Figures by corpus in one line."""
    parts = []
    for corpus, of_corpus in figures.items():
        values = " ".join(f"{name} {value:.3f}" for name, value in of_corpus.items() if name != "samples")
        parts.append(f"{corpus} {values}")
    return "  ".join(parts)


def _append(file: Path, row: dict[str, Any]) -> None:
    write_atomically(file, json.dumps([*_read(file), row], indent=1).encode())


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}; remove it to forget the best so far") from error
    return rows
