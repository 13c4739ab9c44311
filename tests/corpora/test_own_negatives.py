"""Tests detection questions about what is not in the image (`boxes: []`): built, trained, scored and served alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.cli import main as cli
from minigptv2.evaluate.questions import Asking, questions_of
from minigptv2.evaluate.rules import Prediction
from minigptv2.evaluate.rules.score_texts import score_turns
from minigptv2.predict.requests import boxes_as_json, grounded_phrases
from minigptv2.prompt import PromptEncoder
from minigptv2.record import Region, Turn
from minigptv2.shards.reader import CorpusReader
from minigptv2.tasks import TASKS, render_turn, segments
from minigptv2.tokenizer import Tokenizer
from tests.conftest import World
from tests.corpora.miniatures.files import jpeg, put
from tests.corpora.own_data import HERE, built
from tests.model.tiny import save_tiny_export

DETECTION = {"image": "a.jpg", "task": "detection"}
CAT = {"phrase": "cat", "boxes": [[0, 0, 32, 24]]}
DOG: dict[str, Any] = {"phrase": "dog", "boxes": []}


def file_of(folder: Path, *entries: dict[str, Any]) -> str:
    put(folder / "a.jpg", jpeg())
    put(folder / "my.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    return "my.jsonl"


@pytest.mark.parametrize(
    ("entry", "answer"),
    [
        (DOG, "<p>dog</p>"),
        ({**DOG, "boxes_in": "xywh"}, "<p>dog</p>"),
        ({**DOG, "boxes_in": "normalised", "width": 9999, "height": 1}, "<p>dog</p>"),
        ({"objects": [DOG, {"phrase": "bird", "boxes": []}]}, "<p>dog</p> <p>bird</p>"),
        ({"objects": [DOG, CAT]}, "<p>dog</p> <p>cat</p> {<0><0><50><50>}"),
        ({"objects": [CAT, DOG]}, "<p>cat</p> {<0><0><50><50>} <p>dog</p>"),
    ],
)
def test_a_phrase_without_boxes_is_answered_without_a_box(tmp_path: Path, entry: dict[str, Any], answer: str) -> None:
    (record,) = built(tmp_path, file_of(tmp_path, {**DETECTION, **entry}))
    rendered = render_turn(record.turns[0], 64, 48)
    assert rendered.answer == answer
    parsed = TASKS["detection"].parse(answer, 64, 48)
    assert parsed.well_formed and parsed.boxes == tuple(b for region in record.turns[0].regions for b in region.boxes)
    assert cli(["shards", "verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        ({"task": "refer", "phrase": "dog", "boxes": []}, "only task 'detection' takes no box"),
        ({"task": "identify", "answer": "dog", "boxes": []}, "only task 'detection' takes no box"),
        ({"task": "grounding", "answer": "a dog", "objects": [DOG]}, "only task 'detection' takes no box"),
        ({"phrase": "dog"}, '{"phrase": "a dog", "boxes": [[x1, y1, x2, y2]]}'),
        ({"phrase": "dog", "boxes": None}, "boxes is null; expected [[x1, y1, x2, y2], ...]"),
        ({"phrase": "dog", "boxes": [[]]}, "boxes is [[]]; expected"),
        ({"objects": [{"phrase": "dog"}]}, "boxes is null; expected"),
        ({"objects": []}, 'expected "objects"'),
        ({"boxes": []}, 'expected one "phrase", got 0'),
        ({"phrase": "x < 3 m", "boxes": []}, "phrase contains '<', with which answers mark phrases and boxes"),
        ({"objects": [DOG, {**CAT, "phrase": "dog"}]}, "phrase 'dog' is given with boxes and with \"boxes\": []"),
    ],
)
def test_a_missing_box_is_not_an_absent_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, Any], advice: str
) -> None:
    file = file_of(tmp_path, {**DETECTION, **entry})
    assert cli(["shards", "build", str(tmp_path / file), "--output", str(tmp_path / "out"), *HERE]) == 3
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "f1", "well_formed"),
    [
        ("<p>dog</p>", 1.0, 1.0),
        ("", 1.0, 0.0),
        ("there is no dog", 1.0, 0.0),
        ("<p>dog</p> {<0><0><50><50>}", 0.0, 1.0),
        ("{<0><0><50><50>}", 0.0, 0.0),
        ("<p>dog</p> {<0><0><150><50>}", 0.0, 0.0),
        ("<p>dog</p> {<0>", 0.0, 0.0),
        ("<p>dog</p> {}", 0.0, 0.0),
    ],
)
def test_an_absent_object_is_right_without_a_predicted_box(answer: str, f1: float, well_formed: float) -> None:
    turn = Turn("detection", regions=(Region((), ("dog",)),))
    scores = TASKS["detection"].score(turn, answer, 64, 48)
    assert scores == {"box_f1_50": f1, "mean_iou": f1, "well_formed": well_formed}


def test_a_box_for_an_absent_object_lowers_f1_beside_a_present_one() -> None:
    turn = Turn("detection", regions=(Region((Box(0, 0, 32, 24),), ("cat",)), Region((), ("dog",))))
    right = "<p>cat</p> {<0><0><50><50>} <p>dog</p>"
    assert TASKS["detection"].score(turn, right, 64, 48)["box_f1_50"] == 1.0
    assert TASKS["detection"].score(turn, f"{right} {{<60><60><99><99>}}", 64, 48)["box_f1_50"] == pytest.approx(2 / 3)


def test_an_evaluation_counts_absent_objects_with_the_others(tmp_path: Path) -> None:
    built(tmp_path, file_of(tmp_path, {**DETECTION, **DOG}, {**DETECTION, **CAT}))
    questions = questions_of(CorpusReader(tmp_path / "out"), Asking())
    assert [question.answer for question in questions] == ["<p>dog</p>", "<p>cat</p> {<0><0><50><50>}"]
    scored = score_turns(questions, [Prediction(question.answer) for question in questions])
    assert scored.overall["score"] == 1.0 and scored.groups == [{}, {"size": "small"}]
    assert score_turns(questions, [Prediction(questions[1].answer)] * 2).overall["score"] == 0.5


def test_training_supervises_the_phrase_without_a_box(tokenizer: Tokenizer) -> None:
    turn = Turn("detection", regions=(Region((), ("dog",)),))
    example = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=200).encode_rendered(
        [render_turn(turn, 64, 48)], num_images=1
    )
    assert example is not None
    assert tokenizer.decode([token for token in example.labels.tolist() if token >= 0]).strip() == "<p>dog</p>"


def test_an_answer_without_a_box_has_no_boxes_in_ask_predict_and_serve() -> None:
    parsed = TASKS["detection"].parse("<p>dog</p>", 64, 48)
    assert boxes_as_json(parsed.grounded) == [] and parsed.text == "dog"
    assert grounded_phrases("<p>dog</p>", (64, 48)) == [] and segments("<p>dog</p>", 64, 48) == ["dog"]


def test_the_command_that_evaluates_counts_absent_objects(tmp_path: Path, world: World) -> None:
    built(tmp_path, file_of(tmp_path, {**DETECTION, **DOG}, {**DETECTION, **CAT}))
    export = save_tiny_export(tmp_path / "export", world.tokenizer_folder)
    words = ["evaluate", "--model", str(export), "--shards", str(tmp_path), "--corpus", "out"]
    assert cli([*words, "--output", str(tmp_path / "results")]) == 0
    absent, present = [json.loads(line) for line in next((tmp_path / "results").rglob("predictions.jsonl")).open()]
    assert absent["truth"] == "<p>dog</p>" and absent["groups"] == {} and present["groups"] == {"size": "small"}
    assert absent["score"] == float("{" not in absent["answer"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("my.json", {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "elk"}]}),
        ("my.csv", "image,caption\na.jpg,A.\n"),
        ("my2.json", []),
    ],
)
def test_negatives_of_a_file_without_classes_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    if isinstance(content, dict):
        images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]
        boxes = [{"id": n, "image_id": 1, "category_id": n, "bbox": [1, 1, 9, 9], "iscrowd": n - 1} for n in (1, 2)]
        content |= {"images": images, "annotations": boxes}
    put(tmp_path / name, content)
    words = ["shards", "build", str(tmp_path / name), "--output", str(tmp_path / "out"), *HERE, "--negatives", "9"]
    code, told = cli(words), capsys.readouterr().err
    if not isinstance(content, dict):
        assert code in (2, 3) and "--negatives" in told
        return
    reader = CorpusReader(tmp_path / "out")
    asked = [[turn.regions[0].phrases[0] for turn in reader.record(n).turns] for n in range(2)]
    assert asked[0] == ["cat", "elk"] and sorted(asked[1]) == ["cat", "dog", "elk"], "a crowd of dogs is no negative"
