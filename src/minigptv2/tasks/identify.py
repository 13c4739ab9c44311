"""Region identification: a box, answered with the name of the object in it."""

from __future__ import annotations

from minigptv2.boxes import render_box
from minigptv2.record import Turn
from minigptv2.tasks.base import Pick, RenderedTurn, Task, TurnShape
from minigptv2.tasks.text_match import exact_match


class IdentifyTask(Task):
    """The task `identify`."""

    name = "identify"
    identifier = "[identify]"
    label = "Describe a region"
    instructions = (
        "what is in {query}?",
        "{query}",
        "name the object in {query}",
        "what does {query} hold?",
        "describe the thing at {query}",
        "say what you see at {query}",
        "tell me what {query} shows",
        "which object lies in {query}?",
    )
    headline = "exact"
    max_new_tokens = 48
    shape = TurnShape(regions="one")
    query = "box"
    answer = "text"

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        """The region's box in a drawn wording, with one of the region's phrases."""
        region = turn.regions[0]
        box = render_box(region.boxes[0], width, height)
        answer = pick(region.phrases)
        return RenderedTurn(self.name, self.ask(box, pick(self.instructions)), answer)

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        """`exact`: whether the text is one of the accepted names."""
        return {"exact": exact_match(text, turn.answers or [p for region in turn.regions for p in region.phrases])}
