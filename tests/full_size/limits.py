"""Limits of each phase in seconds and GiB, so that a change that doubles a copy of the model is seen."""

from __future__ import annotations

from typing import NamedTuple


class Limit(NamedTuple):
    """The longest time of a phase, and the most memory that its processes may hold together."""

    seconds: float
    gib: float


TOTAL = Limit(3600, 22)
"""The whole life cycle at full size on two cores."""
FULL: dict[str, Limit] = {
    "write": Limit(300, 4),
    "convert": Limit(300, 6),
    "shards": Limit(60, 2),
    "train": Limit(900, 22),
    "resume_on_one": Limit(900, 22),
    "resume_on_two": Limit(900, 22),
    "convert_back": Limit(300, 4),
    "merge": Limit(300, 16),
    "predict": Limit(400, 18),
    "score": Limit(400, 18),
    "evaluate": Limit(600, 18),
}
"""The published sizes on two cores."""
SMALLER = Limit(600, 12)
"""Each phase with fewer layers."""
