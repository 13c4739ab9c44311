"""Draws boxes with labels on images. Boxes are in pixels of the image, and the colors are the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from minigptv2.boxes import Box

Color = tuple[int, int, int]

TRUE_COLOR: Color = (46, 204, 64)
QUERY_COLOR: Color = (255, 255, 255)
PREDICTED_COLORS: tuple[Color, ...] = (
    (255, 65, 54),
    (0, 116, 217),
    (255, 133, 27),
    (177, 13, 201),
    (240, 18, 190),
    (61, 153, 112),
)
MIN_SIDE = 320
"""Images with a shorter longest side are enlarged to this many pixels before drawing, so that lines stay thin."""


class BoxLayer(NamedTuple):
    """Boxes with their labels, drawn in one color, or in one color per label if `color` is None."""

    boxes: Sequence[tuple[Box, str]]
    color: Color | None = None


def phrase_colors(phrases: Iterable[str]) -> dict[str, Color]:
    """A color for each distinct phrase, in the order of their first occurrence. Colors repeat after the last one."""
    return {
        phrase: PREDICTED_COLORS[number % len(PREDICTED_COLORS)] for number, phrase in enumerate(dict.fromkeys(phrases))
    }


def enlarge(image: Image.Image, min_side: int = MIN_SIDE) -> tuple[Image.Image, float]:
    """A copy of the image with its longest side at least `min_side` pixels, and the scale factor."""
    longest = max(image.size)
    if longest >= min_side:
        return image.convert("RGB").copy(), 1.0
    factor = min_side / longest
    size = (round(image.width * factor), round(image.height * factor))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC), factor


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[tuple[Box, str]],
    *,
    min_side: int = MIN_SIDE,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """A copy of `image` with each (box, phrase) drawn. Boxes of one phrase share a color.

    An empty phrase gets no label. A small image is enlarged to `min_side` pixels on its longest side. `size` is the
    width and height in which boxes are given, if it is not that of the image.
    """
    return draw_layers(image, [BoxLayer(boxes)], min_side=min_side, size=size)


def draw_layers(
    image: Image.Image,
    layers: Sequence[BoxLayer],
    *,
    min_side: int = MIN_SIDE,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """A copy of `image` with several layers of boxes drawn, the last one on top. Otherwise as `draw_boxes`."""
    canvas, factor = enlarge(image, min_side)
    width, height = size or image.size
    across, down = factor * image.width / width, factor * image.height / height
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(11, min(canvas.size) // 24))
    thickness = max(2, min(canvas.size) // 120)
    for boxes, color in layers:
        colors = phrase_colors(phrase for _, phrase in boxes)
        for box, phrase in boxes:
            ink = color or colors[phrase]
            x1, y1, x2, y2 = across * box.x1, down * box.y1, across * box.x2, down * box.y2
            left, top = min(x1, x2), min(y1, y2)  # a predicted box can be inverted
            pen.rectangle((left, top, max(x1, x2), max(y1, y2)), outline=ink, width=thickness)
            if phrase:
                _label(pen, phrase, (left, top), ink, font)
    return canvas


def _label(
    pen: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    ink: Color,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Draw `text` on a background of color `ink`, above the corner if there is space, else below it."""
    x, y = corner
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    y = y - height if y >= height else y
    pen.rectangle((x, y, x + width, y + height), fill=ink)
    pen.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255), font=font)
