"""Referring expression comprehension: a phrase that names an object, answered with its box."""

from __future__ import annotations

from minigptv2.boxes import IOU_THRESHOLD, iou, render_box
from minigptv2.record import Turn
from minigptv2.tasks.answers import Answer, parse_box
from minigptv2.tasks.base import Pick, RenderedTurn, Task, TurnShape


class ReferTask(Task):
    """The task `refer`."""

    name = "refer"
    identifier = "[refer]"
    label = "Find an object"
    instructions = (
        "give me the location of {query}",
        "{query}",
        "where is {query}?",
        "point at {query}",
        "find {query}",
        "which box holds {query}?",
        "show me {query}",
        "mark {query} in the picture",
    )
    headline = "recall_50"
    max_new_tokens = 32
    shape = TurnShape(regions="one")
    query = "phrase"
    answer = "box"

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        """One of the region's phrases in a drawn wording, with the region's box."""
        region = turn.regions[0]
        phrase = pick(region.phrases)
        answer = render_box(region.boxes[0], width, height)
        return RenderedTurn(self.name, self.ask(phrase, pick(self.instructions)), answer)

    def parse(self, text: str, width: int, height: int) -> Answer:
        """The boxes of the text. It is well formed if it is exactly one box."""
        return parse_box(text, width, height)

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        """`recall_50`: whether the first box overlaps the true one by at least half; `mean_iou`; `well_formed`."""
        parsed = self.parse(text, width, height)
        overlap = iou(parsed.boxes[0], turn.regions[0].boxes[0]) if parsed.boxes else 0.0
        return {
            "recall_50": float(overlap >= IOU_THRESHOLD),
            "mean_iou": overlap,
            "well_formed": float(parsed.well_formed),
        }
