"""Asks a model the questions of benchmarks: on any number of ranks, in batches, and on from where it was cut off.

Each rank holds the whole model and asks its own pictures: no rank waits for another until its share is done, whatever
the lengths of the answers. Every batch is written before the next is asked; the main rank joins the files at the end.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigptv2.cluster import distributed
from minigptv2.errors import DataError, MiniGPTv2Error
from minigptv2.evaluate.benchmarks import Benchmark
from minigptv2.evaluate.protocols import Reply, Scored
from minigptv2.evaluate.questions import Question, questions_of
from minigptv2.files import wait_until_seen, write_atomically
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Case, Decoding, ImageTokens, Request
from minigptv2.shards.image_files import open_image
from minigptv2.shards.reader import CorpusReader

PREDICTIONS_FILE = "predictions.jsonl"
_PARTS = "answers.{rank}.jsonl"
_WINDOW = 4  # batches whose questions are sorted together, so that like lengths meet
_PICTURE_COST = 500


@dataclass(frozen=True)
class Settings:
    """How a benchmark is asked. `batch_size` and `layout` change the speed and nothing else."""

    batch_size: int = 32
    layout: str = "packed"
    limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """An evaluated benchmark: its questions in order, what was answered, the figures."""

    row: Benchmark
    questions: list[Question]
    replies: list[Reply]
    scored: Scored
    reader: CorpusReader


def evaluate_benchmark(
    predictor: Predictor, row: Benchmark, corpus: Path, output: Path, settings: Settings
) -> Outcome | None:
    """Ask what is not answered yet in `output`, score everything; None on ranks other than the main one.

    Raises `DataError`, on all ranks, where `output` holds answers of another model, corpus or setting, or answers to
    questions beyond the limit, which would be lost.
    """
    reader = CorpusReader(corpus)
    if reader.manifest.dropped and distributed.is_main():
        lost = f"{reader.manifest.dropped:,} annotations were left out of {corpus} when it was built"
        print(f"warning: {row.name}: {lost}", file=sys.stderr)
    questions = questions_of(reader, task=row.task, prompt=row.prompt, limit=settings.limit)
    context = _context(predictor, row, reader, settings)
    answered = set(distributed.on_main(lambda: sorted(_answered(output, context, questions))))
    open_ones = [question for question in questions if question.id not in answered]
    mine = deal(open_ones, distributed.world_size())[distributed.rank()]
    part = output / _PARTS.format(rank=distributed.rank())
    failure = ""
    try:
        _ask(predictor, row, reader, mine, part, context, settings)
    except MiniGPTv2Error as error:
        failure = str(error)
    written = distributed.gather_on_main((failure, part.name, part.stat().st_size if part.is_file() else None))
    first = distributed.agree(next((text for text, _, _ in written if text), ""))
    if first:
        raise DataError(f"{row.name}: {first}")
    outcome = None
    if distributed.is_main():
        for _, name, num_bytes in written:
            if num_bytes is not None:  # another node wrote it a moment ago
                wait_until_seen(output / name, num_bytes)
        replies = _join(output, questions, context)
        outcome = Outcome(row, questions, replies, row.rule.score(questions, replies), reader)
        write_predictions(outcome, output / PREDICTIONS_FILE, context)
        for file in _part_files(output):
            file.unlink()
    distributed.barrier()
    return outcome


def deal(questions: Sequence[Question], ranks: int) -> list[list[Question]]:
    """Questions of each rank: pictures whole, the dearest first, each to the rank that has least to do."""
    pictures: dict[int, list[Question]] = {}
    for question in questions:
        pictures.setdefault(question.sample, []).append(question)
    costs = {sample: sum(map(_cost, asked)) for sample, asked in pictures.items()}
    shares: list[list[Question]] = [[] for _ in range(ranks)]
    lightest = [(0, rank) for rank in range(ranks)]
    for sample in sorted(pictures, key=lambda sample: (-costs[sample], sample)):
        cost, rank = heapq.heappop(lightest)
        shares[rank] += pictures[sample]
        heapq.heappush(lightest, (cost + costs[sample], rank))
    return shares


def _cost(question: Question) -> int:
    """About what asking takes, in characters: a character of the answer costs as much as ten of the prompt."""
    return _PICTURE_COST + len(question.asked) + 10 * len(question.answer)


def _ask(
    predictor: Predictor,
    row: Benchmark,
    reader: CorpusReader,
    questions: list[Question],
    part: Path,
    context: str,
    settings: Settings,
) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    _cut_half_line(part)
    shown = sys.stderr.isatty() and distributed.is_main()
    with (
        open(part, "ab") as stream,
        tqdm(total=len(questions), desc=row.name, unit="question", disable=not shown) as bar,
    ):
        for window in _windows(questions, settings.batch_size * _WINDOW):
            for chosen, replies in _replies(predictor, row, reader, window, settings):
                for question, reply in zip(chosen, replies, strict=True):
                    line = {"id": question.id, "of": context, "answer": reply.answer}
                    stream.write(json.dumps(line | ({"losses": reply.losses} if reply.losses else {})).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
                bar.update(len(chosen))


def _windows(questions: list[Question], size: int) -> Iterator[list[Question]]:
    """Runs of at least `size` questions, but the last, that end where a picture's questions end."""
    window: list[Question] = []
    for question in questions:
        if len(window) >= size and question.sample != window[-1].sample:
            yield window
            window = []
        window.append(question)
    if window:
        yield window


