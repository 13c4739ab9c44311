"""Samples that were left out: who, where, why. Every loss of data anywhere in the package is one of these."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

DROPPED_FILE = "dropped.jsonl"


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
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
