"""Held-out samples of a corpus folder, as questions with known answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from minigptv2.errors import DataError
from minigptv2.predict.requests import Request
from minigptv2.record import Turn
from minigptv2.shards.image_files import open_image
from minigptv2.shards.reader import CorpusReader
from minigptv2.tasks import render_turn


@dataclass(frozen=True)
class HeldOut:
    """One question: the turn it comes from, its image, the question as asked and the first accepted answer."""

    turn: Turn
    image: Image.Image | None
    width: int
    height: int
    question: str
    answer: str
    corpus: str
    sample: int

    def request(self) -> Request:
        """What a predictor is asked."""
        return Request(self.question, (self.image,) if self.image is not None else ())


def load_heldout(folder: Path, limit: int | None = None, *, all_turns: bool = False) -> list[HeldOut]:
    """The first turn (or, with `all_turns`, each turn on its own) of the first `limit` samples of a corpus folder."""
    reader = CorpusReader(folder)
    found = []
    for sample in range(min(len(reader), limit or len(reader))):
        record = reader.record(sample)
        image = open_image(reader.image(sample), reader.where(sample)) if record.has_image else None
        width, height = record.width or 0, record.height or 0
        if image is not None and reader.manifest.baked_side:  # stored as a square: stretched back, so that boxes fit
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        if image is not None and image.size != (width, height):
            raise DataError(f"{reader.where(sample)}: image is {image.size}, its record says {(width, height)}")
        for turn in record.turns if all_turns else record.turns[:1]:
            rendered = render_turn(turn, width, height)
            found.append(
                HeldOut(turn, image, width, height, rendered.question, rendered.answer, reader.manifest.corpus, sample)
            )
    return found
