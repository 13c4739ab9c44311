"""Scores short answers: the answers of ten people, one accepted answer, yes or no, and choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minigptv2.evaluate.metrics.hallucination import pope_metrics, yes_or_no
from minigptv2.evaluate.metrics.lemmas import lemmatize
from minigptv2.evaluate.metrics.statistics import auroc
from minigptv2.evaluate.metrics.vqa_accuracy import (
    agreement,
    direct_answer_accuracy,
    equals_lowered,
    exact_match,
    vqa_accuracy,
)
from minigptv2.evaluate.questions import Question
from minigptv2.evaluate.rules.rule import NO, YES, Metrics, Prediction, Scored, answer_kind
from minigptv2.tasks import mean_scores
from minigptv2.tasks.text_match import normalize

STEMS = "answers"
"""The fact of an OK-VQA question that holds the column `answer` of its ten people, joined by `|`. The accepted answers
of the turn are then the column `raw_answer`."""


def score_vqa(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """VQA accuracy among the answers of ten people."""
    return _score_answers(questions, predictions, vqa_accuracy)


def score_vizwiz(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """How many of ten people wrote exactly the answer, divided by three, as the published evaluation counts VizWiz."""
    return _score_answers(questions, predictions, agreement)


def score_direct(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """A-OKVQA's accuracy of direct answers."""
    return _score_answers(questions, predictions, direct_answer_accuracy)


def score_exact(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of normalized answers that equal an accepted one."""
    return _score_answers(questions, predictions, exact_match)


def score_gqa(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of answers that equal the label in lower case. The label is compared as it is written."""
    return _score_answers(questions, predictions, lambda answer, labels: equals_lowered(answer, labels[0]))


def score_vsr(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of answers that equal the label, both in lower case."""
    return _score_answers(questions, predictions, lambda answer, labels: equals_lowered(answer, labels[0].lower()))


def score_okvqa(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """VQA accuracy among the stems. `accuracy_raw` is the same among the answers as ten people wrote them."""
    return _score_stems(questions, predictions, str)


def score_okvqa_lemmas(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """As `score_okvqa`, with the lemmas of the answer's words compared with the stems."""
    return _score_stems(questions, predictions, lemmatize)


def _score_stems(
    questions: Sequence[Question], predictions: Sequence[Prediction], prepared: Callable[[str], str]
) -> Scored:
    both = any(STEMS in question.facts for question in questions)
    each: list[Metrics] = []
    for question, prediction in zip(questions, predictions, strict=True):
        stems = question.facts[STEMS].split("|") if STEMS in question.facts else question.turn.answers
        metrics = {"accuracy": vqa_accuracy(prepared(prediction.answer), stems)}
        if both:
            metrics["accuracy_raw"] = vqa_accuracy(prediction.answer, question.turn.answers)
        each.append({**metrics, "well_formed": float(bool(prediction.answer.strip()))})
    return Scored(each, mean_scores(each), [{"answer": answer_kind(question)} for question in questions])


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


def score_choice(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of predicted choices that are the correct one, as it is written."""
    return _score_choice(questions, predictions, str.strip)


def score_choice_normalized(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The share of predicted choices that equal the correct one, both normalized."""
    return _score_choice(questions, predictions, normalize)


def _score_choice(
    questions: Sequence[Question], predictions: Sequence[Prediction], prepared: Callable[[str], str]
) -> Scored:
    """The correct choice is the one that the corpus states, or an accepted answer if it states none."""
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        correct = question.facts.get("choice")
        accepted = {prepared(one) for one in ((correct,) if correct else question.turn.answers)}
        each.append({"accuracy": float(prepared(prediction.answer) in accepted), "well_formed": 1.0})
        groups.append({"choices": str(len(question.turn.choices))})
    return Scored(each, mean_scores(each), groups)


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


def score_hateful(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The accuracy of the yes or no that POPE's script reads, and the AUROC of the losses of both."""
    return _score_hateful(questions, predictions, yes_or_no)


def score_hateful_labels(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Scored:
    """The accuracy of answers that are exactly yes or no, case and outer space apart, and the AUROC of both losses."""
    return _score_hateful(questions, predictions, lambda answer: answer.lower().strip())


def _score_hateful(
    questions: Sequence[Question], predictions: Sequence[Prediction], label_of: Callable[[str], str]
) -> Scored:
    """`score` of a question is the loss of `no` minus the loss of `yes`. The AUROC is NaN if a label is missing."""
    each, groups = [], []
    for question, prediction in zip(questions, predictions, strict=True):
        reference = normalize(question.turn.answers[0])
        each.append(
            {
                "accuracy": float(label_of(prediction.answer) == reference),
                "score": prediction.losses[NO] - prediction.losses[YES],
                "well_formed": float(normalize(prediction.answer) in (YES, NO)),
            }
        )
        groups.append({"answer": reference})
    overall = mean_scores(each)
    del overall["score"]
    labels = [int(group["answer"] == YES) for group in groups]
    return Scored(each, {**overall, "auroc": auroc([one["score"] for one in each], labels)}, groups)
