"""The one sample schema: what a shard's `<key>.json` holds.

A record is an image (or none), one or more turns, and where it came from. Turns hold *facts* (questions, accepted
answers, regions with boxes in pixels), not prompts: `tasks` draws the wording when the sample is read, so the shards
outlive every change of a template. Knows nothing of tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from minigptv2.boxes import Box
from minigptv2.errors import DataError

SIX_TASKS = ("vqa", "caption", "grounding", "refer", "identify", "detection")
CHAT = "conversation"
"""A turn of free talk about an image; it carries no task identifier."""
LANGUAGE = "language"
"""A turn without any image; it carries no task identifier."""
TASK_NAMES = (*SIX_TASKS, CHAT, LANGUAGE)
"""Every kind of turn. Its index is the `task_id` of a token in a batch."""
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Region:
    """Something in the image: its boxes, the phrases that name it, and where a caption speaks of it.

    `phrases` are alternatives, each naming exactly this region. `span` is (start, end) in characters of the caption
    `answers[0]` of a grounding turn, None elsewhere.
    """

    boxes: tuple[Box, ...]
    phrases: tuple[str, ...]
    span: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[type[Region], tuple[Any, ...]]:  # as in `Turn`
        return Region, (self.boxes, self.phrases, self.span)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, as facts. Which fields a task needs is checked by `validate`.

    | task | question | answers | regions |
    |---|---|---|---|
    | vqa, conversation, language | the question | accepted answers, repeated as often as given | none |
    | caption | None | captions | none |
    | grounding | None | one caption | its phrases, each with span and boxes |
    | refer | None | none | one, with one box |
    | identify | None | none | one, with one box |
    | detection | the text to parse, or None: the phrases themselves | none | one or more |

    `choices` are the options of a multiple-choice question, if it has any. `source` is the turn's own provenance where
    a record joins several: its `id` in the corpus, the kind of answer.
    """

    task: str
    question: str | None = None
    answers: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    choices: tuple[str, ...] = ()
    source: dict[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[Turn], tuple[Any, ...]]:
        """How it is pickled on its way to a writer: what `dataclass` does for slots takes four times as long."""
        return Turn, (self.task, self.question, self.answers, self.regions, self.choices, self.source)


@dataclass(frozen=True, slots=True)
class Record:
    """A sample: image size in pixels (None for text only), turns, and provenance.

    `separate` says that the turns are questions of their own about one image, which is so stored once, and not one
    conversation: each visit trains one of them, drawn.
    """

    turns: tuple[Turn, ...]
    width: int | None = None
    height: int | None = None
    source: dict[str, str] = field(default_factory=dict)
    separate: bool = False

    @property
    def has_image(self) -> bool:
        return self.width is not None

    @property
    def annotations(self) -> int:
        """What a corpus counts of it: questions where the turns are separate, else one."""
        return len(self.turns) if self.separate else 1

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task of each turn, in order."""
        return tuple(turn.task for turn in self.turns)


def validate(record: Record, where: str) -> None:
    """Raise `DataError`, beginning with `where`, if the record cannot be trained on or evaluated.

    Checked: at least one turn, known tasks, an image where the task needs one, non-empty answers and phrases,
    boxes inside the image, spans inside the caption and not overlapping.
    """
    if not record.turns:
        raise DataError(f"{where}: the record has no turns")
    if record.has_image and not ((record.width or 0) > 0 and (record.height or 0) > 0):
        raise DataError(f"{where}: image size {record.width} x {record.height} is not positive")
    for number, turn in enumerate(record.turns):
        problem = _turn_problem(turn, record)
        if problem:
            raise DataError(f"{where}: turn {number} ({turn.task}): {problem}")


def _turn_problem(turn: Turn, record: Record) -> str | None:
    if turn.task not in TASK_NAMES:
        return f"unknown task; the tasks are {', '.join(TASK_NAMES)}"
    if turn.task != LANGUAGE and not record.has_image:
        return "needs an image and the record has none"
    if turn.task == LANGUAGE and record.has_image:
        return f"has an image; a turn about an image is '{CHAT}'"
    if turn.task in ("vqa", CHAT, LANGUAGE) and not (turn.question and turn.question.strip()):
        return "has no question"
    speaks = turn.task in ("vqa", "caption", "grounding", CHAT, LANGUAGE)
    if speaks and not (turn.answers and all(map(str.strip, turn.answers))):
        return "has an empty answer"
    if turn.task in ("refer", "identify") and [len(region.boxes) for region in turn.regions] != [1]:
        return "needs exactly one region with one box"
    if turn.task in ("grounding", "detection") and not turn.regions:
        return "needs at least one region"
    for region in turn.regions:
        problem = _region_problem(region, record)
        if problem:
            return problem
    return _span_problem(turn) if turn.task == "grounding" else None


def _region_problem(region: Region, record: Record) -> str | None:
    if not region.boxes:
        return "a region has no box"
    if not region.phrases or not all(map(str.strip, region.phrases)):
        return "a region has an empty phrase"
    for box in region.boxes:
        problem = box.problem(record.width or 0, record.height or 0)
        if problem:
            return f"box {box} px {problem}{box.guess(record.width or 0, record.height or 0)}"
    return None


def _span_problem(turn: Turn) -> str | None:
    end_of_last = 0
    for region in turn.regions:
        if region.span is None:
            return f"region '{region.phrases[0]}' has no span in the caption"
        start, end = region.span
        if not end_of_last <= start < end <= len(turn.answers[0]):
            return f"span {region.span} is outside the caption, empty, out of order or overlaps the one before"
        end_of_last = end
    return None


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
    """The validated record in `data`. Raises `DataError`, beginning with `where`, when it is not one."""
    try:
        document = json.loads(data)
        image = document.get("image") or {}
        record = Record(
            turns=tuple(_turn_from_dict(turn) for turn in document["turns"]),
            width=image.get("width"),
            height=image.get("height"),
            source=_sources(document),
            separate=bool(document.get("separate", False)),
        )
        validate(record, where)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: not a record: {type(error).__name__}: {error}") from error
    return record


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
    question = document.get("question")
    if not isinstance(question, str | None):
        raise TypeError(f"question {question!r} is not a text")
    (question or "").encode()  # as in `_texts`
    return Turn(
        task=document["task"],
        question=question,
        answers=_texts(document.get("answers", [])),
        regions=tuple(_region_from_dict(region) for region in document.get("regions", ())),
        choices=_texts(document.get("choices", [])),
        source=_sources(document),
    )


def _region_from_dict(document: dict[str, Any]) -> Region:
    span = document.get("span")
    if span is not None:
        start, end = span  # a ValueError where they are not two
        span = (int(start), int(end))
    return Region(
        boxes=tuple(Box(*(float(c) for c in box)) for box in document["boxes"]),
        phrases=_texts(document["phrases"]),
        span=span,
    )


def _texts(values: Any) -> tuple[str, ...]:
    """A list of texts. A lone text is not taken for the list of its letters."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r} is not a list of texts")
    "".join(values).encode()  # half a surrogate pair, which JSON can spell, is a ValueError here, not in the tokenizer
    return tuple(values)


def _sources(document: dict[str, Any]) -> dict[str, str]:
    source = document.get("source", {})
    if not isinstance(source, dict) or not all(isinstance(value, str) for value in source.values()):
        raise TypeError(f"source {source!r} is not a table of texts")
    return source
