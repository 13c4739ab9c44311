"""Requests and cases as JSON lines: read, answered or scored in batches, written as they come, continued when cut off.

A line is `{"image": "a.jpg" | ["a.jpg", ...] | null, "turns": [{"question": .., "answer": ..}, ..], ..}`; image paths
are relative to the file; further fields are handed on. A bad line is named and skipped. Spaces around a question or an
answer are not part of it.
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
from tqdm import tqdm

from minigptv2.errors import ConfigError, DataError
from minigptv2.predict.predictor import Case, Decoding, ImageTokens, Predictor, Reply, Request
from minigptv2.shards.image_files import open_photo
from minigptv2.tasks import task_of

CACHED_IMAGES = 128
"""Images that are kept, prepared and encoded, for further questions about them."""

Turn = dict[str, Any]
Result = dict[str, Any] | DataError


@dataclass(frozen=True)
class Line:
    """A good line: its number, its fields as given, its images as the model sees them, the first one's size in pixels.

    `digest` tells it, and what it is answered with, from others.
    """

    number: int
    digest: str
    fields: dict[str, Any]
    images: tuple[Image.Image, ...]
    size: tuple[int, int]

    @property
    def turns(self) -> list[Turn]:
        turns: list[Turn] = self.fields["turns"]
        return turns


@dataclass
class Outcome:
    """What became of a file: lines done now, done before, and the bad ones with their reasons."""

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
    """Answer every turn without an answer, in the order of the conversation; earlier answers are its history.

    Each turn gets `answer`, `boxes` (pixels of the first image, with their phrases), `well_formed` and
    `context_length`; with `top`, also `next_top`: the likeliest first tokens as [id, logit].
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
                except DataError as error:  # its own earlier answers made it too long
                    failed.setdefault(line.number, error)
            seed = hash((decoding.seed, lines[0].number, number)) & 0x7FFFFFFF  # no two batches draw alike
            replies = predictor.reply(
                [request for _, request in requests],
                replace(decoding, seed=seed),
                batch_size=batch_size,
                top=top,
                seen=seen,
            )
            for (line, _), reply in zip(requests, replies, strict=True):
                line.turns[number] |= _spoken(line, number, reply)
        return [failed.get(line.number, line.fields) for line in lines]

    def check(line: Line) -> None:
        if all("answer" in turn for turn in line.turns):
            raise DataError("every turn has an answer already: nothing is asked")
        pending = 0
        for number, turn in enumerate(line.turns):
            if "answer" not in turn:  # answers to come are in the history of those after them: leave room
                pending += 1
                room = replace(decoding, max_new_tokens=decoding.max_new_tokens * pending)
                predictor.check(_request(line, number), room)

    context = f"predict {predictor.identity} {predictor.style} {decoding} {top}"
    return _Run(predictor, source, output, context, warn).run(work, check, batch_size)


def score_file(
    predictor: Predictor,
    source: Path,
    output: Path,
    *,
    batch_size: int = 16,
    layout: str = "packed",
    warn: Callable[[str], None] = print,
) -> Outcome:
    """Score the answers of every case: `length`, `target_ids`, `nll` and `loss`, one output line a case."""

    def work(lines: list[Line], seen: ImageTokens) -> list[Result]:
        cases = [_case(line) for line in lines]
        scores = predictor.score(cases, batch_size=batch_size, layout=layout, seen=seen)
        return [{"length": s.length, "target_ids": s.target_ids, "nll": s.nll, "loss": s.loss} for s in scores]

    def check(line: Line) -> None:
        if any("answer" not in turn for turn in line.turns):
            raise DataError('a turn has no "answer" to score')
        predictor.check_case(_case(line))

    return _Run(predictor, source, output, f"score {predictor.identity}", warn).run(work, check, batch_size)


def mean_loss(output: Path) -> tuple[float, int]:
    """Mean negative log likelihood over all supervised tokens of a file of scores, and their number."""
    with open(output) as stream:
        losses = [nll for row in stream for nll in json.loads(row)["nll"]]
    return sum(losses) / len(losses), len(losses)


def _request(line: Line, number: int) -> Request:
    history = tuple((turn["question"], turn.get("answer", "")) for turn in line.turns[:number])
    return Request(line.turns[number]["question"], line.images, history)


def _case(line: Line) -> Case:
    return Case(tuple((turn["question"], turn["answer"]) for turn in line.turns), line.images)


def _spoken(line: Line, number: int, reply: Reply) -> Turn:
    answer = task_of(line.turns[number]["question"]).parse(reply.text, *line.size)
    boxes = (
        [
            {"phrase": item.phrase, "box": [box.x1, box.y1, box.x2, box.y2]}
            for item in answer.grounded
            for box in item.boxes
        ]
        if line.images
        else []
    )
    spoken: Turn = {
        "answer": reply.text,
        "boxes": boxes,
        "well_formed": answer.well_formed,
        "context_length": reply.context_length,
    }
    return spoken | ({"next_top": reply.next_top} if reply.next_top else {})


