"""Conversations as LLaVA, LLaMA-Factory, ms-swift, OpenAI and Qwen-VL write them: read, or refused by name."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigptv2.cli import main as cli
from minigptv2.record import Record, Turn
from minigptv2.shards.reader import CorpusReader
from tests.corpora.miniatures.files import jpeg, put
from tests.corpora.own_data import HERE

Messages = list[dict[str, Any]]
PIXELS = jpeg(7)


def asked(text: Any = "<image>\nWhat color?", answer: Any = "Red.", **more: Any) -> dict[str, Any]:
    """An entry of one question and answer, as LLaVA writes it."""
    conversations = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return {"id": "e1", "conversations": conversations, **more}


def chat(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    """An entry of messages, as OpenAI and ms-swift write them."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


@pytest.fixture
def build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[list[Record], list[bytes], str]]:
    """Builds entries as a .json and as a .jsonl, which agree, and gives records, images and what was printed."""
    for name in ("a.jpg", "b.jpg", "pics/a.jpg"):
        put(tmp_path / name, PIXELS)

    def built(*entries: Any, options: tuple[str, ...] = ()) -> tuple[list[Record], list[bytes], str]:
        outcomes = []
        for name, text in (
            ("my.json", json.dumps(entries)),
            ("my.jsonl", "".join(f"{json.dumps(one)}\n" for one in entries)),
        ):
            put(tmp_path / name, text)
            out = tmp_path / f"out-{name}"
            shutil.rmtree(out, ignore_errors=True)
            code = cli(["shards", "build", str(tmp_path / name), "--output", str(out), *HERE, *options])
            captured = capsys.readouterr()
            if code != 0:
                assert code == 3 and not (out / "manifest.json").exists()
                outcomes.append(([], [], captured.err))
                continue
            reader = CorpusReader(out)
            records = [reader.record(number) for number in range(len(reader))]
            images = [reader.image(number) for number, record in enumerate(records) if record.has_image]
            outcomes.append((records, images, captured.out))
        assert outcomes[0][:2] == outcomes[1][:2]
        return outcomes[0]

    return built


Build = Callable[..., tuple[list[Record], list[bytes], str]]
URI = f"data:image/jpeg;base64,{base64.b64encode(PIXELS).decode()}"
ONE = (Turn("conversation", "What color?", ("Red.",)),)
TEXT_PART = {"type": "text", "text": "What color?"}

