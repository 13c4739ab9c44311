"""Runs a benchmark: generates answers on any number of ranks, in batches, and continues an interrupted evaluation.

Each rank holds the whole model and answers the questions of its own images, so no rank waits for another one before
its share is done. Each batch is written before the next one starts. The main rank joins the files at the end.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigptv2.cluster import distributed
from minigptv2.errors import DataError, MiniGPTv2Error
from minigptv2.evaluate.protocols import Benchmark
from minigptv2.evaluate.questions import Asking, Question, questions_of
from minigptv2.evaluate.rules import Prediction, Scored
from minigptv2.files import wait_until_seen, write_atomically
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Case, Decoding, ImageTokens, Request
from minigptv2.progress_bars import progress_bar
from minigptv2.prompt import PromptStyle
from minigptv2.shards.reader import CorpusReader
from minigptv2.terminal_text import printable_json

PREDICTIONS_FILE = "predictions.jsonl"
_PART_FILE = "answers.{rank}.jsonl"
_WINDOW = 4
"""Batches whose questions are sorted together, so that prompts of similar length share a batch."""
_IMAGE_COST = 500
"""Cost of encoding an image, in characters of a prompt."""


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run. `batch_size` and `layout` change only the speed. `limit` is a number of samples.

    `style` is the prompt style. None: that of the benchmark's protocol.
    """

    batch_size: int = 32
    layout: str = "packed"
    limit: int | None = None
    style: PromptStyle | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """An evaluated benchmark: its questions in order, the predictions and the metrics.

    `style` is the prompt style of the questions. `notes` say what the corpus lacks that the protocol uses.
    """

    spec: Benchmark
    questions: list[Question]
    predictions: list[Prediction]
    scored: Scored
    reader: CorpusReader
    style: PromptStyle = PromptStyle.TRAINED
    notes: tuple[str, ...] = ()


def evaluate_benchmark(
    predictor: Predictor, spec: Benchmark, corpus: Path, output: Path, settings: Settings
) -> BenchmarkResult | None:
    """Answer the questions that `output` has no answers to, and score all of them. None on ranks but the main one.

    Raises `DataError`, on all ranks, if `output` contains answers of another model, corpus or setting, or answers to
    questions beyond the limit, which would be lost.
    """
    reader = CorpusReader(corpus)
    if reader.manifest.dropped and distributed.is_main():
        print(
            f"warning: {spec.name}: {reader.manifest.dropped:,} annotations were dropped when {corpus} was built",
            file=sys.stderr,
        )
    questions = questions_of(reader, asking_of(spec), limit=settings.limit)
    notes = missing_facts(spec, questions)
    if distributed.is_main():
        for note in notes:
            print(f"warning: {spec.name}: {note}", file=sys.stderr)
    style = spec.style(settings.style, predictor.style)
    run = _BenchmarkRun(predictor, spec, reader, settings, style)
    answered = set(distributed.on_main(lambda: sorted(_answered(output, run.digest, questions))))
    unanswered = [question for question in questions if question.id not in answered]
    mine = divide(unanswered, distributed.world_size())[distributed.rank()]
    part = output / _PART_FILE.format(rank=distributed.rank())
    failure = ""
    try:
        with _in_style(predictor, style):
            run.answer(mine, part)
    except MiniGPTv2Error as error:
        failure = str(error)
    written = distributed.gather_on_main((failure, part.name, part.stat().st_size if part.is_file() else None))
    first = distributed.agree(next((text for text, _, _ in written if text), ""))
    if first:
        raise DataError(f"{spec.name}: {first}")
    result = None
    if distributed.is_main():
        for _, name, num_bytes in written:
            if num_bytes is not None:  # another node has just written it, and a shared file system can lag
                wait_until_seen(output / name, num_bytes)
        answers = _answers(output, run.digest)
        predictions = [answers[question.id] for question in questions]
        scored = spec.scoring.score(questions, predictions)
        result = BenchmarkResult(spec, questions, predictions, scored, reader, style, notes)
        write_predictions(result, output / PREDICTIONS_FILE, run.digest)
        for file in _part_files(output):
            file.unlink()
    distributed.barrier()
    return result


def asking_of(spec: Benchmark) -> Asking:
    """Which questions a benchmark asks under its protocol, and how."""
    return Asking(spec.task, spec.prompt, spec.chosen.query, spec.chosen.leave_out)