class _Run:
    """One pass over a file: bad lines named, good ones worked on in batches, each batch written before the next."""

    def __init__(
        self, predictor: Predictor, source: Path, output: Path, context: str, warn: Callable[[str], None]
    ) -> None:
        self._predictor = predictor
        self._source = source
        self._output = output
        self._context = context
        self._warn = warn
        self._pictures: dict[str, tuple[Image.Image, tuple[int, int]]] = {}
        self._seen: ImageTokens = {}
        self._outcome = Outcome()

    def run(
        self, work: Callable[[list[Line], ImageTokens], list[Result]], check: Callable[[Line], None], batch_size: int
    ) -> Outcome:
        """Append one output line per good line, beginning with its `line` and, as `of`, its digest."""
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size}: want at least 1")
        if not self._source.is_file():
            raise DataError(f"no file {self._source}")
        if self._output.exists() and self._output.samefile(self._source):
            raise DataError(f"{self._output} is the input itself; give another --output")
        done = _lines_done(self._output)
        self._outcome.before = len(done)
        with open(self._source, "rb") as stream:
            total = sum(1 for _ in stream)
        self._output.parent.mkdir(parents=True, exist_ok=True)
        with open(self._output, "ab") as stream, tqdm(total=total, unit="line", desc=self._output.name) as bar:
            for batch in self._batches(done, check, batch_size, bar):
                for line, result in zip(batch, work(batch, self._seen), strict=True):
                    if isinstance(result, DataError):
                        self._skip(line.number, result)
                        continue
                    kept = {key: value for key, value in result.items() if key not in ("line", "of")}
                    row = {"line": line.number, "of": line.digest, **kept}
                    stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                    self._outcome.done += 1
                stream.flush()
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
                        f"{self._output}: its line {number} was made of another line, model or setting than now asked "
                        "for; give another --output"
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
                    if len(self._pictures) > CACHED_IMAGES:
                        self._pictures.clear()
                        self._seen.clear()
        if batch:
            yield batch

    def _parse(self, text: bytes, number: int, digest: str) -> Line:
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise DataError(f"not JSON: {error}") from error
        if not isinstance(fields, dict) or not isinstance(fields.get("turns"), list) or not fields["turns"]:
            raise DataError('want {"image": ..., "turns": [{"question": ...}, ...]}')
        for turn in fields["turns"]:
            if not isinstance(turn, dict) or not isinstance(turn.get("question"), str):
                raise DataError(f'a turn is {{"question": text}}, not {turn!r}')
            if "answer" in turn and not isinstance(turn["answer"], str):
                raise DataError(f"an answer is text, not {turn['answer']!r}")
            turn |= {key: turn[key].strip() for key in ("question", "answer") if key in turn}
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair could not be written: ValueError
        named = fields.get("image")
        names = [] if named is None else [named] if isinstance(named, str) else named
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"image is a path, a list of paths or null, not {named!r}")
        pictures = [self._picture(name) for name in names]
        size = pictures[0][1] if pictures else (0, 0)
        return Line(number, digest, fields, tuple(image for image, _ in pictures), size)

    def _picture(self, name: str) -> tuple[Image.Image, tuple[int, int]]:
        """The image as the model sees it, one object per file so that it is encoded once, and its size in pixels."""
        if name not in self._pictures:
            file = self._source.parent / name
            try:
                image = open_photo(file.read_bytes(), name)
            except OSError as error:
                raise DataError(f"{file}: {error.strerror}") from error
            self._pictures[name] = (self._predictor.prepare(image), image.size)
        return self._pictures[name]


def _lines_done(output: Path) -> dict[int, str]:
    """Numbers and digests of the lines an earlier run has finished; a line it was cut off in is taken away."""
    if not output.is_file():
        return {}
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        done = {int(row["line"]): str(row["of"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{output}: not an output of this command, so it is not continued: {error}") from error
    if len(whole) < len(data):
        if not _begins_a_row(data[len(whole) :]):
            raise DataError(f"{output}: its last line is not of this command, so it is not continued; give another")
        os.truncate(output, len(whole))
    return done


def _begins_a_row(tail: bytes) -> bool:
    """Whether `tail` may be what is left of one of our rows: `{"line": 7, "of": "..."`, cut off anywhere."""
    head, after = b'{"line": ', b' "of": "'
    number, _, rest = tail[len(head) :].partition(b",")
    if number and not number.isdigit():
        return False
    return head.startswith(tail[: len(head)]) and after.startswith(rest[: len(after)])
