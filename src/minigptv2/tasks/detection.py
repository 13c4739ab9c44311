"""Object detection: phrases, or a text to parse, answered with each phrase and its boxes.

A phrase that is not in the image is answered without a box: `<p>dog</p>`.
"""

from __future__ import annotations

from minigptv2.boxes import IOU_THRESHOLD, match_boxes
from minigptv2.record import Turn
from minigptv2.tasks.answers import Answer, has_box_text, parse_grounded, render_phrase
from minigptv2.tasks.base import Pick, RenderedTurn, Task, TurnShape


class DetectionTask(Task):
    """The task `detection`."""

    name = "detection"
    identifier = "[detection]"
    label = "Detect objects"
    instructions = (
        "{query}",
        "find every {query}",
        "locate all: {query}",
        "box each {query}",
        "where do you see {query}?",
        "mark every {query}",
        "show all boxes of {query}",
        "list the places of {query}",
    )
    text_instructions = (
        "{query}",
        "find the things that this speaks of: {query}",
        "locate what is mentioned: {query}",
        "pick out the phrases and box them: {query}",
        "which parts of the picture does this tell of? {query}",
        "mark everything named here: {query}",
        "parse and point: {query}",
        "where are the things in this sentence? {query}",
    )
    """Wordings for a query that is a whole text instead of phrases."""
    headline = "box_f1_50"
    max_new_tokens = 320
    shape = TurnShape(regions="some", absent=True)
    query = "phrases"
    answer = "grounded"

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        """The phrases, or the turn's text if it has one, in a drawn wording, with the boxes of each phrase."""
        chosen = [(pick(region.phrases), region.boxes) for region in turn.regions]
        query = turn.question or ", ".join(phrase for phrase, _ in chosen)
        answer = " ".join(render_phrase(phrase, boxes, width, height) for phrase, boxes in chosen)
        wording = pick(self.instructions if turn.question is None else self.text_instructions)
        return RenderedTurn(self.name, self.ask(query, wording), answer)

    def parse(self, text: str, width: int, height: int) -> Answer:
        """The phrases with their boxes."""
        return parse_grounded(text, width, height, absent=True)

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        """`box_f1_50`: F1 of predicted boxes that overlap a true one by at least half, each box used once;
        `mean_iou` over the true boxes; `well_formed`. Without a true box, the first two are 1 if the answer has no box
        either, not even a malformed one, else 0."""
        parsed = self.parse(text, width, height)
        truth = tuple(box for region in turn.regions for box in region.boxes)
        if not truth:
            right = float(not has_box_text(text))
            return {"box_f1_50": right, "mean_iou": right, "well_formed": float(parsed.well_formed)}
        overlaps = match_boxes(parsed.boxes, truth)
        hits = sum(value >= IOU_THRESHOLD for value in overlaps)
        f1 = 2 * hits / (len(truth) + len(parsed.boxes)) if hits else 0.0
        return {"box_f1_50": f1, "mean_iou": sum(overlaps) / len(truth), "well_formed": float(parsed.well_formed)}
