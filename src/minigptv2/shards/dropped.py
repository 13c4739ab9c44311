"""Samples that were left out: who, where, why. Every loss of data anywhere in the package is one of these."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from minigptv2.errors import DataError
from minigptv2.secrets import redact

DROPPED_FILE = "dropped.jsonl"
_RATE_COUNTS_FROM = 1000
"""A rate is taken of at least so many samples, so that the first bad one is not a rate of 100 %."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """One lost sample, or `count` annotations of one. `shard` is empty where the loss came before there was one."""

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
        return json.dumps({**more, **asdict(self)}, ensure_ascii=False)


def summarize(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How many by reason, most first; digits and quoted words are masked, so that alike reasons count together."""
    import re

    counts: Counter[str] = Counter()
    for one in dropped:
        counts[re.sub(r"'[^']*'|\d+(\.\d+)?", "…", one.reason)] += one.count
    return dict(counts.most_common())


def read_report(file: Path) -> list[dict[str, object]]:
    """The lines of a report; none if there is no file."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):  # a half-written last line is left out
            rows.append(json.loads(line))
    return rows


class TooManyDropped(DataError):
    """A run loses more samples than its recipe tolerates. `dropped` are those of the step at which it did."""

    def __init__(self, message: str, dropped: list[Dropped]) -> None:
        super().__init__(message)
        self.dropped = dropped


class DropLimit:
    """Counts good and bad samples in the plan's order, as one rank sees them, and ends a run that loses too many.

    `max_in_a_row` bad ones without a good one between, or more than `max_rate` of all (of 1,000 at least).
    """

    def __init__(self, max_in_a_row: int, max_rate: float) -> None:
        self.max_in_a_row, self.max_rate = max_in_a_row, max_rate
        self.seen = self.bad = self.in_a_row = 0

    def judge(self, outcomes: Iterable[bool], dropped: list[Dropped]) -> None:
        """Count one step: whether each sample was good. Raises `TooManyDropped`; `dropped` gives an example."""
        for good in outcomes:
            self.seen += 1
            self.bad += not good
            self.in_a_row = 0 if good else self.in_a_row + 1
            if self.in_a_row >= self.max_in_a_row:
                self._stop(f"{self.in_a_row} bad samples in a row (the recipe's max_bad_in_a_row)", dropped)
        if self.bad > self.max_rate * max(self.seen, _RATE_COUNTS_FROM):
            rate = f"{self.bad} of {self.seen} samples were bad, over the recipe's max_bad_rate={self.max_rate:g}"
            self._stop(rate, dropped)

    def _stop(self, limit: str, dropped: list[Dropped]) -> None:
        last = f", last {dropped[-1]}" if dropped else ""
        verify = "The data or the code is broken: `minigptv2 shards verify` looks at the data"
        raise TooManyDropped(f"{limit}{last}. {verify}", dropped)


def _append(file: Path, rows: list[tuple[int, int, Dropped]]) -> None:
    with open(file, "a") as stream:
        stream.writelines(redact(f"{loss.to_json(step=step, rank=rank)}\n") for step, rank, loss in rows)


def save_unreported_drops(run: Path, losses: Iterable[tuple[int, int, Dropped]]) -> None:
    """What a rank that stops for its losses had not told the main one yet, in `dropped.rank<n>.jsonl` of the run."""
    for rank, rows in groupby(losses, key=lambda row: row[1]):
        _append(run / f"dropped.rank{rank}.jsonl", list(rows))


class DropReport:
    """`dropped.jsonl` of a run: a line per lost sample with the step that lost it. Written by the main rank alone.

    Over interruptions: what lies after `step` is cut from earlier writing, because it is trained and lost again.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.file = run / DROPPED_FILE
        kept = [row for row in read_report(self.file) if int(str(row["step"])) <= step]
        self.count = len(kept)
        if self.file.exists():
            self.file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    def add(self, losses: Iterable[tuple[int, int, Dropped]]) -> None:
        """Append (step, rank, loss) rows, in the order of steps and ranks."""
        rows = sorted(losses, key=lambda row: row[:2])
        if not rows:
            return
        _append(self.file, rows)
        self.count += len(rows)
