"""Boxes against boxes: overlap in both conventions, matching, sizes. Pixels in, shares out."""

from __future__ import annotations

from enum import StrEnum

from minigptv2.boxes import Box, iou

IOU_THRESHOLD = 0.5
"""A box is right when it overlaps the true one by more than this (arXiv:2310.09478, section 4)."""
SMALL, LARGE = 32.0**2, 96.0**2
"""Areas in square pixels between small and medium, medium and large, as COCO divides them."""


class Convention(StrEnum):
    """How a box's extent is counted. `inclusive`: both edge pixels belong to it, as the published script counts."""

    INCLUSIVE = "inclusive"
    EXACT = "exact"


def overlap(a: Box, b: Box, convention: Convention = Convention.INCLUSIVE) -> float:
    """Intersection over union, 0..1, of two boxes in pixels. An inverted or empty box overlaps nothing."""
    if a.x2 <= a.x1 or a.y2 <= a.y1 or b.x2 <= b.x1 or b.y2 <= b.y1:
        return 0.0
    if convention is Convention.EXACT:
        return iou(a, b)
    width = min(a.x2, b.x2) - max(a.x1, b.x1) + 1
    height = min(a.y2, b.y2) - max(a.y1, b.y1) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = ((box.x2 - box.x1 + 1) * (box.y2 - box.y1 + 1) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def match_boxes(said: tuple[Box, ...], meant: tuple[Box, ...],
                convention: Convention = Convention.EXACT) -> list[float]:  # fmt: skip
    """Overlap of each true box with the said box it is matched to, best pairs first, each said box used once; 0 if
    none."""
    pairs = sorted(
        ((overlap(s, m, convention), i, j) for i, s in enumerate(said) for j, m in enumerate(meant)), reverse=True
    )
    best = [0.0] * len(meant)
    used_said: set[int] = set()
    used_meant: set[int] = set()
    for value, i, j in pairs:
        if i not in used_said and j not in used_meant:
            best[j] = value
            used_said.add(i)
            used_meant.add(j)
    return best


def size_name(box: Box) -> str:
    """`small`, `medium` or `large`."""
    return "small" if box.area < SMALL else "medium" if box.area < LARGE else "large"
