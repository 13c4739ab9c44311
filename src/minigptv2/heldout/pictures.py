"""What the model sees and says, drawn: true boxes in green, predicted ones in the colours of their phrases."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from minigptv2.boxes import Box
from minigptv2.draw import TRUE_COLOR, draw_boxes, enlarge
from minigptv2.heldout.samples import HeldOut
from minigptv2.record import Turn
from minigptv2.tasks import TASKS

TILE = 240
_CAPTION_LINES = 5


def true_boxes(turn: Turn) -> list[Box]:
    """All boxes that a right answer speaks of, in pixels."""
    if TASKS[turn.task].answer == "text":
        return []
    return [box for region in turn.regions for box in region.boxes]


def picture_of(item: HeldOut, answer: str) -> Image.Image:
    """The image with the true boxes (green) and those of `answer`; a question's own box is drawn white."""
    base = item.image if item.image is not None else Image.new("RGB", (TILE, TILE), (235, 235, 235))
    if item.image is None:
        return base
    canvas, factor = enlarge(base, TILE)
    if TASKS[item.turn.task].query == "box":
        asked = [(_scaled(box, factor), "") for box in item.turn.regions[0].boxes]
        canvas = draw_boxes(canvas, asked, color=(255, 255, 255), min_side=TILE)
    truth = [(_scaled(box, factor), "") for box in true_boxes(item.turn)]
    canvas = draw_boxes(canvas, truth, color=TRUE_COLOR, min_side=TILE)
    parsed = TASKS[item.turn.task].parse(answer, item.width, item.height)
    predicted = [(_scaled(box, factor), "") for box in parsed.boxes]
    return draw_boxes(canvas, predicted, min_side=TILE) if predicted else canvas


def tile(item: HeldOut, answer: str) -> Image.Image:
    """`picture_of` squashed into a TILE-wide card with question, answer and truth written beneath."""
    picture = picture_of(item, answer)
    height = round(TILE * picture.height / picture.width)
    card = Image.new("RGB", (TILE, TILE + 16 * _CAPTION_LINES + 6), (255, 255, 255))
    shown = picture.resize((TILE, min(TILE, height)), Image.Resampling.BICUBIC)
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


def grid(cards: list[Image.Image], columns: int = 6) -> Image.Image:
    """Cards of one size side by side."""
    width, height = cards[0].size
    rows = -(-len(cards) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    for number, card in enumerate(cards):
        sheet.paste(card, (number % columns * width, number // columns * height))
    return sheet


def _scaled(box: Box, factor: float) -> Box:
    return Box(box.x1 * factor, box.y1 * factor, box.x2 * factor, box.y2 * factor)


def _wrap(text: str, columns: int = 40) -> list[str]:
    import textwrap

    return textwrap.wrap(text, columns) or [""]
