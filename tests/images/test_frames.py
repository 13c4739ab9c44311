"""Tests which frame the boxes of a file are in, and that boxes which leave their image are counted and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box, render_box
from minigptv2.corpora.draft import Draft, finish
from minigptv2.corpora.frames import Frame, frame_of, same_proportions
from minigptv2.record import Region, Turn
from minigptv2.shards.image_header import ImageHeader
from minigptv2.shards.reader import CorpusReader
from tests.images.making import build, captions, coco, encode, scene, write_lines

WIDTH, HEIGHT = 96, 64
"""Of the scene as stored."""


def texts(folder: Path) -> list[str]:
    """The boxes of the only record as they are trained."""
    record = CorpusReader(folder).record(0)
    assert record.width and record.height
    boxes = [box for turn in record.turns for region in turn.regions for box in region.boxes]
    return [render_box(box, record.width, record.height) for box in boxes]


def picture(folder: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT), kind: str = "jpeg") -> None:
    (folder / "a.jpg").write_bytes(encode(scene(*size), kind, orientation))


def stated(width: Any, height: Any) -> list[dict[str, Any]]:
    sides = {key: value for key, value in (("width", width), ("height", height)) if value is not ...}
    return [{"id": 1, "file_name": "a.jpg", **sides}]


UPRIGHT_BOX = {  # 10 % to 30 % across and 20 % to 60 % down, in the frame of the stored image, by orientation
    1: (0.1, 0.2, 0.3, 0.6),
    2: (0.7, 0.2, 0.9, 0.6),
    3: (0.7, 0.4, 0.9, 0.8),
    4: (0.1, 0.4, 0.3, 0.8),
    5: (0.2, 0.1, 0.6, 0.3),
    6: (0.2, 0.7, 0.6, 0.9),
    7: (0.4, 0.7, 0.8, 0.9),
    8: (0.4, 0.1, 0.8, 0.3),
}


def xywh(box: tuple[float, ...], width: float, height: float) -> list[float]:
    x1, y1, x2, y2 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    return [x1 + 0.01, y1 + 0.01, x2 - x1, y2 - y1]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [1, 2, 0.5, 10])
def test_boxes_of_the_upright_frame(tmp_path: Path, orientation: int, factor: float, kind: str) -> None:
    picture(tmp_path, orientation, kind=kind)
    width, height = (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)
    size = int(factor * width), int(factor * height)
    file = coco(tmp_path, stated(*size), [(1, xywh((0.1, 0.2, 0.3, 0.6), *size))])
    assert build(file, tmp_path / "out") == 0
    assert texts(tmp_path / "out") == ["{<10><20><30><60>}"]
    counts = CorpusReader(tmp_path / "out").manifest.counts
    assert counts.get("image whose boxes were scaled from another size", 0) == (factor != 1)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("factor", [1, 2, 0.5])
def test_boxes_of_the_stored_frame_are_rotated_with_the_image(tmp_path: Path, orientation: int, factor: float) -> None:
    picture(tmp_path, orientation)
    size = int(factor * WIDTH), int(factor * HEIGHT)
    file = coco(tmp_path, stated(*size), [(1, xywh(UPRIGHT_BOX[orientation], *size))])
    assert build(file, tmp_path / "out") == 0
    (text,) = texts(tmp_path / "out")
    got, wanted = ([int(n) for n in part.strip("{<>}").split("><")] for part in (text, "{<10><20><30><60>}"))
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= 1, text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_stored_box_is_mapped_to_its_pixels(orientation: int) -> None:
    header = ImageHeader("JPEG", WIDTH, HEIGHT, orientation)
    frame = Frame(header.width, header.height, orientation=orientation)
    stored = UPRIGHT_BOX[orientation]
    box = frame.to_image(Box(stored[0] * WIDTH, stored[1] * HEIGHT, stored[2] * WIDTH, stored[3] * HEIGHT))
    found = box.x1 / header.width, box.y1 / header.height, box.x2 / header.width, box.y2 / header.height
    assert found == pytest.approx((0.1, 0.2, 0.3, 0.6))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_public_corpora_are_in_the_image_as_stored(orientation: int) -> None:
    image = encode(scene(), "jpeg", orientation)
    box = Box(*(side * part for side, part in zip((WIDTH, HEIGHT) * 2, UPRIGHT_BOX[orientation], strict=True)))
    turn = Turn("refer", regions=(Region((box,), ("x",)),))
    sample, rejected = finish(Draft("1", (turn,), image))
    assert sample is not None and not rejected
    (found,) = sample.record.turns[0].regions[0].boxes
    width, height = sample.record.width or 0, sample.record.height or 0
    assert (found.x1 / width, found.y1 / height) == pytest.approx((0.1, 0.2))
    assert (found.x2 / width, found.y2 / height) == pytest.approx((0.3, 0.6))


@pytest.mark.parametrize("size", [(80, 80), (64, 96), (95, 32), (1000, 1000), (1, 96)])
def test_a_size_of_another_image_is_refused_with_both_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int]
) -> None:
    picture(tmp_path)
    file = coco(tmp_path, stated(*size), [(1, [1, 1, 20, 20])])
    assert build(file, tmp_path / "out") == 3
    told = capsys.readouterr().err
    assert f"the file states {size[0]} x {size[1]} pixels, the image has 96 x 64" in told and "a.jpg" in told
    assert ("exchanged" in told) == (size == (64, 96))


@pytest.mark.parametrize("size", [(..., ...), (None, None), (0, 0), ("", ""), (96, 64), (96.0, 64.0)])
def test_a_size_that_is_not_stated_is_that_of_the_image(tmp_path: Path, size: tuple[Any, Any]) -> None:
    picture(tmp_path)
    assert build(coco(tmp_path, stated(*size), [(1, xywh((0.1, 0.2, 0.3, 0.6), 96, 64))]), tmp_path / "out") == 0
    assert texts(tmp_path / "out") == ["{<10><20><30><60>}"]


@pytest.mark.parametrize("size", [("96", 64), (-96, 64), (96, None), (96.5, 64), (True, 64), ([96], 64)])
def test_a_size_that_is_none_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[Any, Any]
) -> None:
    picture(tmp_path)
    assert build(coco(tmp_path, stated(*size), [(1, [1, 1, 20, 20])]), tmp_path / "out") == 3
    told = capsys.readouterr().err
    assert "image 1: width is" in told or "image 1: height is" in told


@pytest.mark.parametrize("size", [(192, 128), (64, 96), (96, 64)])
def test_a_line_may_state_the_size(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int]) -> None:
    file = captions(tmp_path, {"a.jpg": encode(scene())})
    box = [0.1 * size[0] + 0.1, 0.2 * size[1] + 0.1, 0.3 * size[0] + 0.1, 0.6 * size[1] + 0.1]
    entry = {"image": "a.jpg", "task": "refer", "phrase": "x", "boxes": box, "width": size[0], "height": size[1]}
    write_lines(file, [entry])
    assert build(file, tmp_path / "out") == (3 if size == (64, 96) else 0)
    assert size == (64, 96) or texts(tmp_path / "out") == ["{<10><20><30><60>}"]
    assert size != (64, 96) or "line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((80, 60), (40, 30), True),
        ((640, 427), (1024, 683), True),
        ((640, 426), (1024, 683), True),
        ((4032, 3024), (640, 480), True),
        ((512, 341), (3888, 2592), True),
        ((80, 60), (60, 80), False),
        ((80, 60), (40, 40), False),
        ((640, 480), (640, 427), False),
        ((1333, 800), (1280, 720), False),
    ],
)
def test_sizes_of_the_same_proportions(one: tuple[int, int], other: tuple[int, int], same: bool) -> None:
    assert same_proportions(one, other) == same_proportions(other, one) == same
    header = ImageHeader("PNG", *one)
    if same:
        frame = frame_of(header, None, other)
        assert frame.to_image(Box(0, 0, *other)) == Box(0, 0, *map(float, one))


TRUE_BOXES = [(0.1 + n / 40, 0.05 + n / 30, 0.35 + n / 30, 0.3 + n / 45) for n in range(12)]
"""Fractions of the image, in the middle and right of it."""


def corners(box: tuple[float, ...], width: float = WIDTH, height: float = HEIGHT) -> list[float]:
    return [box[0] * width, box[1] * height, box[2] * width, box[3] * height]


def sizes(box: tuple[float, ...], width: float = WIDTH, height: float = HEIGHT) -> list[float]:
    x1, y1, x2, y2 = corners(box, width, height)
    return [x1, y1, x2 - x1, y2 - y1]


def y_first(box: tuple[float, ...]) -> tuple[float, ...]:
    return box[1], box[0], box[3], box[2]


MISREAD: dict[str, tuple[str, list[list[float]], str]] = {
    "coco corners": ("coco", [corners(box) for box in TRUE_BOXES], "the numbers are x1, y1, x2, y2"),
    "coco 0..1000": ("coco", [sizes(box, 1000, 1000) for box in TRUE_BOXES], "values from 0 to 1000"),
    "coco 0..1": ("coco", [sizes(box, 1, 1) for box in TRUE_BOXES], "thinner than a pixel"),
    "coco y first": (
        "coco",
        [
            [box[1] * HEIGHT, box[0] * WIDTH, (box[3] - box[1]) * HEIGHT, (box[2] - box[0]) * WIDTH]
            for box in TRUE_BOXES
        ],
        "y before x",
    ),
    "lines 0..1000": ("lines", [corners(box, 1000, 1000) for box in TRUE_BOXES], "values from 0 to 1000"),
    "lines y first": ("lines", [[*y_first(tuple(corners(box)))] for box in TRUE_BOXES], "y before x"),
    "lines x, y, width, height": ("lines", [sizes(box) for box in TRUE_BOXES], "x, y, width, height"),
    "lines xywh that are corners": ("xywh", [corners(box) for box in TRUE_BOXES], "the numbers are x1, y1, x2, y2"),
}


def own_boxes(folder: Path, form: str, boxes: list[list[float]]) -> Path:
    picture(folder)
    if form == "coco":
        return coco(folder, stated(WIDTH, HEIGHT), [(1, box) for box in boxes])
    more = {"boxes_in": "xywh"} if form == "xywh" else {}
    entries = [{"image": "a.jpg", "task": "refer", "phrase": "x", "boxes": box, **more} for box in boxes]
    write_lines(folder / "own.jsonl", entries)
    return folder / "own.jsonl"


@pytest.mark.parametrize("name", MISREAD)
def test_boxes_of_another_meaning_are_refused_with_the_likely_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    form, boxes, cause = MISREAD[name]
    file = own_boxes(tmp_path, form, boxes)
    assert build(file, tmp_path / "out") == 3
    told = capsys.readouterr().err
    assert cause in told, told
    if "cause" in told:
        assert "100 % of the boxes fit" in told and ("annotation" in told) == (form == "coco")
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize("form", ["coco", "lines"])
def test_boxes_that_leave_the_image_are_cut_only_when_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    give = sizes if form == "coco" else corners
    file = own_boxes(tmp_path, form, [give((0.5, 0.5, 1.2, 0.9)), *map(give, TRUE_BOXES)])
    assert build(file, tmp_path / "out") == 3
    assert "1 of 13 boxes (7.69 %) leave the image by more than a pixel" in capsys.readouterr().err
    assert build(file, tmp_path / "out", "--skip-faults") == 3
    assert build(file, tmp_path / "out", "--cut-boxes") == 0
    told = capsys.readouterr().out
    assert "corrected 1: box cut at the border by more than a pixel" in told and "warning: 1 of 13 boxes" in told
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    assert counts == {"boxes": 13, "box cut at the border by more than a pixel": 1}
    assert texts(tmp_path / "out")[0] == "{<50><50><100><90>}"


@pytest.mark.parametrize("form", ["coco", "lines"])
@pytest.mark.parametrize("beyond", [0.3, 1.0])
def test_a_rounding_is_cut_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, beyond: float
) -> None:
    box = [10.0, 10.0, WIDTH + beyond, HEIGHT + beyond]
    given = [10.0, 10.0, box[2] - 10, box[3] - 10] if form == "coco" else box
    assert build(own_boxes(tmp_path, form, [given]), tmp_path / "out") == 0
    assert "corrected 1: box cut at the border by up to a pixel" in capsys.readouterr().out
    counts = CorpusReader(tmp_path / "out").manifest.counts
    assert counts == {"boxes": 1, "box cut at the border by up to a pixel": 1}


@pytest.mark.parametrize(("number", "code"), [(99, 0), (98, 3)])
def test_one_box_in_a_hundred_may_leave_the_image(tmp_path: Path, number: int, code: int) -> None:
    boxes = [sizes((0.5, 0.5, 1.2, 0.9)), *([sizes((0.1, 0.1, 0.4, 0.4))] * number)]
    assert build(own_boxes(tmp_path, "coco", boxes), tmp_path / "out") == code


def test_correct_boxes_of_a_large_file_need_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(own_boxes(tmp_path, "coco", [sizes(box) for box in TRUE_BOXES]), tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "corrected" not in told and "warning" not in told
