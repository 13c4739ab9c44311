"""Grounded captioning: a caption whose phrases are followed by their boxes."""

from __future__ import annotations

from minigptv2.boxes import IOU_THRESHOLD, match_boxes
from minigptv2.record import Turn
from minigptv2.tasks.answers import Answer, parse_grounded, render_phrase
from minigptv2.tasks.base import Pick, RenderedTurn, Task, TurnShape
from minigptv2.tasks.text_match import normalize, token_f1


class GroundingTask(Task):
    """The task `grounding`."""

    name = "grounding"
    identifier = "[grounding]"
    label = "Caption with boxes"
    instructions = (
        "Describe this image and point at what you mention.",
        "Write a caption with a box for each thing.",
        "Caption the picture and locate its objects.",
        "Say what you see and where it is.",
        "Tell what is here, with boxes.",
        "Describe the scene with the place of every object.",
        "Give a grounded caption.",
        "Put the picture into words and mark each thing.",
    )
    headline = "phrase_recall_50"
    max_new_tokens = 320
    shape = TurnShape(answers=True, regions="some", spans=True)
    query = "none"
    answer = "grounded"

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        """An instruction, with the caption and a box list after each of its phrases."""
        answer = _grounded_caption(turn, width, height)
        return RenderedTurn(self.name, self.ask("", pick(self.instructions)), answer)

    def parse(self, text: str, width: int, height: int) -> Answer:
        """The words and the phrases with their boxes."""
        return parse_grounded(text, width, height)

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        """`phrase_recall_50`: share of the true phrases that the text repeats word for word with a box over each of
        theirs. `mean_iou`: over the true boxes. `token_f1`: of the caption without markup. `well_formed`."""
        parsed = self.parse(text, width, height)
        found: list[float] = []
        overlaps: list[float] = []
        caption = turn.answers[0]
        for region in turn.regions:
            start, end = region.span or (0, 0)
            phrase = normalize(caption[start:end])
            predicted = tuple(box for item in parsed.grounded if normalize(item.phrase) == phrase for box in item.boxes)
            matched = match_boxes(predicted, region.boxes)
            overlaps += matched
            found.append(float(all(value >= IOU_THRESHOLD for value in matched)))
        return {
            "phrase_recall_50": sum(found) / len(found),
            "mean_iou": sum(overlaps) / len(overlaps),
            "token_f1": token_f1(parsed.text, caption),
            "well_formed": float(parsed.well_formed),
        }


def _grounded_caption(turn: Turn, width: int, height: int) -> str:
    caption, position, parts = turn.answers[0], 0, []
    for region in turn.regions:
        assert region.span is not None, "validate admits no grounding region without a span"
        start, end = region.span
        parts.append(caption[position:start])
        parts.append(render_phrase(caption[start:end], region.boxes, width, height))
        position = end
    return "".join(parts) + caption[position:]
