"""Your own data: what is read of each format, and what each mistake is told to change."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.cli import main as cli
from minigptv2.corpora import draft as draft_module
from minigptv2.corpora import own
from minigptv2.corpora.draft import Draft, Rejected, find_rejections, finish
from minigptv2.corpora.own import own_corpus
from minigptv2.errors import DataError
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.reader import CorpusReader
from tests.corpora.miniatures import HEIGHT, WIDTH, jpeg, lines, put

HERE = ("--workers", "0")
REFER = {"image": "a.jpg", "task": "refer", "phrase": "x"}
GOOD: list[dict[str, Any]] = [
    {"image": "a.jpg", "task": "caption", "answer": "A größer dog."},
    {"image": "a.jpg", "task": "vqa", "question": "What?", "answer": ["dog", "dog", "hound"]},
    {"image": "a.jpg", "task": "refer", "phrase": "the dog", "boxes": [10, 12, 32, 24]},
    {"image": "a.jpg", "task": "refer", "question": "dog", "boxes": [[0.25, 0.25, 0.5, 0.5]], "boxes_in": "normalised"},
    {"image": "a.jpg", "task": "identify", "boxes": [[10, 12, 22, 12]], "boxes_in": "xywh", "answer": "the dog"},
    {"image": "a.jpg", "task": "detection", "phrase": "dog", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]},
    {
        "image": "a.jpg",
        "task": "grounding",
        "answer": "A dog by a dog.",
        "objects": [{"phrase": "dog", "boxes": [[1, 2, 3, 4]]}, {"phrase": "dog", "boxes": [[5, 6, 70, 8]]}],
    },
    {
        "image": "a.jpg",
        "id": "x",
        "conversations": [{"from": "human", "value": "<image>\nHi?"}, {"from": "gpt", "value": "Ho."}],
    },
    {"task": "language", "question": "Say A.", "answer": "A"},
]


def built(folder: Path, file: str) -> list[Record]:
    assert cli(["shards", "build", str(folder / file), "--output", str(folder / "out"), *HERE]) == 0
    reader = CorpusReader(folder / "out")
    return [reader.record(number) for number in range(len(reader))]


def test_json_lines_of_every_task(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / "my.jsonl", lines(GOOD))
    records = built(tmp_path, "my.jsonl")
    assert [record.tasks[0] for record in records] == [entry.get("task", "conversation") for entry in GOOD]
    assert records[1].turns[0].answers == ("dog", "dog", "hound")
    assert records[2].turns[0].regions[0].boxes == (Box(10, 12, 32, 24),)
    assert records[3].turns[0].regions[0].boxes == (Box(WIDTH / 4, HEIGHT / 4, WIDTH / 2, HEIGHT / 2),)
    assert records[4].turns[0].regions[0].boxes == (Box(10, 12, 32, 24),)
    assert [region.span for region in records[6].turns[0].regions] == [(2, 5), (11, 14)]
    assert records[6].turns[0].regions[1].boxes == (Box(5, 6, 64, 8),), "cut at the border"
    assert records[7].turns == (Turn("conversation", "Hi?", ("Ho.",)),) and not records[8].has_image


def test_a_csv_of_captions(tmp_path: Path) -> None:
    put(tmp_path / "pictures/a.jpg", jpeg())
    put(tmp_path / "my.csv", '\ufeffimage,caption\npictures/a.jpg,"One, two – drei"\npictures/a.jpg,Three\n')
    assert [r.turns[0].answers for r in built(tmp_path, "my.csv")] == [("One, two – drei",), ("Three",)]


UNREAD = "save the file as UTF-8 (Excel: 'CSV UTF-8')"
CAFE = {
    "my.csv": "image,caption\na.jpg,x\na.jpg,café\n",
    "my.tsv": "image\tcaption\na.jpg\tx\na.jpg\tcafé\n",
    "my.jsonl": lines([{**GOOD[0], "answer": answer} for answer in ("x", "y", "café")]),
    "my.json": '[{"image": "a.jpg",\n\n"task": "caption", "answer": "café"}]',
}


@pytest.mark.parametrize("name", CAFE)
def test_text_that_is_not_utf8_is_a_mistake_of_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / name, CAFE[name].encode("cp1252"))
    words = ["shards", "build", str(tmp_path / name), "--output", str(tmp_path / "out"), *HERE]
    assert cli(words) == 3
    told = capsys.readouterr().err
    assert "line 3" in told and "not UTF-8" in told and UNREAD in told and "line 2" not in told
    assert cli([*words, "--skip-faults"]) == (3 if name == "my.json" else 0), "of one document no line is left out"
    for encoding in ("utf-8", "utf-8-sig"):
        put(tmp_path / name, CAFE[name].encode(encoding))
        assert built(tmp_path, name)[-1].turns[0].answers == ("café",)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", CAFE)
def test_utf16_is_named_where_it_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, encoding: str
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / name, CAFE[name].encode(encoding))
    if name == "my.json":  # RFC 4627 says how to tell
        assert built(tmp_path, name)[-1].turns[0].answers == ("café",)
        return
    assert cli(["shards", "build", str(tmp_path / name), "--output", str(tmp_path / "out"), *HERE]) == 3
    told = capsys.readouterr().err
    assert f"is UTF-16 (Excel's 'Unicode text') or not a text file: {UNREAD}" in told


def test_a_row_of_a_csv_is_called_by_the_line_on_which_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    rows = (
        b',image,caption,\r\n0,a.jpg,"One\r\ntwo ""three""",\r\n\r\n1,gone.jpg,x\r\n2,a.jpg,"x\r\ncaf\xe9"\r\n'
        b'3,a.jpg,y,,\r\n4,a.jpg,"z" z\r\n5,a.jpg,' + b"z" * 140_000 + b'\r\n6,a.jpg,"no\r\nend\r\n'
    )
    put(tmp_path / "my.csv", rows)
    words = ["shards", "build", str(tmp_path / "my.csv"), "--output", str(tmp_path / "out"), *HERE]
    assert cli(words) == 3
    told = capsys.readouterr().err
    assert "6 of 7 entries" in told
    for mistake in (
        "line 5: image file missing",
        "line 6: not UTF-8 after '2,a.jpg,x caf': save",
        "line 8: not two columns",
        "line 9: not CSV: ',' expected after '\"'",
        "line 10: not CSV: field larger than",
        "line 11: not CSV (up to line 12): unexpected end",
    ):
        assert f"  {mistake}" in told
    assert cli([*words, "--skip-faults"]) == 0
    (record,) = [CorpusReader(tmp_path / "out").record(0)]
    assert record.turns[0].answers == ('One\r\ntwo "three"',)


