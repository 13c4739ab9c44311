"""Scores the answers of a benchmark by its protocol: metrics per question, and metrics over all questions.

Metrics are shares, 0..1, except CIDEr with its own scale, 0..10. A protocol's `headline` is the published metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minigptv2.boxes import IOU_THRESHOLD, Box, Convention, match_boxes, overlap, size_name
from minigptv2.evaluate.metrics.captions import caption_scores
from minigptv2.evaluate.metrics.hallucination import Chair, chair, chair_metrics, pope_metrics, yes_or_no
from minigptv2.evaluate.metrics.statistics import auroc
from minigptv2.evaluate.metrics.vqa_accuracy import direct_answer_accuracy, exact_match, normalize_vqa, vqa_accuracy
from minigptv2.evaluate.questions import Question
from minigptv2.tasks import TASKS, Answer, GroundedPhrase, mean_scores
from minigptv2.tasks.text_match import normalize

Metrics = dict[str, float]
Groups = dict[str, str]
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Prediction:
    """The answer to a question: a text, or the choice with the lowest loss.

    `losses` is the mean loss per token of each choice that was scored.
    """

    answer: str
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """The metrics of each question (all with the same names), those over all questions, and each question's groups."""

    each: list[Metrics]
    overall: Metrics
    groups: list[Groups]


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is answered and scored.

    `score` takes all questions at once, because some metrics are not means. `best` is the highest value of `headline`.
    `choices`: None generates an answer. Otherwise the choice with the lowest loss is the answer, from these choices
    or, if they are empty, from the question's own. `scored_choices`: an answer is generated, and the losses of these
    choices are computed, too. `references` gives the reference texts of a question for caption metrics.
    """

    name: str
    headline: str
    score: Callable[[Sequence[Question], Sequence[Prediction]], Scored]
    best: float = 1.0
    choices: tuple[str, ...] | None = None
    scored_choices: tuple[str, ...] = ()
    references: Callable[[Question], list[str]] | None = None


def _parsed(question: Question, prediction: Prediction) -> Answer:
    return TASKS[question.turn.task].parse(prediction.answer, question.width, question.height)


def score_refer(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of phrases whose box has an IoU above 0.5, with both edge pixels counted and without."""
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        parsed = _parsed(question, prediction)
        truth = question.turn.regions[0].boxes[0]
        box = parsed.boxes[0] if parsed.boxes else None
        inclusive = overlap(box, truth, Convention.INCLUSIVE) if box else 0.0
        exact = overlap(box, truth, Convention.EXACT) if box else 0.0
        each.append(
            {
                "accuracy": float(inclusive > IOU_THRESHOLD),
                "accuracy_exact": float(exact > IOU_THRESHOLD),
                "mean_iou": exact,
                "well_formed": float(parsed.well_formed),
            }
        )
        groups.append({"size": size_name(truth)})
    return Scored(each, mean_scores(each), groups)


