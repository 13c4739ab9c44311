"""Defines the record: the content of a shard's `<key>.json`, read and written as JSON.

A record has an image size (or none), one or more turns, and its provenance. Turns contain facts (questions, accepted
answers, regions with boxes in pixels), not prompts: `tasks` draws the wording when the sample is read, so a change of
a template needs no new shards. `from_json` checks the form of a record, `tasks.validate` its content.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from minigptv2.boxes import Box
from minigptv2.errors import DataError

_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Region:
    """An object in the image: its boxes, the phrases that name it, and its place in a caption.

    `phrases` are alternatives, each naming exactly this region. Without boxes, nothing in the image is what they name.
    `span` is (start, end) in characters of the caption `answers[0]` for tasks that need spans, None for others.
    """

    boxes: tuple[Box, ...]
    phrases: tuple[str, ...]
    span: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[type[Region], tuple[Any, ...]]:  # for the reason in `Turn.__reduce__`
        return Region, (self.boxes, self.phrases, self.span)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, as facts. Each task's `TurnShape` lists the fields that it needs.

    `answers` repeats an accepted answer as often as it was given. For a task with `blank_answers`, some may be empty:
    people left them empty, and they count in scores only. `question` of a turn whose query is a list of phrases is a
    text to parse, or None if the regions' phrases are the query. `choices` are the options of a multiple-choice
    question. `source` is the turn's own provenance in a record that joins several: its `id` in the corpus, the kind of
    answer, and what its official scorer needs besides (`sources.vqa`).
    """

    task: str
    question: str | None = None
    answers: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    choices: tuple[str, ...] = ()
    source: dict[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[Turn], tuple[Any, ...]]:
        """How a turn is pickled for a writer process. The default for slots takes four times as long."""
        return Turn, (self.task, self.question, self.answers, self.regions, self.choices, self.source)


@dataclass(frozen=True, slots=True)
class Record:
    """The content of a sample: image size in pixels (None for text only), turns, and provenance.

    `separate`: the turns are independent questions about one image, which is stored once, and not one conversation.
    They are trained one by one, or several that share the image.
    """

    turns: tuple[Turn, ...]
    width: int | None = None
    height: int | None = None
    source: dict[str, str] = field(default_factory=dict)
    separate: bool = False

    @property
    def has_image(self) -> bool:
        """Whether the record belongs to an image."""
        return self.width is not None

    @property
    def annotations(self) -> int:
        """The number of annotations a corpus counts for it: the turns if they are separate, else one."""
        return len(self.turns) if self.separate else 1

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task of each turn, in order."""
        return tuple(turn.task for turn in self.turns)


def to_json(record: Record) -> bytes:
    """The record as compact UTF-8 JSON, without empty fields."""
    document: dict[str, Any] = {"turns": [_turn_to_dict(turn) for turn in record.turns]}
    if record.has_image:
        document["image"] = {"width": record.width, "height": record.height}
    if record.source:
        document["source"] = record.source
    if record.separate:
        document["separate"] = True
    return _COMPACT.encode(document).encode()


def from_json(data: bytes, where: str) -> Record:
    """The record in `data`, whose form is checked: every field has the right type, and texts can be encoded.

    Raises `DataError`, beginning with `where`, if `data` is not a record. The content (known tasks, boxes inside the
    image, ...) is checked by `tasks.validate`.
    """
    try:
        document = json.loads(data)
        image = document.get("image") or {}
        return Record(
            turns=tuple(_turn_from_dict(turn) for turn in document["turns"]),
            width=_side(image, "width"),
            height=_side(image, "height"),
            source=_sources(document),
            separate=bool(document.get("separate", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: not a record: {type(error).__name__}: {error}") from error


def _turn_to_dict(turn: Turn) -> dict[str, Any]:
    document: dict[str, Any] = {"task": turn.task}
    if turn.question is not None:
        document["question"] = turn.question
    if turn.answers:
        document["answers"] = list(turn.answers)
    if turn.regions:
        document["regions"] = [_region_to_dict(region) for region in turn.regions]
    if turn.choices:
        document["choices"] = list(turn.choices)
    if turn.source:
        document["source"] = turn.source
    return document


def _region_to_dict(region: Region) -> dict[str, Any]:
    document: dict[str, Any] = {
        "boxes": [[box.x1, box.y1, box.x2, box.y2] for box in region.boxes],
        "phrases": list(region.phrases),
    }
    if region.span is not None:
        document["span"] = list(region.span)
    return document


def _turn_from_dict(document: dict[str, Any]) -> Turn:
    task, question = document["task"], document.get("question")
    if not isinstance(task, str):
        raise TypeError(f"task {task!r} is not a text")
    if not isinstance(question, str | None):
        raise TypeError(f"question {question!r} is not a text")
    (question or "").encode()  # as in `_texts`
    return Turn(
        task=task,
        question=question,
        answers=_texts(document.get("answers", [])),
        regions=tuple(_region_from_dict(region) for region in document.get("regions", ())),
        choices=_texts(document.get("choices", [])),
        source=_sources(document),
    )


def _region_from_dict(document: dict[str, Any]) -> Region:
    span = document.get("span")
    if span is not None:
        start, end = span  # raises ValueError unless there are two
        span = (int(start), int(end))
    return Region(
        boxes=tuple(Box(*(float(c) for c in box)) for box in document["boxes"]),
        phrases=_texts(document["phrases"]),
        span=span,
    )


def _side(image: dict[str, Any], name: str) -> Any:
    value = image.get(name)
    if not isinstance(value, int | float | None):
        raise TypeError(f"image {name} {value!r} is not a number")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    """The texts of a list. A single text is refused: it would be read as the list of its letters."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r} is not a list of texts")
    "".join(values).encode()  # fails for half a surrogate pair, which JSON can contain, here and not in the tokenizer
    return tuple(values)


def _sources(document: dict[str, Any]) -> dict[str, str]:
    source = document.get("source", {})
    if not isinstance(source, dict) or not all(isinstance(value, str) for value in source.values()):
        raise TypeError(f"source {source!r} is not an object of texts")
    return source
