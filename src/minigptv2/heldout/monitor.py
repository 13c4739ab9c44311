"""Evaluates the held-out slice periodically during training: logs the metrics and exports the best model.

All methods are collectives: every rank calls them at the same step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigptv2.cluster import distributed
from minigptv2.cluster.watchdog import Watchdog
from minigptv2.errors import CheckpointError
from minigptv2.heldout.slice import EXPECTED_IOU, LOSS, HeldOutSlice, Metrics
from minigptv2.redacted_files import write_json
from minigptv2.run_folder import RunFolder
from minigptv2.tracking.log import RunLog


class PeriodicEvaluator:
    """Runs the evaluations of a training run.

    `export` writes the current model into a folder. `start` is the step the run resumes from: best values recorded
    after it are removed, so that the best model is that of a run without the interruption.
    """

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
        self._folder = RunFolder(run).best
        self._file = RunFolder(run).best_record
        self._export = export
        self._log = log
        self._watch = watch
        if heldout.best is not None:
            name = heldout.best.name
            heldout.best.value = distributed.on_main(lambda: best_until(self._file, name, start))

    def losses(self, step: int) -> dict[str, Any]:
        """Held-out losses as metrics of the log line after `step`. Empty without a held-out slice."""
        self._watch.set_phase(f"held-out losses after step {step}")
        metrics = self._heldout.losses()
        if not metrics:
            return {}
        self._log.line(f"held-out: {describe(metrics)}")
        return {"heldout": metrics}

    def evaluate(self, step: int) -> None:
        """Answer, score, draw and log the held-out slice. Export the model if the metric to keep improved."""
        self._watch.set_phase(f"evaluation after step {step}")
        result, best = self._heldout.evaluate(), self._heldout.best
        if result.metrics:
            self._log.line(f"held-out answers: {describe(result.metrics)}")
            self._log.heldout(step, {"answers": result.metrics})
        self._log.images(step, result.images)
        if best is None:
            return
        metrics = result.metrics
        if best.metric in (LOSS, EXPECTED_IOU):  # not a metric of answers; losses() is a collective on all ranks
            losses = self._heldout.losses()
            metrics = {corpus: {**metrics.get(corpus, {}), **losses[corpus]} for corpus in losses}
        if distributed.on_main(lambda: best.update(metrics)):
            self._export(self._folder)
            if distributed.is_main():
                _append(self._file, {"step": step, "metric": best.name, "value": best.value})
                self._log.line(f"new best {best.name}: {best.value:.4f}, exported to {self._folder}")
            distributed.barrier()


def best_until(file: Path, name: str, step: int) -> float | None:
    """The best value of metric `name` recorded in `best.json` up to `step`, or None. Later entries are removed."""
    kept = [entry for entry in _read(file) if entry["step"] <= step and entry["metric"] == name]
    if file.is_file():
        write_json(file, kept)
    return kept[-1]["value"] if kept else None


def describe(metrics: Metrics) -> str:
    """Metrics by corpus in one line."""
    parts = []
    for corpus, of_corpus in metrics.items():
        values = " ".join(f"{name} {value:.3f}" for name, value in of_corpus.items() if name != "samples")
        parts.append(f"{corpus} {values}")
    return "  ".join(parts)


def _append(file: Path, entry: dict[str, Any]) -> None:
    write_json(file, [*_read(file), entry])


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"cannot read {file}: {error}. Remove the file to start without a best value.") from error
    return entries
