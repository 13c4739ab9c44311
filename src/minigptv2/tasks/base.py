"""Defines what a task is: its texts, the fields its turns need, and how a turn is rendered, parsed and scored.

To add a task, subclass `Task` in a new file and list the object in `registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol

from minigptv2.record import Region, Turn
from minigptv2.tasks.answers import Answer, parse_text

Pick = Callable[[Sequence[str]], str]
"""Chooses one of several texts: a random one in training, the first one in evaluation."""

QUERY_SLOT = "{query}"
"""The place of the query in an instruction."""


def picker(random: Random | None) -> Pick:
    """A `Pick` that draws from `random`, or takes the first option if there is no generator.

    One option is drawn too: each call advances the state of `random`, so that the draws of a sample do not depend on
    how many alternatives its record lists.
    """
    if random is None:
        return lambda options: options[0]
    return lambda options: options[random.randrange(len(options))]


@dataclass(frozen=True, slots=True)
class TurnShape:
    """The fields that a turn of a task needs. `problem` checks a turn against it."""

    image: bool = True
    """The record has an image. False: it has none."""
    question: bool = False
    """The turn has a question."""
    answers: bool = False
    """The turn has at least one answer, and no answer is empty."""
    blank_answers: bool = False
    """Some of the answers may be empty. They count in scores, as people's answers do, and are never trained."""
    regions: Literal["none", "one", "some"] = "none"
    """`one`: exactly one region with one box; `some`: at least one region; `none`: no region is needed."""
    absent: bool = False
    """A region may have no box: nothing in the image is what its phrase names."""
    spans: bool = False
    """Each region has a span in the first answer, in order and without overlap."""

    def problem(self, turn: Turn, width: int | None, height: int | None) -> str | None:
        """Why the turn cannot be trained on or evaluated, or None if it can.

        `width` and `height` are pixels of the record's image, None for a record without one. Fields that the task
        does not need are allowed, but every region is checked.
        """
        if self.image and width is None:
            return "needs an image and the record has none"
        if not self.image and width is not None:
            return "has an image, which this task does not take; use 'conversation' for questions about an image"
        if self.question and not (turn.question and turn.question.strip()):
            return "has no question"
        enough = any if self.blank_answers else all
        if self.answers and not (turn.answers and enough(map(str.strip, turn.answers))):
            return "has an empty answer"
        if self.regions == "one" and [len(region.boxes) for region in turn.regions] != [1]:
            return "needs exactly one region with one box"
        if self.regions == "some" and not turn.regions:
            return "needs at least one region"
        for region in turn.regions:
            if problem := _region_problem(region, width or 0, height or 0, absent=self.absent):
                return problem
        return _span_problem(turn) if self.spans else None


def _region_problem(region: Region, width: int, height: int, *, absent: bool) -> str | None:
    if not region.boxes and not absent:
        return "a region has no box"
    if not region.phrases or not all(map(str.strip, region.phrases)):
        return "a region has an empty phrase"
    for box in region.boxes:
        if problem := box.problem(width, height):
            return f"box {box} px {problem}{box.guess(width, height)}"
    return None


def _span_problem(turn: Turn) -> str | None:
    end_of_last = 0
    for region in turn.regions:
        if region.span is None:
            return f"region '{region.phrases[0]}' has no span in the caption"
        start, end = region.span
        if not end_of_last <= start < end <= len(turn.answers[0]):
            return f"span {region.span} is outside the caption, empty, out of order or overlaps the previous span"
        end_of_last = end
    return None


@dataclass(frozen=True, slots=True)
class RenderedTurn:
    """A turn as text, before any chat template: the question and the answer to it."""

    task: str
    question: str
    answer: str


class Task(Protocol):
    """A task. Implementations subclass this protocol and are listed in `registry.TASKS`.

    `width` and `height` of the methods are pixels of the original image. Tasks without boxes ignore them.
    """

    name: str
    """The task's name in records, recipes and logs."""
    identifier: str
    """The text that begins each question, such as `[vqa]`; empty for a task without one, which menus leave out."""
    label: str = ""
    """The words for the task in menus. Without them, `menu_label` is the name."""
    instructions: tuple[str, ...] = (QUERY_SLOT,)
    """Wordings of the question, with `{query}` in the place of the query. Evaluation takes the first one."""
    headline: str
    """The name of the metric of `score` that represents the task in tables."""
    max_new_tokens: int
    """The longest answer, in tokens, that evaluation generates."""
    shape: TurnShape
    """The fields that a turn needs."""
    query: Literal["none", "text", "phrase", "box", "phrases"]
    """What a question contains. The registry requires `shape.regions` "one" for `phrase` and `box`.

    `none`: nothing; `text`: the turn's question; `phrase`: a phrase of the turn's region; `box`: the box of that
    region; `phrases`: the phrases of several regions, or a text in which to find objects.
    """
    answer: Literal["text", "box", "grounded"]
    """What an answer is: plain text, one box, or text with phrases and boxes."""

    @property
    def menu_label(self) -> str:
        """The words for the task in menus."""
        return self.label or self.name.replace("_", " ").capitalize()

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        """The question and answer of `turn`. `pick` chooses among alternatives first and the wording last.

        The number and the order of the calls of `pick` decide which wordings a training run sees: changing them
        changes the samples of every run.
        """
        ...

    def parse(self, text: str, width: int, height: int) -> Answer:
        """The words and boxes of an answer. Never raises, because a model can answer anything."""
        return parse_text(text, width, height)

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        """Metrics of the answer `text`, each 0..1, by name. `headline` is one of them."""
        ...

    def ask(self, query: str = "", wording: str | None = None) -> str:
        """A question: the identifier and `wording` (by default the first instruction) with `query` in its slot."""
        text = (self.instructions[0] if wording is None else wording).replace(QUERY_SLOT, query)
        return f"{self.identifier} {text}" if self.identifier else text


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the samples, which all have the metrics of the first one."""
    return {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}
