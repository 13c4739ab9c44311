"""Tests that marks typed into a question are recognized in every command and in the server, as a build does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigptv2.cli import main as cli
from minigptv2.cli.ask import readable
from minigptv2.corpora.sources.llava import turns_of
from minigptv2.errors import DataError, MiniGPTv2Error
from minigptv2.predict.jsonl import predict_file, score_file
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Case, Decoding, Reply, Request, Score
from minigptv2.prompt import PromptStyle
from minigptv2.serve.config import Limits
from minigptv2.serve.openai_api import parse_chat
from minigptv2.serve.terminal import Chat
from minigptv2.serve.uploads import data_url
from minigptv2.shards.image_convert import Photo
from minigptv2.tasks import TASKS
from minigptv2.tokenizer import Tokenizer
from tests.corpora.test_own_typed_marks import MARKS
from tests.images.making import encode, scene
from tests.model.tiny import save_tiny_export

IDENTIFIERS = [task.identifier for task in TASKS.values() if task.identifier]
IMAGE = Image.new("RGB", (8, 8))


@dataclass
class Recorder:
    """Stands in for a predictor: keeps the questions that it is asked, with those before them."""

    asked: list[tuple[str, ...]] = field(default_factory=list)
    identity: str = ""
    style: PromptStyle = PromptStyle.TRAINED

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def check(self, request: Request, decoding: Decoding) -> None: ...

    def check_case(self, case: Case) -> None: ...

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        self._keep(request)
        yield "an answer"

    def reply(self, requests: list[Request], decoding: Decoding, **options: Any) -> list[Reply]:
        for request in requests:
            self._keep(request)
        return [Reply("an answer", 1) for _ in requests]

    def score(self, cases: list[Case], **options: Any) -> list[Score]:
        self.asked += [tuple(question for question, _ in case.turns) for case in cases]
        return [Score(1, (1,), (0.5,)) for _ in cases]

    def _keep(self, request: Request) -> None:
        self.asked.append((*(question for question, _ in request.history), request.question))


def ask(questions: list[str], num_images: int, folder: Path) -> tuple[str, ...]:
    assert num_images == len(questions) == 1, "`ask` has one question about one image"
    return (readable(questions[0]),)


def chat(questions: list[str], num_images: int, folder: Path) -> tuple[str, ...]:
    told, lines, model = list[str](), iter(questions), Recorder()

    def read(prompt: str) -> str:
        for line in lines:
            return line
        raise EOFError

    image = Photo(IMAGE, 8, 8) if num_images else None
    Chat(model, Decoding(), image, read=read, write=told.append).run()  # type: ignore[arg-type]
    if len(model.asked) < len(questions):
        raise DataError("".join(told))
    return model.asked[-1]


def api(questions: list[str], num_images: int, folder: Path) -> tuple[str, ...]:
    messages: list[dict[str, Any]] = []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": "an answer"}]
    picture = {"type": "image_url", "image_url": {"url": data_url(encode(scene()))}}
    messages[0]["content"] = [picture] * num_images + [{"type": "text", "text": questions[0]}]
    asked = parse_chat({"model": "m", "messages": messages[:-1]}, model="m", limits=Limits()).conversation
    return (*(question for question, _ in asked.history), asked.question)


def _file(command: str) -> Callable[[list[str], int, Path], tuple[str, ...]]:
    def asked(questions: list[str], num_images: int, folder: Path) -> tuple[str, ...]:
        (folder / "a.jpg").write_bytes(encode(scene()))
        turns = [{"question": question, "answer": "an answer"} for question in questions]
        if command == "predict":
            del turns[-1]["answer"]
        (folder / "in.jsonl").write_text(json.dumps({"image": ["a.jpg"] * num_images, "turns": turns}))
        model, output = Recorder(), folder / "out.jsonl"
        output.unlink(missing_ok=True)
        if command == "predict":
            outcome = predict_file(model, folder / "in.jsonl", output, Decoding(), warn=len)  # type: ignore[arg-type]
        else:
            outcome = score_file(model, folder / "in.jsonl", output, warn=len)  # type: ignore[arg-type]
        if outcome.bad:
            raise DataError(outcome.bad[0])
        return model.asked[-1]

    return asked


WAYS = {"ask": ask, "chat": chat, "api": api, "predict": _file("predict"), "score": _file("score")}
LATER = {name: way for name, way in WAYS.items() if name != "ask"}


@pytest.mark.parametrize("name", WAYS)
def test_an_image_mark_is_removed_from_the_first_question(name: str, tmp_path: Path) -> None:
    for mark in MARKS:
        for text in (f"{mark}\nwhat is it?", f"{mark} what is it?", f"what is it? {mark}"):
            assert WAYS[name]([text], 1, tmp_path) == ("what is it?",), text


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("form", ["@ the card", "@the card", "<image> @ the card", "<Img><ImageHere></Img> @ the card"])
def test_an_identifier_is_asked_once_as_it_is_trained(name: str, form: str, tmp_path: Path) -> None:
    for identifier in IDENTIFIERS:
        for spelled in (identifier, identifier.upper(), f"[ {identifier.strip('[]')} ]"):
            assert WAYS[name]([form.replace("@", spelled)], 1, tmp_path) == (f"{identifier} the card",)


OUT_OF_PLACE = {
    "two marks": ("<image> <image> what?", "2 image marks, and there is 1 image"),
    "a path in a mark": ("Picture 1: <img>a.jpg</img> what?", "the image mark 'Picture 1: <img>a.jpg</img>'"),
    "an identifier twice": ("[vqa] [vqa] what?", "contains '[vqa]'"),
    "two identifiers": ("[vqa] what is [refer]?", "contains '[refer]'"),
    "an identifier at the end": ("the card [refer]", "contains '[refer]'"),
    "a template": ("[INST] what? [/INST]", "belongs to a chat template"),
    "a template of others": ("<|im_start|>user what?", "belongs to a chat template"),
    "a video": ("<video> what?", "marks a medium that is no image"),
    "a box of others": ("what is at <loc0012>?", "is a box or name mark of another model"),
    "Markdown": ("![](a.jpg) what?", "in the place of an image"),
    "only a mark": ("<image>", "an empty question"),
    "only an identifier": ("[vqa]", "an empty question"),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("case", OUT_OF_PLACE)
def test_what_is_out_of_place_is_refused_by_name(name: str, case: str, tmp_path: Path) -> None:
    text, reason = OUT_OF_PLACE[case]
    with pytest.raises(MiniGPTv2Error) as told:
        WAYS[name]([text], 1, tmp_path)
    assert reason in str(told.value)


@pytest.mark.parametrize("name", LATER)
def test_later_questions_follow_the_same_rule(name: str, tmp_path: Path) -> None:
    asked = LATER[name](["<image>\n[VQA] what is it?", "[ Refer ] it"], 1, tmp_path)
    assert asked == ("[vqa] what is it?", "[refer] it")
    for text in ("<image> and this?", "and this? <|image_pad|>", "<Img><ImageHere></Img> [vqa] and this?"):
        with pytest.raises(MiniGPTv2Error, match="an image mark, and is not the first question"):
            LATER[name](["what is it?", text], 1, tmp_path)


@pytest.mark.parametrize("name", LATER)
def test_marks_without_an_image_are_refused(name: str, tmp_path: Path) -> None:
    assert LATER[name](["say red"], 0, tmp_path) == ("say red",)
    for text in ("<image> say red", "[vqa] say red", "say red <image_1>"):
        with pytest.raises(MiniGPTv2Error, match="there is no image"):
            LATER[name]([text], 0, tmp_path)


@pytest.mark.parametrize("name", ["api", "predict", "score"])
def test_several_images_may_have_as_many_marks(name: str, tmp_path: Path) -> None:
    assert LATER[name](["<image_1> <image_2> what differs?"], 2, tmp_path) == ("what differs?",)
    with pytest.raises(MiniGPTv2Error, match="3 image marks, and there are 2 images"):
        LATER[name](["<image> <image> <image> what differs?"], 2, tmp_path)


def test_the_command_asks_without_the_mark(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def answer(self: Predictor, requests: list[Request], decoding: Decoding) -> list[str]:
        seen.append(requests[0].question)
        return ["{<1><2><3><4>}"]

    monkeypatch.setattr(Predictor, "answer", answer)
    (tmp_path / "a.jpg").write_bytes(encode(scene()))
    model = save_tiny_export(tmp_path / "model", tokenizer.path)
    words = ["ask", "--model", str(model), str(tmp_path / "a.jpg")]
    assert cli([*words, "<Img><ImageHere></Img> [REFER] the card"]) == 0
    assert seen == ["[refer] the card"] and "box (" in capsys.readouterr().out
    assert cli([*words, "[vqa] [vqa] what?"]) == 3
    assert "the question contains '[vqa]'" in capsys.readouterr().err


def _says(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


@pytest.mark.parametrize("mark", ["<image>", "<Img><ImageHere></Img>", "<ImageHere>", "<|image|>"])
def test_conversations_of_llava_have_one_mark(mark: str) -> None:
    turns = turns_of(_says(f"{mark}\n[grounding] what?", "a card", "where?", "here"))
    assert [turn.question for turn in turns] == ["[grounding] what?", "where?"]
    assert turns == turns_of(_says("[grounding] what?", "a card", "where?", "here"))


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("<image> <image> what?", "a card"), "2 image marks, and there is 1 image"),
        (("what?", "a card", "<image> where?", "here"), "is not the first question"),
        (("what?", "<image> a card"), "answer contains the image mark"),
        (("what is [refer]?", "a card"), "contains '[refer]'"),
        (("<image>", "a card"), "an empty question"),
    ],
)
def test_other_marks_in_conversations_of_llava_are_refused(texts: tuple[str, ...], reason: str) -> None:
    with pytest.raises(DataError) as told:
        turns_of(_says(*texts))
    assert reason in str(told.value)
