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

from minigptv2.data.images import open_image
from minigptv2.errors import DataError
from minigptv2.predict.predictor import Case, Decoding, ImageTokens, Predictor, Reply, Request
from minigptv2.tasks import parse_answer, task_of

WINDOW = 8
"""Batches that are read, sorted by length and written together."""

Turn = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A good line: its number, the beginning of its SHA-256, its fields as given, and its images."""

    number: int
    digest: str
    fields: dict[str, Any]
    images: tuple[Image.Image, ...]

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
    predictor: Predictor, source: Path, output: Path, decoding: Decoding, *, batch_size: int = 16, top: int = 0,
    warn: Callable[[str], None] = print,
) -> Outcome:  # fmt: skip
    """Answer every turn without an answer, in the order of the conversation; earlier answers are its history.

    Each turn gets `answer`, `boxes` (pixels of the first image, with their phrases), `well_formed` and
    `context_length`; with `top`, also `next_top`: the likeliest first tokens as [id, logit].
    """

    def work(lines: list[Line]) -> list[dict[str, Any]]:
        seen: ImageTokens = {}
        longest = max((len(line.turns) for line in lines), default=0)
        for number in range(longest):
            asked = [line for line in lines if number < len(line.turns) and "answer" not in line.turns[number]]
            requests = [_request(line, number) for line in asked]
            replies = predictor.reply(requests, decoding, batch_size=batch_size, top=top, seen=seen)
            for line, reply in zip(asked, replies, strict=True):
                line.turns[number] |= _spoken(line, number, reply)
        return [line.fields for line in lines]

    def check(line: Line) -> None:
        if all("answer" in turn for turn in line.turns):
            raise DataError("every turn has an answer already: nothing is asked")
        pending = 0
        for number, turn in enumerate(line.turns):
            if "answer" not in turn:  # answers to come are in the history of those after them: leave room
                pending += 1
                room = replace(decoding, max_new_tokens=decoding.max_new_tokens * pending)
                predictor.check(_request(line, number), room)

    return _through(source, output, work, check, batch_size, warn)


def score_file(
    predictor: Predictor, source: Path, output: Path, *, batch_size: int = 16, layout: str = "packed",
    warn: Callable[[str], None] = print,
) -> Outcome:  # fmt: skip
    """Score the answers of every case: `length`, `target_ids`, `nll` and `loss`, one output line a case."""

    def work(lines: list[Line]) -> list[dict[str, Any]]:
        scores = predictor.score([_case(line) for line in lines], batch_size=batch_size, layout=layout)
        return [
            {"length": s.length, "target_ids": s.target_ids, "nll": s.nll, "loss": s.loss}
            for s in scores
        ]  # fmt: skip

    def check(line: Line) -> None:
        if any("answer" not in turn for turn in line.turns):
            raise DataError('a turn has no "answer" to score')
        predictor.check_case(_case(line))

    return _through(source, output, work, check, batch_size, warn)


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
    size = line.images[0].size if line.images else (0, 0)
    answer = parse_answer(reply.text, task_of(line.turns[number]["question"]), *size)
    boxes = [{"phrase": item.phrase, "box": [box.x1, box.y1, box.x2, box.y2]}
             for item in answer.grounded for box in item.boxes] if line.images else []  # fmt: skip
    spoken: Turn = {
        "answer": reply.text,
        "boxes": boxes,
        "well_formed": answer.well_formed,
        "context_length": reply.context_length,
    }
    return spoken | ({"next_top": reply.next_top} if reply.next_top else {})


def _through(
    source: Path, output: Path, work: Callable[[list[Line]], list[dict[str, Any]]], check: Callable[[Line], None],
    batch_size: int, warn: Callable[[str], None],
) -> Outcome:  # fmt: skip
    """Run `work` over windows of good lines and append what it returns, one output line each with its `line`."""
    if not source.is_file():
        raise DataError(f"no file {source}")
    done = _lines_done(output)
    outcome = Outcome(before=len(done))
    with open(source, "rb") as stream:
        total = sum(1 for _ in stream)
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "ab") as stream, tqdm(total=total, unit="line", desc=output.name) as bar:
        for window in _windows(source, output, done, check, WINDOW * batch_size, outcome, bar, warn):
            for line, result in zip(window, work(window), strict=True):
                row = {"line": line.number, "of": line.digest, **result}
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
            outcome.done += len(window)
            bar.update(len(window))
    return outcome


def _windows(
    source: Path, output: Path, done: dict[int, str], check: Callable[[Line], None], size: int, outcome: Outcome,
    bar: Any, warn: Callable[[str], None],
) -> Iterator[list[Line]]:  # fmt: skip
    window: list[Line] = []
    pictures: dict[str, Image.Image] = {}  # one object per file, so that it is encoded once per window
    with open(source, "rb") as stream:
        for number, text in enumerate(stream, 1):
            digest = hashlib.sha256(text.strip()).hexdigest()[:12]
            if number in done and done[number] != digest:
                raise DataError(
                    f"{output}: its line {number} answers another file than {source}; give another --output"
                )
            if number in done or not text.strip():
                bar.update(1)
                continue
            try:
                line = _parse(text, number, digest, source.parent, pictures)
                check(line)
            except DataError as error:
                outcome.bad.append(f"{source}:{number}: {error}")
                warn(f"skipped {outcome.bad[-1]}")
                bar.update(1)
                continue
            window.append(line)
            if len(window) == size:
                yield window
                window, pictures = [], {}
    if window:
        yield window


def _parse(text: bytes, number: int, digest: str, folder: Path, pictures: dict[str, Image.Image]) -> Line:
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
    named = fields.get("image")
    names = [] if named is None else [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"image is a path, a list of paths or null, not {named!r}")
    for name in names:
        if name not in pictures:
            try:
                pictures[name] = open_image((folder / name).read_bytes(), name)
            except OSError as error:
                raise DataError(f"{folder / name}: {error.strerror}") from error
    return Line(number, digest, fields, tuple(pictures[name] for name in names))


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
        os.truncate(output, len(whole))
    return done
