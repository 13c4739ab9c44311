"""Reads held-out samples of a corpus folder as questions with known answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from minigptv2.errors import DataError
from minigptv2.predict.requests import Request
from minigptv2.record import Turn
from minigptv2.shards.image_files import image_size
from minigptv2.shards.reader import CorpusReader
from minigptv2.tasks import TASKS, render_turn


@dataclass(frozen=True)
class HeldOutQuestion:
    """A question: its turn, its image, the question text and the first accepted answer.

    `width` and `height` are those of the record, in which boxes are given. The image may be smaller.
    """

    turn: Turn
    image: Image.Image | None
    width: int
    height: int
    question: str
    answer: str
    corpus: str
    sample: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels in which boxes are given."""
        return self.width, self.height

    def request(self) -> Request:
        """The request to a predictor."""
        return Request(self.question, (self.image,) if self.image is not None else ())

    def score(self, text: str) -> dict[str, float]:
        """The metrics of the answer `text`, by the question's task."""
        return TASKS[self.turn.task].score(self.turn, text, self.width, self.height)


def load_heldout(folder: Path, limit: int | None = None) -> list[HeldOutQuestion]:
    """The first turn of each of the first `limit` samples of a corpus folder, of all samples without a limit.

    Raises `DataError` for a damaged sample.
    """
    reader = CorpusReader(folder)
    corpus = reader.manifest.corpus
    found = []
    for sample in range(min(len(reader), limit or len(reader))):
        record = reader.record(sample)
        width, height = record.width or 0, record.height or 0
        image = load_image(reader, sample, (width, height)) if record.has_image else None
        turn = record.turns[0]
        rendered = render_turn(turn, width, height)
        found.append(
            HeldOutQuestion(turn, image, width, height, rendered.question, rendered.answer, corpus, sample=sample)
        )
    return found


def load_image(reader: CorpusReader, sample: int, size: tuple[int, int]) -> Image.Image:
    """The upright image of a sample as training and `evaluate` see it, which may be smaller than `size`: it may be
    stored as a square, or reduced when it is decoded. `size` is the width and height that its record states.

    Raises `DataError` if the image is damaged or has another size.
    """
    image = reader.open_image(sample)
    if not reader.manifest.baked_side:
        stored = image_size(reader.image(sample), reader.where(sample))[1:]
        if stored != size:
            raise DataError(f"{reader.where(sample)}: the image has size {stored}, but its record states {size}")
    return image
