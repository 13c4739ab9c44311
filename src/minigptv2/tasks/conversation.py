"""Conversation: a free question about an image and an answer, without a task identifier."""

from __future__ import annotations

from minigptv2.record import Turn
from minigptv2.tasks.base import Pick, RenderedTurn, Task, TurnShape
from minigptv2.tasks.text_match import text_scores


class ConversationTask(Task):
    """The task `conversation`."""

    name = "conversation"
    identifier = ""
    headline = "token_f1"
    max_new_tokens = 128
    shape = TurnShape(question=True, answers=True)
    query = "text"
    answer = "text"

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        """The question as it is, with one of the accepted answers. No wording is drawn."""
        return RenderedTurn(self.name, turn.question or "", pick(turn.answers))

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        """`exact` and `token_f1` against the accepted answers."""
        return text_scores(text, turn.answers)
