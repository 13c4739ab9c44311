"""The six tasks: identifier, instruction pool, answer writer, answer parser, metric. One row each in `TASKS`.

Turns the facts of a `record.Turn` into the question and answer that are spoken, and an answer back into boxes and
phrases. The only owner of the task identifiers and of the `<p>phrase</p> {box}` syntax (arXiv:2310.09478, section 2).
The wordings are ours, except the first of `refer` and `vqa`, which the published evaluation uses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from minigptv2.boxes import BOX_DELIMITER, Box, is_box_text, parse_boxes, render_box, render_boxes
from minigptv2.record import CHAT, TASK_NAMES, Turn

PHRASE_OPEN, PHRASE_CLOSE = "<p>", "</p>"


@dataclass(frozen=True, slots=True)
class Task:
    """One row of the table.

    `instructions` are wordings with the slot `{query}` where the task has a query (a question, an expression, a box,
    phrases); the first is the one used in evaluation, the others are drawn in training. `text_instructions` stand in
    for them where the query is a whole text to parse. `grounded` says that the answer speaks boxes; `metric` names the
    headline figure of evaluation.
    """

    name: str
    identifier: str
    instructions: tuple[str, ...]
    metric: str
    grounded: bool = False
    text_instructions: tuple[str, ...] = ()

    def ask(self, query: str = "", instruction: int = 0, *, of_text: bool = False) -> str:
        """The spoken question: identifier and the chosen instruction with the query in its slot."""
        wordings = self.text_instructions if of_text else self.instructions
        return f"{self.identifier} {wordings[instruction].replace('{query}', query)}"


TASKS: dict[str, Task] = {
    "vqa": Task(
        name="vqa",
        identifier="[vqa]",
        metric="accuracy",
        instructions=(
            "Based on the image, respond to this question with a short answer: {query}",
            "{query}",
            "{query} Reply in a few words.",
            "Look at the picture and answer briefly: {query}",
            "Question: {query} Short answer:",
            "Use a word or two to answer: {query}",
            "Give a short reply to this: {query}",
            "What does the picture tell you? {query}",
        ),
    ),
    "caption": Task(
        name="caption",
        identifier="[caption]",
        metric="token_f1",
        instructions=(
            "Describe this image in one sentence.",
            "Write a short caption.",
            "What does the picture show?",
            "Sum up the scene in a line.",
            "Give the image a plain caption.",
            "Say briefly what is here.",
            "Tell me what you see, in short.",
            "Put the picture into words.",
        ),
    ),
    "grounding": Task(
        name="grounding",
        identifier="[grounding]",
        metric="phrase_recall_50",
        grounded=True,
        instructions=(
            "Describe this image and point at what you mention.",
            "Write a caption with a box for each thing.",
            "Caption the picture and locate its objects.",
            "Say what you see and where it is.",
            "Tell what is here, with boxes.",
            "Describe the scene with the place of every object.",
            "Give a grounded caption.",
            "Put the picture into words and mark each thing.",
        ),
    ),
    "refer": Task(
        name="refer",
        identifier="[refer]",
        metric="recall_50",
        grounded=True,
        instructions=(
            "give me the location of {query}",
            "{query}",
            "where is {query}?",
            "point at {query}",
            "find {query}",
            "which box holds {query}?",
            "show me {query}",
            "mark {query} in the picture",
        ),
    ),
    "identify": Task(
        name="identify",
        identifier="[identify]",
        metric="exact",
        instructions=(
            "what is in {query}?",
            "{query}",
            "name the object in {query}",
            "what does {query} hold?",
            "describe the thing at {query}",
            "say what you see at {query}",
            "tell me what {query} shows",
            "which object lies in {query}?",
        ),
    ),
    "detection": Task(
        name="detection",
        identifier="[detection]",
        metric="box_f1_50",
        grounded=True,
        instructions=(
            "{query}",
            "find every {query}",
            "locate all: {query}",
            "box each {query}",
            "where do you see {query}?",
            "mark every {query}",
            "show all boxes of {query}",
            "list the places of {query}",
        ),
        text_instructions=(
            "{query}",
            "find the things that this speaks of: {query}",
            "locate what is mentioned: {query}",
            "pick out the phrases and box them: {query}",
            "which parts of the picture does this tell of? {query}",
            "mark everything named here: {query}",
            "parse and point: {query}",
            "where are the things in this sentence? {query}",
        ),
    ),
}

TASK_IDS = {name: number for number, name in enumerate(TASK_NAMES)}
"""Task name to the integer that labels its tokens in a batch."""


def task_of(question: str) -> str:
    """The task that a spoken question asks for by its identifier; conversation if it has none."""
    for task in TASKS.values():
        if question.strip().startswith(task.identifier):
            return task.name
    return CHAT


@dataclass(frozen=True, slots=True)
class SpokenTurn:
    """A turn as text, before any chat template: what is asked and what is to be answered."""

    task: str
    question: str
    answer: str


def speak(turn: Turn, width: int, height: int, draw: Random | None = None) -> SpokenTurn:
    """The turn as question and answer, wording and alternatives drawn with `draw`.

    Without `draw` the first of everything is taken, as evaluation does. Accepted answers of a VQA turn are drawn as
    often as they are listed, so that an answer nine of ten people gave is trained nine times of ten.
    `width`, `height` are pixels of the original image; both are ignored for turns without boxes.
    """

    def pick(options: tuple[str, ...]) -> str:
        return options[draw.randrange(len(options))] if draw else options[0]

    if turn.task not in TASKS:
        return SpokenTurn(turn.task, turn.question or "", pick(turn.answers))
    task = TASKS[turn.task]
    query, answer = "", ""
    if turn.task == "vqa":
        query, answer = turn.question or "", pick(turn.answers)
    elif turn.task == "caption":
        answer = pick(turn.answers)
    elif turn.task == "grounding":
        answer = _grounded_caption(turn, width, height)
    elif turn.task == "refer":
        query = pick(turn.regions[0].phrases)
        answer = render_box(turn.regions[0].boxes[0], width, height)
    elif turn.task == "identify":
        query = render_box(turn.regions[0].boxes[0], width, height)
        answer = pick(turn.regions[0].phrases)
    elif turn.task == "detection":
        chosen = [(pick(region.phrases), region.boxes) for region in turn.regions]
        query = turn.question or ", ".join(phrase for phrase, _ in chosen)
        answer = " ".join(_grounded_phrase(phrase, boxes, width, height) for phrase, boxes in chosen)
    of_text = turn.task == "detection" and turn.question is not None
    wordings = task.text_instructions if of_text else task.instructions
    instruction = draw.randrange(len(wordings)) if draw else 0
    return SpokenTurn(turn.task, task.ask(query, instruction, of_text=of_text), answer)


def _grounded_phrase(phrase: str, boxes: tuple[Box, ...], width: int, height: int) -> str:
    return f"{PHRASE_OPEN}{phrase}{PHRASE_CLOSE} {render_boxes(boxes, width, height)}"


def _grounded_caption(turn: Turn, width: int, height: int) -> str:
    caption, position, parts = turn.answers[0], 0, []
    for region in turn.regions:
        assert region.span is not None, "record.validate admits no grounding region without a span"
        start, end = region.span
        parts.append(caption[position:start])
        parts.append(_grounded_phrase(caption[start:end], region.boxes, width, height))
        position = end
    return "".join(parts) + caption[position:]


@dataclass(frozen=True, slots=True)
class GroundedPhrase:
    """A phrase an answer speaks of and the boxes it gives it, in pixels. `phrase` is empty for a bare box."""

    phrase: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer: the words without markup, what it points at, and whether its syntax was right."""

    text: str
    grounded: tuple[GroundedPhrase, ...]
    well_formed: bool

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes of the answer, in spoken order, in pixels."""
        return tuple(box for item in self.grounded for box in item.boxes)


_PHRASE = re.compile(
    re.escape(PHRASE_OPEN)
    + r"(?P<phrase>[^<]*)"
    + re.escape(PHRASE_CLOSE)
    + r"\s*(?P<boxes>\{[^{}]*\}(?:"
    + re.escape(BOX_DELIMITER)
    + r"\{[^{}]*\})*)?"
)


def parse_answer(text: str, task: str, width: int, height: int) -> Answer:
    """What `text`, an answer to `task`, says and points at in a `width` x `height` px image.

    Never raises: an answer of a model can be anything. `well_formed` is what the task's syntax asks: exactly one box
    for refer; for grounding and detection at least one `<p>..</p> {box}` and no stray brackets; non-empty text else.
    """
    text = text.strip()
    if task == "refer":
        boxes = parse_boxes(text, width, height)
        return Answer(text, (GroundedPhrase("", tuple(boxes)),) if boxes else (), is_box_text(text))
    grounded = []
    for match in _PHRASE.finditer(text):
        boxes = parse_boxes(match["boxes"] or "", width, height)
        grounded.append(GroundedPhrase(match["phrase"].strip(), tuple(boxes)))
    plain = re.sub(r"\s+", " ", _PHRASE.sub(lambda m: m["phrase"], text)).strip()
    well_formed = bool(plain)
    if task in TASKS and TASKS[task].grounded:
        spoken_well = all(item.boxes and all(box.area > 0 for box in item.boxes) for item in grounded)
        well_formed = bool(grounded) and spoken_well and not re.search(r"[<>{}]", plain)
    return Answer(plain, tuple(grounded), well_formed)


_BARE_BOXES = re.compile(r"\{[^{}]*\}(?:" + re.escape(BOX_DELIMITER) + r"\{[^{}]*\})*")
_UNFINISHED = re.compile(r"(?:" + re.escape(PHRASE_OPEN) + r"[^<]*(?:<[^>]*)?|\{[^}]*|<[^>]*)$")


def segments(text: str, width: int, height: int, *, partial: bool = False) -> list[str | GroundedPhrase]:
    """`text` cut into what to show: plain words, and phrases with the boxes they are given, in order.

    A box without a phrase is a `GroundedPhrase` with an empty one. Never raises. `partial`: the text is still being
    said, so markup that is not closed yet is left out.
    """
    if partial:
        text = _UNFINISHED.sub("", text)
    found: list[str | GroundedPhrase] = []
    position = 0
    for match in _PHRASE.finditer(text):
        found += _bare(text[position : match.start()], width, height)
        boxes = tuple(parse_boxes(match["boxes"] or "", width, height))
        found.append(GroundedPhrase(match["phrase"].strip(), boxes) if boxes else match["phrase"])
        position = match.end()
    return found + _bare(text[position:], width, height)


def _bare(text: str, width: int, height: int) -> list[str | GroundedPhrase]:
    """Words and boxes of a text without phrases."""
    found: list[str | GroundedPhrase] = []
    position = 0
    for match in _BARE_BOXES.finditer(text):
        if boxes := parse_boxes(match[0], width, height):
            found += [text[position : match.start()]] * (match.start() > position)
            found.append(GroundedPhrase("", tuple(boxes)))
            position = match.end()
    return found + [text[position:]] * (position < len(text))
