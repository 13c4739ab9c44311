"""Answers or scores the lines of a JSON lines file in batches, and continues an interrupted output.

A line is `{"image": "a.jpg" | ["a.jpg", ...] | null, "turns": [{"question": .., "answer": ..}, ..], ..}`. Image paths
are relative to the file. Further fields are copied to the output. A bad line is reported with its reason and skipped.
Leading and trailing spaces of questions and answers are removed, and so are image marks in questions (`typed_marks`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from minigptv2.errors import ConfigError, DataError
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Case, Decoding, ImageTokens, Reply, Request, boxes_as_json
from minigptv2.progress_bars import progress_bar
from minigptv2.prompt import PromptStyle
from minigptv2.shards.image_convert import read_photo
from minigptv2.tasks import task_of
from minigptv2.terminal_text import printable_json
from minigptv2.typed_marks import asked_question

CACHED_IMAGES = 128
"""The number of images kept in memory, prepared and encoded, for further questions about them."""

Turn = dict[str, Any]
Result = dict[str, Any] | DataError


@dataclass(frozen=True)
class Line:
    """A valid line: its number, its fields as given, its prepared images, and the size of the first image in pixels.

    `digest` identifies the line together with the model and the options that answer it.
    """

    number: int
    digest: str
    fields: dict[str, Any]
    images: tuple[Image.Image, ...]
    size: tuple[int, int]

    @property
    def turns(self) -> list[Turn]:
        """The questions and answers of the line, as given."""
        turns: list[Turn] = self.fields["turns"]
        return turns


@dataclass
class Outcome:
    """The result of a file: the number of lines done now and done before, and the bad lines with their reasons."""

    done: int = 0
    before: int = 0
    bad: list[str] = field(default_factory=list)


def predict_file(
    predictor: Predictor,
    source: Path,
    output: Path,
    decoding: Decoding,
    *,
    batch_size: int = 16,
    top: int = 0,
    warn: Callable[[str], None] = print,
) -> Outcome:
    """Answer every turn that has no answer, in order, with the earlier turns as history.

    Each turn gets `answer`, `boxes` (pixels of the first image, with their phrases), `well_formed` and
    `context_length`. With `top` > 0 it also gets `next_top`: the most likely first tokens as [id, logit]. Raises
    `DataError` if `output` cannot be continued and `ConfigError` for a batch size below 1.
    """

    def work(lines: list[Line], seen: ImageTokens) -> list[Result]:
        failed: dict[int, DataError] = {}
        for number in range(max(len(line.turns) for line in lines)):
            asked = [line for line in lines if number < len(line.turns) and "answer" not in line.turns[number]]
            requests = []
            for line in asked:
                try:
                    predictor.check(_request(line, number), decoding)
                    requests.append((line, _request(line, number)))
                except DataError as error:  # the generated answers made the history too long
                    failed.setdefault(line.number, error)
            seed = hash((decoding.seed, lines[0].number, number)) & 0x7FFFFFFF  # a different seed for every batch
            replies = predictor.reply(
                [request for _, request in requests],
                replace(decoding, seed=seed),
                batch_size=batch_size,
                top=top,
                seen=seen,
            )
            for (line, _), reply in zip(requests, replies, strict=True):
                line.turns[number] |= _answered(line, number, reply)
        return [failed.get(line.number, line.fields) for line in lines]

    def check(line: Line) -> None:
        if all("answer" in turn for turn in line.turns):
            raise DataError("every turn has an answer already; remove one to have it generated")
        pending = 0
        for number, turn in enumerate(line.turns):
            if "answer" not in turn:  # reserve tokens for the answers that will be in the history of later turns
                pending += 1
                reserved = replace(decoding, max_new_tokens=decoding.max_new_tokens * pending)
                predictor.check(_request(line, number), reserved)

    context = f"predict {predictor.identity} {predictor.style} {decoding} {top}"
    return _Run(predictor, source, output, context=context, warn=warn).run(work, check, batch_size)


def score_file(
    predictor: Predictor,
    source: Path,
    output: Path,
    *,
    batch_size: int = 16,
    layout: str = "packed",
    warn: Callable[[str], None] = print,
) -> Outcome:
    """Score the given answers and write `length`, `target_ids`, `nll` and `loss`, one output line per case.

    `layout` is one of `predictor.LAYOUTS`. Raises `DataError` if `output` cannot be continued and `ConfigError` for a
    batch size below 1.
    """

    def work(lines: list[Line], seen: ImageTokens) -> list[Result]:
        cases = [_case(line) for line in lines]
        scores = predictor.score(cases, batch_size=batch_size, layout=layout, seen=seen)
        return [{"length": s.length, "target_ids": s.target_ids, "nll": s.nll, "loss": s.loss} for s in scores]

    def check(line: Line) -> None:
        if any("answer" not in turn for turn in line.turns):
            raise DataError('a turn has no "answer" to score')
        predictor.check_case(_case(line))

    context = f"score {predictor.identity}"
    if predictor.style is not PromptStyle.TRAINED:  # outputs of versions without styles are continued
        context += f" {predictor.style}"
    return _Run(predictor, source, output, context=context, warn=warn).run(work, check, batch_size)


def mean_loss(output: Path) -> tuple[float, int]:
    """The mean negative log likelihood (nats) over all supervised tokens in a file of scores, and their number."""
    with open(output) as stream:
        losses = [nll for line in stream for nll in json.loads(line)["nll"]]
    return sum(losses) / len(losses), len(losses)


def _request(line: Line, number: int) -> Request:
    history = tuple((turn["question"], turn.get("answer", "")) for turn in line.turns[:number])
    return Request(line.turns[number]["question"], line.images, history)


def _case(line: Line) -> Case:
    return Case(tuple((turn["question"], turn["answer"]) for turn in line.turns), line.images)


def _answered(line: Line, number: int, reply: Reply) -> Turn:
    answer = task_of(line.turns[number]["question"]).parse(reply.text, *line.size)
    turn: Turn = {
        "answer": reply.text,
        "boxes": boxes_as_json(answer.grounded) if line.images else [],
        "well_formed": answer.well_formed,
        "context_length": reply.context_length,
    }
    return turn | ({"next_top": reply.next_top} if reply.next_top else {})


class _Run:
    """One pass over a file: reports bad lines, processes valid ones in batches, and writes each batch at once."""

    def __init__(
        self, predictor: Predictor, source: Path, output: Path, *, context: str, warn: Callable[[str], None]
    ) -> None:
        self._predictor = predictor
        self._source = source
        self._output = output
        self._context = context
        self._warn = warn
        self._images: dict[str, tuple[Image.Image, tuple[int, int]]] = {}
        self._seen: ImageTokens = {}
        self._outcome = Outcome()

    def run(
        self, work: Callable[[list[Line], ImageTokens], list[Result]], check: Callable[[Line], None], batch_size: int
    ) -> Outcome:
        """Append one output line per valid line, starting with its number (`line`) and its digest (`of`)."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        if not self._source.is_file():
            raise DataError(f"input file {self._source} does not exist")
        if self._output.exists() and self._output.samefile(self._source):
            raise DataError(f"{self._output} is the input file; choose another --output")
        done = _lines_done(self._output)
        self._outcome.before = len(done)
        with open(self._source, "rb") as stream:
            total = sum(1 for _ in stream)
        self._output.parent.mkdir(parents=True, exist_ok=True)
        is_file = self._output.is_file() or not self._output.exists()
        with open(self._output, "ab") as stream, progress_bar(total=total, unit="line", desc=self._output.name) as bar:
            for batch in self._batches(done, check, batch_size, bar):
                for line, result in zip(batch, work(batch, self._seen), strict=True):
                    if isinstance(result, DataError):
                        self._skip(line.number, result)
                        continue
                    kept = {key: value for key, value in result.items() if key not in ("line", "of")}
                    written = {"line": line.number, "of": line.digest, **kept}
                    stream.write(printable_json(written, allow_nan=False).encode() + b"\n")
                    self._outcome.done += 1
                stream.flush()
                if is_file:  # a terminal or a pipe cannot be synced
                    os.fsync(stream.fileno())
                bar.update(len(batch))
        return self._outcome

    def _skip(self, number: int, error: Exception) -> None:
        self._outcome.bad.append(f"{self._source}:{number}: {error}")
        self._warn(f"skipped {self._outcome.bad[-1]}")

    def _batches(
        self, done: dict[int, str], check: Callable[[Line], None], size: int, bar: Any
    ) -> Iterator[list[Line]]:
        batch: list[Line] = []
        with open(self._source, "rb") as stream:
            for number, text in enumerate(stream, 1):
                digest = hashlib.sha256(text.strip() + self._context.encode()).hexdigest()[:12]
                if done.get(number, digest) != digest:
                    raise DataError(
                        f"{self._output}: line {number} was written for another line, model or setting; choose another "
                        "--output"
                    )
                if number in done or not text.strip():
                    bar.update(1)
                    continue
                try:
                    line = self._parse(text, number, digest)
                    check(line)
                except (DataError, ValueError, RecursionError) as error:
                    self._skip(number, error)
                    bar.update(1)
                    continue
                batch.append(line)
                if len(batch) == size:
                    yield batch
                    batch = []
                    if len(self._images) > CACHED_IMAGES:
                        self._images.clear()
                        self._seen.clear()
        if batch:
            yield batch

    def _parse(self, text: bytes, number: int, digest: str) -> Line:
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise DataError(f"not JSON: {error}") from error
        if not isinstance(fields, dict) or not isinstance(fields.get("turns"), list) or not fields["turns"]:
            raise DataError('expected {"image": ..., "turns": [{"question": ...}, ...]}')
        for turn in fields["turns"]:
            if not isinstance(turn, dict) or not isinstance(turn.get("question"), str):
                raise DataError(f'a turn must be {{"question": text}}, got {turn!r}')
            if "answer" in turn and not isinstance(turn["answer"], str):
                raise DataError(f"an answer must be text, got {turn['answer']!r}")
            turn |= {key: turn[key].strip() for key in ("question", "answer") if key in turn}
        # ValueError: an unpaired surrogate, NaN and Infinity cannot be written.
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
        named = fields.get("image")
        names = [] if named is None else [named] if isinstance(named, str) else named
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"image must be a path, a list of paths or null, got {named!r}")
        for index, turn in enumerate(fields["turns"]):
            what = f"question {index + 1}"
            turn["question"] = asked_question(turn["question"], what, num_images=len(names), is_first=index == 0)
        images = [self._image(name) for name in names]
        size = images[0][1] if images else (0, 0)
        return Line(number, digest, fields, tuple(image for image, _ in images), size)

    def _image(self, name: str) -> tuple[Image.Image, tuple[int, int]]:
        """The prepared image and its size in pixels. A file gives one object, so that it is encoded once."""
        if name not in self._images:
            file = self._source.parent / name
            photo = read_photo(file, name)
            self._images[name] = (self._predictor.prepare(photo.image), (photo.width, photo.height))
        return self._images[name]


def _lines_done(output: Path) -> dict[int, str]:
    """Numbers and digests of the lines that an earlier run has written. A last line that was cut off is removed."""
    if not output.is_file():
        return {}
    data = output.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in complete.splitlines()]
        done = {int(line["line"]): str(line["of"]) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{output} is not an output of this command and is not continued: {error}") from error
    if len(complete) < len(data):
        if not _is_cut_line(data[len(complete) :]):
            raise DataError(f"{output}: the last line is not from this command, so it is not continued; choose another")
        os.truncate(output, len(complete))
    return done


def _is_cut_line(tail: bytes) -> bool:
    """Whether `tail` may be the beginning of a line of this command, `{"line": 7, "of": "..."`, cut off anywhere."""
    head, after = b'{"line": ', b' "of": "'
    number, _, rest = tail[len(head) :].partition(b",")
    if number and not number.isdigit():
        return False
    return head.startswith(tail[: len(head)]) and after.startswith(rest[: len(after)])
