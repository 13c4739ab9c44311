"""Visual question answering: a question about an image and a short answer."""

from __future__ import annotations

from minigptv2.record import Turn
from minigptv2.tasks.base import Pick, RenderedTurn, Task, TurnShape
from minigptv2.tasks.text_match import exact_match


class VqaTask(Task):
    """The task `vqa`."""

    name = "vqa"
    identifier = "[vqa]"
    label = "Short answer"
    instructions = (
        "Based on the image, respond to this question with a short answer: {query}",
        "{query}",
        "{query} Reply in a few words.",
        "Look at the picture and answer briefly: {query}",
        "Question: {query} Short answer:",
        "Use a word or two to answer: {query}",
        "Give a short reply to this: {query}",
        "What does the picture tell you? {query}",
    )
    headline = "accuracy"
    max_new_tokens = 32
    shape = TurnShape(question=True, answers=True, blank_answers=True)
    query = "text"
    answer = "text"

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        """The question in a drawn wording, with one of the accepted answers."""
        answer = pick(_given(turn))
        return RenderedTurn(self.name, self.ask(turn.question or "", pick(self.instructions)), answer)

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        """`accuracy`: whether the text is an accepted answer."""
        return {"accuracy": exact_match(text, _given(turn))}


def _given(turn: Turn) -> list[str]:
    """The answers that are not empty. Some of the people who were asked left theirs empty."""
    return [answer for answer in turn.answers if answer.strip()]
