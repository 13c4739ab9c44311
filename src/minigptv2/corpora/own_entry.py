"""Converts one entry of a user's file to a draft, or raises an error that says what to change."""

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
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can contain and UTF-8 cannot encode."""


def draft_of(number: int, entry: Any, file: Path, raw: Raw) -> Draft:
    """The draft of an entry. Raises `DataError` saying what to change."""
    if not isinstance(entry, dict):
        raise DataError(f'expected an object: {{"image": "a.jpg", "task": "caption", ...}}, got {as_json(entry)}')
    if half := _HALF.search(_ENCODER.encode(entry)):
        raise DataError(f"contains {as_json(half[0])}, half of a character: a text was truncated within a character")
    for key in entry:
        if key not in KEYS and "conversations" not in entry:
            raise DataError(f"unknown key '{cut(key)}'{nearest(cut(key), KEYS)} The keys are {', '.join(KEYS)}")
    image = entry.get("image")
    if image is not None and not is_text(image):
        raise DataError(f"image is {as_json(image)}; expected the path of an image")
    frame = (1.0, 1.0) if entry.get("boxes_in") == NORMALISED else None
    conversation = entry.get("conversations")
    turns = (_turn(entry, image),) if conversation is None else _conversation(conversation, image is not None)
    source = {"corpus": raw.corpus, "id": str(entry.get("id", number))}
    return Draft(f"{number:08d}", turns, None if image is None else paths_of(image, file, raw), source, frame=frame)


def _conversation(conversation: Any, has_image: bool) -> tuple[Turn, ...]:
    valid = isinstance(conversation, list) and all(
        isinstance(message, dict) and isinstance(message.get("from"), str) and isinstance(message.get("value"), str)
        for message in conversation
    )
    if not valid:
        raise DataError(
            'conversations must be a list of {"from": "human", "value": ...}, {"from": "gpt", "value": ...}'
        )
    return turns_of(conversation, has_image=has_image)


def _turn(entry: dict[str, Any], image: str | None) -> Turn:
    task = entry.get("task")
    if not isinstance(task, str) or task not in TASKS:
        known = ", ".join(TASKS)
        if task is None:
            raise DataError(f"no task. The tasks are {known}")
        given = cut(str(task))
        raise DataError(f"unknown task '{given}'{nearest(given, tuple(TASKS))} The tasks are {known}")
    shape = TASKS[task].shape
    if shape.image and image is None:
        raise DataError(f"task '{task}' needs an image: add image, or set task to 'language'")
    if image is not None and not shape.image:
        raise DataError(f"task '{task}' has an image: set task to 'conversation', or remove image")
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
        raise DataError(f"task '{task}' requires one box, got {len(boxes)}")
    if shape.answers and not answers:
        _missing(task, "answer")
    regions = (Region(boxes, phrases or _missing(task, "phrase")),)
    return Turn(task, answers=answers if shape.answers else (), regions=regions)


def _grounding(task: str, entry: dict[str, Any], answers: tuple[str, ...]) -> Turn:
    """The caption, with the position of each phrase in it."""
    caption, position, regions = clean(answers[0]), 0, []
    for region in _objects(entry):
        start = caption.find(region.phrases[0], position)
        if start < 0:
            raise DataError(
                f"phrase '{cut(region.phrases[0])}' does not occur in the caption after character {position}; spell it "
                "as in the caption, and list objects in the order in which the caption names them"
            )
        position = start + len(region.phrases[0])
        regions.append(Region(region.boxes, region.phrases, (start, position)))
    return Turn(task, answers=(caption,), regions=tuple(regions))


def _objects(entry: dict[str, Any]) -> list[Region]:
    """Phrases and boxes: from `objects`, or from `phrase` and `boxes` of the entry itself."""
    listed = entry.get("objects", [entry] if "boxes" in entry else None)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise DataError('expected "objects": [{"phrase": "a dog", "boxes": [[x1, y1, x2, y2]]}, ...]')
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
        raise DataError(f"boxes is {as_json(boxes)}; expected [[x1, y1, x2, y2], ...], four numbers each")
    floats = [tuple(map(float, box)) for box in boxes]  # before adding: a sum of integers may exceed a float
    corners = [
        (x, y, x + third, y + fourth) if kind == XYWH else (x, y, third, fourth) for x, y, third, fourth in floats
    ]
    if kind == PIXELS and all(0 <= value <= 1 for box in corners for value in box):
        raise DataError(f'boxes {cut(str(corners))} are all within 0..1: add "boxes_in": "{NORMALISED}"')
    if kind == NORMALISED and any(not -0.001 <= value <= 1.001 for box in corners for value in box):
        raise DataError(f'boxes {cut(str(corners))} are not within 0..1: remove "boxes_in": "{NORMALISED}"')
    return tuple(Box(*box) for box in corners)


def is_box(box: Any) -> TypeGuard[list[float]]:
    """Whether it is a list of four numbers."""
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold. JSON integers may have any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_id(value: Any) -> bool:
    """Whether it is a number or a text that may be an id."""
    return isinstance(value, int | float) or is_text(value)


def _texts(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    """A text or a list of texts. Empty texts are an error."""
    given = entry.get(key)
    if given is None:
        return ()
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{key} is {as_json(given)}; expected a text, or a list of texts, none of them empty")
    return tuple(texts)


def _need(entry: dict[str, Any], key: str) -> str:
    texts = _texts(entry, key)
    if len(texts) != 1:
        raise DataError(f'expected one "{key}", got {len(texts)}')
    return texts[0]


def _missing(task: str, key: str) -> Any:
    raise DataError(f"task '{task}' needs \"{key}\"")


def is_text(value: Any) -> bool:
    """Whether it is a text that may be a name or a path: not blank, without NUL, and valid in UTF-8."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and not _HALF.search(value)


def as_json(value: Any) -> str:
    """The beginning of a value as JSON, in ASCII, so that it can be printed to any stream."""
    return cut(json.dumps(value))


def cut(text: str) -> str:
    """The text, shortened to 60 characters."""
    return text if len(text) <= 60 else f"{text[:60]}..."


def paths_of(image: str, file: Path, raw: Raw) -> tuple[str, ...]:
    """Where an image may be: below the root, or in the folder of the file."""
    return tuple(dict.fromkeys((str(raw.root / image), str(file.parent / image))))
