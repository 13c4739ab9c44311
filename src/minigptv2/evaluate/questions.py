"""Reads the questions of a benchmark, with known answers, from a corpus folder, and finds or builds that folder.

A turn is one question. For a task that asks for the box of a phrase, each phrase of the object is one question, as
referring expression comprehension is counted. Questions contain no image: each rank opens the images of its share.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from minigptv2.corpora.build_corpus import build
from minigptv2.corpora.sources import CORPORA
from minigptv2.errors import DataError
from minigptv2.heldout.samples import HeldOutQuestion, load_image
from minigptv2.record import Record, Turn
from minigptv2.shards.manifest import MANIFEST_FILE
from minigptv2.shards.reader import CorpusReader
from minigptv2.tasks import TASKS, render_turn
from minigptv2.tasks.base import QUERY_SLOT

TRUE = "true"
"""The value of a fact that marks a question."""


@dataclass(frozen=True)
class Question:
    """A question: its turn, its text `asked`, the first accepted answer, and the sample that has its image.

    `id` is unique in the corpus folder. `facts` joins the provenance of record and turn. `history` are the earlier
    questions and true answers of a conversation.
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


@dataclass(frozen=True)
class Asking:
    """Which turns are asked, and how.

    `task`: None asks the turns of every task. `prompt` replaces the task's first wording, and its slot `{query}` takes
    the fact `query` of the question, or the question or phrase of the turn if `query` is empty. Questions whose fact
    `leave_out` is `true` are left out.
    """

    task: str | None = None
    prompt: str | None = None
    query: str = ""
    leave_out: str = ""

    def text(self, turn: Turn, rendered: str, facts: dict[str, str]) -> str:
        """The text of the question. Raises `DataError` if the fact for its slot is missing."""
        if self.prompt is None:
            return rendered
        if self.query and self.query not in facts:
            raise DataError(
                f"the question needs '{self.query}', which its source does not state. Build the corpus again"
            )
        return self.prompt.replace(QUERY_SLOT, facts[self.query] if self.query else _query(turn))


def questions_of(reader: CorpusReader, asking: Asking, *, limit: int | None = None) -> list[Question]:
    """The questions of the first `limit` samples of a corpus folder, in its order.

    Turns of a conversation after the first have the true turns before them as history. Raises `DataError` if there is
    no question.
    """
    found: list[Question] = []
    for sample in range(min(len(reader), limit if limit is not None else len(reader))):
        try:
            found += _of_record(reader.record(sample), reader.manifest.corpus, sample, asking)
        except DataError as error:
            raise DataError(f"{reader.where(sample)}: {error}") from error
    if not found:
        left_out = f" that is not marked {asking.leave_out}" if asking.leave_out else ""
        raise DataError(
            f"{reader.folder} contains no question{f' of task {asking.task}' if asking.task else ''}{left_out}"
        )
    return found


def _of_record(record: Record, corpus: str, sample: int, asking: Asking) -> Iterator[Question]:
    width, height = record.width or 0, record.height or 0
    key = record.source.get("id", str(sample))
    history: list[tuple[str, str]] = []
    for number, turn in enumerate(record.turns):
        facts = {**record.source, **turn.source}
        left_out = asking.leave_out and facts.get(asking.leave_out) == TRUE
        if asking.task in (None, turn.task) and not left_out:
            for place, one in enumerate(_one_phrase_each(turn)):
                rendered = render_turn(one, width, height)
                yield Question(
                    id=f"{sample}/{key}/{turn.source.get('id', number)}/{place}",
                    turn=one,
                    width=width,
                    height=height,
                    asked=asking.text(one, rendered.question, facts),
                    answer=rendered.answer,
                    corpus=corpus,
                    sample=sample,
                    has_image=record.has_image,
                    facts=facts,
                    history=tuple(history),
                )
        if not record.separate:
            whole = render_turn(turn, width, height)
            history.append((whole.question, whole.answer))


def _one_phrase_each(turn: Turn) -> list[Turn]:
    """The turn, or one turn per phrase of its region if the query is a phrase."""
    if TASKS[turn.task].query != "phrase":
        return [turn]
    region = turn.regions[0]
    return [replace(turn, regions=(replace(region, phrases=(phrase,)),)) for phrase in region.phrases]


def _query(turn: Turn) -> str:
    return turn.regions[0].phrases[0] if TASKS[turn.task].query == "phrase" else turn.question or ""


def corpus_folder(data: Path, corpus: str, split: str, cache: Path) -> Path:
    """The folder of shards of a corpus's split, which is built if it does not exist.

    The candidates are `data/<corpus>/<split>`, `data/<split>/<corpus>` and `cache/<corpus>/<split>`. If none exists,
    the last one is built from the original files in `data`, and the counts of read, kept and dropped annotations are
    printed to stderr. Raises `DataError` for a corpus that cannot be built.
    """
    for folder in (data / corpus / split, data / split / corpus, cache / corpus / split):
        if (folder / MANIFEST_FILE).is_file():
            return folder
    spec = CORPORA.get(corpus)
    if spec is None or split not in spec.expected:
        raise DataError(f"{data} contains no shards of {corpus} {split}, and no source can build them")
    folder = cache / corpus / split
    for line in build(spec, data, split, folder).lines():
        print(line, file=sys.stderr)
    return folder