def _replies(
    predictor: Predictor, row: Benchmark, reader: CorpusReader, window: list[Question], settings: Settings
) -> Iterator[tuple[list[Question], list[Reply]]]:
    """Batches of a window with their replies: the longest prompts first, each picture encoded once."""
    seen: ImageTokens = {}
    pictures = {q.sample: q for q in window}
    images = {
        sample: (predictor.prepare(open_image(reader.image(sample), reader.where(sample))),) if q.has_image else ()
        for sample, q in pictures.items()
    }
    requests = {q.id: Request(q.asked, images[q.sample], q.history) for q in window}
    rule, decoding = row.rule, Decoding(row.max_new_tokens)
    order = sorted(window, key=lambda q: -len(predictor.prompt_ids(requests[q.id], decoding)))
    for start in range(0, len(order), settings.batch_size):
        chosen = order[start : start + settings.batch_size]
        asked = [requests[question.id] for question in chosen]
        choices = [_choices(rule.choices, rule.weighed, question) for question in chosen]
        losses = weigh(predictor, asked, choices, settings, seen)
        if rule.choices is None:
            texts = [r.text.strip() for r in predictor.reply(asked, decoding, batch_size=len(asked), seen=seen)]
        else:
            texts = [min(one, key=lambda choice: (one[choice], choice)) for one in losses]
        yield chosen, [Reply(text, loss) for text, loss in zip(texts, losses, strict=True)]


def _choices(choices: tuple[str, ...] | None, weighed: tuple[str, ...], question: Question) -> tuple[str, ...]:
    found = weighed if choices is None else choices or question.turn.choices
    if choices is not None and not found:
        raise DataError(f"{question.corpus} {question.id}: a question without choices in a benchmark that weighs them")
    return found


def weigh(
    predictor: Predictor,
    requests: Sequence[Request],
    choices: Sequence[Sequence[str]],
    settings: Settings,
    seen: ImageTokens,
) -> list[dict[str, float]]:
    """Mean loss per token (its end included) of each choice as the answer to its request, rounded to 1e-4."""
    cases, owners = [], []
    for number, (request, options) in enumerate(zip(requests, choices, strict=True)):
        for option in dict.fromkeys(options):
            cases.append(Case(((request.question, option),), request.images))
            owners.append((number, option))
    losses: list[dict[str, float]] = [{} for _ in requests]
    if not cases:
        return losses
    scores = predictor.score(cases, batch_size=settings.batch_size, layout=settings.layout, seen=seen)
    for (number, option), score in zip(owners, scores, strict=True):
        losses[number][option] = round(score.loss, 4)
    return losses


def _context(predictor: Predictor, row: Benchmark, reader: CorpusReader, settings: Settings) -> str:
    """What answers depend on, as a digest. Batch size, layout, limit and ranks are not of it."""
    parts = (
        predictor.identity,
        predictor.style,
        row.name,
        row.prompt,
        row.task,
        row.max_new_tokens,
        row.protocol,
        reader.manifest.fingerprint,
    )
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


def _part_files(output: Path) -> list[Path]:
    return sorted(output.glob(_PARTS.format(rank="*")))


def _rows(file: Path, context: str) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of answers. Raises `DataError` for those of another run."""
    data = file.read_bytes()
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            row = json.loads(line)
            row["id"], row["answer"]
            same = row["of"] == context
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: not a file of answers: {error}") from error
        if not same:
            raise DataError(f"{file}: answers of another model, corpus or setting; give another --output")
        yield row


def _answers(output: Path, context: str) -> dict[str, Reply]:
    files: Iterable[Path] = [file for file in (output / PREDICTIONS_FILE, *_part_files(output)) if file.is_file()]
    rows = (row for file in files for row in _rows(file, context))
    return {row["id"]: Reply(row["answer"], row.get("losses", {})) for row in rows}


def _answered(output: Path, context: str, questions: Sequence[Question]) -> set[str]:
    """Ids of the questions that `output` has answers to. Raises `DataError` where it has answers to others, too."""
    answered = set(_answers(output, context))
    beyond = len(answered - {question.id for question in questions})
    if beyond:
        raise DataError(
            f"{output}: holds {len(answered):,} answers, {beyond:,} of them to questions beyond --limit; a smaller one "
            "would lose them: raise it, or give another --output"
        )
    return answered


def _join(output: Path, questions: list[Question], context: str) -> list[Reply]:
    answers = _answers(output, context)
    return [answers[question.id] for question in questions]


def _cut_half_line(file: Path) -> None:
    if file.is_file():
        data = file.read_bytes()
        os.truncate(file, data.rfind(b"\n") + 1)


def write_predictions(outcome: Outcome, file: Path, context: str) -> None:
    """A JSON line per question: ids, what was asked and answered, the truth, figures and groups."""
    lines = []
    rows = zip(outcome.questions, outcome.replies, outcome.scored.each, outcome.scored.groups, strict=True)
    for question, reply, figures, groups in rows:
        line: dict[str, Any] = {
            "id": question.id,
            "of": context,
            "benchmark": outcome.row.name,
            "task": question.turn.task,
            "picture": f"{question.corpus}/{question.sample}",
            "question": question.asked,
            "answer": reply.answer,
            "truth": question.answer,
            "score": figures[outcome.row.rule.headline],
            "figures": figures,
            "groups": groups,
        }
        lines.append(json.dumps(line | ({"losses": reply.losses} if reply.losses else {}), ensure_ascii=False))
    write_atomically(file, "".join(line + "\n" for line in lines).encode())
