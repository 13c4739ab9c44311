"""Tests that each metric equals the official implementation to six digits on 240 cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box, Convention, overlap
from minigptv2.evaluate.metrics.captions import caption_scores
from minigptv2.evaluate.metrics.hallucination import ObjectList, coco_objects
from minigptv2.evaluate.metrics.statistics import auroc
from minigptv2.evaluate.metrics.texts import tokenize
from minigptv2.evaluate.metrics.vqa_accuracy import direct_answer_accuracy, normalize_vqa, vqa_accuracy
from tests.evaluate import cases

GOLDEN = Path(__file__).parent / "golden"
COUNT = 240


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def printed(values: list[float]) -> list[str]:
    return [f"{value:.6f}" for value in values]


def test_captions_are_split_into_the_official_tokens() -> None:
    for caption, tokens in zip(cases.captions(COUNT)[0], golden("captions")["tokens"], strict=True):
        assert " ".join(tokenize(caption)) == tokens, caption


@pytest.mark.parametrize("metric", ["cider", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"])
def test_caption_metrics_are_the_official_ones(metric: str) -> None:
    official = golden("captions")
    ours = caption_scores(*cases.captions(COUNT))
    assert printed(ours.each[metric]) == printed(official["each"][metric])
    assert printed([ours.corpus[metric]]) == printed([official["corpus"][metric]])


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")
def test_meteor_is_the_official_program() -> None:
    pytest.importorskip("pycocoevalcap", reason="pip install 'minigptv2[metrics]'")
    from minigptv2.evaluate.metrics.meteor import meteor

    corpus, each = meteor(*cases.captions(COUNT))
    assert printed(each) == printed(golden("captions")["each"]["meteor"])
    assert printed([corpus]) == printed([golden("captions")["corpus"]["meteor"]])


@pytest.mark.parametrize(
    ("answer", "people", "accuracy"),
    [
        ("two", ["two"] * 10, 1.0),
        ("T-shirt", ["t-shirt"] * 10, 1.0),
        ("the dog", ["the dog"] * 9 + ["x"], 1.0),
        ("dog", ["Dog"] * 2 + ["cat"] * 8, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        ("2", ["two"] * 10, 0.0),
    ],
)
def test_unanimous_answers_are_not_normalized(answer: str, people: list[str], accuracy: float) -> None:
    assert vqa_accuracy(answer, people) == pytest.approx(accuracy)


def test_a_direct_answer_needs_three_people_who_gave_it() -> None:
    people = ["cat"] * 2 + ["Cat"] + ["dog"] * 3 + ["x"] * 4
    assert [direct_answer_accuracy(one, people) for one in ("cat", "dog", "cow")] == [pytest.approx(2 / 3), 1.0, 0.0]


def test_vqa_accuracy_and_its_normalization_are_the_official_ones() -> None:
    official, questions = golden("vqa"), cases.vqa_questions(COUNT)
    assert [normalize_vqa(answer.strip()) for answer, _ in questions] == official["normal"]
    ours = [100 * vqa_accuracy(answer, people) for answer, people in questions]
    assert printed(ours) == printed(official["accuracy"])
    assert {f"{value:.0f}" for value in ours} == {"0", "30", "60", "90", "100"}  # all possible values with ten people


def test_chair_finds_the_objects_that_the_official_rules_find() -> None:
    captions, official = cases.captions(COUNT)[0], golden("chair")["objects"]
    assert [coco_objects(caption, ObjectList.REPAIRED) for caption in captions] == official
    assert len({name for names in official for name in names}) > 30


@pytest.mark.parametrize("convention", [Convention.EXACT, Convention.INCLUSIVE])
def test_overlaps_are_the_official_ones_in_both_conventions(convention: Convention) -> None:
    ours = [overlap(Box(*a), Box(*b), convention) for a, b in cases.boxes(COUNT)]
    assert printed(ours) == printed(golden("boxes")[convention])


def test_auroc_is_the_official_one() -> None:
    assert printed([auroc(s, y) for s, y in cases.scored_labels(COUNT)]) == printed(golden("auroc")["auroc"])