def score_vqa(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """VQA accuracy among the answers of ten people."""
    return _score_answers(questions, predictions, vqa_accuracy)


def score_direct(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """A-OKVQA's accuracy of direct answers."""
    return _score_answers(questions, predictions, direct_answer_accuracy)


def score_exact(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of normalized answers that equal an accepted one."""
    return _score_answers(questions, predictions, exact_match)


def _score_answers(
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    accuracy_of: Callable[[str, Sequence[str]], float],
) -> Scored:
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        accuracy = accuracy_of(prediction.answer, question.turn.answers)
        each.append({"accuracy": accuracy, "well_formed": float(bool(prediction.answer.strip()))})
        groups.append({"answer": answer_kind(question)})
    return Scored(each, mean_scores(each), groups)


def answer_kind(question: Question) -> str:
    """`yes/no`, `number` or `other`: as the corpus states, or by the first accepted answer."""
    if "answer_type" in question.facts:
        return question.facts["answer_type"]
    answer = normalize_vqa(question.turn.answers[0]) if question.turn.answers else ""
    return "yes/no" if answer in (YES, NO) else "number" if answer.isdecimal() else "other"


def score_choice(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of predicted choices that equal the corpus's correct choice, or an accepted answer if it has none."""
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        correct = question.facts.get("choice")
        accepted = {normalize(one) for one in ((correct,) if correct else question.turn.answers)}
        each.append({"accuracy": float(normalize(prediction.answer) in accepted), "well_formed": 1.0})
        groups.append({"choices": str(len(question.turn.choices))})
    return Scored(each, mean_scores(each), groups)


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


def score_pope(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """POPE: accuracy, precision, recall and F1 of `yes`, and the share of `yes` answers."""
    answers = [yes_or_no(prediction.answer) for prediction in predictions]
    references = [normalize(question.turn.answers[0]) for question in questions]
    well_formed = [float(normalize(prediction.answer) in (YES, NO)) for prediction in predictions]
    each = [
        {"accuracy": float(answer == reference), "well_formed": formed}
        for answer, reference, formed in zip(answers, references, well_formed, strict=True)
    ]
    overall = {**pope_metrics(answers, references), "well_formed": sum(well_formed) / len(well_formed)}
    return Scored(each, overall, [{"answer": reference} for reference in references])


def score_chair(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """CHAIR: `faithful` is the share of captions without a hallucinated object, which is 1 - `chair_s`."""
    found: list[Chair] = []
    each = []
    for question, prediction in zip(questions, predictions, strict=True):
        annotated = [name for name in question.facts.get("objects", "").split("|") if name]
        one = chair(prediction.answer, annotated, question.turn.answers)
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


def score_hateful(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The accuracy of the generated yes or no, and the AUROC of the loss of `no` minus the loss of `yes`."""
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        reference = normalize(question.turn.answers[0])
        each.append(
            {
                "accuracy": float(yes_or_no(prediction.answer) == reference),
                "score": prediction.losses[NO] - prediction.losses[YES],
                "well_formed": float(normalize(prediction.answer) in (YES, NO)),
            }
        )
        groups.append({"answer": reference})
    overall = mean_scores(each)
    del overall["score"]
    labels = [int(group["answer"] == YES) for group in groups]
    return Scored(each, {**overall, "auroc": auroc([one["score"] for one in each], labels)}, groups)


def score_phrases(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """Flickr30k Entities: a phrase is found if its first box has an IoU of at least 0.5 with any of its true boxes.

    The phrases of a detection are the requested ones, in order, and those of a grounded caption are the phrases of the
    true caption. If a phrase occurs twice, its first occurrence is compared with the first mention that has boxes, and
    its second occurrence with the second mention.
    """
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        parsed = _parsed(question, prediction)
        found, overlaps, mentions = [], [], _mentions(parsed.grounded)
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
                "well_formed": float(parsed.well_formed),
            }
        )
        groups.append({"size": size_name(question.turn.regions[0].boxes[0])})
    overall = mean_scores(each)
    overall["phrase_recall"] = overall.pop("found") / overall.pop("phrases")  # over all phrases, not a mean by image
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


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("refer", "accuracy", score_refer),
        Protocol("vqa", "accuracy", score_vqa),
        Protocol("direct", "accuracy", score_direct),
        Protocol("exact", "accuracy", score_exact),
        Protocol("choice", "accuracy", score_choice, choices=()),
        Protocol("caption", "cider", score_caption, best=10.0, references=captions_of),
        Protocol("identify", "cider", score_identify, best=10.0, references=expressions_of),
        Protocol("pope", "accuracy", score_pope),
        Protocol("chair", "faithful", score_chair),
        Protocol("hateful", "accuracy", score_hateful, scored_choices=(YES, NO)),
        Protocol("phrases", "phrase_recall", score_phrases),
        Protocol("turns", "score", score_turns),
    )
}
"""Every protocol by name."""
