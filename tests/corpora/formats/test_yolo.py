"""Tests that YOLO datasets of every layout are read, and that each mistake is named with its place.

Layouts are those of the documentation of Ultralytics, Roboflow, CVAT and Label Studio. The image has 64 x 48 pixels, so
`0.5 0.5 0.25 0.25` is the box (24, 18, 40, 30).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.shards.reader import CorpusReader
from tests.corpora.formats.datasets import boxes, build, write

ROW = "0 0.5 0.5 0.25 0.25\n"
BOX = Box(24, 18, 40, 30)
NAMES = "names: [cat, no]\n"
"""YAML 1.1 reads `no` as false."""
LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "ultralytics": (
        {
            "data.yaml": "path: /content/other\ntrain: images/train\nval: images/val\n" + NAMES,
            "images/train/a.jpg": 1,
            "labels/train/a.txt": ROW,
            "images/val/b.jpg": 2,
            "labels/val/b.txt": ROW,
        },
        "images/train/a.jpg",
    ),
    "names-by-number": (
        {"coco8.yaml": "train: images\nnames:\n  0: cat\n  1: no\n", "images/a.JPG": 1, "labels/a.txt": ROW},
        "images/a.JPG",
    ),
    "several-sources": (
        {
            "data.yaml": "train: [images/one, images/two]\n" + NAMES,
            "images/one/a.jpg": 1,
            "labels/one/a.txt": ROW,
            "images/two/b.jpg": 2,
            "labels/two/b.txt": "",
        },
        "images/one/a.jpg",
    ),
    "roboflow": (
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\nnc: 2\nroboflow: {version: 1}\n" + NAMES,
            "README.roboflow.txt": "Exported by Roboflow",
            "train/images/a_jpg.rf.0b1c.jpg": 1,
            "train/labels/a_jpg.rf.0b1c.txt": ROW,
            "valid/images/b.jpg": 2,
            "valid/labels/b.txt": ROW,
        },
        "train/images/a_jpg.rf.0b1c.jpg",
    ),
    "roboflow-darknet": (
        {"train/_darknet.labels": "cat\nno\n", "train/a.jpg": 1, "train/a.txt": ROW, "valid/b.jpg": 2},
        "train/a.jpg",
    ),
    "cvat": (
        {
            "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
            "obj.names": "cat\nno\n",
            "train.txt": "data/obj_train_data/a.jpg\n",
            "obj_train_data/a.jpg": 1,
            "obj_train_data/a.txt": ROW,
        },
        "data/obj_train_data/a.jpg",
    ),
    "label-studio": (
        {"classes.txt": "cat\nno\n", "notes.json": "{}", "images/1f0a-a.jpg": 1, "labels/1f0a-a.txt": ROW},
        "images/1f0a-a.jpg",
    ),
    "labelimg": ({"classes.txt": "cat\nno\n", "a.jpg": 1, "a.txt": ROW}, "a.jpg"),
    "windows": (
        {"data.yaml": "train: train.txt\n" + NAMES, "train.txt": ".\\images\\a.jpg\r\n", "images/a.jpg": 1}
        | {"labels/a.txt": "\ufeff0 0.5 0.5 0.25 0.25\r\n\r\n"},
        ".\\images\\a.jpg",
    ),
}


@pytest.mark.parametrize(("files", "key"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read(tmp_path: Path, files: dict[str, Any], key: str) -> None:
    assert build(write(tmp_path / "set", files)) == 0
    assert boxes(tmp_path / "out") == {key: [("cat", BOX)]}


def labelimg(row: str) -> dict[str, Any]:
    return {"classes.txt": "cat\nno\n", "a.jpg": 1, "a.txt": ROW + row, "b.jpg": 2, "b.txt": "1 0.5 0.5 0.5 0.5\n"}


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ("2 0.5 0.5 0.25 0.25", "a.jpg: line 2 of its labels: class 2 has no name: the classes are 0 to 1"),
        ("-1 0.5 0.5 0.25 0.25", "class -1 has no name"),
        ("0.5 0.5 0.5 0.25 0.25", "class 0.5 has no name"),
        ("cat 0.5 0.5 0.25 0.25", "'cat 0.5 0.5 0.25 0.25' is not a class and numbers"),
        ("0,0.5,0.5,0.25,0.25", "is not a class and numbers"),
        ("0 0.5 0.5 nan 0.25", "has a value that is not finite"),
        ("0 0.5 0.5 0 0.25", "is empty: its width and height must be above 0"),
        ("0 0.5 0.5 -0.2 0.25", "is empty"),
        ("0 0.5 0.5", "has 3 values; expected a class and x, y, width, height of its box"),
        ("0 0.5 0.5 0.25 0.25 0.9", "a sixth value is the confidence of a model; remove it"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 8 values"),
        ("0 0.1 0.1 \x00", "contains NUL"),
    ],
)
def test_a_row_that_is_no_box_is_named_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, advice: str
) -> None:
    folder = write(tmp_path / "set", labelimg(row))
    assert build(folder) == 3
    told = capsys.readouterr().err
    assert advice in told and "1 of 3 entries cannot be used" in told.replace("1 of 2", "1 of 3")
    assert build(folder, "--skip-faults") == 0
    kept = boxes(tmp_path / "out")
    assert kept["b.jpg"] == [("no", Box(16, 12, 48, 36))] and kept.get("a.jpg", [("cat", BOX)]) == [("cat", BOX)]


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"c.txt": ROW}, "c.txt: has no image c.jpg (or .png, ...)"),
        ({"a.png": 3}, "a.jpg: a.jpg and a.png have one label file, a.txt: rename one of them"),
        ({"a.txt": b"0\x00 \x00"}, "a.jpg: a.txt contains NUL"),
        ({"a.txt": "größer".encode("latin-1")}, "a.jpg: a.txt is not UTF-8"),
        ({"classes.txt": "cat\n\nno\n"}, "classes.txt: class 1 is"),
        ({"classes.txt": "cat\nx < 3\n"}, "the name of class 1 contains '<'"),
        ({"data.yaml": "names: [cat, dog]\nnc: 3\n"}, "nc is 3, and names has 2 classes"),
        ({"data.yaml": "names: 3\n"}, "names is"),
        (
            {"data.yaml": "names: [cat]\ntrain: images/none\n"},
            "images/none, which holds or lists images, does not exist",
        ),
        ({"data.yaml": "names: [cat]\nval: images\n"}, "has no split 'train': its splits are val"),
        ({"data.yaml": NAMES, "b.yaml": NAMES}, "has b.yaml and data.yaml: give one of them"),
        ({"data.yaml": "names: [größe]\n".encode("latin-1")}, "data.yaml: not valid YAML"),
        ({"data.yaml": "names: " + "[" * 5000}, "data.yaml: not valid YAML"),
        ({"data.yaml": "names: [cat]\ntrain: {a: b}\n"}, 'data.yaml: {"a": "b"} is no path or list of paths'),
        ({"train.txt": "a.jpg\n" + "x" * 5000 + ".jpg\n"}, "is listed in train.txt, and does not exist; looked for"),
        ({"train.txt": "a.jpg\nsub/none.jpg\n"}, "  sub/none.jpg: is listed in train.txt, and does not exist"),
        ({"a.jpg": b"<html>"}, "a.jpg: a web page"),
    ],
)
def test_a_mistake_in_the_files_of_a_dataset_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, Any], advice: str
) -> None:
    assert build(write(tmp_path / "set", {**labelimg(""), **files})) == 3
    assert advice in capsys.readouterr().err


def test_a_polygon_becomes_its_box_and_keypoints_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    polygon = "0 0.25 0.5 0.5 0.25 0.75 0.75\n"
    assert build(write(tmp_path / "set", {"classes.txt": "cat", "a.jpg": 1, "a.txt": polygon + ROW})) == 0
    assert boxes(tmp_path / "out") == {"a.jpg": [("cat", Box(16, 12, 48, 36)), ("cat", BOX)]}
    assert "took the box around each of 1 polygons" in capsys.readouterr().out
    pose = {
        "pose.yaml": "kpt_shape: [2, 3]\nnames: [cat]\n",
        "a.jpg": 1,
        "a.txt": ROW.strip() + " 0.1 0.1 2 0.2 0.2 1\n",
    }
    assert build(write(tmp_path / "pose/set", pose)) == 0
    assert boxes(tmp_path / "pose/out") == {"a.jpg": [("cat", BOX)]}
    assert "passed over the keypoints of 1 boxes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ("0 32 24 16 12\n", "pixels of the image"),
        ("0 0.4 0.6 0.8 0.9\n0 0.6 0.7 0.9 0.95\n", "x1, y1, x2, y2"),
        ("0 0.05 0.5 0.4 0.3\n0 0.0 0.6 0.3 0.2\n", "x, y, width, height"),
    ],
)
def test_numbers_that_mean_something_else_stop_the_build_with_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, cause: str
) -> None:
    assert build(write(tmp_path / "set", {"classes.txt": "cat\n", "a.jpg": 1, "a.txt": row})) == 3
    assert f"Likely cause: the numbers are {cause}." in capsys.readouterr().err


def test_background_images_are_counted_or_negatives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {**labelimg(""), "c.jpg": 3, "c.txt": "\n", "d.jpg": 4}
    folder = write(tmp_path / "set", files)
    assert build(folder) == 0
    told = capsys.readouterr().out
    assert "dropped 1: image with an empty label file" in told and "dropped 1: image without a label file" in told
    assert build(write(tmp_path / "again/set", files), "--negatives", "5") == 0
    reader = CorpusReader(tmp_path / "again/out")
    asked = {
        record.source["id"]: [(turn.regions[0].phrases[0], bool(turn.regions[0].boxes)) for turn in record.turns]
        for record in map(reader.record, range(len(reader)))
    }
    assert asked["a.jpg"] == [("cat", True), ("no", False)] and asked["b.jpg"] == [("no", True), ("cat", False)]
    assert sorted(asked["c.jpg"]) == [("cat", False), ("no", False)] and "d.jpg" not in asked


def test_images_elsewhere_are_found_below_the_root_without_the_prefix_of_label_studio(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"classes.txt": "cat\n", "labels/1f0a2b3c-a.txt": ROW, "labels/b.txt": ROW})
    write(tmp_path / "photos", {"a.jpg": 1, "b.PNG": 2})
    assert build(folder, "--root", str(tmp_path / "photos")) == 0
    assert boxes(tmp_path / "out") == {"a.jpg": [("cat", BOX)], "b.PNG": [("cat", BOX)]}
