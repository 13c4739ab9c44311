"""How answers become figures: one row a protocol. Questions and replies in, figures per question and over all out.

Figures are shares, 0..1, but CIDEr (its own scale, 0..10). A protocol's `headline` is the one that is published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minigptv2.boxes import IOU_THRESHOLD, Box, Convention, match_boxes, overlap, size_name
from minigptv2.evaluate.metrics.captions import caption_scores
from minigptv2.evaluate.metrics.hallucination import Chair, chair, chair_figures, pope_figures, yes_or_no
from minigptv2.evaluate.metrics.statistics import auroc
from minigptv2.evaluate.metrics.vqa_accuracy import direct_answer_accuracy, exact_match, normalize_vqa, vqa_accuracy
from minigptv2.evaluate.questions import Question
from minigptv2.tasks import TASKS, GroundedPhrase, mean_scores
from minigptv2.tasks.text_match import normalize

Figures = dict[str, float]
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Reply:
    """What was answered: a text, or, where choices were weighed, the likeliest and each one's mean loss per token."""

    answer: str
    losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """Figures per question (all with the same names), those over all questions, and each question's groups."""

    each: list[Figures]
    overall: Figures
    groups: list[dict[str, str]]


@dataclass(frozen=True)
class Protocol:
    """`score` weighs a whole benchmark at once, since some figures are no means. `best`: what `headline` can reach.

    `choices`: answers are not generated: the likeliest of these wins; empty: of the question's own; None: generated.
    `weighed`: both: an answer is generated, and the losses of these are measured for a ranking.
    """

    name: str
    headline: str
    score: Callable[[Sequence[Question], Sequence[Reply]], Scored]
    best: float = 1.0
    choices: tuple[str, ...] | None = None
    weighed: tuple[str, ...] = ()


