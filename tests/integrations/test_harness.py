"""Tests what an evaluation harness asks and gets: questions, decoding options, and boxes in its own form."""

from __future__ import annotations

from typing import Any

import pytest

from minigptv2.errors import ConfigError, DataError
from minigptv2.integrations.harness import before_stops, harness_decoding, harness_question, with_boxes
from minigptv2.predict.requests import Decoding

GREEDY = Decoding(512)


@pytest.mark.parametrize(
    ("text", "num_images", "task", "asked"),
    [
        ("What color?", 1, None, "What color?"),
        (
            "What color?",
            1,
            "vqa",
            "[vqa] Based on the image, respond to this question with a short answer: What color?",
        ),
        ("<image>\nWhat color?", 1, None, "What color?"),
        ("<image>\nthe dog", 1, "refer", "[refer] give me the location of the dog"),
        ("[ VQA ] what?", 1, "refer", "[vqa] what?"),
        ("Hello", 0, "vqa", "Hello"),
    ],
)
def test_a_prompt_gets_the_wording_of_its_task(text: str, num_images: int, task: str | None, asked: str) -> None:
    assert harness_question(text, num_images, task) == asked


def test_a_mark_without_an_image_is_refused() -> None:
    with pytest.raises(DataError, match="no image"):
        harness_question("<image> what?", 0, None)


@pytest.mark.parametrize(
    ("options", "decoding", "stops"),
    [
        ({}, GREEDY, ()),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, Decoding(16), ()),
        ({"max_new_tokens": 4096, "until": ["\n\n"]}, GREEDY, ("\n\n",)),
        ({"until": "\n", "top_p": None, "temperature": None}, GREEDY, ("\n",)),
        ({"temperature": 0.7, "do_sample": False}, GREEDY, ()),
        ({"temperature": 0.7, "top_p": 0.9, "num_beams": 5, "do_sample": True}, Decoding(512, 0.7, 0.9), ()),
        ({"num_beams": 5, "top_p": 0.5}, Decoding(512, beams=5), ()),
    ],
    ids=str,
)
def test_generation_options_are_translated(options: dict[str, Any], decoding: Decoding, stops: tuple[str, ...]) -> None:
    assert harness_decoding(options, 512) == (decoding, stops)


def test_an_invalid_option_is_an_error() -> None:
    with pytest.raises(ConfigError, match="top_p"):
        harness_decoding({"temperature": 1.0, "top_p": 2.0}, 512)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{<12><30><56><80>}", "[0.12, 0.3, 0.56, 0.8]"),
        ("<p>a dog</p> {<0><0><100><50>} runs", "a dog [0, 0, 1, 0.5] runs"),
        ("<p>two</p> {<0><0><10><10>}<delim>{<50><50><60><60>}", "two [0, 0, 0.1, 0.1] [0.5, 0.5, 0.6, 0.6]"),
        ("no box", "no box"),
        ("{<12><30><56>", "{<12><30><56>"),
    ],
)
def test_boxes_are_written_as_a_harness_expects_them(text: str, expected: str) -> None:
    assert with_boxes(text, "unit") == expected and with_boxes(text, "model") == text


def test_an_answer_ends_before_the_first_stop_text() -> None:
    assert before_stops("a dog\n\nNext: b", ["Next", "\n\n"]) == "a dog"
    assert before_stops("a dog", ["\n"]) == "a dog" == before_stops("a dog", [])
