"""Language: a question and an answer without an image and without a task identifier."""

from __future__ import annotations

from minigptv2.tasks.base import TurnShape
from minigptv2.tasks.conversation import ConversationTask


class LanguageTask(ConversationTask):
    """The task `language`, which differs from conversation in that the record has no image."""

    name = "language"
    shape = TurnShape(image=False, question=True, answers=True)
