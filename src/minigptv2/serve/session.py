"""Holds a visitor's conversation: the image, the turns and the region, as data for the page and as an archive.

It holds no thread and no open file and produces no markup for the page, which builds its elements from this data.
"""

from __future__ import annotations

import html
import io
import json
import zipfile
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from minigptv2.boxes import Box, render_box
from minigptv2.draw import draw_boxes, phrase_colors
from minigptv2.predict.requests import Request, boxes_as_json, grounded_phrases
from minigptv2.serve.batcher import Ticket
from minigptv2.serve.uploads import UploadedImage, data_url
from minigptv2.tasks import BOX_TASK, TASKS, GroundedPhrase, segments, task_of
from minigptv2.typed_marks import asked_question


@dataclass
class ChatTurn:
    """A question and its answer so far. `state` is running, done, stopped, or failed, with the reason in `note`."""

    question: str
    answer: str = ""
    state: str = "running"
    note: str = ""


@dataclass
class Session:
    """A conversation about one image, or without an image. `seed` is the random seed of the next sampled answer."""

    image: UploadedImage | None = None
    turns: list[ChatTurn] = field(default_factory=list)
    region: Box | None = None
    seed: int = 0
    ticket: Ticket | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is in progress."""
        return self.ticket is not None and self.ticket.finish_reason is None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image in pixels, or a unit square without an image."""
        return (self.image.width, self.image.height) if self.image else (1, 1)

    def stop(self) -> None:
        """Stop the answer in progress. The part so far stays."""
        if self.ticket:
            self.ticket.cancel()

    def begin(self, image: UploadedImage | None) -> None:
        """Delete the conversation and start another one about `image`."""
        self.stop()
        self.image, self.turns, self.region, self.seed = image, [], None, 0

    def request(self, question: str, replaced: ChatTurn | None = None) -> Request:
        """The question with the image and the earlier turns, except failed ones and the one to be `replaced`.

        Raises `DataError` for marks in the question that have no place there.
        """
        earlier = [turn for turn in self.turns if turn is not replaced and turn.state in ("done", "stopped")]
        images = (self.image.prepared,) if self.image else ()
        *before, last = (
            asked_question(text, "the question", num_images=len(images), is_first=number == 0)
            for number, text in enumerate([*(turn.question for turn in earlier), question])
        )
        return Request(last, images, tuple(zip(before, (turn.answer for turn in earlier), strict=True)))

    def mark(self, corners: list[float] | None) -> str | None:
        """Keep the region drawn on the image and return it as text, or None if there is no valid one.

        `corners` are left, top, right and bottom as fractions (0..1) of the sides of the image.
        """
        self.region = None
        if corners is None or self.image is None:
            return None
        x1, x2 = sorted(min(1.0, max(0.0, float(x))) * self.image.width for x in corners[0::2])
        y1, y2 = sorted(min(1.0, max(0.0, float(y))) * self.image.height for y in corners[1::2])
        box = Box(x1, y1, x2, y2)
        if box.problem(self.image.width, self.image.height):
            return None
        self.region = box
        return render_box(box, self.image.width, self.image.height)

    def task_question(self, task: str) -> str:
        """The question that the button of a task starts: its first instruction, with the region in place of a box."""
        chosen = TASKS[task]
        if chosen.query != "box":
            return chosen.ask().rstrip("?")
        return chosen.ask(render_box(self.region, *self.size)) if self.region else f"{chosen.identifier} "

    def shown(self) -> list[dict[str, Any]]:
        """The turns as data for the page: split into texts and phrases, with a color for each phrase of an answer."""
        return [
            {
                "question": _pieces(turn.question, self.size),
                "answer": _pieces(turn.answer, self.size, partial=turn.state == "running", colored=True),
                "plain": turn.answer,
                "state": turn.state,
                "note": turn.note,
            }
            for turn in self.turns
        ]

    def stage(self) -> dict[str, Any]:
        """The image as data for the page."""
        if self.image is None or self.image.shown is None:
            return {"src": "", "width": 0, "height": 0}
        return {"src": data_url(self.image.shown), "width": self.image.width, "height": self.image.height}

    def archive(self) -> bytes:
        """The conversation as a zip file: an HTML page, JSON, the image, and a drawing for each answer with boxes."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            drawn = self._drawings()
            for name, data in drawn.items():
                file.writestr(name, data)
            file.writestr("conversation.json", json.dumps(self._as_json(), indent=1, ensure_ascii=False))
            file.writestr("conversation.html", self._as_page(drawn))
        return stream.getvalue()

    def _drawings(self) -> dict[str, bytes]:
        if self.image is None or self.image.shown is None:
            return {}
        files = {"picture.jpg": self.image.shown}
        image = Image.open(io.BytesIO(self.image.shown))
        for number, turn in enumerate(self.turns, 1):
            boxes = [(box, item.phrase) for item in grounded_phrases(turn.answer, image.size) for box in item.boxes]
            if boxes:
                stream = io.BytesIO()
                draw_boxes(image, boxes).save(stream, "PNG")
                files[f"answer-{number}.png"] = stream.getvalue()
        return files

    def _as_json(self) -> dict[str, Any]:
        turns = [
            {
                "question": turn.question,
                "answer": turn.answer,
                "state": turn.state,
                "boxes": boxes_as_json(grounded_phrases(turn.answer, self.size)),
            }
            for turn in self.turns
        ]
        size = {"width": self.size[0], "height": self.size[1]} if self.image else None
        return {"picture": size, "turns": turns}

    def _as_page(self, files: dict[str, bytes]) -> str:
        parts = ["<!doctype html><meta charset=utf-8><title>Conversation</title>"]
        parts += ["<img src=picture.jpg width=480 alt=image>"] * ("picture.jpg" in files)
        for number, turn in enumerate(self.turns, 1):
            answer = html.escape(f"{turn.answer} {turn.note}")
            parts.append(f"<p><b>{html.escape(turn.question)}</b><p>{answer}")
            parts += [f"<p><img src=answer-{number}.png width=480 alt=''>"] * (f"answer-{number}.png" in files)
        return "\n".join(parts)


def _pieces(text: str, size: tuple[int, int], *, partial: bool = False, colored: bool = False) -> list[dict[str, Any]]:
    """Texts and phrases for the page, with boxes as fractions of the sides: left, top, right, bottom."""
    parts = segments(text, *size, partial=partial)
    colors = phrase_colors(part.phrase for part in parts if isinstance(part, GroundedPhrase))
    pieces: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            pieces.append({"text": part})
            continue
        boxes = [
            [min(b.x1, b.x2) / size[0], min(b.y1, b.y2) / size[1], max(b.x1, b.x2) / size[0], max(b.y1, b.y2) / size[1]]
            for b in part.boxes
        ]
        color = "rgb({}, {}, {})".format(*colors[part.phrase]) if colored else ""
        pieces.append({"phrase": part.phrase, "boxes": boxes, "color": color})
    return pieces


def is_identify(question: str) -> bool:
    """Whether the question is empty or asks what is in a region."""
    return not question.strip() or task_of(question) is BOX_TASK