def test_a_coco_detection_file(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / "b.jpg", jpeg())
    document = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "tennis racket"}],
        "annotations": [
            {"id": n, "image_id": 7, "category_id": c, "bbox": [n, n, 5, 6], "iscrowd": int(n == 4)}
            for n, c in ((1, 1), (2, 2), (3, 1), (4, 2))
        ],
    }
    put(tmp_path / "my.json", document)
    (record,) = built(tmp_path, "my.json")
    assert record.separate and [turn.regions[0].phrases for turn in record.turns] == [("cat",), ("tennis racket",)]
    assert record.turns[0].regions[0].boxes == (Box(1, 1, 6, 7), Box(3, 3, 8, 9))
    assert record.turns[1].regions[0].boxes == (Box(2, 2, 7, 8),)


def test_what_a_coco_file_does_not_give_is_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        put(tmp_path / name, jpeg())
    document = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(("a.jpg", "b.jpg", "c.jpg"))],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": 1, "bbox": [1, 1, 5, 6], "iscrowd": crowd}
            for n, (image, crowd) in enumerate([(0, 0), (1, 1), (9, 0), (8, 1)])
        ],
    }
    put(tmp_path / "my.json", document)
    words = ["shards", "build", str(tmp_path / "my.json"), "--output", str(tmp_path / "out"), *HERE]
    assert cli(words) == 3
    told = capsys.readouterr().err
    assert "2 of 5 entries cannot be used" in told
    assert "  annotation 2 (image 9): its image_id is not listed" in told and "annotation 3 (image 8): " in told
    assert cli([*words, "--skip-faults"]) == 0
    told = capsys.readouterr().out
    assert "read 5 entries" in told and "kept 1 samples" in told
    assert "dropped 2: its image_id is not listed" in told and "dropped 2: image without boxes" in told
    lost = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert {one["key"] for one in lost if "boxes" in one["reason"]} == {"image 1 (b.jpg)", "image 2 (c.jpg)"}


