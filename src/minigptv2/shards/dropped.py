"""Records dropped samples: which, where and why. Reports them, and stops a run that drops too many."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from minigptv2.errors import DataError
from minigptv2.redacted_files import append_json_lines, json_lines, json_text, write_text
from minigptv2.run_folder import RunFolder

DROPPED_FILE = "dropped.jsonl"
"""Dropped annotations and samples, in the folder of a corpus."""
_RATE_COUNTS_FROM = 1000
"""A rate is computed over at least so many samples, so that a first bad sample is not a rate of 100 %."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """One dropped sample, or `count` annotations of one. `shard` is empty if it was dropped before it had one."""

    corpus: str
    shard: str
    key: str
    reason: str
    count: int = 1

    def __str__(self) -> str:
        place = " / ".join(part for part in (self.shard or self.corpus, self.key) if part)
        return f"{place}: {self.reason}"

    def to_json(self, **more: object) -> str:
        """One line of a report."""
        return json_text({**more, **asdict(self)}, indent=None)


def summarize(dropped: Iterable[Dropped]) -> dict[str, int]:
    """Counts by reason, largest first.

    Reasons that differ only in digits and quoted words count together, and these are then masked.
    """
    import re

    counts: Counter[str] = Counter()
    reasons: dict[str, set[str]] = {}
    for one in dropped:
        masked = re.sub(r"(UTF-\d+)|'[^']*'|\d+(\.\d+)?", lambda found: found[1] or "…", one.reason)
        counts[masked] += one.count
        reasons.setdefault(masked, set()).add(one.reason)
    alike = {masked: min(found) for masked, found in reasons.items() if len(found) == 1}
    return {alike.get(masked, masked): count for masked, count in counts.most_common()}


def read_report(file: Path) -> list[dict[str, object]]:
    """The lines of a report, or none if the file does not exist."""
    if not file.is_file():
        return []
    lines = file.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]  # without an incomplete last line


class TooManyDropped(DataError):
    """A run dropped more samples than its recipe tolerates. `dropped` are those of the last step."""

    def __init__(self, message: str, dropped: list[Dropped]) -> None:
        super().__init__(message)
        self.dropped = dropped


class DropLimit:
    """Counts good and bad samples of one rank in the plan's order, and stops a run that drops too many.

    The limits are `max_in_a_row` bad samples without a good one between them, and a share of more than `max_rate` of
    all samples (of at least 1,000).
    """

    def __init__(self, max_in_a_row: int, max_rate: float) -> None:
        self.max_in_a_row, self.max_rate = max_in_a_row, max_rate
        self.seen = self.bad = self.in_a_row = 0

    def judge(self, outcomes: Iterable[bool], dropped: list[Dropped]) -> None:
        """Count one step. `outcomes`: whether each sample was good. `dropped`: examples for `TooManyDropped`."""
        for good in outcomes:
            self.seen += 1
            self.bad += not good
            self.in_a_row = 0 if good else self.in_a_row + 1
            if self.in_a_row >= self.max_in_a_row:
                self._stop(f"{self.in_a_row} bad samples in a row (the recipe's max_bad_in_a_row)", dropped)
        if self.bad > self.max_rate * max(self.seen, _RATE_COUNTS_FROM):
            rate = f"{self.bad} of {self.seen} samples were bad, more than the recipe's max_bad_rate={self.max_rate:g}"
            self._stop(rate, dropped)

    def _stop(self, limit: str, dropped: list[Dropped]) -> None:
        last = f", last {dropped[-1]}" if dropped else ""
        verify = "Check the data with `minigptv2 shards verify`"
        raise TooManyDropped(f"{limit}{last}. {verify}", dropped)


def _append(file: Path, rows: list[tuple[int, int, Dropped]]) -> None:
    append_json_lines(file, ({"step": step, "rank": rank, **asdict(dropped)} for step, rank, dropped in rows))


def save_unreported_drops(run: Path, dropped_samples: Iterable[tuple[int, int, Dropped]]) -> None:
    """Write (step, rank, sample) rows that a stopping rank had not sent to the main rank to `dropped.rank<n>.jsonl`."""
    for rank, rows in groupby(dropped_samples, key=lambda row: row[1]):
        _append(RunFolder(run).dropped_of_rank(rank), list(rows))


class DropReport:
    """`dropped.jsonl` of a run: one line per dropped sample, with the step. Only the main rank writes it.

    A resumed run removes lines after `step`, since those steps are trained, and their samples dropped, again.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.file = RunFolder(run).dropped
        kept = [row for row in read_report(self.file) if int(str(row["step"])) <= step]
        self.count = len(kept)
        if self.file.exists():
            write_text(self.file, json_lines(kept))

    def add(self, dropped_samples: Iterable[tuple[int, int, Dropped]]) -> None:
        """Append (step, rank, sample) rows, sorted by step and rank."""
        rows = sorted(dropped_samples, key=lambda row: row[:2])
        if not rows:
            return
        _append(self.file, rows)
        self.count += len(rows)