def missing_facts(spec: Benchmark, questions: Sequence[Question]) -> tuple[str, ...]:
    """A note for each fact that the protocol uses and no question states, which is so for shards of older versions."""
    used = dict(spec.scoring.facts)
    if spec.chosen.leave_out:
        used[spec.chosen.leave_out] = "every question is scored"
    return tuple(
        f"no question states '{fact}', so {consequence}. If the original file has it, build the corpus again: "
        f"minigptv2 shards build {spec.corpus} --split {spec.split}"
        for fact, consequence in used.items()
        if not any(fact in question.facts for question in questions)
    )


@contextmanager
def _in_style(predictor: Predictor, style: PromptStyle) -> Iterator[None]:
    """Within the context the predictor formats prompts in this style."""
    before, predictor.style = predictor.style, style
    try:
        yield
    finally:
        predictor.style = before


def divide(questions: Sequence[Question], ranks: int) -> list[list[Question]]:
    """The questions of each rank. All questions of an image go to one rank, and the costs are nearly equal."""
    by_image: dict[int, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.sample, []).append(question)
    costs = {sample: sum(map(_cost, of_image)) for sample, of_image in by_image.items()}
    shares: list[list[Question]] = [[] for _ in range(ranks)]
    lightest = [(0, rank) for rank in range(ranks)]
    for sample in sorted(by_image, key=lambda sample: (-costs[sample], sample)):
        cost, rank = heapq.heappop(lightest)
        shares[rank] += by_image[sample]
        heapq.heappush(lightest, (cost + costs[sample], rank))
    return shares


def _cost(question: Question) -> int:
    """The approximate cost of an answer, in characters: one of the answer costs as much as ten of the prompt."""
    return _IMAGE_COST + len(question.asked) + 10 * len(question.answer)