@pytest.mark.parametrize(
    ("part", "change", "advice"),
    [
        (
            "annotations",
            {"bbox": None},
            "annotation 17 (image 3): bbox is null; expected [x, y, width, height]",
        ),
        (
            "annotations",
            {"bbox": ...},
            "annotation 17 (image 3): has no bbox; expected [x, y, width, height]",
        ),
        ("annotations", {"bbox": []}, "annotation 17 (image 3): bbox is []; expected"),
        ("annotations", {"bbox": ["1", "1", "5", "6"]}, 'bbox is ["1", "1", "5", "6"]; expected'),
        ("annotations", {"bbox": [1, 1, 5]}, "bbox is [1, 1, 5]; expected"),
        ("annotations", {"bbox": [1, 1, 0, 5]}, "with width and height above 0"),
        ("annotations", {"bbox": [1, 1, 5, float("nan")]}, "bbox is [1, 1, 5, NaN]; expected"),
        ("annotations", {"bbox": [1, 1, 5, 10**400]}, "bbox is [1, 1, 5, 1000"),
        ("annotations", {"image_id": ...}, "annotation 17: has no image_id"),
        (
            "annotations",
            {"image_id": 4},
            "annotation 17 (image 4): its image_id is not listed in images: add the ima",
        ),
        ("annotations", {"image_id": [3]}, "annotation 17 (image [3]): its image_id is not listed in images"),
        ("annotations", {"category_id": ...}, "annotation 17 (image 3): has no category_id"),
        ("annotations", {"category_id": 2}, "its category_id is not listed in categories: add the category, or"),
        ("annotations", {"iscrowd": "0"}, 'annotation 17 (image 3): iscrowd is "0"; expected 0 or 1'),
        ("annotations", None, "annotation without id, number 1 of its list: expected an object with image_id"),
        ("categories", {"id": {}}, "category {}: id is {}; expected a number or a text"),
        ("categories", {"name": ["cat"]}, 'category 1: name is ["cat"]; expected a text'),
        ("categories", {}, "category 1: duplicate id"),
        ("categories", "cat", 'category without id, number 1 of its list: expected an object with "id"'),
        ("images", {"id": None}, "image null: id is null; expected a number or a text"),
        ("images", {"file_name": ...}, "image 3: file_name is null; expected a text"),
        ("images", {"file_name": "\ud83d.jpg"}, 'image 3: file_name is "\\ud83d.jpg"; expected a text'),
        ("images", {}, "image 3: duplicate id"),
        ("images", [], "image without id, number 1 of its list: expected an object with"),
    ],
)
def test_each_mistake_of_a_coco_file_is_told_by_the_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, change: Any, advice: str
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    entries: dict[str, list[Any]] = {
        "images": [{"id": 3, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 16, "image_id": 3, "category_id": 1, "bbox": [1, 1, 5, 6], "iscrowd": 0}],
    }
    if isinstance(change, dict):
        changed = {**entries[part][0], **({"id": 17} if part == "annotations" else {}), **change}
        change = {key: value for key, value in changed.items() if value is not ...}
    entries[part].insert(0, change)
    put(tmp_path / "my.json", json.dumps(entries))
    words = ["shards", "build", str(tmp_path / "my.json"), "--output", str(tmp_path / "out"), *HERE]
    assert cli(words) == 3
    told = capsys.readouterr().err
    assert "1 of 2 entries cannot be used" in told and advice in told
    assert cli([*words, "--skip-faults"]) == 0
    assert len(CorpusReader(tmp_path / "out")) == 1


def test_a_box_outside_a_picture_of_a_coco_file_is_told_as_coco_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    boxes = [[300, n, 5, 6] for n in range(10)]
    document = {
        "images": [{"id": 3, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 3, "category_id": 1, "bbox": box} for box in boxes],
    }
    put(tmp_path / "my.json", document)
    assert cli(["shards", "build", str(tmp_path / "my.json"), "--output", str(tmp_path / "out"), *HERE]) == 3
    told = capsys.readouterr().err
    assert "  image 3 (a.jpg): box outside the image: (300, 0, 305, 6), " in told
    assert "(300, 7, 305, 13) and 2 more. bbox is x, y, width, height in pixels of the image\n" in told


