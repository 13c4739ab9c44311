"""Lists the tasks and finds one by name or by the identifier of a question. The order of the list is the task id."""

from __future__ import annotations

from random import Random

from minigptv2.errors import DataError
from minigptv2.record import Record, Turn
from minigptv2.tasks.base import RenderedTurn, Task, picker
from minigptv2.tasks.caption import CaptionTask
from minigptv2.tasks.conversation import ConversationTask
from minigptv2.tasks.detection import DetectionTask
from minigptv2.tasks.grounding import GroundingTask
from minigptv2.tasks.identify import IdentifyTask
from minigptv2.tasks.language import LanguageTask
from minigptv2.tasks.refer import ReferTask
from minigptv2.tasks.vqa import VqaTask

_CONVERSATION = ConversationTask()


def by_name(*tasks: Task) -> dict[str, Task]:
    """The tasks by name, in order. Raises `ValueError` for a repeated name and for a query without its region."""
    found: dict[str, Task] = {}
    for task in tasks:
        if task.name in found:
            raise ValueError(f"two tasks are named '{task.name}'. Rename one of them")
        if task.query in ("phrase", "box") and task.shape.regions != "one":
            raise ValueError(
                f"task '{task.name}': query \"{task.query}\" is the {task.query} of a turn's only region and requires "
                f'TurnShape(regions="one"), got regions="{task.shape.regions}". For a text without a box use query '
                '"text" and TurnShape(question=True)'
            )
        found[task.name] = task
    return found


TASKS: dict[str, Task] = by_name(
    VqaTask(),
    CaptionTask(),
    GroundingTask(),
    ReferTask(),
    IdentifyTask(),
    DetectionTask(),
    _CONVERSATION,
    LanguageTask(),
)
"""Every task by name. The position of a task is its id, which labels its tokens in a batch: append new ones."""


BOX_TASK = next(task for task in TASKS.values() if task.query == "box")
"""The task that a region drawn on an image begins."""


def task_id(name: str) -> int:
    """The integer that labels the tokens of a task in a batch."""
    return list(TASKS).index(name)


def task_of(question: str) -> Task:
    """The task whose identifier begins the question, or the conversation task if no identifier does."""
    for task in TASKS.values():
        if task.identifier and question.strip().startswith(task.identifier):
            return task
    return _CONVERSATION


def render_turn(turn: Turn, width: int, height: int, random: Random | None = None) -> RenderedTurn:
    """The question and answer of a turn: alternatives and wording drawn from `random`, or the first ones without it.

    Accepted answers are drawn as often as the record lists them: an answer that nine of ten people gave is trained
    nine times of ten. `width` and `height` are pixels of the original image, 0 for a record without one.
    """
    return TASKS[turn.task].render(turn, width, height, picker(random))


def validate(record: Record, where: str) -> None:
    """Check the content of a record, turn by turn, against the shape of its task.

    Checked: at least one turn, known tasks, an image where the task needs one, non-empty answers and phrases, boxes
    inside the image, spans inside the caption that do not overlap. Raises `DataError`, beginning with `where`, if the
    record cannot be trained on or evaluated.
    """
    if not record.turns:
        raise DataError(f"{where}: the record has no turns")
    if record.has_image and not ((record.width or 0) > 0 and (record.height or 0) > 0):
        raise DataError(f"{where}: image size {record.width} x {record.height} is not positive")
    for number, turn in enumerate(record.turns):
        task = TASKS.get(turn.task)
        if task is None:
            raise DataError(f"{where}: turn {number} ({turn.task}): unknown task; the tasks are {', '.join(TASKS)}")
        if problem := task.shape.problem(turn, record.width, record.height):
            raise DataError(f"{where}: turn {number} ({turn.task}): {problem}")
