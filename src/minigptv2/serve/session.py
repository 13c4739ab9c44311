"""One visitor's conversation: the picture, the turns, the region drawn; as data for the page and as a file to keep.

Holds no thread and no open file, and never hands out markup: the page builds its elements from this data itself.
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
from minigptv2.draw import PREDICTED_COLORS, draw_boxes
from minigptv2.predict.requests import Request
from minigptv2.serve.batcher import Ticket
from minigptv2.serve.uploads import Picture, data_url
from minigptv2.tasks import BOX_TASK, TASKS, GroundedPhrase, segments, task_of


@dataclass
class Turn:
    """A question and its answer as said so far. `state`: running, done, stopped, or failed (then `note` says why)."""

    question: str
    answer: str = ""
    state: str = "running"
    note: str = ""


@dataclass
class Session:
    """A conversation about one picture, or about none. `seed` is the next answer's, where answers are sampled."""

    picture: Picture | None = None
    turns: list[Turn] = field(default_factory=list)
    region: Box | None = None
    seed: int = 0
    ticket: Ticket | None = None

    @property
    def busy(self) -> bool:
        return self.ticket is not None and self.ticket.finish_reason is None

    @property
    def size(self) -> tuple[int, int]:
        """Pixels of the picture; of none, a unit square."""
        return (self.picture.width, self.picture.height) if self.picture else (1, 1)

    def stop(self) -> None:
        """End the answer under way; what was said stays."""
        if self.ticket:
            self.ticket.cancel()

    def begin(self, picture: Picture | None) -> None:
        """Start anew, about `picture`."""
        self.stop()
        self.picture, self.turns, self.region, self.seed = picture, [], None, 0

    def request(self, question: str, instead: Turn | None = None) -> Request:
        """The question with the picture and what was said before. Turns that failed are left out, and `instead`."""
        before = [turn for turn in self.turns if turn is not instead and turn.state in ("done", "stopped")]
        said = tuple((turn.question, turn.answer) for turn in before)
        return Request(question, (self.picture.prepared,) if self.picture else (), said)

    def mark(self, corners: list[float] | None) -> str | None:
        """Remember a region drawn on the picture, four shares (0..1) of its sides; the box as text, None for none."""
        self.region = None
        if corners is None or self.picture is None:
            return None
        x1, x2 = sorted(min(1.0, max(0.0, float(x))) * self.picture.width for x in corners[0::2])
        y1, y2 = sorted(min(1.0, max(0.0, float(y))) * self.picture.height for y in corners[1::2])
        box = Box(x1, y1, x2, y2)
        if box.problem(self.picture.width, self.picture.height):
            return None
        self.region = box
        return render_box(box, self.picture.width, self.picture.height)

    def task_question(self, task: str) -> str:
        """What a task's button puts into the question: its first wording, the region drawn in the place of a box."""
        chosen = TASKS[task]
        if chosen.query != "box":
            return chosen.ask().rstrip("?")
        return chosen.ask(render_box(self.region, *self.size)) if self.region else f"{chosen.identifier} "

    def shown(self) -> list[dict[str, Any]]:
        """The turns as data for the page: cut into words and phrases, a colour for each phrase of an answer."""
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
        """The picture as data for the page."""
        if self.picture is None or self.picture.shown is None:
            return {"src": "", "width": 0, "height": 0}
        return {"src": data_url(self.picture.shown), "width": self.picture.width, "height": self.picture.height}

    def archive(self) -> bytes:
        """The conversation as a zip: a page to read, JSON for programs, the picture, and one drawing per answer with
        boxes."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            drawn = self._drawings()
            for name, data in drawn.items():
                file.writestr(name, data)
            file.writestr("conversation.json", json.dumps(self._as_json(), indent=1, ensure_ascii=False))
            file.writestr("conversation.html", self._as_page(drawn))
        return stream.getvalue()

    def _drawings(self) -> dict[str, bytes]:
        if self.picture is None or self.picture.shown is None:
            return {}
        files = {"picture.jpg": self.picture.shown}
        picture = Image.open(io.BytesIO(self.picture.shown))
        for number, turn in enumerate(self.turns, 1):
            boxes = [(box, item.phrase) for item in _grounded(turn.answer, picture.size) for box in item.boxes]
            if boxes:
                stream = io.BytesIO()
                draw_boxes(picture, boxes).save(stream, "PNG")
                files[f"answer-{number}.png"] = stream.getvalue()
        return files

    def _as_json(self) -> dict[str, Any]:
        turns = [
            {
                "question": turn.question,
                "answer": turn.answer,
                "state": turn.state,
                "boxes": [
                    {"phrase": item.phrase, "box": [box.x1, box.y1, box.x2, box.y2]}
                    for item in _grounded(turn.answer, self.size)
                    for box in item.boxes
                ],
            }
            for turn in self.turns
        ]
        size = {"width": self.size[0], "height": self.size[1]} if self.picture else None
        return {"picture": size, "turns": turns}

    def _as_page(self, files: dict[str, bytes]) -> str:
        parts = ["<!doctype html><meta charset=utf-8><title>Conversation</title>"]
        parts += ["<img src=picture.jpg width=480 alt=picture>"] * ("picture.jpg" in files)
        for number, turn in enumerate(self.turns, 1):
            answer = html.escape(f"{turn.answer} {turn.note}")
            parts.append(f"<p><b>{html.escape(turn.question)}</b><p>{answer}")
            parts += [f"<p><img src=answer-{number}.png width=480 alt=''>"] * (f"answer-{number}.png" in files)
        return "\n".join(parts)


def _grounded(text: str, size: tuple[int, int]) -> list[GroundedPhrase]:
    return [piece for piece in segments(text, *size) if isinstance(piece, GroundedPhrase)]


def _pieces(text: str, size: tuple[int, int], *, partial: bool = False, colored: bool = False) -> list[dict[str, Any]]:
    """Words and phrases for the page; boxes as shares of the picture's sides, left, top, right, bottom."""
    pieces: list[dict[str, Any]] = []
    phrases: list[str] = []
    for piece in segments(text, *size, partial=partial):
        if isinstance(piece, str):
            pieces.append({"text": piece})
            continue
        if piece.phrase not in phrases:
            phrases.append(piece.phrase)
        color = PREDICTED_COLORS[phrases.index(piece.phrase) % len(PREDICTED_COLORS)] if colored else None
        boxes = [
            [min(b.x1, b.x2) / size[0], min(b.y1, b.y2) / size[1], max(b.x1, b.x2) / size[0], max(b.y1, b.y2) / size[1]]
            for b in piece.boxes
        ]
        shown = "rgb({}, {}, {})".format(*color) if color else ""
        pieces.append({"phrase": piece.phrase, "boxes": boxes, "color": shown})
    return pieces


def is_identify(question: str) -> bool:
    """Whether the question asks what a region holds, or asks nothing yet."""
    return not question.strip() or task_of(question) is BOX_TASK
