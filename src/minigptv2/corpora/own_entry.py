"""One entry of a file of one's own: what its fields say as a draft, or what to change."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, TypeGuard

from minigptv2.boxes import Box
from minigptv2.corpora.draft import Draft, clean
from minigptv2.corpora.raw import Raw
from minigptv2.corpora.sources.llava import turns_of
from minigptv2.errors import DataError, nearest
from minigptv2.record import Region, Turn
from minigptv2.tasks import TASKS

KEYS = ("image", "task", "question", "answer", "phrase", "boxes", "objects", "boxes_in", "conversations", "id")
PIXELS, XYWH, NORMALISED = "pixels", "xywh", "normalised"
_AS_IT_IS = json.JSONEncoder(ensure_ascii=False)
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can spell and no file can hold."""


def draft_of(number: int, entry: Any, file: Path, raw: Raw) -> Draft:
    """One entry. Raises `DataError` saying what to change."""
    if not isinstance(entry, dict):
        raise DataError(f'found {as_json(entry)}; want an object: {{"image": "a.jpg", "task": "caption", ...}}')
    if half := _HALF.search(_AS_IT_IS.encode(entry)):
        raise DataError(f"holds {as_json(half[0])}, half of a character: a text was cut in the middle of one")
    for key in entry:
        if key not in KEYS and "conversations" not in entry:
            raise DataError(f"unknown key '{cut(key)}'{nearest(cut(key), KEYS)} The keys are {', '.join(KEYS)}")
    image = entry.get("image")
    if image is not None and not is_text(image):
        raise DataError(f"image is {as_json(image)}; want the path of a picture")
    frame = (1.0, 1.0) if entry.get("boxes_in") == NORMALISED else None
    talk = entry.get("conversations")
    turns = (_turn(entry, image),) if talk is None else _talk(talk, image is not None)
    source = {"corpus": raw.corpus, "id": str(entry.get("id", number))}
    return Draft(f"{number:08d}", turns, None if image is None else paths_of(image, file, raw), source, frame=frame)


def _talk(conversation: Any, has_image: bool) -> tuple[Turn, ...]:
    shaped = isinstance(conversation, list) and all(
        isinstance(said, dict) and isinstance(said.get("from"), str) and isinstance(said.get("value"), str)
        for said in conversation
    )
    if not shaped:
        raise DataError('conversations is a list of {"from": "human", "value": ...}, {"from": "gpt", "value": ...}')
    return turns_of(conversation, has_image=has_image)


def _turn(entry: dict[str, Any], image: str | None) -> Turn:
    task = entry.get("task")
    if not isinstance(task, str) or task not in TASKS:
        said = f"task '{cut(str(task))}'{nearest(cut(str(task)), tuple(TASKS))}" if task is not None else "no task"
        raise DataError(f"{said} The tasks are {', '.join(TASKS)}")
    shape = TASKS[task].shape
    if shape.image and image is None:
        raise DataError(f"task '{task}' needs an image: add image, or say task 'language'")
    if image is not None and not shape.image:
        raise DataError(f"task '{task}' has an image: say task 'conversation', or take image out")
    answers = _texts(entry, "answer")
    if shape.spans:
        return _grounding(task, entry, answers or _missing(task, "answer"))
    if shape.regions == "some":
        return Turn(task, regions=tuple(_objects(entry)))
    if shape.regions == "none":
        question = _need(entry, "question") if shape.question else None
        return Turn(task, question, answers or _missing(task, "answer"))
    phrases = _texts(entry, "question" if TASKS[task].query == "phrase" else "answer") or _texts(entry, "phrase")
    boxes = _boxes(entry)
    if len(boxes) != 1:
        raise DataError(f"task '{task}' takes one box, found {len(boxes)}")
    return Turn(task, regions=(Region(boxes, phrases or _missing(task, "phrase")),))