class _BenchmarkRun:
    """Answers questions of one benchmark. `digest` identifies what the answers depend on."""

    def __init__(
        self, predictor: Predictor, spec: Benchmark, reader: CorpusReader, settings: Settings, style: PromptStyle
    ) -> None:
        self._predictor = predictor
        self._spec = spec
        self._reader = reader
        self._settings = settings
        parts = (  # batch size, layout, limit and ranks do not change an answer
            predictor.identity,
            style,
            spec.name,
            spec.task,
            spec.max_new_tokens,
            spec.protocol,
            spec.chosen,
            reader.manifest.fingerprint,
        )
        self.digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]

    def answer(self, questions: list[Question], part: Path) -> None:
        """Answer the questions and append a line for each to the file `part`, which is synced after each batch."""
        part.parent.mkdir(parents=True, exist_ok=True)
        _truncate_incomplete_line(part)
        with (
            open(part, "ab") as stream,
            progress_bar(
                total=len(questions), desc=self._spec.name, unit="question", disable=not distributed.is_main()
            ) as bar,
        ):
            for window in _windows(questions, self._settings.batch_size * _WINDOW):
                for chosen, predictions in self._batches(window):
                    for question, prediction in zip(chosen, predictions, strict=True):
                        line: dict[str, Any] = {"id": question.id, "of": self.digest, "answer": prediction.answer}
                        line |= {"losses": prediction.losses} if prediction.losses else {}
                        stream.write(printable_json(line, allow_nan=False).encode() + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                    bar.update(len(chosen))

    def _batches(self, window: list[Question]) -> Iterator[tuple[list[Question], list[Prediction]]]:
        """The batches of a window with their predictions, longest prompts first. Each image is encoded once."""
        predictor, size = self._predictor, self._settings.batch_size
        total = self._spec.scoring.choice_loss == "sum"
        image_tokens: ImageTokens = {}
        images = {sample: self._images(question) for sample, question in {q.sample: q for q in window}.items()}
        requests = {q.id: Request(q.asked, images[q.sample], q.history) for q in window}
        decoding = Decoding(self._spec.max_new_tokens)
        order = sorted(window, key=lambda q: -len(predictor.prompt_ids(requests[q.id], decoding)))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = [requests[question.id] for question in chosen]
            choices = [self._choices(question) for question in chosen]
            losses = score_choices(predictor, batch, choices, self._settings, image_tokens, total=total)
            if self._spec.scoring.choices is None:
                replies = predictor.reply(batch, decoding, batch_size=len(batch), seen=image_tokens)
                texts = [reply.text.strip() for reply in replies]
            else:
                texts = [min(one, key=lambda choice: one[choice]) for one in losses]  # the first one of equal losses
            yield chosen, [Prediction(text, loss) for text, loss in zip(texts, losses, strict=True)]

    def _images(self, question: Question) -> tuple[Any, ...]:
        if not question.has_image:
            return ()
        return (self._predictor.prepare(self._reader.open_image(question.sample)),)

    def _choices(self, question: Question) -> tuple[str, ...]:
        """The choices whose losses are computed for a question."""
        scoring = self._spec.scoring
        if scoring.choices is None:
            return scoring.scored_choices
        choices = scoring.choices or question.turn.choices
        if not choices:
            raise DataError(
                f"{question.corpus} {question.id}: the question has no choices, which the rule {scoring.name} needs"
            )
        return choices


def _windows(questions: list[Question], size: int) -> Iterator[list[Question]]:
    """Runs of at least `size` questions, except the last, that end where the questions of an image end."""
    window: list[Question] = []
    for question in questions:
        if len(window) >= size and question.sample != window[-1].sample:
            yield window
            window = []
        window.append(question)
    if window:
        yield window


def score_choices(
    predictor: Predictor,
    requests: Sequence[Request],
    choices: Sequence[Sequence[str]],
    settings: Settings,
    image_tokens: ImageTokens,
    *,
    total: bool = False,
) -> list[dict[str, float]]:
    """For each request, the loss of each choice as its answer, end token included, rounded to 1e-4.

    `total`: the sum over the tokens, else the mean.
    """
    cases, owners = [], []
    for number, (request, options) in enumerate(zip(requests, choices, strict=True)):
        for option in dict.fromkeys(options):
            cases.append(Case(((request.question, option),), request.images))
            owners.append((number, option))
    losses: list[dict[str, float]] = [{} for _ in requests]
    if not cases:
        return losses
    scores = predictor.score(cases, batch_size=settings.batch_size, layout=settings.layout, seen=image_tokens)
    for (number, option), score in zip(owners, scores, strict=True):
        losses[number][option] = round(score.total if total else score.loss, 4)
    return losses


def _part_files(output: Path) -> list[Path]:
    return sorted(output.glob(_PART_FILE.format(rank="*")))


def _lines(file: Path, digest: str) -> Iterator[dict[str, Any]]:
    """The complete lines of a file of answers. Raises `DataError` if they belong to another run."""
    data = file.read_bytes()
    for text in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            line = json.loads(text)
            line["id"], line["answer"]
            same = line["of"] == digest
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is not a file of answers: {error}") from error
        if not same:
            raise DataError(f"{file} contains answers of another model, corpus or setting. Choose another --output.")
        yield line


def _answers(output: Path, digest: str) -> dict[str, Prediction]:
    """Question id to prediction, from all files of answers in `output`."""
    files: Iterable[Path] = [file for file in (output / PREDICTIONS_FILE, *_part_files(output)) if file.is_file()]
    lines = (line for file in files for line in _lines(file, digest))
    return {line["id"]: Prediction(line["answer"], line.get("losses", {})) for line in lines}


def _answered(output: Path, digest: str, questions: Sequence[Question]) -> set[str]:
    """Ids of the questions that `output` has answers to. Raises `DataError` if it has answers to other questions."""
    answered = set(_answers(output, digest))
    beyond = len(answered - {question.id for question in questions})
    if beyond:
        raise DataError(
            f"{output} contains {len(answered):,} answers, {beyond:,} of them to questions beyond --limit, which would "
            "be lost. Raise --limit or choose another --output."
        )
    return answered


def _truncate_incomplete_line(file: Path) -> None:
    if file.is_file():
        data = file.read_bytes()
        os.truncate(file, data.rfind(b"\n") + 1)


def write_predictions(result: BenchmarkResult, file: Path, digest: str) -> None:
    """Write one JSON line per question: ids, question, answer, true answer, metrics and groups."""
    lines = []
    scored = result.scored
    for question, prediction, metrics, groups in zip(
        result.questions, result.predictions, scored.each, scored.groups, strict=True
    ):
        line: dict[str, Any] = {
            "id": question.id,
            "of": digest,
            "benchmark": result.spec.name,
            "protocol": result.spec.protocol,
            "task": question.turn.task,
            "picture": f"{question.corpus}/{question.sample}",
            "question": question.asked,
            "answer": prediction.answer,
            "truth": question.answer,
            "score": metrics[result.spec.scoring.headline],
            "figures": metrics,
            "groups": groups,
        }
        line |= {"losses": prediction.losses} if prediction.losses else {}
        lines.append(printable_json(line))
    write_atomically(file, "".join(line + "\n" for line in lines).encode())
