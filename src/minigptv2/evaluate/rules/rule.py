"""Defines a scoring rule: how the answers of a benchmark become metrics per question and over all questions.

Metrics are shares, 0..1, except CIDEr with its own scale, 0..10. A rule's `headline` is the printed metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from minigptv2.evaluate.metrics.vqa_accuracy import normalize_vqa
from minigptv2.evaluate.questions import Question
from minigptv2.tasks import TASKS, Answer

Metrics = dict[str, float]
Groups = dict[str, str]
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Prediction:
    """The answer to a question: a text, or the choice with the lowest loss.

    `losses` is the loss of each choice that was scored, in nats: its mean or its sum over the tokens of the choice and
    the end token, as the rule asks.
    """

    answer: str
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """The metrics of each question (all with the same names), those over all questions, and each question's groups.

    A metric over all questions is NaN where it is not defined, for example an AUROC without a positive.
    """

    each: list[Metrics]
    overall: Metrics
    groups: list[Groups]


Score = Callable[[Sequence[Question], Sequence[Prediction]], Scored]


@dataclass(frozen=True)
class Rule:
    """How the answers of a benchmark are obtained and scored.

    `definition` says in one sentence when an answer is right. `score` takes all questions at once, because some metrics
    are not means. `best` is the highest value of `headline`. `choices`: None generates an answer. Otherwise the choice
    with the lowest loss is the answer, from these choices or, if they are empty, from the question's own.
    `choice_loss` is the loss that is compared. `scored_choices`: an answer is generated, and the losses of these
    choices are computed, too. `references` gives the reference texts of a question for caption metrics. `check` raises
    `ConfigError` if a package that the rule needs is missing. `facts` are the facts of questions that the rule
    compares, each with what happens if no question states it.
    """

    name: str
    headline: str
    definition: str
    score: Score
    best: float = 1.0
    choices: tuple[str, ...] | None = None
    choice_loss: Literal["mean", "sum"] = "mean"
    scored_choices: tuple[str, ...] = ()
    references: Callable[[Question], list[str]] | None = None
    check: Callable[[], None] | None = None
    facts: dict[str, str] = field(default_factory=dict)


def parsed(question: Question, prediction: Prediction) -> Answer:
    """The words and boxes of an answer, as the question's task reads them."""
    return TASKS[question.turn.task].parse(prediction.answer, question.width, question.height)


def answer_kind(question: Question) -> str:
    """`yes/no`, `number` or `other`: as the corpus states, or by the first accepted answer."""
    if "answer_type" in question.facts:
        return question.facts["answer_type"]
    answer = normalize_vqa(question.turn.answers[0]) if question.turn.answers else ""
    return "yes/no" if answer in (YES, NO) else "number" if answer.isdecimal() else "other"