def _grounding(task: str, entry: dict[str, Any], answers: tuple[str, ...]) -> Turn:
    """The caption's phrases where they stand in it, one after the other."""
    caption, position, regions = clean(answers[0]), 0, []
    for region in _objects(entry):
        start = caption.find(region.phrases[0], position)
        if start < 0:
            raise DataError(
                f"phrase '{cut(region.phrases[0])}' does not stand in the caption after character {position}; spell "
                "it as there, and list objects in the order in which it names them"
            )
        position = start + len(region.phrases[0])
        regions.append(Region(region.boxes, region.phrases, (start, position)))
    return Turn(task, answers=(caption,), regions=tuple(regions))


def _objects(entry: dict[str, Any]) -> list[Region]:
    """Phrases and boxes: from `objects`, or from `phrase` and `boxes` of the entry itself."""
    listed = entry.get("objects", [entry] if "boxes" in entry else None)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise DataError('want "objects": [{"phrase": "a dog", "boxes": [[x1, y1, x2, y2]]}, ...]')
    return [
        Region(_boxes({**one, "boxes_in": entry.get("boxes_in", PIXELS)}), (_need(one, "phrase"),)) for one in listed
    ]


def _boxes(entry: dict[str, Any]) -> tuple[Box, ...]:
    kind, boxes = entry.get("boxes_in", PIXELS), entry.get("boxes")
    if kind not in (PIXELS, XYWH, NORMALISED):
        raise DataError(f"boxes_in is {as_json(kind)}, which is not one of {PIXELS}, {XYWH}, {NORMALISED}")
    if isinstance(boxes, list) and len(boxes) == 4 and not any(isinstance(value, list) for value in boxes):
        boxes = [boxes]  # a single box
    if not isinstance(boxes, list) or not boxes or not all(is_box(box) for box in boxes):
        raise DataError(f"boxes is {as_json(boxes)}; want [[x1, y1, x2, y2], ...], four numbers each")
    floats = [tuple(map(float, box)) for box in boxes]  # before they are added: a sum of integers may be no float
    corners = [
        (x, y, x + third, y + fourth) if kind == XYWH else (x, y, third, fourth) for x, y, third, fourth in floats
    ]
    if kind == PIXELS and all(0 <= value <= 1 for box in corners for value in box):
        raise DataError(f'boxes {cut(str(corners))} are all within 0..1: add "boxes_in": "{NORMALISED}"')
    if kind == NORMALISED and any(not -0.001 <= value <= 1.001 for box in corners for value in box):
        raise DataError(f'boxes {cut(str(corners))} are not within 0..1: take "boxes_in": "{NORMALISED}" out')
    return tuple(Box(*box) for box in corners)


def is_box(box: Any) -> TypeGuard[list[float]]:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> bool:
    """Whether it is one that a float can hold: JSON's may have any length, and Python reads NaN and Infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_id(value: Any) -> bool:
    return isinstance(value, int | float) or is_text(value)


def _texts(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    """A text or a list of texts; empty ones are a mistake."""
    given = entry.get(key)
    if given is None:
        return ()
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{key} is {as_json(given)}; want a text, or a list of texts, none of them empty")
    return tuple(texts)


def _need(entry: dict[str, Any], key: str) -> str:
    texts = _texts(entry, key)
    if len(texts) != 1:
        raise DataError(f'want one "{key}", found {len(texts)}')
    return texts[0]


def _missing(task: str, key: str) -> Any:
    raise DataError(f"task '{task}' needs \"{key}\"")


def is_text(value: Any) -> bool:
    """Whether it is a text that may name something, a file too: not blank, and one that UTF-8 can hold."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and not _HALF.search(value)


def as_json(value: Any) -> str:
    """The beginning of a value as JSON: in ASCII, so that any stream takes it."""
    return cut(json.dumps(value))


def cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def paths_of(image: str, file: Path, raw: Raw) -> tuple[str, ...]:
    return tuple(dict.fromkeys((str(raw.root / image), str(file.parent / image))))
