"""Defines the tasks: one object in one file per task, and the registry that lists them."""

from minigptv2.tasks.answers import Answer, GroundedPhrase, segments
from minigptv2.tasks.base import Pick, RenderedTurn, Task, TurnShape, mean_scores, picker
from minigptv2.tasks.registry import BOX_TASK, TASKS, render_turn, task_id, task_of, validate

__all__ = [
    "BOX_TASK",
    "TASKS",
    "Answer",
    "GroundedPhrase",
    "Pick",
    "RenderedTurn",
    "Task",
    "TurnShape",
    "mean_scores",
    "picker",
    "render_turn",
    "segments",
    "task_id",
    "task_of",
    "validate",
]
