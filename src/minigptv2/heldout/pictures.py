"""Draws held-out questions with true and predicted boxes, as images, tiles of a grid and cards of an HTML page."""

from __future__ import annotations

import base64
import html
import io
import textwrap

from PIL import Image, ImageDraw, ImageFont

from minigptv2.draw import QUERY_COLOR, TRUE_COLOR, BoxLayer, draw_layers
from minigptv2.heldout.samples import HeldOutQuestion
from minigptv2.tasks import TASKS

TILE = 240
"""Width of a tile in pixels."""
_CAPTION_LINES = 5
_NO_IMAGE = (235, 235, 235)
_JPEG_QUALITY = 88

CARD_STYLE = """
.card { display: inline-block; width: 270px; margin: .4em; vertical-align: top; overflow-wrap: anywhere }
.q { color: #666 } .a { font-weight: 600 } .t { color: #965 } .f { color: #888; font-size: 13px }
"""
"""CSS of `html_card`."""


def draw_question(item: HeldOutQuestion, answer: str) -> Image.Image:
    """The image with the true boxes in green, those of `answer` in another color, and the question's own box in white.

    A question without an image gives an empty gray tile.
    """
    if item.image is None:
        return Image.new("RGB", (TILE, TILE), _NO_IMAGE)
    task = TASKS[item.turn.task]
    boxes = [box for region in item.turn.regions for box in region.boxes]
    predicted = task.parse(answer, item.width, item.height).boxes
    layers = (
        BoxLayer([(box, "") for box in boxes if task.query == "box"], QUERY_COLOR),
        BoxLayer([(box, "") for box in boxes if task.answer != "text"], TRUE_COLOR),
        BoxLayer([(box, "") for box in predicted]),
    )
    return draw_layers(_in_proportion(item.image, item.width, item.height), layers, min_side=TILE, size=item.size)


def _in_proportion(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image with the sides of `width` x `height`, at most as large as it is: it may be stored as a square."""
    factor = min(1.0, max(image.size) / max(width, height))
    size = max(1, round(factor * width)), max(1, round(factor * height))
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def tile(item: HeldOutQuestion, answer: str) -> Image.Image:
    """`draw_question` resized to the width of a tile, with question, answer and true answer written below."""
    drawn = draw_question(item, answer)
    height = round(TILE * drawn.height / drawn.width)
    card = Image.new("RGB", (TILE, TILE + 16 * _CAPTION_LINES + 6), (255, 255, 255))
    shown = drawn.resize((TILE, min(TILE, height)), Image.Resampling.BICUBIC)
    card.paste(shown, (0, (TILE - shown.height) // 2))
    pen = ImageDraw.Draw(card)
    font = ImageFont.load_default(size=11)
    lines = [*_wrap(item.question)[:2], *_wrap("> " + answer)[:2]]
    if item.answer != answer:
        lines += _wrap("true: " + item.answer)[:1]
    for number, line in enumerate(lines[:_CAPTION_LINES]):
        color = (0, 0, 0) if line.startswith(">") else (150, 80, 0) if line.startswith("true:") else (90, 90, 90)
        pen.text((4, TILE + 3 + 16 * number), line, fill=color, font=font)
    return card


def grid(tiles: list[Image.Image], columns: int = 6) -> Image.Image:
    """Tiles of one size in rows of `columns`."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    for number, one in enumerate(tiles):
        sheet.paste(one, (number % columns * width, number // columns * height))
    return sheet


def html_card(item: HeldOutQuestion, answer: str, note: str = "") -> str:
    """A card of an HTML page: the drawn image, the question, the answer, the true answer if it differs, and `note`."""
    image = html_image(draw_question(item, answer)) if item.image is not None else ""
    truth = "" if answer == item.answer else f"<div class='t'>true: {_escaped(item.answer)}</div>"
    footer = f"<div class='f'>{_escaped(note)}</div>" if note else ""
    return (
        f"<div class='card'>{image}<div class='q'>{_escaped(item.question)}</div>"
        f"<div class='a'>{_escaped(answer)}</div>{truth}{footer}</div>"
    )


def html_image(image: Image.Image) -> str:
    """An `img` element that contains the image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"<img src='data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def _escaped(text: str) -> str:
    return html.escape(textwrap.shorten(text, 400, placeholder=" ..."))


def _wrap(text: str, columns: int = 40) -> list[str]:
    return textwrap.wrap(text, columns) or [""]
