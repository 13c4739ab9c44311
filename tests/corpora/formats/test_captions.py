"""Tests folders of images with captions beside them, and COCO caption files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpora.formats.datasets import build, captions, write


def test_captions_beside_images_are_read_in_subfolders(tmp_path: Path) -> None:
    files = {
        "a.jpg": 1,
        "a.txt": "A größer dog.\n",
        "b/A.JPG": 2,
        "b/A.TXT": "\ufeffA cat,\r\nand a dog.",
        "c.png": 3,
        "c.caption": "A bird.",
        "d.jpg": 4,
        "d.json": {"caption": "From json.", "width": 64},
        "d.txt": "From text.",
        "e.jpg": 5,
        "e.json": {"captions": ["One.", "Two."]},
        "f.v1.jpg": 6,
        "f.v1.txt": "Dots.",
        ".hidden.jpg": 7,
        "__MACOSX/a.jpg": 8,
    }
    assert build(write(tmp_path / "set", files)) == 0
    assert captions(tmp_path / "out") == {
        "a.jpg": ("A größer dog.",),
        "b/A.JPG": ("A cat,\r\nand a dog.",),
        "c.png": ("A bird.",),
        "d.jpg": ("From json.",),
        "e.jpg": ("One.", "Two."),
        "f.v1.jpg": ("Dots.",),
    }


def test_what_has_no_counterpart_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a.jpg": 1, "a.txt": "A.", "b.jpg": 2, "c.txt": "C.", "README.txt": "x", "sub/d.PNG": 3}
    assert build(write(tmp_path / "set", files)) == 0
    told = capsys.readouterr().out
    assert "dropped 2: image without a caption file" in told and "dropped 2: caption file without an image" in told
    lost = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert {one["key"] for one in lost} == {"b.jpg", "c.txt", "README.txt", "sub/d.PNG"}


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"a.png": 2}, "a.jpg: a.jpg and a.png have one caption file, a.txt: rename one of them"),
        ({"a.caption": "Other."}, "a.jpg: a.caption and a.txt differ: remove one of them"),
        ({"a.txt": " \n"}, "a.jpg: its caption is empty"),
        ({"a.txt": "größer".encode("latin-1")}, "a.jpg: a.txt is not UTF-8"),
        ({"a.txt": "a\0b"}, "a.jpg: a.txt contains NUL"),
        ({"a.txt": "<image> a dog"}, "a.jpg: caption contains the image mark"),
        ({"a.txt": "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 1e-3 0.2\n"}, "a.txt has rows of numbers, which are YOLO boxes"),
        ({"a.json": "{"}, "a.jpg: its json is damaged"),
        ({"a.json": {"caption": 3}}, "a.jpg: 'caption' in its json is of type int"),
        ({"a.json": {"captions": []}}, "a.jpg: 'captions' in its json is []; expected a list of texts"),
        ({"a.json": {"captions": ["A.", " "]}}, "a.jpg: its caption is empty"),
        ({"a.json": {"captions": "A."}}, "a.jpg: 'captions' in its json is"),
        ({"a.jpg": b"<html>"}, "a.jpg: a web page"),
        ({"a.jpg": b""}, "a.jpg: "),
    ],
)
def test_a_caption_that_cannot_be_used_is_named_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, Any], advice: str
) -> None:
    folder = write(tmp_path / "set", {"a.jpg": 1, "a.txt": "A.", "b.jpg": 2, "b.txt": "B."} | files)
    assert build(folder) == 3
    assert advice in capsys.readouterr().err
    assert build(folder, "--skip-faults") == 0
    assert captions(tmp_path / "out") == {"b.jpg": ("B.",)}


def coco(**changes: Any) -> dict[str, Any]:
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 1, "caption": " A dog.\n"},
            {"id": 2, "image_id": 2, "caption": "B."},
            {"id": 3, "image_id": 1, "caption": "A hound."},
        ],
    }
    return document | changes


def test_captions_of_a_coco_file_are_accepted_answers_of_one_question(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"my.json": coco(categories=[]), "a.jpg": 1, "b.jpg": 2})
    assert build(folder / "my.json") == 0
    assert captions(folder / "out") == {"1": ("A dog.", "A hound."), "2": ("B.",)}


@pytest.mark.parametrize(
    ("annotation", "advice"),
    [
        ({"caption": None}, "annotation 4 (image 1): caption is null; expected a text"),
        ({"caption": " "}, 'annotation 4 (image 1): caption is " "'),
        ({"caption": ["A."]}, "expected a text"),
        ({"caption": ...}, "annotation 4 (image 1): has no caption; expected a text"),
        ({"image_id": 9}, "annotation 4 (image 9): its image_id is not listed in images"),
        ({"image_id": ...}, "annotation 4: has no image_id"),
        ({"caption": "<image> A."}, "annotation 4 (image 1): caption contains the image mark"),
        ({"caption": "a\ufffd"}, "annotation 4 (image 1): caption contains U+FFFD"),
    ],
)
def test_each_mistake_of_a_coco_caption_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], annotation: dict[str, Any], advice: str
) -> None:
    document = coco()
    bad = {"id": 4, "image_id": 1, "caption": "X."} | annotation
    document["annotations"].append({key: value for key, value in bad.items() if value is not ...})
    folder = write(tmp_path / "set", {"my.json": document, "a.jpg": 1, "b.jpg": 2})
    assert build(folder / "my.json") == 3
    assert advice in capsys.readouterr().err
    assert build(folder / "my.json", "--skip-faults") == 0
    assert captions(folder / "out") == {"1": ("A dog.", "A hound."), "2": ("B.",)}


def test_an_image_without_captions_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = coco(annotations=[{"id": 1, "image_id": 1, "caption": "A."}])
    folder = write(tmp_path / "set", {"my.json": document, "a.jpg": 1})
    assert build(folder / "my.json") == 0
    assert "dropped 1: image without captions" in capsys.readouterr().out


def test_a_folder_of_no_format_names_the_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", {"a.jpg": 1})
    assert build(folder) == 3
    told = capsys.readouterr().err
    assert "set is a folder; pass a file in it, or a folder of one of the formats jsonl (JSON lines), " in told
    assert build(folder, "--format", "yol") == 2
    assert "unknown format 'yol'; did you mean 'yolo'?" in capsys.readouterr().err
    assert build(folder, "--format", "yolo") == 3
    assert "has no data.yaml, obj.names or classes.txt" in capsys.readouterr().err
