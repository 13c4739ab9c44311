"""Tests that the questions of rows on published annotation files are those that the published evaluation asks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from minigptv2.corpora.draft import Draft
from minigptv2.corpora.sources import CORPORA
from minigptv2.evaluate.benchmarks import BENCHMARKS
from minigptv2.evaluate.questions import Question, _of_record
from minigptv2.evaluate.runner import asking_of
from minigptv2.record import Record
from tests.corpora.miniatures.files import put
from tests.public import public_file

REFER = [name for name, spec in BENCHMARKS.items() if spec.task == "refer"]
FOLDERS = {"refcoco": "refcoco", "refcoco_plus": "refcoco+", "refcocog": "refcocog"}


def questions(name: str, protocol: str, root: Path) -> list[Question]:
    """All questions of a row. The images, which are not here, are taken as large enough for every box."""
    (root / "coco/images").mkdir(parents=True, exist_ok=True)
    spec = BENCHMARKS[name].under(protocol)
    found = []
    for number, draft in enumerate(CORPORA[spec.corpus].drafts(CORPORA[spec.corpus].raw(root), spec.split)):
        assert isinstance(draft, Draft), draft
        record = Record(draft.turns, 10_000, 10_000, draft.source, draft.separate)
        found += _of_record(record, spec.corpus, number, asking_of(spec))
    assert len({question.id for question in found}) == len(found)
    return found


@pytest.mark.parametrize("protocol", ["published", "official"])
@pytest.mark.parametrize("name", REFER)
def test_every_expression_of_the_published_lists_is_one_question(name: str, protocol: str, tmp_path: Path) -> None:
    spec = BENCHMARKS[name]
    folder = FOLDERS[spec.corpus]
    content = public_file(f"refcoco/{folder}_{spec.split}.json")
    put(tmp_path / f"{folder}/{folder}_{spec.split}.json", content)
    rows = json.loads(content)
    asked = Counter(question.asked for question in questions(name, protocol, tmp_path))
    assert asked == Counter(f"[refer] give me the location of {row['sents']}" for row in rows)
    boxes: dict[str, set[tuple[float, ...]]] = {}
    for row in rows:  # the published script keeps one box for each img_id
        boxes.setdefault(row["img_id"], set()).add(tuple(row["bbox"]))
    assert {len(of_object) for of_object in boxes.values()} == {1}


@pytest.mark.parametrize("protocol", ["published", "official"])
def test_every_statement_of_vsr_is_one_question(protocol: str, tmp_path: Path) -> None:
    content = public_file("vsr/zeroshot_test.jsonl")
    put(tmp_path / "vsr/zeroshot/test.jsonl", content)
    rows = [json.loads(line) for line in content.splitlines()]
    asked = Counter((one.asked, one.turn.answers) for one in questions("vsr", protocol, tmp_path))
    prompt = "[vqa] Based on the image, is this statement true or false? "
    assert asked == Counter((prompt + row["caption"], ("true" if row["label"] else "false",)) for row in rows)
    assert asked.total() == 1_222


@pytest.mark.parametrize("split", ["random", "popular", "adversarial"])
def test_every_question_of_pope_is_one_question(split: str, tmp_path: Path) -> None:
    content = public_file(f"pope/coco_pope_{split}.json")
    put(tmp_path / f"pope/coco_pope_{split}.json", content)
    rows = [json.loads(line) for line in content.splitlines()]
    asked = Counter((one.asked, one.turn.answers) for one in questions(f"pope_{split}", "official", tmp_path))
    prompt = "[vqa] Based on the image, respond to this question with a short answer: "
    assert asked == Counter((prompt + row["text"], (row["label"],)) for row in rows)
    assert asked.total() == 3_000