def test_a_crowd_of_a_coco_file_is_left_out_whatever_its_box(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", jpeg())
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 6]},
            {
                "id": 2,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 1,
                "segmentation": {"counts": [1, 2], "size": [1, 3]},
            },
            {"id": 3, "image_id": 1, "category_id": 1, "iscrowd": 1, "bbox": [0, 0, 60, 40]},
        ],
    }
    put(tmp_path / "my.json", document)
    (record,) = built(tmp_path, "my.json")
    assert [region.boxes for turn in record.turns for region in turn.regions] == [(Box(1, 1, 6, 7),)]


def test_own_data_is_built_by_as_many_processes_as_there_are_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "my.jsonl", lines(GOOD[-1:]))
    asked: list[int] = []

    def build(*_: Any, workers: int, **__: Any) -> None:
        asked.append(workers)
        raise DataError("far enough")

    monkeypatch.setattr("minigptv2.corpora.build_corpus.build", build)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert cli(["shards", "build", str(tmp_path / "my.jsonl"), "--output", str(tmp_path / "out")]) == 3
    assert asked == [3]


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        ("{", "not JSON"),
        ("[1, 2]", 'expected an object: {"image"'),
        ({"image": "a.jpg", "tsk": "vqa"}, "unknown key 'tsk'; did you mean 'task'?"),
        ({"image": "a.jpg", "task": "vqaa"}, "task 'vqaa'; did you mean 'vqa'? The tasks are vqa, caption"),
        ({"image": "a.jpg", "question": "x"}, "no task. The tasks are"),
        ({"image": "gone.jpg", "task": "caption", "answer": "x"}, "image file missing; looked for"),
        ({"image": "bad.jpg", "task": "caption", "answer": "x"}, "image cannot be read"),
        ({"image": 3, "task": "caption", "answer": "x"}, "image is 3; expected the path"),
        ({"image": "a\0.jpg", "task": "caption", "answer": "x"}, 'image is "a\\u0000.jpg"; expected the path'),
        ({"image": " ", "task": "caption", "answer": "x"}, 'image is " "; expected the path'),
        ({"task": "caption", "answer": "x"}, "task 'caption' needs an image: add image, or set task to 'language'"),
        (
            {"image": "a.jpg", "task": "language", "question": "q", "answer": "x"},
            "set task to 'conversation'",
        ),
        ({"image": "a.jpg", "task": "caption"}, "task 'caption' needs \"answer\""),
        ({"image": "a.jpg", "task": "vqa", "question": "q", "answer": ["x", " "]}, "none of them empty"),
        ({"image": "a.jpg", "task": "vqa", "answer": "x"}, 'expected one "question", got 0'),
        ({**REFER, "boxes": [1, 2, 3]}, "four numbers each"),
        ({**REFER, "boxes": [1, 2, 3, float("nan")]}, "four numbers each"),
        ({**REFER, "boxes": [[1, 2, 3, 4]] * 2}, "requires one box, got 2"),
        ({"image": "a.jpg", "task": "refer", "boxes": [1, 2, 3, 4]}, "task 'refer' needs \"phrase\""),
        ({**REFER, "boxes": [0.1, 0.2, 0.5, 1]}, 'add "boxes_in": "normalised"'),
        ({**REFER, "boxes": [1, 2, 30, 40], "boxes_in": "normalised"}, 'remove "boxes_in": "normalised"'),
        ({**REFER, "boxes": [1, 2, 3, 4], "boxes_in": "yxyx"}, "is not one of"),
        ({**REFER, "boxes": [30, 30, 10, 10]}, 'Add "boxes_in": "xywh"'),
        ({**REFER, "boxes": [300, 30, 400, 40]}, "box outside the image: (300"),
        ({"image": "a.jpg", "task": "detection", "objects": "dog"}, 'expected "objects": [{"phrase"'),
        (
            {**REFER, "task": "grounding", "answer": "cat", "objects": [{"phrase": "dog", "boxes": [1, 2, 3, 4]}]},
            "phrase 'dog' does not occur in the caption",
        ),
        ({"image": "a.jpg", "conversations": [{"from": "human", "value": "x"}]}, "without an answer"),
        ({"image": "a.jpg", "conversations": ["x"]}, 'a list of {"from"'),
        ({"image": "a.jpg", "task": ["vqa"]}, "task '['vqa']'; did you mean 'vqa'?"),
        ({"image": "a.jpg", "task": "x" * 9000}, f"task '{'x' * 60}...' The tasks are"),
        ({"image": "a.jpg", "x" * 9000: 1}, f"unknown key '{'x' * 60}...' The keys are"),
        ({"image": ["a.jpg"], "task": "caption", "answer": "x"}, 'image is ["a.jpg"]; expected the path'),
        ({"image": "a\ud83d.jpg", "task": "caption", "answer": "x"}, 'contains "\\ud83d", half of a character'),
        ({**GOOD[0], "\ud83d": 1}, 'contains "\\ud83d", half of a character'),
        ({**GOOD[7], "id": "\udc00"}, 'contains "\\udc00", half of a character'),
        ({"image": "a.jpg", "task": "caption", "answer": {"en": "x"}}, 'answer is {"en": "x"}; expected a text'),
        ({"image": "a.jpg", "task": "vqa", "question": [[]], "answer": "x"}, "question is [[]]; expected a text"),
        ({**REFER, "boxes": [10**400, 2, 3, 4]}, "four numbers each"),
        ({**REFER, "boxes": [True, 2, 3, 4]}, "four numbers each"),
        ({**REFER, "boxes": [1e308, 2, 1e308, 4], "boxes_in": "xywh"}, "box is not finite: (1e+308, 2, inf, 6)"),
        ({**REFER, "boxes": [[[1]], 2, 3, 4]}, "four numbers each"),
        ({**REFER, "boxes": [1, 2, 3, 4], "boxes_in": ["xywh"]}, 'boxes_in is ["xywh"], which is not one of'),
        ({**REFER, "boxes": {"x": 1}}, 'boxes is {"x": 1}; expected'),
        ("[" * 100_000, "nested too deeply"),
        ('{"image": ' + "[" * 970 + "]" * 970 + "}", "nested too deeply"),
        ('{"image": "a.jpg", "id": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
    ],
)
def test_each_mistake_is_told_by_line_with_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: Any, advice: str
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / "bad.jpg", b"\xff\xd8 not one")
    bad = entry if isinstance(entry, str) else json.dumps(entry)
    put(tmp_path / "my.jsonl", lines(GOOD[:1]) + "\n" + bad + "\n")
    assert cli(["shards", "build", str(tmp_path / "my.jsonl"), "--output", str(tmp_path / "out"), *HERE]) == 3
    told = capsys.readouterr().err
    assert "1 of 2 entries cannot be used" in told and "  line 3: " in told and advice in told
    assert not (tmp_path / "out/manifest.json").exists()
    words = ["shards", "build", str(tmp_path / "my.jsonl"), "--output", str(tmp_path / "out"), "--skip-faults", *HERE]
    assert cli(words) == 0
    assert len(CorpusReader(tmp_path / "out")) == 1 and "dropped 1: " in capsys.readouterr().out


