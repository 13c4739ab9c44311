"""Draws the size that a file states of an image, and how it then gives a box of the upright image."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.corpora.fuzz.outcome import EXACT_PX, TOLERANCE_PX
from tests.corpora.fuzz.photos import Box4, Photo

UNKNOWN_SIZES: tuple[dict[str, Any], ...] = ({}, {"width": None, "height": None}, {"width": 0, "height": 0})


def draw_frame(rng: random.Random, photo: Photo) -> tuple[dict[str, Any], Callable[[Box4], Box4], float]:
    """The size that the file states, how it gives a box, and how exactly the box can come back."""
    kind = rng.choice(["unknown", "upright", "upright", "stored", "stored", "scaled"])
    size, place = (photo.width, photo.height), (lambda box: box)
    if kind == "unknown":
        return rng.choice(UNKNOWN_SIZES), place, EXACT_PX
    if photo.orientation >= 5 and kind == "stored":
        size, place = photo.stored, photo.box_in_stored
    factor = rng.choice([0.5, 2.0, 3.0, 10.0]) if kind == "scaled" else 1.0
    stated = {"width": round(size[0] * factor), "height": round(size[1] * factor)}
    if rng.random() < 0.2:
        stated = {key: float(value) for key, value in stated.items()}

    def to_file(box: Box4) -> Box4:
        x1, y1, x2, y2 = place(box)
        return x1 * factor, y1 * factor, x2 * factor, y2 * factor

    return stated, to_file, TOLERANCE_PX if kind == "scaled" else EXACT_PX
