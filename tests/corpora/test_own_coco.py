"""Tests that a COCO detection file of a user's own data is read, and that each mistake in it is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.cli import main as cli
from minigptv2.shards.reader import CorpusReader
from tests.corpora.miniatures.files import jpeg, put
from tests.corpora.own_data import HERE, built


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
    assert "read 5 entries" in told and "kept 1 sample in 1 shard" in told
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
        (
            "annotations",
            {"rotation": 33.0},
            "annotation 17 (image 3): rotation is 33.0, and a box has no",
        ),
        ("annotations", {"rotation": -90}, "rotation is -90"),
        ("annotations", {"attributes": {"occluded": False, "rotation": 12.5}}, "rotation is 12.5"),
        ("annotations", None, "annotation without id, number 1 of its list: expected an object with image_id"),
        ("categories", {"id": {}}, "category {}: id is {}; expected a number or a text"),
        ("categories", {"name": ["cat"]}, 'category 1: name is ["cat"]; expected a text'),
        ("categories", {}, "category 1: duplicate id"),
        ("categories", {"id": True}, "category true: id is true; expected a number or a text"),
        ("categories", {"id": 2, "name": "x < 3 m"}, "category 2: name contains '<', with which answers mark phrases"),
        ("categories", {"id": 2, "name": "<p>cat</p>"}, "category 2: name contains '<', with which answers"),
        ("categories", {"id": 2, "name": "cat {0}"}, "category 2: name contains '{', with which answers"),
        ("annotations", {"image_id": True}, "annotation 17 (image true): its image_id is not listed"),
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


@pytest.mark.parametrize(
    "fields",
    [{"rotation": 0}, {"rotation": 360.0}, {"attributes": {"rotation": 0.0}}, {"attributes": ["rotation"]}],
    ids=str,
)
def test_a_box_that_is_not_rotated_is_kept(tmp_path: Path, fields: dict[str, Any]) -> None:
    put(tmp_path / "a.jpg", jpeg())
    document = {
        "images": [{"id": 3, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 3, "category_id": 1, "bbox": [1, 1, 5, 6], **fields}],
    }
    put(tmp_path / "my.json", document)
    assert cli(["shards", "build", str(tmp_path / "my.json"), "--output", str(tmp_path / "out"), *HERE]) == 0


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


@pytest.mark.parametrize(
    "size", [{"width": 64}, {"height": 48}, {"width": "64", "height": 48}, {"width": -1, "height": 1}]
)
def test_an_image_whose_size_is_no_size_is_left_out_with_its_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: dict[str, Any]
) -> None:
    """It was counted as dropped and kept, with its boxes in the frame of the image."""
    put(tmp_path / "a.jpg", jpeg())
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg", **size}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 6]} for n in (1, 2)],
    }
    put(tmp_path / "my.json", document)
    words = ["shards", "build", str(tmp_path / "my.json"), "--output", str(tmp_path / "out"), *HERE, "--skip-faults"]
    assert cli(words) == 0
    assert "dropped 1: its image_id is not listed in images" in capsys.readouterr().out
    assert [record.source["id"] for record in map(CorpusReader(tmp_path / "out").record, range(1))] == ["1"]
    assert len(CorpusReader(tmp_path / "out")) == 1


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


@pytest.mark.parametrize(
    ("file", "image", "given"),
    [
        ("my.json", "images/a.jpg", "a.jpg"),
        ("annotations/my.json", "images/a.jpg", "a.jpg"),
        ("annotations/instances_train.json", "images/train/sub/a.jpg", "sub/a.jpg"),
        ("annotations/instances_train2017.json", "train2017/a.jpg", "a.jpg"),
        ("result.json", "images/1f0a-a.jpg", "/label-studio/data/media/upload/1/1f0a-a.jpg"),
        ("result.json", "images/a.jpg", "C:\\photos\\a.jpg"),
        ("result.json", "images/3/a.jpg", "images\\3\\a.jpg"),
    ],
)
def test_images_of_a_coco_file_are_found_where_tools_put_them(
    tmp_path: Path, file: str, image: str, given: str
) -> None:
    put(tmp_path / "set" / image, jpeg())
    document = {
        "images": [{"id": 1, "file_name": given}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 6]}],
    }
    put(tmp_path / "set" / file, document)
    assert cli(["shards", "build", str(tmp_path / "set" / file), "--output", str(tmp_path / "out"), *HERE]) == 0
