"""Writes and parses the answer markup `<p>phrase</p> {box}` (arXiv:2310.09478, section 2).

The only owner of this markup. `boxes` owns the syntax of a box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from minigptv2.boxes import BOX_DELIMITER, Box, is_box_text, parse_boxes, render_boxes

PHRASE_OPEN, PHRASE_CLOSE = "<p>", "</p>"

_BOXES = r"\{[^{}]*\}(?:" + re.escape(BOX_DELIMITER) + r"\{[^{}]*\})*"
_BARE_BOXES = re.compile(_BOXES)
_PHRASE = re.compile(
    re.escape(PHRASE_OPEN) + r"(?P<phrase>[^<]*)" + re.escape(PHRASE_CLOSE) + r"(?:\s*(?P<boxes>" + _BOXES + r"))?"
)
_BRACKET = re.compile(r"[<>{}]")
_UNFINISHED = re.compile(r"(?:" + re.escape(PHRASE_OPEN) + r"[^<]*(?:<[^>]*)?|\{[^}]*|<[^>]*)$")


@dataclass(frozen=True, slots=True)
class GroundedPhrase:
    """A phrase of an answer and its boxes in pixels. `phrase` is empty for a box without one."""

    phrase: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer: the words without markup, the phrases with boxes, and whether the syntax is the task's."""

    text: str
    grounded: tuple[GroundedPhrase, ...]
    well_formed: bool

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes of the answer, in the order of the text, in pixels."""
        return tuple(box for item in self.grounded for box in item.boxes)


def bracket_in(phrase: str) -> str:
    """The first bracket of the markup in a phrase, or an empty text. An answer with one cannot be parsed."""
    found = _BRACKET.search(phrase)
    return found[0] if found else ""


def render_phrase(phrase: str, boxes: tuple[Box, ...], width: int, height: int) -> str:
    """A phrase and its boxes as text, or the phrase alone if it has none. Pixels of the original image."""
    marked = f"{PHRASE_OPEN}{phrase}{PHRASE_CLOSE}"
    return f"{marked} {render_boxes(boxes, width, height)}" if boxes else marked


def parse_box(text: str, width: int, height: int) -> Answer:
    """An answer that should be exactly one box. All boxes in the text are returned, in pixels."""
    text = text.strip()
    boxes = parse_boxes(text, width, height)
    return Answer(text, (GroundedPhrase("", tuple(boxes)),) if boxes else (), is_box_text(text))


def parse_text(text: str, width: int, height: int) -> Answer:
    """An answer that should be plain text: well formed if any words are left without markup."""
    plain, grounded = _phrases(text.strip(), width, height)
    return Answer(plain, grounded, bool(plain))


def parse_grounded(text: str, width: int, height: int, *, absent: bool = False) -> Answer:
    """An answer that should contain phrases with boxes. `absent`: a phrase may have none, as it is not in the image.

    It is well formed if it has at least one phrase, each phrase has boxes of a positive area, and no bracket is left.
    """
    plain, grounded = _phrases(text.strip(), width, height)
    without_boxes = [match["boxes"] is None for match in _PHRASE.finditer(text)]
    all_boxed = all(
        absent and bare or item.boxes and all(box.area > 0 for box in item.boxes)
        for item, bare in zip(grounded, without_boxes, strict=True)
    )
    return Answer(plain, grounded, bool(grounded) and all_boxed and _BRACKET.search(plain) is None)


def has_box_text(text: str) -> bool:
    """Whether the text has a box or the beginning of one, with or without a phrase, well formed or not."""
    return "{" in text


def _phrases(text: str, width: int, height: int) -> tuple[str, tuple[GroundedPhrase, ...]]:
    """The words without markup, and each phrase with its boxes."""
    grounded = tuple(
        GroundedPhrase(match["phrase"].strip(), tuple(parse_boxes(match["boxes"] or "", width, height)))
        for match in _PHRASE.finditer(text)
    )
    return re.sub(r"\s+", " ", _PHRASE.sub(lambda match: match["phrase"], text)).strip(), grounded


def segments(text: str, width: int, height: int, *, partial: bool = False) -> list[str | GroundedPhrase]:
    """`text` divided for display into plain words and phrases with boxes, in order.

    A box without a phrase is a `GroundedPhrase` with an empty one. Never raises. `partial`: the text is not complete
    yet, so markup that is not closed is left out.
    """
    if partial:
        text = _UNFINISHED.sub("", text)
    found: list[str | GroundedPhrase] = []
    position = 0
    for match in _PHRASE.finditer(text):
        found += _without_phrases(text[position : match.start()], width, height)
        boxes = tuple(parse_boxes(match["boxes"] or "", width, height))
        found.append(GroundedPhrase(match["phrase"].strip(), boxes) if boxes else match["phrase"])
        position = match.end()
    return found + _without_phrases(text[position:], width, height)


def _without_phrases(text: str, width: int, height: int) -> list[str | GroundedPhrase]:
    """Words and boxes of a text that contains no phrase."""
    found: list[str | GroundedPhrase] = []
    position = 0
    for match in _BARE_BOXES.finditer(text):
        if boxes := parse_boxes(match[0], width, height):
            found += [text[position : match.start()]] * (match.start() > position)
            found.append(GroundedPhrase("", tuple(boxes)))
            position = match.end()
    return found + [text[position:]] * (position < len(text))