@pytest.mark.parametrize("path", ["a\0.jpg", "a\ud800.jpg", "x" * 5000 + ".jpg"])
def test_a_path_that_no_file_can_have_is_a_picture_that_cannot_be_read(path: str) -> None:
    sample, lost = finish(Draft("1", (Turn("caption", answers=("x",)),), (path,)))
    assert sample is None and [one.reason for one in lost] == ["image cannot be read"]


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("my.csv", "file,text\na.jpg,x\n", "the columns must be image and caption"),
        ("my.csv", "image,caption\na.jpg,one, two\n", "line 2: not two columns; put a caption that contains a comma"),
        (
            "my.csv",
            "a.jpg,x\n",
            """the columns are ["a.jpg", "x"]; the columns must be image and caption""",
        ),
        ("my.csv", "image;caption\na.jpg;x\n", 'the columns are ["image;caption"]; the columns must be image'),
        ("my.csv", "image,image\na.jpg,x\n", 'the columns are ["image", "image"]'),
        ("my.csv", "image,caption,caption\na.jpg,x,y\n", 'the columns are ["image", "caption", "caption"]'),
        ("my.csv", "", "the columns are []"),
        ("my.csv", "image,caption\n", "is empty"),
        ("my.csv", '"' + "x" * 200_000, "line 1: not CSV: field larger"),
        ("my.csv", "image,caption\n,x\n", 'line 2: image is ""; expected the path'),
        ("my.csv", "image,caption\na.jpg\n", "line 2: not two columns"),
        ("my.csv", "image,caption\na\0.jpg,x\n", 'line 2: image is "a\\u0000.jpg"; expected the path'),
        ("my.tsv", "image,caption\na.jpg,x\n", "separated by tabs"),
        ("my.tsv", "image\tcaption\na.jpg\tx\ty\n", "put a caption that contains a tab in quotes"),
        ("my.json", '{"images": []}', "must be a list of conversations, or an object with images"),
        ("my.json", '{"images": {}, "annotations": [], "categories": []}', "categories must be lists"),
        ("my.json", '{"images": [], "annotations": [], "categories": []}', "is empty"),
        ("my.json", "[[1], 3, null]", "entry 3: expected an object"),
        ("my.json", "[NaN]", "entry 1: expected an object"),
        ("my.json", "NaN", "must be a list of conversations, or an object with images"),
        ("my.json", "[]", "is empty"),
        ("my.json", " ", "is empty"),
        ("my.json", "[" * 100_000, "nested too deeply"),
        ("my.xlsx", "x", "unknown extension"),
        ("my.jsonl", "", "is empty"),
        ("my.jsonl", "\n \n", "is empty"),
        ("my.jsonl/a.jpg", "", "my.jsonl is a folder; pass a file in it"),
    ],
)
def test_files_of_another_shape_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, advice: str
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / name, content)
    file = tmp_path / Path(name).parts[0]
    assert cli(["shards", "build", str(file), "--output", str(tmp_path / "out"), *HERE]) == 3
    assert advice in capsys.readouterr().err


