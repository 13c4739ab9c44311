"""Published annotation files, read whole: their counts are those of the tables, and nothing of them changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.corpora.sources import CORPORA, Draft
from minigptv2.record import Turn
from tests.corpora.miniatures.files import put
from tests.public import public_file

REFER = [
    ("refcoco", "refcoco", "val", 3_811, 10_834),
    ("refcoco", "refcoco", "testA", 1_975, 5_657),
    ("refcoco", "refcoco", "testB", 1_810, 5_095),
    ("refcoco_plus", "refcoco+", "val", 3_805, 10_758),
    ("refcoco_plus", "refcoco+", "testA", 1_975, 5_726),
    ("refcoco_plus", "refcoco+", "testB", 1_798, 4_889),
    ("refcocog", "refcocog", "val", 2_573, 4_896),
    ("refcocog", "refcocog", "test", 5_023, 9_602),
]
"""Corpus, its folder, split, objects, and expressions as the literature counts them."""


def turns(root: Path, corpus: str, split: str) -> Iterator[tuple[str, Turn]]:
    """Each turn of a split with the key of its image. Fails if anything is left out."""
    (root / "coco/images").mkdir(parents=True, exist_ok=True)
    for draft in CORPORA[corpus].drafts(CORPORA[corpus].raw(root), split):
        assert isinstance(draft, Draft), draft
        for turn in draft.turns:
            yield draft.key, turn


@pytest.mark.parametrize(("corpus", "folder", "split", "objects", "expressions"), REFER)
def test_the_evaluation_s_lists_of_refcoco_are_read_whole(
    tmp_path: Path, corpus: str, folder: str, split: str, objects: int, expressions: int
) -> None:
    content = public_file(f"refcoco/{folder}_{split}.json")
    put(tmp_path / f"refcoco_annotations/{folder}/{folder}_{split}.json", content)
    rows: list[dict[str, Any]] = json.loads(content)
    found = list(turns(tmp_path, corpus, split))
    assert len(found) == objects == CORPORA[corpus].expected[split]
    asked = [
        (turn.source["id"], turn.regions[0].boxes[0], said) for _, turn in found for said in turn.regions[0].phrases
    ]
    assert len(asked) == expressions == len(rows)
    assert sorted(asked, key=repr) == sorted(((row["img_id"], corners(row), row["sents"]) for row in rows), key=repr)
    assert all(said == said.lower() for _, _, said in asked)


def corners(row: dict[str, Any]) -> Box:
    x, y, width, height = row["bbox"]
    return Box(x, y, x + width, y + height)


@pytest.mark.parametrize("split", ["adversarial", "popular", "random"])
def test_pope_has_3000_questions_about_500_images(tmp_path: Path, split: str) -> None:
    content = public_file(f"pope/coco_pope_{split}.json")
    put(tmp_path / f"pope/coco_pope_{split}.json", content)
    rows = [json.loads(line) for line in content.splitlines()]
    found = list(turns(tmp_path, "pope", split))
    assert len(found) == len(rows) == 3_000 == CORPORA["pope"].expected[split]
    assert len({key for key, _ in found}) == 500
    assert {(t.source["id"], t.question, t.answers[0]) for _, t in found} == {
        (str(row["question_id"]), row["text"], row["label"]) for row in rows
    }
    assert sum(turn.answers == ("yes",) for _, turn in found) == 1_500


@pytest.mark.parametrize(
    ("kind", "split", "statements"),
    [
        ("zeroshot", "test", 1_222),
        ("zeroshot", "dev", 340),
        ("zeroshot", "train", 3_489),
        ("random", "test", 2_195),
        ("random", "dev", 1_097),
        ("random", "train", 7_680),
    ],
)
def test_vsr_s_splits_are_read_whole(tmp_path: Path, kind: str, split: str, statements: int) -> None:
    content = public_file(f"vsr/{kind}_{split}.jsonl")
    put(tmp_path / f"vsr/{kind}/{split}.jsonl", content)
    rows = [json.loads(line) for line in content.splitlines()]
    name = split if kind == "zeroshot" else f"random_{split}"
    found = list(turns(tmp_path, "vsr", name))
    assert len(found) == len(rows) == statements == CORPORA["vsr"].expected[name]
    assert sorted((key, turn.question, turn.answers[0]) for key, turn in found) == sorted(
        (row["image"].rsplit(".", 1)[0], row["caption"], "true" if row["label"] == 1 else "false") for row in rows
    )
