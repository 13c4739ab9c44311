"""Tests that each mistake in a user's own data is reported with its line and the change to make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minigptv2.cli import main as cli
from minigptv2.corpora.draft import Draft, finish
from minigptv2.corpora.formats import FORMATS
from minigptv2.record import Turn
from minigptv2.shards.reader import CorpusReader
from tests.corpora.miniatures.files import jpeg, lines, put
from tests.corpora.own_data import GOOD, HERE, REFER


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        ("{", "not JSON"),
        ("[1, 2]", 'expected an object: {"image"'),
        ({"image": "a.jpg", "tsk": "vqa"}, "unknown key 'tsk'; did you mean 'task'?"),
        ({"image": "a.jpg", "task": "vqaa"}, "task 'vqaa'; did you mean 'vqa'? The tasks are vqa, caption"),
        ({"image": "a.jpg", "question": "x"}, "no task. The tasks are"),
        ({"image": "gone.jpg", "task": "caption", "answer": "x"}, "image file missing; looked for"),
        ({"image": "bad.jpg", "task": "caption", "answer": "x"}, "bad.jpg: truncated in its header"),
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
            {
                "image": "a.jpg",
                "task": "grounding",
                "answer": "cat",
                "objects": [{"phrase": "dog", "boxes": [1, 2, 3, 4]}],
            },
            "phrase 'dog' does not occur in the caption",
        ),
        (
            {"image": "a.jpg", "task": "detection", "objects": [{"phrase": "x", "boxes": [1, 2, 3, 4], "label": "y"}]},
            "unknown key 'label'",
        ),
        ({"image": "a.jpg", "task": "caption", "answer": "x", "question": "y"}, "'caption' does not use \"question\""),
        ({**REFER, "boxes": [1, 2, 3, 4], "question": "y"}, '"question" and "phrase" are both given'),
        ({"image": "a.jpg", "conversations": [{"from": "human", "value": "x"}]}, "without an answer"),
        ({"image": "a.jpg", "conversations": ["x"]}, 'a list of {"from"'),
        ({"image": "a.jpg", "task": ["vqa"]}, "task '['vqa']'; did you mean 'vqa'?"),
        ({"image": "a.jpg", "task": "x" * 9000}, f"task '{'x' * 60}...' The tasks are"),
        ({"image": "a.jpg", "x" * 9000: 1}, f"unknown key '{'x' * 60}...' The keys are"),
        ({"image": [["a.jpg", 3]], "task": "caption", "answer": "x"}, "image is 3; expected the path"),
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


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\0.jpg", "the path holds a NUL or half a character"),
        ("a\ud800.jpg", "the path holds a NUL or half a character"),
        ("x" * 5000 + ".jpg", "cannot be read: File name too long"),
        (".", "a folder, not an image"),
    ],
)
def test_a_path_that_no_file_can_have_is_a_picture_that_cannot_be_read(path: str, reason: str) -> None:
    sample, lost = finish(Draft("1", (Turn("caption", answers=("x",)),), (path,)))
    assert sample is None and [one.reason for one in lost] == [reason]


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


def test_a_folder_of_several_formats_is_an_error_that_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "my" / "classes.txt", "dog\n")
    put(tmp_path / "my" / "a.jpg", jpeg())
    put(tmp_path / "my" / "a.xml", "<annotation><filename>a.jpg</filename></annotation>")
    assert cli(["shards", "build", str(tmp_path / "my"), "--output", str(tmp_path / "out"), *HERE]) == 3
    assert "matches several formats, yolo (YOLO boxes), voc" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\0b.jsonl", f"{'n' * 300}.jsonl", f"{'d/' * 3000}a.csv", "a\0b", "\ud83d.json"])
def test_a_path_that_no_system_has_is_an_error(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli(["shards", "build", name, "--output", str(tmp_path / "out")]) in (2, 3)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and ("does not exist" in told or "unknown corpus" in told)


def test_the_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(["shards", "build", "--help"])
    (listed,) = re.findall(r"format of your own data: ([^.]*)\.", " ".join(capsys.readouterr().out.split()))
    assert re.split(r", | or ", listed) == list(FORMATS)