def test_only_the_first_mistakes_are_shown(tmp_path: Path) -> None:
    put(tmp_path / "my.jsonl", "{\n" * (own.MAX_SHOWN + 5))
    corpus = own_corpus(tmp_path / "my.jsonl")
    with pytest.raises(DataError, match="35 of 35 entries(.|\n)*line 30: (.|\n)*and 5 more"):
        list(corpus.drafts(corpus.raw(tmp_path), "train"))


def test_pictures_are_opened_by_several_and_mistakes_told_in_the_order_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    rows = [{**GOOD[0], "image": "a.jpg" if number % 100 else "gone.jpg"} for number in range(40 * own.CHUNK)]
    put(tmp_path / "my.jsonl", lines(rows))
    together, real = threading.Barrier(own.THREADS), own.find_rejections

    def find_rejections(draft: Draft) -> list[Rejected]:
        if (
            int(draft.key) <= own.CHUNK * own.THREADS and int(draft.key) % own.CHUNK == 1
        ):  # the first of the first chunks
            together.wait(timeout=60)
        return real(draft)

    monkeypatch.setattr(own, "find_rejections", find_rejections)
    corpus = own_corpus(tmp_path / "my.jsonl")
    with pytest.raises(DataError, match="26 of 2560 entries") as told:
        list(corpus.drafts(corpus.raw(tmp_path), "train"))
    assert [int(number) for number in re.findall("line ([0-9]+):", str(told.value))] == list(range(1, 2560, 100))


def pictures() -> dict[str, bytes]:
    """Of each format, one with its size behind the head, one cut off, one of no format, one of too many pixels."""
    late = jpeg()[:2] + b"".join(b"\xff\xe1\xff\xff" + bytes(65533) for _ in range(3)) + jpeg()[2:]
    huge = jpeg(format="PNG")
    huge = huge[:16] + (1 << 20).to_bytes(4, "big") * 2 + huge[24:]
    formats = {name: jpeg(format=name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
    return {
        **formats,
        "late": late,
        "large": jpeg() + bytes(1 << 18),
        "cut": jpeg()[:100],
        "no": b"x" * 200,
        "huge": huge,
    }


@pytest.mark.parametrize("name", pictures())
def test_a_check_tells_what_a_build_would_and_reads_no_more_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    put(tmp_path / "a", pictures()[name])
    counts: list[int] = []
    real = draft_module._load

    def load(paths: tuple[str, ...], count: int = -1) -> bytes:
        counts.append(count)
        return real(paths, count)

    monkeypatch.setattr(draft_module, "_load", load)
    for right in (20, 900):
        turn = Turn("refer", regions=(Region((Box(1, 1, right, 20), Box(right, 1, right + 9, 20)), ("x",)),))
        draft = Draft("1", (turn,), (str(tmp_path / "a"),))
        assert find_rejections(draft) == finish(draft)[1]
    told_by_head = (
        [draft_module.HEAD_BYTES] if name in ("JPEG", "PNG", "WEBP", "large") else [draft_module.HEAD_BYTES, -1]
    )
    assert counts == [*told_by_head, -1] * 2
