"""Defines boxes: in pixels, as text, and how two boxes overlap.

This module is the only owner of the box syntax `{<x1><y1><x2><y2>}` on a 0..100 grid (arXiv:2310.09478, section 2). A
`Box` is always in pixels of the original image, before it is resized to the model's square. A box in text is in grid
units.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

GRID = 100
"""The number of grid cells per side: coordinates in text are 0..GRID."""

BOX_DELIMITER = "<delim>"
"""The text between the boxes of one phrase."""

_NUMBER = re.compile(r"\d+")
_BOX_TEXT = re.compile(r"\{<(\d{1,3})><(\d{1,3})><(\d{1,3})><(\d{1,3})>\}")


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box in pixels of the original image: left, top, right, bottom."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __reduce__(self) -> tuple[type[Box], tuple[float, ...]]:  # as in `record.Turn`
        return Box, (self.x1, self.y1, self.x2, self.y2)

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    @property
    def is_upright(self) -> bool:
        """Whether the box is neither inverted nor empty."""
        return self.x1 < self.x2 and self.y1 < self.y2

    def problem(self, width: int, height: int) -> str | None:
        """Why this is not a valid box of an image of `width` x `height` pixels, or None if it is."""
        values = (self.x1, self.y1, self.x2, self.y2)
        if not all(map(math.isfinite, values)):
            return "is not finite"
        if self.x1 >= self.x2 or self.y1 >= self.y2:
            return "is empty or inverted (expected x1 < x2 and y1 < y2)"
        if self.x1 < 0 or self.y1 < 0 or self.x2 > width or self.y2 > height:
            return f"leaves the image ({width} x {height})"
        return None

    def guess(self, width: int, height: int) -> str:
        """A hint about the intended form of a box with a `problem`, or an empty string."""
        if max(self.x1, self.y1, self.x2, self.y2) <= 1:
            return "; it looks normalized to 0..1, but pixels are expected"
        readings = {
            "x, y, width, height": Box(self.x1, self.y1, self.x1 + self.x2, self.y1 + self.y2),
            "y1, x1, y2, x2": Box(self.y1, self.x1, self.y2, self.x2),
        }
        fits = [words for words, box in readings.items() if box.problem(width, height) is None]
        return f"; it would fit as {fits[0]}" if fits else ""

    def __str__(self) -> str:
        return f"({self.x1:g}, {self.y1:g}, {self.x2:g}, {self.y2:g})"


def render_box(box_px: Box, width: int, height: int) -> str:
    """The box as text. A grid coordinate is the integer part of GRID * coordinate / side, as published."""

    def grid(value: float, side: int) -> int:
        return min(GRID, max(0, int(GRID * value / side)))

    coordinates = (grid(box_px.x1, width), grid(box_px.y1, height), grid(box_px.x2, width), grid(box_px.y2, height))
    return "{" + "".join(f"<{c}>" for c in coordinates) + "}"


def render_boxes(boxes_px: list[Box] | tuple[Box, ...], width: int, height: int) -> str:
    """The boxes of one phrase as text, joined by the delimiter."""
    return BOX_DELIMITER.join(render_box(box, width, height) for box in boxes_px)


def parse_boxes(text: str, width: int, height: int) -> list[Box]:
    """All boxes in `text`, in order, in pixels of an image of `width` x `height` pixels.

    A box with a coordinate above GRID is left out. An inverted box is returned as it is, with an area of 0, so that a
    caller can distinguish it from a missing one.
    """
    boxes = []
    for match in _BOX_TEXT.finditer(text):
        x1, y1, x2, y2 = (int(c) for c in match.groups())
        if max(x1, y1, x2, y2) <= GRID:
            boxes.append(Box(x1 * width / GRID, y1 * height / GRID, x2 * width / GRID, y2 * height / GRID))
    return boxes


def leading_box(text: str, width: int, height: int) -> Box | None:
    """The box at the beginning of `text` in pixels, as the published evaluation reads it, or None.

    All spaces are removed first, inside the box too. Coordinates above GRID are allowed. Text may follow, but no more
    numbers: the script fails with them and does not count the answer.
    """
    tight = text.replace("<unk>", "").replace(" ", "").strip()
    match = _BOX_TEXT.match(tight)
    if match is None or len(_NUMBER.findall(tight)) != 4:
        return None
    x1, y1, x2, y2 = (int(c) for c in match.groups())
    return Box(x1 / GRID * width, y1 / GRID * height, x2 / GRID * width, y2 / GRID * height)


def is_box_text(text: str) -> bool:
    """Whether `text` is exactly one well-formed box: correct syntax, on the grid, neither empty nor inverted."""
    match = _BOX_TEXT.fullmatch(text.strip())
    if match is None:
        return False
    x1, y1, x2, y2 = (int(c) for c in match.groups())
    return x1 < x2 <= GRID and y1 < y2 <= GRID


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two pixel boxes, 0..1, by areas (without the +1 pixel of some published scripts)."""
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (a.area + b.area - intersection)


IOU_THRESHOLD = 0.5
"""A box is correct if its IoU with the true one exceeds this value (arXiv:2310.09478, section 4)."""
SMALL, LARGE = 32.0**2, 96.0**2
"""Areas in square pixels between small and medium, medium and large, as COCO divides them."""


class Convention(StrEnum):
    """How the extent of a box is counted.

    `inclusive`: both edge pixels belong to it. `published`: the same without a check of the order of the edges, as in
    the published script, so an empty box is one pixel wide. `exact`: by area.
    """

    INCLUSIVE = "inclusive"
    PUBLISHED = "published"
    EXACT = "exact"


def overlap(a: Box, b: Box, convention: Convention = Convention.INCLUSIVE) -> float:
    """Intersection over union, 0..1, of two boxes in pixels. An inverted or empty box overlaps nothing.

    By the published convention, an inverted or empty box can overlap a tiny one.
    """
    upright = a.is_upright and b.is_upright
    if not upright and convention is not Convention.PUBLISHED:
        return 0.0
    if convention is Convention.EXACT:
        return iou(a, b)
    width = min(a.x2, b.x2) - max(a.x1, b.x1) + 1
    height = min(a.y2, b.y2) - max(a.y1, b.y1) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = ((box.x2 - box.x1 + 1) * (box.y2 - box.y1 + 1) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def match_boxes(
    predictions: tuple[Box, ...], references: tuple[Box, ...], convention: Convention = Convention.EXACT
) -> list[float]:
    """The IoU of each reference box with its matched prediction, 0 if it has none.

    Pairs are matched greedily, highest IoU first. Each box is used once.
    """
    pairs = sorted(
        (
            (overlap(prediction, reference, convention), i, j)
            for i, prediction in enumerate(predictions)
            for j, reference in enumerate(references)
        ),
        reverse=True,
    )
    best = [0.0] * len(references)
    used_predictions: set[int] = set()
    used_references: set[int] = set()
    for value, i, j in pairs:
        if i not in used_predictions and j not in used_references:
            best[j] = value
            used_predictions.add(i)
            used_references.add(j)
    return best


def size_name(box: Box) -> str:
    """The size of a box as COCO divides them: `small`, `medium` or `large`."""
    return "small" if box.area < SMALL else "medium" if box.area < LARGE else "large"
