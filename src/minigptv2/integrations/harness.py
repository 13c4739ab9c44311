"""Translates between evaluation harnesses and our requests: questions, decoding options, and the boxes of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from minigptv2.boxes import Box
from minigptv2.predict.requests import Decoding
from minigptv2.tasks import TASKS, GroundedPhrase, segments, task_of
from minigptv2.typed_marks import asked_question

BoxFormat = Literal["model", "unit"]
BOX_FORMATS: tuple[BoxFormat, ...] = ("model", "unit")
"""`model`: `{<12><30><56><80>}`, as the model writes them. `unit`: `[0.12, 0.3, 0.56, 0.8]`, as harnesses expect."""


def harness_question(text: str, num_images: int, task: str | None) -> str:
    """The question to ask for a prompt of a harness: in the wording of `task`, unless it begins with an identifier.

    Raises `DataError` for marks that do not belong into a question.
    """
    question = asked_question(text, "the prompt", num_images=num_images)
    if task is None or not num_images or task_of(question).identifier:
        return question
    return TASKS[task].ask(question)


def harness_decoding(options: Mapping[str, Any], max_new_tokens: int) -> tuple[Decoding, tuple[str, ...]]:
    """The decoding options and the stop texts in a harness's `generation_kwargs`. `max_new_tokens` is the limit.

    Without `temperature` or with `do_sample: false`, decoding is greedy.
    """
    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    temperature = float(options.get("temperature") or 0) if options.get("do_sample") is not False else 0.0
    decoding = Decoding(
        max_new_tokens=min(int(options.get("max_new_tokens") or max_new_tokens), max_new_tokens),
        temperature=temperature,
        top_p=float(options.get("top_p") or 1.0) if temperature else 1.0,
        beams=1 if temperature else int(options.get("num_beams") or 1),
        seed=int(options.get("seed") or 0),
    )
    return decoding, stops


def before_stops(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of the stop texts."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def with_boxes(text: str, box_format: BoxFormat) -> str:
    """The answer with its boxes in `box_format`."""
    if box_format == "model":
        return text
    return "".join(
        " ".join(filter(None, (piece.phrase, *map(_unit, piece.boxes)))) if isinstance(piece, GroundedPhrase) else piece
        for piece in segments(text, 1, 1)
    )


def _unit(box: Box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in (box.x1, box.y1, box.x2, box.y2)) + "]"
