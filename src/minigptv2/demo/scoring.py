"""Held-out questions in memory: answers, per-task figures, a baseline, a table. What the demonstrations use."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

from tqdm import tqdm

from minigptv2.boxes import Box, render_box
from minigptv2.heldout.samples import HeldOutQuestion
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding
from minigptv2.tasks import TASKS, mean_scores

Figures = dict[str, dict[str, float]]
"""Task to figure name to value."""


@dataclass
class Evaluation:
    """Items, what was answered, and the figures by task."""

    items: list[HeldOutQuestion]
    answers: list[str]
    figures: Figures


def evaluate_items(
    predictor: Predictor, items: list[HeldOutQuestion], *, max_new_tokens: int = 96, batch_size: int = 100
) -> Evaluation:
    """Ask every item, batched by task, and score the answers."""
    answers = [""] * len(items)
    by_task: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        by_task.setdefault(item.turn.task, []).append(number)
    bar = tqdm(total=len(items), desc="evaluating", unit="question", disable=not sys.stderr.isatty())
    for numbers in by_task.values():
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            said = predictor.answer(
                [items[n].request() for n in chosen], Decoding(max_new_tokens), batch_size=batch_size
            )
            for n, text in zip(chosen, said, strict=True):
                answers[n] = text
            bar.update(len(chosen))
    bar.close()
    return Evaluation(items, answers, score_all(items, answers))


def score_all(items: list[HeldOutQuestion], answers: list[str]) -> Figures:
    """Mean figures by task."""
    by_task: dict[str, list[dict[str, float]]] = {}
    for item, answer in zip(items, answers, strict=True):
        by_task.setdefault(item.turn.task, []).append(item.score(answer))
    return {task: {**mean_scores(scores), "samples": len(scores)} for task, scores in by_task.items()}


def baseline(items: list[HeldOutQuestion]) -> Figures:
    """What always saying the most frequent answer, or the mean box where a box is asked, would score.

    Frequencies and means are taken from the held-out answers themselves, which flatters it.
    """
    answers = [""] * len(items)
    by_task: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        by_task.setdefault(item.turn.task, []).append(number)
    for task, numbers in by_task.items():
        said = _mean_box_text([items[n] for n in numbers]) if TASKS[task].answer == "box" else None
        said = said or Counter(items[n].answer for n in numbers).most_common(1)[0][0]
        for n in numbers:
            answers[n] = said
    return score_all(items, answers)


def _mean_box_text(items: list[HeldOutQuestion]) -> str:
    """The mean of the true boxes, each as a share of its image, as text."""
    sums = [0.0] * 4
    for item in items:
        box = item.turn.regions[0].boxes[0]
        shares = (box.x1 / item.width, box.y1 / item.height, box.x2 / item.width, box.y2 / item.height)
        sums = [total + share for total, share in zip(sums, shares, strict=True)]
    return render_box(Box(*(total / len(items) for total in sums)), 1, 1)


def table(columns: dict[str, Figures]) -> str:
    """Figures side by side, a line per task and figure; the task's headline figure is marked."""
    first = next(iter(columns.values()))
    lines = [f"{'task':<14}{'figure':<20}" + "".join(f"{name:>12}" for name in columns)]
    for task, figures in first.items():
        for name in figures:
            if name == "samples":
                continue
            mark = "*" if name == TASKS[task].headline else " "
            cells = "".join(f"{column[task][name]:>12.3f}" for column in columns.values())
            lines.append(f"{task:<14}{name + mark:<20}{cells}")
    return "\n".join(lines)
