"""Image captioning: a sentence that describes an image."""

from __future__ import annotations

from minigptv2.record import Turn
from minigptv2.tasks.base import Pick, RenderedTurn, Task, TurnShape
from minigptv2.tasks.text_match import text_scores


class CaptionTask(Task):
    """The task `caption`."""

    name = "caption"
    identifier = "[caption]"
    label = "Caption"
    instructions = (
        "Describe this image in one sentence.",
        "Write a short caption.",
        "What does the picture show?",
        "Sum up the scene in a line.",
        "Give the image a plain caption.",
        "Say briefly what is here.",
        "Tell me what you see, in short.",
        "Put the picture into words.",
        "please describe this image?",  # asked by the published evaluation
    )
    headline = "token_f1"
    max_new_tokens = 96
    shape = TurnShape(answers=True)
    query = "none"
    answer = "text"

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        """An instruction, with one of the captions."""
        answer = pick(turn.answers)
        return RenderedTurn(self.name, self.ask("", pick(self.instructions)), answer)

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        """`exact` and `token_f1` against the captions."""
        return text_scores(text, turn.answers)
