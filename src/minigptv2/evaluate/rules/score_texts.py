"""Scores captions and expressions by their words and by the objects that they mention, and turns of any task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from minigptv2.boxes import size_name
from minigptv2.evaluate.metrics.captions import caption_scores
from minigptv2.evaluate.metrics.hallucination import Chair, ObjectList, chair, chair_metrics
from minigptv2.evaluate.questions import Question
from minigptv2.evaluate.rules.rule import Prediction, Scored, answer_kind
from minigptv2.tasks import TASKS, mean_scores


def captions_of(question: Question) -> list[str]:
    """The reference captions of a question's image."""
    return list(question.turn.answers)


def expressions_of(question: Question) -> list[str]:
    """The reference expressions of a question's object."""
    return list(question.turn.regions[0].phrases)


def score_caption(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """CIDEr-D, BLEU-4 and ROUGE-L against all captions of the image."""
    return _score_captions(predictions, [captions_of(question) for question in questions])


def score_identify(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """CIDEr-D, BLEU-4 and ROUGE-L against all expressions of the object."""
    scored = _score_captions(predictions, [expressions_of(question) for question in questions])
    sizes = [{"size": size_name(question.turn.regions[0].boxes[0])} for question in questions]
    return Scored(scored.each, scored.overall, sizes)


def _score_captions(predictions: Sequence[Prediction], references: list[list[str]]) -> Scored:
    scores = caption_scores([prediction.answer for prediction in predictions], references)
    names = ("cider", "bleu_4", "rouge_l")
    each = [
        {**{name: scores.each[name][i] for name in names}, "well_formed": float(bool(prediction.answer.strip()))}
        for i, prediction in enumerate(predictions)
    ]
    overall = {name: scores.corpus[name] for name in names}
    return Scored(each, {**overall, "well_formed": mean_scores(each)["well_formed"]}, [{} for _ in predictions])


def _score_chair(objects: ObjectList, questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    found: list[Chair] = []
    each = []
    for question, prediction in zip(questions, predictions, strict=True):
        annotated = [name for name in question.facts.get("objects", "").split("|") if name]
        one = chair(prediction.answer, annotated, question.turn.answers, objects)
        found.append(one)
        each.append(
            {
                "faithful": float(not one.hallucinated),
                "words": float(len(prediction.answer.split())),
                "objects": float(len(one.mentioned)),
                "hallucinated": float(len(one.hallucinated)),
                "well_formed": float(bool(prediction.answer.strip())),
            }
        )
    return Scored(each, {**mean_scores(each), **chair_metrics(found)}, [{} for _ in each])


score_chair = partial(_score_chair, ObjectList.OFFICIAL)
"""CHAIR with the official list: `faithful` is the share of captions without a hallucinated object, 1 - `chair_s`."""
score_chair_repaired = partial(_score_chair, ObjectList.REPAIRED)
"""CHAIR with the two synonyms that the official list spells with a blank before them."""


def score_turns(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """Held-out turns, by the metrics of their task. `score` is the task's headline metric."""
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        task = TASKS[question.turn.task]
        metrics = task.score(question.turn, prediction.answer, question.width, question.height)
        each.append({**metrics, "score": metrics[task.headline]})
        has_box = question.turn.regions and question.turn.regions[0].boxes
        size = {"size": size_name(question.turn.regions[0].boxes[0])} if has_box else {}
        kind = {"answer": answer_kind(question)} if task.headline == "accuracy" else {}
        groups.append({**size, **kind})
    return Scored(each, mean_scores(each), groups)
