"""Compares two evaluations of the same questions: differences, their significance, and changed answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.errors import DataError
from minigptv2.evaluate.metrics.statistics import Difference, paired_difference
from minigptv2.evaluate.runner import PREDICTIONS_FILE
from minigptv2.redacted_files import json_text

SIGNIFICANT = 0.05
_CORRECT = 0.5
"""A score above this counts as correct when changed answers are counted."""


@dataclass(frozen=True)
class Comparison:
    """A benchmark of two runs, over the questions that both answered. Scores are shares, 0..1 (CIDEr 0..10)."""

    benchmark: str
    questions: int
    a: float
    b: float
    difference: Difference
    gained: list[dict[str, Any]] = field(default_factory=list)
    """Questions that only the second run answered correctly: id, question, truth, both answers, both scores."""
    lost: list[dict[str, Any]] = field(default_factory=list)
    """Questions that only the first run answered correctly."""


def compare_runs(run_a: Path, run_b: Path) -> list[Comparison]:
    """A comparison for each benchmark in both folders. Raises `DataError` if there is none, or no common question."""
    files_a, files_b = _predictions(run_a), _predictions(run_b)
    common = [name for name in files_a if name in files_b]
    if not common:
        raise DataError(
            f"nothing to compare: {run_a} contains {_names(files_a)}, and {run_b} contains {_names(files_b)}. The same "
            "benchmark must be in both."
        )
    return [_compare(name, files_a[name], files_b[name]) for name in common]


def render(comparisons: list[Comparison], *, flips: int = 5) -> str:
    """The table for the terminal: a line per benchmark, then up to `flips` changed answers in each direction."""
    lines = [
        f"{'benchmark':<26}{'A':>8}{'B':>8}{'B - A':>9}  {'95 % interval':<19}{'p':>8}{'gained':>8}{'lost':>6}"
        f"{'questions':>11}"
    ]
    for one in comparisons:
        d = one.difference
        ends = f"{100 * d.low:+.2f} .. {100 * d.high:+.2f}"
        verdict = "" if d.p < SIGNIFICANT else "  not significant"
        lines.append(
            f"{one.benchmark:<26}{100 * one.a:>8.2f}{100 * one.b:>8.2f}{100 * d.mean:>+9.2f}  {ends:<19}{d.p:>8.4f}"
            f"{len(one.gained):>8}{len(one.lost):>6}{one.questions:>11}{verdict}"
        )
    for one in comparisons:
        for title, flipped in (("gained", one.gained), ("lost", one.lost)):
            for row in flipped[:flips]:
                lines.append(
                    f"{one.benchmark} {title}: {row['question']}  true: {row['truth']}  A: {row['a']}  B: {row['b']}"
                )
    return "\n".join(lines)


def as_json(comparisons: list[Comparison]) -> str:
    """The comparisons as JSON, with all changed answers."""
    rows = [{**one.__dict__, "difference": one.difference.__dict__} for one in comparisons]
    return json_text(rows) + "\n"


def _predictions(run: Path) -> dict[str, Path]:
    """Benchmark name to predictions file, for all benchmarks in a folder."""
    files = sorted(run.rglob(PREDICTIONS_FILE)) if run.is_dir() else []
    return {str(file.parent.relative_to(run)): file for file in files}


def _names(files: dict[str, Path]) -> str:
    return ", ".join(files) or "no predictions"


def _compare(name: str, file_a: Path, file_b: Path) -> Comparison:
    rows_a, rows_b = _rows(file_a), _rows(file_b)
    ids = [one for one in rows_a if one in rows_b]
    if not ids:
        raise DataError(f"{file_a} and {file_b} have no question in common")
    protocols = [rows[ids[0]].get("protocol") for rows in (rows_a, rows_b)]
    if protocols[0] != protocols[1] and None not in protocols:
        raise DataError(
            f"{file_a} was measured under the protocol {protocols[0]} and {file_b} under {protocols[1]}. Evaluate both "
            "with the same --protocol."
        )
    for one in ids:
        if rows_a[one]["truth"] != rows_b[one]["truth"]:
            raise DataError(f"{file_a} and {file_b}: question {one} has different true answers")
    a, b = ([float(rows[one]["score"]) for one in ids] for rows in (rows_a, rows_b))
    difference = paired_difference(a, b, groups=[rows_a[one]["picture"] for one in ids])
    flips: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for one, score_a, score_b in zip(ids, a, b, strict=True):
        if (score_a > _CORRECT) != (score_b > _CORRECT):
            row_a, row_b = rows_a[one], rows_b[one]
            flips[score_b > score_a].append(
                {
                    "id": one,
                    "question": row_a["question"],
                    "truth": row_a["truth"],
                    "a": row_a["answer"],
                    "b": row_b["answer"],
                    "scores": [score_a, score_b],
                }
            )
    return Comparison(name, len(ids), sum(a) / len(a), sum(b) / len(b), difference, flips[True], flips[False])


def _rows(file: Path) -> dict[str, dict[str, Any]]:
    try:
        lines = file.read_bytes().split(b"\n")  # not splitlines: an answer may contain other line separators
        rows = [json.loads(line) for line in lines if line]
        return {str(row["id"]): row for row in rows if (row["score"], row["truth"], row["picture"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not a predictions file of `minigptv2 evaluate`: {error}") from error