GOOD: dict[str, dict[str, Any]] = {
    "LLaVA": asked(image="a.jpg"),
    "LLaVA, model named": asked(image="pics/a.jpg", model="gpt-4"),
    "InternVL": asked(image="a.jpg", width=64, height=48),
    "list of one": asked(images=["a.jpg"]),
    "list of one under image": asked(image=["a.jpg"]),
    "text under images": asked(images="a.jpg"),
    "both keys, one image": asked(image="a.jpg", images=["a.jpg"]),
    "no mark": asked("What color?", image="a.jpg"),
    "mark at the end": asked("What color?\n<image>", image="a.jpg"),
    "ms-swift": chat(("user", "<image>What color?"), ("assistant", "Red."), images=["a.jpg"]),
    "ms-swift, image object": chat(("user", "<image>What color?"), ("assistant", "Red."), images=[{"path": "a.jpg"}]),
    "columns of datasets": chat(
        ("user", "<image>What color?"), ("assistant", "Red."), images=[{"bytes": None, "path": "a.jpg"}]
    ),
    "LLaMA-Factory": {**asked(images=["a.jpg"]), "system": "", "tools": ""},
    "MiniCPM-V": {
        "id": "0",
        "image": "a.jpg",
        "conversations": [
            {"role": "user", "content": "<image>\nWhat color?"},
            {"role": "assistant", "content": "Red."},
        ],
    },
    "OpenAI": chat(
        ("user", [TEXT_PART, {"type": "image_url", "image_url": {"url": URI, "detail": "low"}}]), ("assistant", "Red.")
    ),
    "OpenAI, image in its own message": chat(
        ("user", "What color?"), ("user", [{"type": "image_url", "image_url": {"url": URI}}]), ("assistant", "Red.")
    ),
    "OpenAI, parts of an answer": chat(
        ("user", [{"type": "input_image", "image_url": URI}, {"type": "input_text", "text": "What color?"}]),
        ("assistant", [{"type": "output_text", "text": "Red."}]),
    ),
    "Transformers, image part": chat(
        ("user", [{"type": "image"}, TEXT_PART]), ("assistant", [{"type": "text", "text": "Red."}]), images=["a.jpg"]
    ),
    "Transformers, null fields": chat(
        ("user", [{"type": "image", "index": 0, "text": None}, {**TEXT_PART, "index": None}]),
        ("assistant", "Red."),
        images=["a.jpg"],
    ),
    "Qwen2-VL, image part": chat(("user", [{"type": "image", "image": "a.jpg"}, TEXT_PART]), ("assistant", "Red.")),
    "Qwen2-VL, file URL": chat(
        ("user", [{"type": "image", "image": "file://HERE/a.jpg"}, TEXT_PART]), ("assistant", "Red.")
    ),
    "Qwen-VL": {
        "id": "q0",
        "conversations": [
            {"from": "user", "value": "Picture 1: <img>a.jpg</img>\nWhat color?"},
            {"from": "assistant", "value": "Red."},
        ],
    },
    "Qwen2-VL, tokens": asked("<|vision_start|><|image_pad|><|vision_end|>What color?", image="a.jpg"),
    "MiniGPT": asked("<Img><ImageHere></Img> What color?", image="a.jpg"),
    "base64 without a head": asked(image=base64.b64encode(PIXELS).decode()),
    "an empty list of the other kind": {**asked(image="a.jpg"), "messages": []},
    "weights of answers": {
        "messages": [
            {"role": "user", "content": "<image>What color?", "name": "x"},
            {"role": "assistant", "content": "Red.", "weight": 1},
        ],
        "images": ["a.jpg"],
    },
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_known_format_gives_one_record_with_its_image(build: Build, tmp_path: Path, kind: str) -> None:
    entry = json.loads(json.dumps(GOOD[kind]).replace("HERE", str(tmp_path)))
    records, images, _ = build(entry)
    assert [record.turns for record in records] == [ONE] and images == [PIXELS]


IMAGE_KEYS = (
    *("img", "image_path", "picture", "photo", "file_name", "filename", "image_url", "imagePath", "Image", "IMAGES"),
    *("pic", "images_path", "img_path", "visual", "media", "image_file", "image_id", "url", "asset", "src", "imgs"),
    *("video", "screenshot", "input_image", "document"),
)


@pytest.mark.parametrize("key", IMAGE_KEYS)
@pytest.mark.parametrize("value", ["pics/a.jpg", ["pics/a.jpg"], "https://example.com/a.jpg?w=1", "000017"])
@pytest.mark.parametrize("text", ["<image>\nWhat color?", "What color?"])
def test_an_image_under_an_unknown_key_is_an_error(build: Build, key: str, value: Any, text: str) -> None:
    records, _, told = build(asked(text, **{key: value}), options=("--ignore-extra",) if key[0] in "ips" else ())
    assert records == [] and f"'{key}'" in told or "no image: add image" in told
    assert 'entry 1 (id "e1"): ' in told
    if key not in ("asset", "src", "document") or value != "000017":
        assert f"unknown key '{key}'" in told


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_an_empty_unknown_key_loses_nothing(build: Build, value: Any) -> None:
    records, _, _ = build(asked("Hi?", videos=value, img=value, tools=value))
    assert records[0].turns == (Turn("language", "Hi?", ("Red.",)),)


def test_keys_that_describe_an_entry_are_counted_and_others_refused(build: Build) -> None:
    entries = [asked(image="a.jpg", model="x"), asked(image="a.jpg", model="y", url="https://example.com/a.jpg")]
    _, _, told = build(*entries)
    assert "passed over key 'model' in 2 of the entries" in told and "passed over key 'url' in 1 of the entries" in told
    _, _, told = build(asked(image="a.jpg", rating=3))
    assert "unknown key 'rating'" in told and "--ignore-extra" in told
    records, _, told = build(asked(image="a.jpg", rating=3), options=("--ignore-extra",))
    assert records[0].turns == ONE and "passed over key 'rating' in 1 of the entries" in told
    _, _, told = build({**asked("Hi?"), "id": "000017.jpg"})
    assert 'id is "000017.jpg", and there is no image' in told
    _, _, told = build(asked(source="b.jpg"))
    assert "unknown key 'source'" in told


MARKS: dict[str, tuple[dict[str, Any], str]] = {
    "two marks": (asked("<image>\n<image>\nWhat differs?", image="a.jpg"), "turn 1 (human): value has the first of 2"),
    "two marks, list of one": (asked("<image> and <image>?", images=["a.jpg"]), "first of 2 image marks"),
    "two images": (asked("<image><image>?", images=["a.jpg", "b.jpg"]), "images has 2 images; a record has one"),
    "two images, one mark": (asked(image=["a.jpg", "b.jpg"]), "image has 2 images"),
    "two images under two keys": (asked(image="a.jpg", images=["b.jpg"]), "name different images"),
    "numbered marks": (asked("<image_1> or <image_2>?", image="a.jpg"), "first of 2 image marks"),
    "no image": (asked(), "turn 1 (human): value has an image mark, and there is no image"),
    "null image": (asked(image=None), "there is no image: add image"),
    "empty list": (asked(images=[]), "there is no image: add image"),
    "mark in an answer": (asked(answer="<image> Red.", image="a.jpg"), "turn 2 (gpt): value contains the image mark"),
    "mark in an answer, no image": (asked("Hi?", "See <ImageHere>."), "turn 2 (gpt): value contains the image mark"),
    "two Qwen-VL images": (asked("Picture 1: <img>a.jpg</img>\nPicture 2: <img>b.jpg</img>\nWhich?"), "2 images"),
    "Qwen-VL and image": (asked("<img>b.jpg</img>\nWhich?", image="a.jpg"), "2 images"),
    "image part and image": (
        chat(("user", [{"type": "image", "image": "b.jpg"}, TEXT_PART]), ("assistant", "x"), images=["a.jpg"]),
        "the conversation has 2 images",
    ),
    "image part without image": (chat(("user", [{"type": "image"}, TEXT_PART]), ("assistant", "x")), "no image"),
    "mark in a later turn": (
        chat(("user", "Hi"), ("assistant", "Yes?"), ("user", "<image>What?"), ("assistant", "x"), images=["a.jpg"]),
        "turn 3 (user): content has an image after the first question",
    ),
    "marks in two turns": (
        chat(
            ("user", "<image>Hi"), ("assistant", "Yes?"), ("user", "<image>What?"), ("assistant", "x"), images=["a.jpg"]
        ),
        "first of 2 image marks",
    ),
    "image in an answer": (
        chat(("user", "Draw."), ("assistant", [{"type": "image_url", "image_url": {"url": URI}}])),
        "turn 2 (assistant): content has an image",
    ),
    "only a mark": (asked("<image>", image="a.jpg"), "an empty question"),
    "video": (asked("<video>\nWhat happens?", image="a.jpg"), "'<video>'"),
    "URL": (asked(image="https://example.com/a.jpg"), "download the image"),
    "URL in a part": (
        chat(("user", [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]), ("assistant", "x")),
        "turn 1 (user): content.image_url.url is the URL",
    ),
    "bad base64": (asked(image="data:image/png;base64,@@@"), "not valid"),
}


@pytest.mark.parametrize("kind", MARKS)
def test_marks_are_counted_against_images(build: Build, kind: str) -> None:
    entry, words = MARKS[kind]
    records, _, told = build(entry)
    assert records == [] and words in told and "entry 1" in told
    records, images, told = build(entry, {**asked(image="a.jpg"), "id": 2}, options=("--skip-faults",))
    assert [record.turns for record in records] == [ONE] and "dropped 1: " in told


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "tool role": (chat(("user", "x"), ("tool", "y"), ("assistant", "z")), 'turn 2: role is "tool"'),
    "function call": ({"conversations": [{"from": "function_call", "value": "x"}]}, "turn 1: from is"),
    "no answer": (chat(("user", "x")), "turn 1 (user): content is a conversation without an answer"),
    "answer first": (chat(("assistant", "x")), "turn 1 (assistant): content is an answer without a question"),
    "two answers": (chat(("user", "x"), ("assistant", "y"), ("assistant", "z")), "turn 3 (assistant): content is an"),
    "system in the middle": (chat(("user", "x"), ("assistant", "y"), ("system", "z")), "turn 3 (system)"),
    "only a system message": (chat(("system", "x")), "without an answer"),
    "empty answer": (chat(("user", "x"), ("assistant", " ")), "turn 2 (assistant): content is an empty answer"),
    "empty question": (chat(("user", " "), ("assistant", "x")), "turn 1 (user): content is empty"),
    "number": (chat(("user", 3), ("assistant", "x")), "turn 1 (user): content is 3"),
    "unknown part": (chat(("user", [{"type": "audio", "audio": "a.wav"}]), ("assistant", "x")), "turn 1 (user)"),
    "no content": ({"messages": [{"role": "user"}]}, "messages, turn 1: expected one of the keys value and content"),
    "two roles": ({"messages": [{"role": "user", "from": "human", "content": "x"}]}, "keys from and role"),
    "both lists": ({**asked("x"), **chat(("user", "x"), ("assistant", "y"))}, "both given"),
    "an image beside the text": (
        {"messages": [{"role": "user", "content": "x", "image": "a.jpg"}, {"role": "assistant", "content": "y"}]},
        "turn 1 (user): unknown key 'image'",
    ),
    "calls of tools": (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]},
            ]
        },
        "turn 2 (assistant): unknown key 'tool_calls'",
    ),
    "untrained answer": (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]},
        "weight is 0",
    ),
    "boxes of ms-swift": (
        chat(("user", "<image>Find it"), ("assistant", "<bbox>"), images=["a.jpg"], objects={"bbox": [[1, 2, 3, 4]]}),
        "objects is given beside messages",
    ),
    "a task beside": (asked("x", task="vqa"), "task is given beside conversations"),
    "boxes of Qwen2-VL": (asked(answer="<|box_start|>(1,2),(3,4)<|box_end|>", image="a.jpg"), "box or name mark"),
    "boxes of InternVL": (asked(answer="<ref>x</ref><box>[[1, 2, 3, 4]]</box>", image="a.jpg"), "box or name mark"),
    "boxes beyond the scale": (asked(answer="<box>(1,2),(3000,4)</box>", image="a.jpg"), "leaves the image"),
    "inverted boxes": (asked(answer="<box>(9,2),(3,4)</box>", image="a.jpg"), "empty or inverted"),
    "a rejected answer": (asked("x", rejected_response="y"), "unknown key 'rejected_response'"),
    "a key twice": (json.loads("{}") | {"messages": "x"}, "messages must be a list"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_trained_is_named_with_entry_turn_and_key(build: Build, kind: str) -> None:
    entry, words = BROKEN[kind]
    records, _, told = build(entry)
    assert records == [] and words in told and "entry 1" in told


@pytest.mark.parametrize("where", ["message", "parts", "key"])
@pytest.mark.parametrize(
    ("question", "expected"), [("Why?", "Be brief.\nWhy?"), ("[vqa] Why?", "[vqa] Be brief.\nWhy?")]
)
def test_a_system_message_begins_the_first_question(build: Build, where: str, question: str, expected: str) -> None:
    turns: list[tuple[str, Any]] = [("user", question), ("assistant", "So."), ("user", "And?"), ("assistant", "No.")]
    system = [{"type": "text", "text": "Be brief."}] if where == "parts" else "Be brief."
    entry = chat(*turns, system=system) if where == "key" else chat(("system", system), *turns)
    records, _, _ = build({**entry, "image": "a.jpg"})
    assert [turn.question for turn in records[0].turns] == [expected, "And?"]


def test_a_repeated_key_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "a.jpg", PIXELS)
    text = '{"image": "gone.jpg", "image": "a.jpg", "task": "caption", "answer": "x"}'
    for name, content in (("my.jsonl", text), ("my.json", f"[{text}]")):
        put(tmp_path / name, content)
        assert cli(["shards", "build", str(tmp_path / name), "--output", str(tmp_path / "out"), *HERE]) == 3
        assert "the key 'image' occurs twice in one object" in capsys.readouterr().err
