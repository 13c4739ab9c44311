"""Scores boxes: of referring expressions and of phrases of Flickr30k Entities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minigptv2.boxes import IOU_THRESHOLD, Box, Convention, leading_box, match_boxes, overlap, size_name
from minigptv2.evaluate.questions import Question
from minigptv2.evaluate.rules.rule import Prediction, Scored, parsed
from minigptv2.tasks import GroundedPhrase, mean_scores
from minigptv2.tasks.text_match import normalize


def score_refer(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of phrases whose first box in the answer has an IoU above 0.5, by pixels and without edge pixels."""

    def read(question: Question, prediction: Prediction) -> tuple[Box | None, bool]:
        answer = parsed(question, prediction)
        return answer.boxes[0] if answer.boxes else None, answer.well_formed

    return _score_refer(questions, predictions, read, Convention.INCLUSIVE)


def score_refer_published(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """As `score_refer`, with the box that the published evaluation reads at the beginning of the answer."""

    def read(question: Question, prediction: Prediction) -> tuple[Box | None, bool]:
        box = leading_box(prediction.answer, question.width, question.height)
        return box, box is not None

    return _score_refer(questions, predictions, read, Convention.PUBLISHED)


def _score_refer(
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    read: Callable[[Question, Prediction], tuple[Box | None, bool]],
    convention: Convention,
) -> Scored:
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        box, well_formed = read(question, prediction)
        truth = question.turn.regions[0].boxes[0]
        inclusive = overlap(box, truth, convention) if box else 0.0
        exact = overlap(box, truth, Convention.EXACT) if box else 0.0
        each.append(
            {
                "accuracy": float(inclusive > IOU_THRESHOLD),
                "accuracy_exact": float(exact > IOU_THRESHOLD),
                "mean_iou": exact,
                "well_formed": float(well_formed),
            }
        )
        groups.append({"size": size_name(truth)})
    return Scored(each, mean_scores(each), groups)


def score_phrases(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """Flickr30k Entities: a phrase is found if its first box has an IoU of at least 0.5 with any of its true boxes.

    Every mention with boxes counts, also of a phrase that another sentence repeats. The phrases of a detection are the
    requested ones, in order, and those of a grounded caption are the phrases of the true caption. If a phrase occurs
    twice in one question, its first occurrence is compared with the first mention that has boxes in the answer, and its
    second occurrence with the second mention.
    """
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        answer = parsed(question, prediction)
        found, overlaps, mentions = [], [], _mentions(answer.grounded)
        for region in question.turn.regions:
            boxes = _next_mention(mentions, _phrase_of(question, region.phrases[0], region.span))
            hit = bool(boxes) and any(
                overlap(boxes[0], true, Convention.EXACT) >= IOU_THRESHOLD for true in region.boxes
            )
            found.append(float(hit))
            overlaps += match_boxes(boxes, region.boxes)
        each.append(
            {
                "phrase_recall": sum(found) / len(found),
                "found": sum(found),
                "phrases": float(len(found)),
                "mean_iou": sum(overlaps) / len(overlaps),
                "well_formed": float(answer.well_formed),
            }
        )
        groups.append({"size": size_name(question.turn.regions[0].boxes[0])})
    overall = mean_scores(each)
    overall["phrase_recall"] = overall.pop("found") / overall.pop("phrases")  # over all phrases, not a mean by image
    overall["phrases"] = sum(one["phrases"] for one in each)
    return Scored(each, overall, groups)


def _phrase_of(question: Question, phrase: str, span: tuple[int, int] | None) -> str:
    return question.turn.answers[0][span[0] : span[1]] if span else phrase


def _mentions(grounded: Sequence[GroundedPhrase]) -> dict[str, list[tuple[Box, ...]]]:
    """The boxes of each mention that has any, in the order of the answer, by normalized phrase."""
    mentions: dict[str, list[tuple[Box, ...]]] = {}
    for one in grounded:
        if one.boxes:
            mentions.setdefault(normalize(one.phrase), []).append(one.boxes)
    return mentions


def _next_mention(mentions: dict[str, list[tuple[Box, ...]]], phrase: str) -> tuple[Box, ...]:
    """The boxes of the phrase's next mention, which is removed from `mentions` unless it is the last one."""
    several = mentions.get(normalize(phrase), [()])
    return several.pop(0) if len(several) > 1 else several[0]
