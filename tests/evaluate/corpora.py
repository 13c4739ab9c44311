"""Makes a small corpus folder for each benchmark spec, and a predictor that needs no model."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from minigptv2.boxes import Box
from minigptv2.evaluate.protocols import Benchmark
from minigptv2.evaluate.questions import questions_of
from minigptv2.evaluate.runner import asking_of
from minigptv2.predict.requests import Case, Decoding, Reply, Request, Score
from minigptv2.prompt import PromptStyle
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.writer import Sample, write_corpus

WIDTH, HEIGHT = 200, 100
COUNT = 5


def corpus_for(spec: Benchmark, folder: Path) -> Path:
    """Write shards of `COUNT` images with two turns each (one for captions), as in the corpus of the spec."""
    samples = []
    for number in range(COUNT):
        turns = tuple(_turn(spec, number, place) for place in range(1 if spec.task == "caption" else 2))
        source = {"corpus": spec.corpus, "id": f"p{number}", "objects": "dog|person"}
        record = Record(turns, WIDTH, HEIGHT, source, separate=len(turns) > 1)
        samples.append(Sample(f"p{number}", record, encoded_image(number), "png"))
    write_corpus(samples, folder, spec.corpus, samples_per_shard=3)
    return folder


def encoded_image(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (40 * number, 90, 200 - 40 * number)).save(buffer, "PNG")
    return buffer.getvalue()


def _turn(spec: Benchmark, number: int, place: int) -> Turn:
    source = {"id": f"{number}-{place}"}
    box = Box(10 + 7 * number, 5 + 3 * place, 90 + 11 * number, 60 + 5 * place)
    caption = f"a dog and a person with {('a kite', 'two plates', 'a red ball', 'skis', 'an apple')[number]} outside"
    if spec.task == "refer":
        return Turn("refer", regions=(Region((box,), (f"the dog {number}{place}", f"dog {place}")),), source=source)
    if spec.task == "identify":
        phrase = f"dog number {number} left of the {('red', 'blue')[place]} person here"
        return Turn("identify", regions=(Region((box,), (phrase,)),), source=source)
    if spec.task == "caption":  # one caption, so that repeating it gives the best score
        answers = ("a dog and a person",) if spec.name == "chair" else (caption,)
        return Turn("caption", answers=answers)
    if spec.task == "grounding":
        return Turn("grounding", answers=(caption,), regions=(Region((box,), ("a dog",), (0, 5)),), source=source)
    if spec.task == "detection":
        return Turn("detection", regions=(Region((box, Box(1, 1, 20, 20)), (f"dogs {place}",)),), source=source)
    answer, choices = _answer(spec, number + place)
    people = 10 if spec.name in ("okvqa", "vqav2", "vizwiz", "aokvqa") else 1
    if spec.name == "okvqa":
        source["answers"] = "|".join([answer] * people)  # the lemmas of these answers are the answers
    if spec.corpus == "hateful_memes":
        source["text"] = f"words {number}, {place}"
    if spec.corpus == "aok_vqa":
        source["difficult_direct_answer"] = "false"
    question = f"what of picture {number}, question {place}?"
    return Turn("vqa", question, (answer,) * people, choices=choices, source=source)


def _answer(spec: Benchmark, number: int) -> tuple[str, tuple[str, ...]]:
    if spec.corpus in ("pope", "hateful_memes"):
        return ("yes", "no")[number % 2], ("yes", "no")
    if spec.corpus == "vsr":
        return ("true", "false")[number % 2], ("true", "false")
    words = (
        "red dog",
        "2",
        "on left",
        "ski",
        "shirt",
    )  # unanimous answers are not normalized
    return words[number % 5], words if spec.scoring.choices is not None else ()


class Oracle:
    """A predictor that answers `say(true answer)` and gives the true choice the lowest loss."""

    identity = "oracle"
    style = PromptStyle.TRAINED

    def __init__(self, spec: Benchmark, corpus: Path, say: Callable[[str], str] = str) -> None:
        questions = questions_of(CorpusReader(corpus), asking_of(spec))
        self.truth = {(question.asked, question.sample): question.answer for question in questions}
        self.say = say
        self.asked = 0
        self.stop_after: int | None = None

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def prompt_ids(self, request: Request, decoding: Decoding) -> str:
        return request.question

    def reply(self, requests: list[Request], decoding: Decoding, *, batch_size: int, seen: Any) -> list[Reply]:
        if self.stop_after is not None and self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(requests)
        return [Reply(self.say(self._true(request.question, request.images)), 1) for request in requests]

    def score(self, cases: list[Case], *, batch_size: int, layout: str, seen: Any) -> list[Score]:
        right = [case.turns[0][1] == self._true(case.turns[0][0], case.images) for case in cases]
        return [Score(4, (7, 8), (0.1, 0.1) if one else (0.5, 0.7)) for one in right]

    def _true(self, question: str, images: tuple[Image.Image, ...]) -> str:
        red = images[0].getpixel((0, 0))[0]  # encodes the number of the image
        return self.truth[question, red // 40]