def refer(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """Share of expressions whose box overlaps by more than half; the published script's pixels, and exact ones."""
    each, groups = [], []
    for question, reply in zip(questions, replies, strict=True):
        parsed = TASKS[question.turn.task].parse(reply.answer, question.width, question.height)
        truth = question.turn.regions[0].boxes[0]
        said = parsed.boxes[0] if parsed.boxes else None
        inclusive = overlap(said, truth, Convention.INCLUSIVE) if said else 0.0
        exact = overlap(said, truth, Convention.EXACT) if said else 0.0
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


def vqa(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """Accuracy among ten people."""
    return _answers(questions, replies, vqa_accuracy)


def direct(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """A-OKVQA's direct answers."""
    return _answers(questions, replies, direct_answer_accuracy)


def exact(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """Normalised answers that are an accepted one."""
    return _answers(questions, replies, exact_match)


def _answers(
    questions: Sequence[Question], replies: Sequence[Reply], accuracy: Callable[[str, Sequence[str]], float]
) -> Scored:
    each, groups = [], []
    for question, reply in zip(questions, replies, strict=True):
        right = accuracy(reply.answer, question.turn.answers)
        each.append({"accuracy": right, "well_formed": float(bool(reply.answer.strip()))})
        groups.append({"answer": answer_kind(question)})
    return Scored(each, mean_scores(each), groups)


def answer_kind(question: Question) -> str:
    """`yes/no`, `number` or `other`: as the corpus says, or by the first accepted answer."""
    if "answer_type" in question.facts:
        return question.facts["answer_type"]
    answer = normalize_vqa(question.turn.answers[0]) if question.turn.answers else ""
    return "yes/no" if answer in (YES, NO) else "number" if answer.isdecimal() else "other"


def choice(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """The choice with the lowest loss per token is the right one: the corpus's, else an accepted answer."""
    each, groups = [], []
    for question, reply in zip(questions, replies, strict=True):
        right = question.facts.get("choice")
        accepted = {normalize(one) for one in ((right,) if right else question.turn.answers)}
        each.append({"accuracy": float(normalize(reply.answer) in accepted), "well_formed": 1.0})
        groups.append({"choices": str(len(question.turn.choices))})
    return Scored(each, mean_scores(each), groups)


def caption(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """CIDEr-D, BLEU-4 and ROUGE-L against all captions of the picture."""
    return _captioned(replies, [list(question.turn.answers) for question in questions])


def identify(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """Generated expressions by CIDEr-D against all expressions of the object."""
    scored = _captioned(replies, [list(question.turn.regions[0].phrases) for question in questions])
    sizes = [{"size": size_name(question.turn.regions[0].boxes[0])} for question in questions]
    return Scored(scored.each, scored.overall, sizes)


def _captioned(replies: Sequence[Reply], references: list[list[str]]) -> Scored:
    scores = caption_scores([reply.answer for reply in replies], references)
    names = ("cider", "bleu_4", "rouge_l")
    each = [
        {**{name: scores.each[name][i] for name in names}, "well_formed": float(bool(reply.answer.strip()))}
        for i, reply in enumerate(replies)
    ]
    overall = {name: scores.corpus[name] for name in names}
    return Scored(each, {**overall, "well_formed": mean_scores(each)["well_formed"]}, [{} for _ in replies])


def pope(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """Is it there, yes or no: accuracy, F1 of yes, and how often yes is said."""
    said = [yes_or_no(reply.answer) for reply in replies]
    meant = [normalize(question.turn.answers[0]) for question in questions]
    formed = [float(normalize(reply.answer) in (YES, NO)) for reply in replies]
    each = [{"accuracy": float(s == m), "well_formed": w} for s, m, w in zip(said, meant, formed, strict=True)]
    groups = [{"answer": answer} for answer in meant]
    return Scored(each, {**pope_figures(said, meant), "well_formed": sum(formed) / len(formed)}, groups)


def hallucinated(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """CHAIR: `faithful` is the share of captions without a hallucinated object, 1 - `chair_s`."""
    found: list[Chair] = []
    each = []
    for question, reply in zip(questions, replies, strict=True):
        there = [name for name in question.facts.get("objects", "").split("|") if name]
        one = chair(reply.answer, there, question.turn.answers)
        found.append(one)
        each.append(
            {
                "faithful": float(not one.hallucinated),
                "words": float(len(reply.answer.split())),
                "objects": float(len(one.spoken)),
                "hallucinated": float(len(one.hallucinated)),
                "well_formed": float(bool(reply.answer.strip())),
            }
        )
    return Scored(each, {**mean_scores(each), **chair_figures(found)}, [{} for _ in each])


def hateful(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """Accuracy of the answered yes or no, and AUROC of how much likelier yes is than no."""
    each, groups = [], []
    for question, reply in zip(questions, replies, strict=True):
        meant = normalize(question.turn.answers[0])
        score_ = reply.losses[NO] - reply.losses[YES]
        right = float(yes_or_no(reply.answer) == meant)
        each.append({"accuracy": right, "score": score_, "well_formed": float(normalize(reply.answer) in (YES, NO))})
        groups.append({"answer": meant})
    overall = mean_scores(each)
    del overall["score"]
    labels = [int(group["answer"] == YES) for group in groups]
    return Scored(each, {**overall, "auroc": auroc([one["score"] for one in each], labels)}, groups)


def phrases(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """Flickr30k Entities: a phrase is found if its first box overlaps any of its true ones by half.

    Of a detection the phrases are those asked for, in order; of a grounded caption, those of the true caption. Where
    one comes again, the first is held against the first mention with boxes, the second against the second.
    """
    each, groups = [], []
    for question, reply in zip(questions, replies, strict=True):
        parsed = TASKS[question.turn.task].parse(reply.answer, question.width, question.height)
        found, overlaps, mentions = [], [], _mentions(parsed.grounded)
        for region in question.turn.regions:
            boxes = _next_mention(mentions, _phrase_of(question, region.phrases[0], region.span))
            found.append(
                float(any(overlap(boxes[0], true, Convention.EXACT) >= IOU_THRESHOLD for true in region.boxes))
                if boxes
                else 0.0
            )
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
    overall["phrase_recall"] = overall.pop("found") / overall.pop("phrases")  # of all phrases, not the mean of pictures
    return Scored(each, overall, groups)


def _phrase_of(question: Question, phrase: str, span: tuple[int, int] | None) -> str:
    return question.turn.answers[0][span[0] : span[1]] if span else phrase


def _mentions(grounded: Sequence[GroundedPhrase]) -> dict[str, list[tuple[Box, ...]]]:
    """The boxes of each mention that has any, in spoken order, by normalised phrase."""
    mentions: dict[str, list[tuple[Box, ...]]] = {}
    for one in grounded:
        if one.boxes:
            mentions.setdefault(normalize(one.phrase), []).append(one.boxes)
    return mentions


def _next_mention(mentions: dict[str, list[tuple[Box, ...]]], phrase: str) -> tuple[Box, ...]:
    """The boxes of the phrase's next mention, which is used up unless it is the last."""
    several = mentions.get(normalize(phrase), [()])
    return several.pop(0) if len(several) > 1 else several[0]


def turns(questions: Sequence[Question], replies: Sequence[Reply]) -> Scored:
    """Held-out turns of one task by its table row's metric."""
    each = []
    for question, reply in zip(questions, replies, strict=True):
        task = TASKS[question.turn.task]
        figures = task.score(question.turn, reply.answer, question.width, question.height)
        each.append({**figures, "score": figures[task.headline]})
    groups = []
    for question in questions:
        boxed = question.turn.regions and question.turn.regions[0].boxes
        kind = {"answer": answer_kind(question)} if TASKS[question.turn.task].headline == "accuracy" else {}
        groups.append({**({"size": size_name(question.turn.regions[0].boxes[0])} if boxed else {}), **kind})
    return Scored(each, mean_scores(each), groups)


PROTOCOLS: dict[str, Protocol] = {
    row.name: row
    for row in (
        Protocol("refer", "accuracy", refer),
        Protocol("vqa", "accuracy", vqa),
        Protocol("direct", "accuracy", direct),
        Protocol("exact", "accuracy", exact),
        Protocol("choice", "accuracy", choice, choices=()),
        Protocol("caption", "cider", caption, best=10.0),
        Protocol("identify", "cider", identify, best=10.0),
        Protocol("pope", "accuracy", pope),
        Protocol("chair", "faithful", hallucinated),
        Protocol("hateful", "accuracy", hateful, weighed=(YES, NO)),
        Protocol("phrases", "phrase_recall", phrases),
        Protocol("turns", "score", turns),
    )
}
"""Every protocol by name."""
