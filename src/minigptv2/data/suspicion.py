"""Boxes that look as if they were written in another way: x, y, width, height; y before x; on another scale.

A wrong format passes every check of a single box: only many boxes together give it away. Each rule has the share of
boxes that would have to be otherwise; a corpus is suspicious where too few are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minigptv2.boxes import Box
from minigptv2.record import Record

MIN_BOXES = 20
"""Fewer boxes of a corpus say nothing."""


@dataclass(frozen=True, slots=True)
class SeenBox:
    """A box and the size of its image, in pixels."""

    box: Box
    width: int
    height: int


def boxes_of(record: Record) -> list[SeenBox]:
    """Every box of a record."""
    size = record.width or 1, record.height or 1
    return [SeenBox(box, *size) for turn in record.turns for region in turn.regions for box in region.boxes]


def suspicions(boxes: Iterable[SeenBox]) -> list[str]:
    """Why the boxes of a corpus, together, look wrong; empty where they look right or are too few."""
    seen = list(boxes)
    if len(seen) < MIN_BOXES:
        return []
    found = []
    for words, share, rule in _RULES:
        hits = sum(map(rule, seen))
        if hits > share * len(seen):
            found.append(f"{words} ({hits} of {len(seen)} boxes)")
    if not found and (moved := _as_sizes(seen)):
        found.append(moved)
    if not found and (turned := _as_y_first(seen)):
        found.append(turned)
    return found


def _unit(seen: SeenBox) -> bool:
    return max(seen.box.x2, seen.box.y2) <= 1.0


def _on_grid(side: int) -> Callable[[SeenBox], bool]:
    def rule(seen: SeenBox) -> bool:
        whole = all(float(value).is_integer() for value in (seen.box.x1, seen.box.y1, seen.box.x2, seen.box.y2))
        return whole and max(seen.box.x2, seen.box.y2) <= side and max(seen.width, seen.height) > 2 * side

    return rule


_RULES: tuple[tuple[str, float, Callable[[SeenBox], bool]], ...] = (
    ("coordinates are between 0 and 1: normalised, not pixels", 0.5, _unit),
    ("whole numbers up to 100 in far larger images: on the 0..100 grid, not pixels", 0.95, _on_grid(100)),
    ("whole numbers up to 1000 in far larger images: on a 0..1000 grid, not pixels", 0.95, _on_grid(1000)),
)


def _as_sizes(seen: list[SeenBox]) -> str | None:
    """True corners add up to less than the image's sides only for boxes in its upper left quarter; sizes always do."""
    fits = sum(s.box.x1 + s.box.x2 <= s.width and s.box.y1 + s.box.y2 <= s.height for s in seen)
    if fits > 0.95 * len(seen):
        return f"the boxes look like x, y, width, height ({fits} of {len(seen)} would fit as that)"
    return None


def _as_y_first(seen: list[SeenBox]) -> str | None:
    """True boxes use the long side of an image to its end; read y before x, they stay within the short one."""
    long = [s for s in seen if max(s.width, s.height) > 1.1 * min(s.width, s.height)]
    within = sum((s.box.x2 if s.width > s.height else s.box.y2) <= min(s.width, s.height) for s in long)
    if len(long) >= MIN_BOXES and within > 0.99 * len(long):
        return f"the boxes look like y before x ({within} of {len(long)} stay within the short side of their image)"
    return None
