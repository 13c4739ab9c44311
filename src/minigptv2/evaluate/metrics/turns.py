"""Figures of merit per task: pure functions of a turn and a parsed answer, and means over samples."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from minigptv2.boxes import IOU_THRESHOLD, iou, match_boxes
from minigptv2.record import Turn
from minigptv2.tasks import TASKS, Answer, parse_answer


class Asked(Protocol):
    """What an answer is weighed against: a turn, and its picture's size in pixels."""

    @property
    def turn(self) -> Turn: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


def score(item: Asked, answer: str) -> dict[str, float]:
    """The figures of one answer, each 0..1, by name. Every task has its table row's metric among them."""
    task = item.turn.task
    parsed = parse_answer(answer, task, item.width, item.height)
    if task == "refer":
        return _refer(item, parsed)
    if task == "detection":
        return _detection(item, parsed)
    if task == "grounding":
        return _grounding(item, parsed)
    accepted = item.turn.answers or tuple(p for region in item.turn.regions for p in region.phrases)
    exact = float(any(normalize(answer) == normalize(candidate) for candidate in accepted))
    if task == "vqa":
        return {"accuracy": exact}
    figures = {"exact": exact}
    if task != "identify":
        figures["token_f1"] = max(token_f1(answer, candidate) for candidate in accepted)
    return figures


def aggregate(figures: list[dict[str, float]]) -> dict[str, float]:
    """Means by name, and the number of samples."""
    names = figures[0].keys()
    return {name: sum(f[name] for f in figures) / len(figures) for name in names} | {"samples": len(figures)}


def headline(task: str) -> str:
    """The name of the figure that stands for a task in a table."""
    return TASKS[task].metric if task in TASKS else "token_f1"


def normalize(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.lower().split()).strip(" .,!?;:")


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of word precision and recall, 0..1."""
    said, meant = Counter(normalize(answer).split()), Counter(normalize(reference).split())
    common = sum((said & meant).values())
    if not common:
        return 0.0
    precision, recall = common / sum(said.values()), common / sum(meant.values())
    return 2 * precision * recall / (precision + recall)


def _refer(item: Asked, parsed: Answer) -> dict[str, float]:
    truth = item.turn.regions[0].boxes[0]
    overlap = iou(parsed.boxes[0], truth) if parsed.boxes else 0.0
    return {
        "recall_50": float(overlap >= IOU_THRESHOLD),
        "mean_iou": overlap,
        "well_formed": float(parsed.well_formed),
    }


def _detection(item: Asked, parsed: Answer) -> dict[str, float]:
    truth = tuple(box for region in item.turn.regions for box in region.boxes)
    overlaps = match_boxes(parsed.boxes, truth)
    hits = sum(value >= IOU_THRESHOLD for value in overlaps)
    f1 = 2 * hits / (len(truth) + len(parsed.boxes)) if hits else 0.0
    return {"box_f1_50": f1, "mean_iou": sum(overlaps) / len(truth), "well_formed": float(parsed.well_formed)}


def _grounding(item: Asked, parsed: Answer) -> dict[str, float]:
    """Share of true phrases that were said, word for word, with a box over each of theirs; and the caption's F1."""
    found: list[float] = []
    overlaps: list[float] = []
    caption = item.turn.answers[0]
    for region in item.turn.regions:
        start, end = region.span or (0, 0)
        phrase = normalize(caption[start:end])
        said = tuple(box for g in parsed.grounded if normalize(g.phrase) == phrase for box in g.boxes)
        matched = match_boxes(said, region.boxes)
        overlaps += matched
        found.append(float(all(value >= IOU_THRESHOLD for value in matched)))
    return {
        "phrase_recall_50": sum(found) / len(found),
        "mean_iou": sum(overlaps) / len(overlaps),
        "token_f1": token_f1(parsed.text, caption),
        "well_formed": float(parsed.well_formed),
    }
