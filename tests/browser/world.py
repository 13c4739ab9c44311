"""Provides an image with colored rectangles at known places, and a teacher that answers from its pixels.

The teacher uses only what the server passes to the model: the small image, the question and the earlier turns. The
browser therefore shows correct answers only if all of these arrived.
"""

from __future__ import annotations

import re

import numpy as np
from PIL import Image, ImageDraw

from minigptv2.boxes import Box, parse_boxes, render_box
from minigptv2.predict.requests import Request
from minigptv2.tasks import GroundedPhrase, segments, task_of

SIZE = (640, 480)
COLORS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (20, 160, 60)}
PLACES = {"red": Box(60, 45, 200, 240), "blue": Box(380, 90, 580, 195), "green": Box(260, 315, 440, 435)}
"""In pixels of the picture, at whole pixels of the 32 x 32 that a tiny model sees."""


def draw_picture() -> Image.Image:
    """Three rectangles on gray."""
    picture = Image.new("RGB", SIZE, (200, 200, 200))
    pen = ImageDraw.Draw(picture)
    for color, box in PLACES.items():
        pen.rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), fill=COLORS[color])
    return picture


def find(image: Image.Image, color: str) -> Box | None:
    """The box, in pixels of `image`, of everything near `color`."""
    near = np.abs(np.asarray(image, dtype=int) - COLORS[color]).sum(-1) < 150
    if not near.any():
        return None
    ys, xs = np.nonzero(near)
    return Box(float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))


def teacher(request: Request) -> str:
    """The correct answer, from the pixels of the image and the earlier turns."""
    question, task = request.question, task_of(request.question).name
    if not request.images:
        return "I see no picture."
    image = request.images[0]
    if "long story" in question:
        return " ".join(["red blue green"] * 60)
    if task == "refer":
        box = find(image, _color_in(question))
        return render_box(box, *image.size) if box else "not there"
    if task in ("grounding", "detection"):
        found = [(color, find(image, color)) for color in COLORS]
        return " and ".join(f"<p>the {color} one</p> {render_box(box, *image.size)}" for color, box in found if box)
    if task == "identify":
        return f"the {_color_at(image, parse_boxes(question, *image.size)[0])} one"
    if "where is it" in question and request.history:
        box = find(image, _color_in(request.history[-1][1]))
        return render_box(box, *image.size) if box else "not there"
    return f"you asked about {_color_in(question)}"


def _color_in(text: str) -> str:
    if match := re.search("|".join(COLORS), text):
        return match[0]
    return "red"


def _color_at(image: Image.Image, box: Box) -> str:
    center = image.getpixel((int((box.x1 + box.x2) / 2), int((box.y1 + box.y2) / 2)))
    return min(COLORS, key=lambda color: sum(abs(a - b) for a, b in zip(COLORS[color], center, strict=True)))  # type: ignore[arg-type]


def first_box(answer: str) -> GroundedPhrase:
    """The first phrase or box of an answer, in pixels of the picture."""
    return next(piece for piece in segments(answer, *SIZE) if isinstance(piece, GroundedPhrase))
