"""Answers of people: what is trained, what is scored, and which facts of the file stay beside them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.corpora.draft import Draft, finish
from minigptv2.corpora.sources import CORPORA
from minigptv2.errors import DataError
from minigptv2.record import Record, Turn, from_json, to_json
from minigptv2.tasks import render_turn, validate
from tests.corpora.miniatures.files import coco, coco_name, jpeg, put
from tests.corpora.test_sources import read


def okvqa(root: Path, answers: list[dict[str, Any]], split: str = "train") -> None:
    """One question of OK-VQA with these answers, in the fields of `mscoco_train2014_annotations.json`."""
    coco(root, f"{split}2014/1")
    put(
        root / f"okvqa/OpenEnded_mscoco_{split}2014_questions.json",
        {"questions": [{"image_id": 1, "question_id": 15, "question": "What are they doing?"}]},
    )
    entry = {"image_id": 1, "question_id": 15, "answer_type": "other", "answers": answers}
    put(root / f"okvqa/mscoco_{split}2014_annotations.json", {"annotations": [entry]})


@pytest.mark.parametrize("split", ["train", "val"])
def test_okvqa_trains_what_people_wrote_and_keeps_the_stems(tmp_path: Path, split: str) -> None:
    written = [("racing", "race")] * 6 + [("riding", "ride")] * 3 + [("", "")]
    okvqa(tmp_path, [{"raw_answer": raw, "answer": stem} for raw, stem in written], split)
    (record,), reasons = read(tmp_path, "ok_vqa", split)
    (turn,) = record.turns
    assert not reasons
    assert turn.answers == ("racing",) * 6 + ("riding",) * 3 + ("",)
    assert turn.source["answers"] == "race|race|race|race|race|race|ride|ride|ride|"
    assert len(turn.source["answers"].split("|")) == 10


def test_okvqa_without_raw_answers_is_read_as_it_is(tmp_path: Path) -> None:
    okvqa(tmp_path, [{"answer": "race"}] * 10)
    (record,), _ = read(tmp_path, "ok_vqa", "train")
    assert record.turns[0].answers == ("race",) * 10 and "answers" not in record.turns[0].source


def test_a_raw_answer_that_only_some_entries_have_is_taken_where_it_is(tmp_path: Path) -> None:
    okvqa(
        tmp_path, [{"raw_answer": "Racing!", "answer": "race"}, {"answer": "a|b"}, {"raw_answer": None, "answer": "c"}]
    )
    (record,), _ = read(tmp_path, "ok_vqa", "train")
    assert record.turns[0].answers == ("Racing!", "a|b", "c")
    assert record.turns[0].source["answers"] == "race|a b|c", "the mark between answers is in none of them"


@pytest.mark.parametrize("number", [1, 5, 9])
@pytest.mark.parametrize("layout", ["official", "merged"])
def test_an_empty_answer_counts_in_scores_and_is_never_trained(tmp_path: Path, number: int, layout: str) -> None:
    answers = ["", " "][: number % 2 + 1][-1:] * number + ["dog"] * (10 - number)
    if layout == "official":
        okvqa(tmp_path, [{"answer": answer} for answer in answers])
    else:
        coco(tmp_path, "train2014/1")
        row = {"question_id": 15, "image": coco_name(1), "question": "What?", "answer": answers}
        put(tmp_path / "okvqa/okvqa_train.json", [row])
    (record,), reasons = read(tmp_path, "ok_vqa", "train")
    (turn,) = record.turns
    assert not reasons and turn.answers == ("",) * number + ("dog",) * (10 - number)
    assert {render_turn(turn, 64, 48, Random(seed)).answer for seed in range(100)} == {"dog"}
    assert render_turn(turn, 64, 48).answer == "dog"
    validate(from_json(to_json(record), "here"), "here")


def test_answers_that_are_all_empty_are_dropped_and_told() -> None:
    draft = Draft("a", (Turn("vqa", "What?", ("", " ")), Turn("vqa", "Who?", ("", "he"))), jpeg(), separate=True)
    sample, dropped = finish(draft)
    assert [one.reason for one in dropped] == ["empty answer"]
    assert sample is not None and sample.record.turns == (Turn("vqa", "Who?", ("", "he")),)
    with pytest.raises(DataError, match=r"turn 0 \(vqa\): has an empty answer"):
        validate(Record((Turn("vqa", "What?", ("", " ")),), 64, 48), "here")
    with pytest.raises(DataError, match=r"turn 0 \(caption\): has an empty answer"):
        validate(Record((Turn("caption", answers=("a dog", "")),), 64, 48), "here")


@pytest.mark.parametrize("by_file", [False, True])
def test_a_okvqa_keeps_every_row_and_says_which_are_difficult(tmp_path: Path, by_file: bool) -> None:
    coco(tmp_path, "val2017/4")
    flags = {"easy": False, "hard": True, "unknown": None}
    rows = [
        {
            "question_id": name,
            "question": f"{name}?",
            "choices": ["a cup", "a pen"],
            "correct_choice_idx": 0,
            "direct_answers": ["cup"] * 9 + [""],
            **({"image": "val2017/000000000004.jpg"} if by_file else {"image_id": 4}),
            **({} if flag is None else {"difficult_direct_answer": flag}),
        }
        for name, flag in flags.items()
    ]
    put(tmp_path / f"aokvqa/{'aokvqa_val' if by_file else 'aokvqa_v1p0_val'}.json", rows)
    (record,), reasons = read(tmp_path, "aok_vqa", "val")
    found = {turn.source["id"]: turn.source.get("difficult_direct_answer") for turn in record.turns}
    assert not reasons and found == {"easy": "false", "hard": "true", "unknown": None}
    assert all(turn.source["choice"] == "a cup" and len(turn.answers) == 10 for turn in record.turns)


def test_a_flag_of_a_okvqa_that_is_neither_is_named(tmp_path: Path) -> None:
    coco(tmp_path, "val2017/4")
    row = {"question_id": "x", "question": "?", "image_id": 4, "direct_answers": ["a"], "difficult_direct_answer": 2}
    put(tmp_path / "aokvqa/aokvqa_v1p0_val.json", [row])
    with pytest.raises(ValueError, match="difficult_direct_answer must be true or false, got 2"):
        list(CORPORA["aok_vqa"].drafts(CORPORA["aok_vqa"].raw(tmp_path), "val"))


SENTENCES = [
    "[/EN#1/people A man] throws [/EN#2/other a ball] .",
    "[/EN#1/people A man] waits .",
    "[/EN#1/people A man] has [/EN#2/other a ball] and [/EN#3/other no box] .",
    "[/EN#1/people A man] waits .",
]


def entities(root: Path, sentences: list[str]) -> None:
    """An image of Flickr30k Entities in which the man and the ball have boxes, and entity 3 has none."""
    put(root / "flickr30k/flickr30k-images/10.jpg", jpeg(1))
    put(root / "flickr30k/test.txt", "10\n")
    put(root / "flickr30k/Sentences/10.txt", "\n".join(sentences))
    corners = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    boxes = {"1": corners.format(11, 11, 50, 40), "2": corners.format(51, 1, 60, 20), "3": "<nobndbox>1</nobndbox>"}
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name, box in boxes.items())
    put(root / "flickr30k/Annotations/10.xml", f"<annotation>{objects}</annotation>")


def test_every_mention_with_a_box_counts(tmp_path: Path) -> None:
    entities(tmp_path, SENTENCES)
    (record,), reasons = read(tmp_path, "flickr_phrase_to_box", "test")
    phrases = [turn.regions[0].phrases[0] for turn in record.turns]
    assert phrases == ["A man", "a ball", "A man", "A man", "a ball", "A man"] and not reasons
    assert record.turns[0].regions[0].boxes == (Box(10, 10, 50, 40),)
    for corpus in ("flickr_grounded_caption", "flickr_caption_to_phrase"):
        (record,), _ = read(tmp_path, corpus, "test")
        assert [len(turn.regions) for turn in record.turns] == [2, 1, 2, 1], "a sentence that two people wrote, too"


def test_a_phrase_mentioned_twice_in_one_sentence_is_two_regions(tmp_path: Path) -> None:
    entities(tmp_path, ["[/EN#1/people A man] and [/EN#1/people A man] ."])
    (record,), _ = read(tmp_path, "flickr_grounded_caption", "test")
    assert [region.span for region in record.turns[0].regions] == [(0, 5), (10, 15)]
    (record,), _ = read(tmp_path, "flickr_phrase_to_box", "test")
    assert len(record.turns) == 2
