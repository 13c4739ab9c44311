"""Boxes drawn on pictures, with their phrases. Pixels in, pixels out; the colours are the same everywhere."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from minigptv2.boxes import Box

TRUE_COLOR = (46, 204, 64)
PREDICTED_COLORS = ((255, 65, 54), (0, 116, 217), (255, 133, 27), (177, 13, 201), (240, 18, 190), (61, 153, 112))
MIN_SIDE = 320
"""Smaller pictures are enlarged to this many pixels on the longer side before drawing, so that lines stay thin."""


def enlarge(image: Image.Image, min_side: int = MIN_SIDE) -> tuple[Image.Image, float]:
    """The picture with its longer side at least `min_side`, and the factor it was enlarged by."""
    longest = max(image.size)
    if longest >= min_side:
        return image.convert("RGB").copy(), 1.0
    factor = min_side / longest
    size = (round(image.width * factor), round(image.height * factor))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC), factor


def draw_boxes(
    image: Image.Image,
    boxes: list[tuple[Box, str]],
    *,
    color: tuple[int, int, int] | None = None,
    min_side: int = MIN_SIDE,
) -> Image.Image:
    """A copy of `image` with each (box in its pixels, phrase) drawn; boxes of one phrase share a colour.

    `color` overrides the colours by phrase. An empty phrase gets no label.
    """
    canvas, factor = enlarge(image, min_side)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(11, min(canvas.size) // 24))
    width = max(2, min(canvas.size) // 120)
    phrases = list(dict.fromkeys(phrase for _, phrase in boxes))
    for box, phrase in boxes:
        ink = color or PREDICTED_COLORS[phrases.index(phrase) % len(PREDICTED_COLORS)]
        x1, y1, x2, y2 = (factor * c for c in (box.x1, box.y1, box.x2, box.y2))
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=ink, width=width)
        if phrase:
            _label(pen, phrase, min(x1, x2), min(y1, y2), ink, font)
    return canvas


def _label(
    pen: ImageDraw.ImageDraw,
    text: str,
    x: float,
    y: float,
    ink: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    y = y - height if y >= height else y
    pen.rectangle((x, y, x + width, y + height), fill=ink)
    pen.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255), font=font)
