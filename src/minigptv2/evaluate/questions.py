"""Questions with known answers out of corpus folders, and which corpus folder a benchmark is read from.

One question per turn; an object with several expressions is one question per expression, as referring comprehension is
counted. Questions hold no image: a rank opens those of its own share.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from minigptv2.corpora.build_corpus import build
from minigptv2.corpora.sources import CORPORA
from minigptv2.errors import DataError
from minigptv2.heldout.samples import HeldOutQuestion, load_image
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.manifest import MANIFEST_FILE
from minigptv2.shards.reader import CorpusReader
from minigptv2.tasks import TASKS, render_turn


@dataclass(frozen=True)
class Question:
    """One question: the turn it comes from, as asked, its first accepted answer, and the sample that has its picture.

    `id` is unique in the corpus folder; `facts` are the provenance of record and turn.
    """

    id: str
    turn: Turn
    width: int
    height: int
    asked: str
    answer: str
    corpus: str
    sample: int
    has_image: bool
    facts: dict[str, str] = field(default_factory=dict)
    history: tuple[tuple[str, str], ...] = ()

    def with_image(self, reader: CorpusReader) -> HeldOutQuestion:
        """The question with its image in memory, for drawing."""
        image = load_image(reader, self.sample, (self.width, self.height)) if self.has_image else None
        return HeldOutQuestion(
            self.turn, image, self.width, self.height, self.asked, self.answer, self.corpus, self.sample
        )


def questions_of(
    reader: CorpusReader, *, task: str | None = None, prompt: str | None = None, limit: int | None = None
) -> list[Question]:
    """The questions of a corpus folder, in its order, of the first `limit` samples: of `task`, or of any.

    `prompt` replaces the task's evaluation wording; its slot `{query}` takes the question. Turns of a conversation
    after the first are asked with the true turns before them as history. Raises `DataError` where none is left.
    """
    found: list[Question] = []
    for sample in range(min(len(reader), limit if limit is not None else len(reader))):
        found += _of_record(reader.record(sample), reader.manifest.corpus, sample, task, prompt)
    if not found:
        raise DataError(f"{reader.folder}: no question{f' of task {task}' if task else ''} in it")
    return found


def _of_record(record: Record, corpus: str, sample: int, task: str | None, prompt: str | None) -> Iterator[Question]:
    width, height = record.width or 0, record.height or 0
    key = record.source.get("id", str(sample))
    history: list[tuple[str, str]] = []
    for number, turn in enumerate(record.turns):
        facts = {**record.source, **turn.source}
        if task in (None, turn.task):
            for place, one in enumerate(_expressions(turn)):
                rendered = render_turn(one, width, height)
                asked = rendered.question if prompt is None else prompt.replace("{query}", _query(one))
                yield Question(
                    f"{sample}/{key}/{turn.source.get('id', number)}/{place}",
                    one,
                    width,
                    height,
                    asked,
                    rendered.answer,
                    corpus,
                    sample,
                    record.has_image,
                    facts,
                    tuple(history),
                )
        if not record.separate:
            whole = render_turn(turn, width, height)
            history.append((whole.question, whole.answer))


def _expressions(turn: Turn) -> list[Turn]:
    """The turn, or one per expression where a place is asked for."""
    if TASKS[turn.task].query != "phrase":
        return [turn]
    region = turn.regions[0]
    return [
        Turn(
            turn.task,
            turn.question,
            turn.answers,
            (Region(region.boxes, (phrase,), region.span),),
            turn.choices,
            turn.source,
        )
        for phrase in region.phrases
    ]


def _query(turn: Turn) -> str:
    return turn.regions[0].phrases[0] if TASKS[turn.task].query == "phrase" else turn.question or ""


def corpus_folder(data: Path, corpus: str, split: str, cache: Path) -> Path:
    """The folder of shards of a corpus's split: below `data` if it was built, else built from the originals there.

    Looked for: `data/<corpus>/<split>`, `data/<split>/<corpus>`, and `cache/<corpus>/<split>`, where it is built; what
    a build read, kept and left out is told on stderr.
    """
    for folder in (data / corpus / split, data / split / corpus, cache / corpus / split):
        if (folder / MANIFEST_FILE).is_file():
            return folder
    row = CORPORA.get(corpus)
    if row is None or split not in row.expected:
        raise DataError(f"no shards of {corpus} {split} in {data}, and no source that could build them")
    folder = cache / corpus / split
    for line in build(row, data, split, folder).lines():
        print(line, file=sys.stderr)
    return folder
