"""Answers and scores held-out questions for the demonstrations, with a baseline and a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from minigptv2.boxes import Box, render_box
from minigptv2.heldout.samples import HeldOutQuestion
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding
from minigptv2.progress_bars import progress_bar
from minigptv2.tasks import TASKS, mean_scores

Scores = dict[str, dict[str, float]]
"""Task to metric to value."""


@dataclass
class Evaluation:
    """Questions, the answers to them, and the scores by task."""

    items: list[HeldOutQuestion]
    answers: list[str]
    scores: Scores


def evaluate_items(
    predictor: Predictor, items: list[HeldOutQuestion], *, max_new_tokens: int = 96, batch_size: int = 100
) -> Evaluation:
    """Answer all questions, in batches of one task, and score the answers."""
    answers = [""] * len(items)
    by_task: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        by_task.setdefault(item.turn.task, []).append(number)
    bar = progress_bar(total=len(items), desc="evaluating", unit="question")
    for numbers in by_task.values():
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            texts = predictor.answer(
                [items[n].request() for n in chosen], Decoding(max_new_tokens), batch_size=batch_size
            )
            for n, text in zip(chosen, texts, strict=True):
                answers[n] = text
            bar.update(len(chosen))
    bar.close()
    return Evaluation(items, answers, score_all(items, answers))


def score_all(items: list[HeldOutQuestion], answers: list[str]) -> Scores:
    """The mean scores and the number of samples by task."""
    by_task: dict[str, list[dict[str, float]]] = {}
    for item, answer in zip(items, answers, strict=True):
        by_task.setdefault(item.turn.task, []).append(item.score(answer))
    return {task: {**mean_scores(scores), "samples": len(scores)} for task, scores in by_task.items()}


def baseline(items: list[HeldOutQuestion]) -> Scores:
    """The scores of one constant answer per task: the most frequent answer, or the mean box if the answer is a box.

    Frequencies and means are computed from the held-out answers themselves, which favors the baseline.
    """
    answers = [""] * len(items)
    by_task: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        by_task.setdefault(item.turn.task, []).append(number)
    for task, numbers in by_task.items():
        constant = _mean_box_text([items[n] for n in numbers]) if TASKS[task].answer == "box" else None
        constant = constant or Counter(items[n].answer for n in numbers).most_common(1)[0][0]
        for n in numbers:
            answers[n] = constant
    return score_all(items, answers)


def _mean_box_text(items: list[HeldOutQuestion]) -> str:
    """The mean of the true boxes, in fractions of the image size, as text."""
    sums = [0.0] * 4
    for item in items:
        box = item.turn.regions[0].boxes[0]
        shares = (box.x1 / item.width, box.y1 / item.height, box.x2 / item.width, box.y2 / item.height)
        sums = [total + share for total, share in zip(sums, shares, strict=True)]
    return render_box(Box(*(total / len(items) for total in sums)), 1, 1)


def table(columns: dict[str, Scores]) -> str:
    """A table with one line per task and metric and one column per model. A star marks the task's headline metric."""
    first = next(iter(columns.values()))
    lines = [f"{'task':<14}{'metric':<20}" + "".join(f"{name:>12}" for name in columns)]
    for task, metrics in first.items():
        for name in metrics:
            if name == "samples":
                continue
            mark = "*" if name == TASKS[task].headline else " "
            cells = "".join(f"{column[task][name]:>12.3f}" for column in columns.values())
            lines.append(f"{task:<14}{name + mark:<20}{cells}")
    return "\n".join(lines)
