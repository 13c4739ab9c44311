"""Tests that Pascal VOC datasets of every layout are read, and that each mistake is named with its place.

The devkit counts pixels from 1 and includes the last one: (25, 19, 40, 30) is the box (24, 18, 40, 30).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.corpora.formats.voc_xml import parse_annotation
from minigptv2.errors import DataError
from tests.corpora.formats.datasets import boxes, build, write

BOX = Box(24, 18, 40, 30)
BOUNDS = "<bndbox><xmax>40</xmax><xmin>25</xmin><ymax>30</ymax><ymin>19</ymin></bndbox>"
CAT = f"<object><name>cat</name>{BOUNDS}</object>"


def xml(filename: str = "a.jpg", objects: str = CAT, size: str = "<width>64</width><height>48</height>") -> str:
    named = f"<filename>{filename}</filename>" if filename else ""
    return f"<annotation><folder>x</folder>{named}<size>{size}</size>{objects}</annotation>"


LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "voc": (
        {
            "Annotations/a.xml": xml(),
            "Annotations/b.xml": xml("b.jpg"),
            "JPEGImages/a.jpg": 1,
            "JPEGImages/b.jpg": 2,
            "ImageSets/Main/train.txt": "a\n",
            "ImageSets/Main/val.txt": "b\n",
            "ImageSets/Main/cat_train.txt": "a  1\n",
        },
        "a.xml",
    ),
    "cvat": (
        {
            "Annotations/sub/a.xml": xml("sub/a.jpg"),
            "JPEGImages/sub/a.jpg": 1,
            "ImageSets/Main/default.txt": "sub/a\n",
            "labelmap.txt": "cat:::",
        },
        "sub/a.xml",
    ),
    "label-studio": ({"Annotations/1f0a-a.xml": xml("1f0a-a"), "images/1f0a-a.jpg": 1}, "1f0a-a.xml"),
    "roboflow": (
        {"train/a_jpg.rf.0b.xml": xml("a_jpg.rf.0b.jpg"), "train/a_jpg.rf.0b.jpg": 1, "valid/b.xml": xml("b.jpg")},
        "a_jpg.rf.0b.xml",
    ),
    "labelimg": ({"a.xml": '<?xml version="1.0"?>\n' + xml("C:\\photos\\a.jpg"), "a.JPG": 1}, "a.xml"),
    "utf-16": ({"a.xml": ('<?xml version="1.0" encoding="utf-16"?>' + xml()).encode("utf-16"), "a.jpg": 1}, "a.xml"),
    "renamed": ({"a.xml": xml("gone.jpg"), "a.png": 1}, "a.xml"),
    "without-name-and-size": ({"a.xml": xml("", size="<width>0</width><height>0</height>"), "a.jpg": 1}, "a.xml"),
}


@pytest.mark.parametrize(("files", "key"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read(tmp_path: Path, files: dict[str, Any], key: str) -> None:
    assert build(write(tmp_path / "set", files)) == 0
    assert boxes(tmp_path / "out") == {key: [("cat", BOX)]}


def bounds(x1: Any, y1: Any, x2: Any, y2: Any) -> str:
    corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"


@pytest.mark.parametrize(
    ("objects", "advice"),
    [
        ("<object><name>dog</name></object>", "a.xml: object 2 (dog): has no <bndbox>"),
        (f"<object>{BOUNDS}</object>", "a.xml: object 2: has no name"),
        (f"<object><name>x &lt; 3</name>{BOUNDS}</object>", "name contains '<'"),
        (bounds("a", 2, 3, 4), 'its <bndbox> has xmin, ymin, xmax, ymax ["a", 2.0, 3.0, 4.0]; expected numbers'),
        (bounds("", 2, 3, 4), "expected numbers"),
        (bounds("nan", 2, 30, 40), "expected numbers"),
        (bounds(30, 2, 3, 40), "is inverted; expected xmin, ymin, xmax, ymax"),
        ("<object><name>cat</name><polygon><x1>1</x1></polygon></object>", "has a <polygon> and no <bndbox>: export"),
        ("<object><name>cat</name><robndbox><cx>1</cx></robndbox></object>", "has a <robndbox> and no <bndbox>"),
    ],
)
def test_an_object_without_a_box_is_named_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], objects: str, advice: str
) -> None:
    folder = write(tmp_path / "set", {"a.xml": xml(objects=CAT + objects), "a.jpg": 1})
    assert build(folder) == 3
    assert advice in capsys.readouterr().err
    assert build(folder, "--skip-faults") == 0
    assert boxes(tmp_path / "out") == {"a.xml": [("cat", BOX)]}


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (BOMB, "a.xml: declares the document type 'lolz', which may expand without end"),
        (xml()[:-9], "a.xml: is not XML: "),
        ("<annotation", "is not XML: "),
        (xml("größer.jpg").encode("latin-1"), "is not XML: "),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "is not XML: "),
        ("<annotation>&undefined;</annotation>", "is not XML: "),
        (xml(size="<width>64</width>"), "a.xml: height is null; expected the image's height in pixels"),
        (xml(size="<width>wide</width><height>48</height>"), 'width is "wide"; expected'),
        (xml("d.jpg", size="<width>48</width><height>64</height>"), "width and height seem to be exchanged"),
        (xml("d.jpg", size="<width>64</width><height>64</height>"), "another shape: the image was cropped"),
        (xml("none.jpg"), "a.xml: image file missing; looked for"),
        (xml("x" * 5000), "a.xml: "),
        (xml("b.jpg"), "b.xml: its image b.jpg is that of a.xml: correct <filename>"),
    ],
)
def test_a_mistake_in_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, advice: str
) -> None:
    files = {"0.xml": xml("c.jpg"), "a.xml": content, "b.xml": xml("b.jpg"), "b.jpg": 1, "c.jpg": 2, "d.jpg": 3}
    folder = write(tmp_path / "set", files)
    assert build(folder) == 3
    assert advice in capsys.readouterr().err
    assert build(folder, "--skip-faults") == 0
    assert "0.xml" in boxes(tmp_path / "out")


def test_a_file_whose_image_name_and_own_name_differ_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(write(tmp_path / "set", {"a.xml": xml("b.jpg"), "a.jpg": 1, "b.jpg": 2})) == 3
    assert "a.xml: names the image b.jpg, and a.jpg exists, too: correct <filename>" in capsys.readouterr().err


def test_an_id_of_a_list_without_a_file_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "Annotations/a.xml": xml(),
        "JPEGImages/a.jpg": 1,
        "ImageSets/Main/train.txt": "a -1\nb  1\nc d\nd 1\n/etc/x\n",
    }
    assert build(write(tmp_path / "set", files)) == 3
    told = capsys.readouterr().err
    assert "  b.xml: is listed, and does not exist" in told and "  c d.xml: is listed, and does not exist" in told
    assert "  d 1.xml: is listed, and does not exist" in told and "  etc/x.xml: is listed, and" in told


def test_difficult_objects_are_kept_and_parts_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = f"<part><name>head</name>{BOUNDS}</part>"
    hard = f"<object><name>dog</name><difficult>1</difficult>{BOUNDS}{part}{part}</object>"
    folder = write(
        tmp_path / "set", {"a.xml": xml(objects=CAT + hard), "a.jpg": 1, "b.jpg": 2, "c.xml": xml("c.jpg", "")}
    )
    write(folder, {"c.jpg": 3})
    assert build(folder) == 0
    assert boxes(tmp_path / "out") == {"a.xml": [("cat", BOX), ("dog", BOX)]}
    told = capsys.readouterr().out
    assert "kept 1 objects marked as difficult" in told and "passed over the boxes of 2 parts of objects" in told
    assert "dropped 1: image without boxes" in told and "dropped 1: image without an annotation file" in told


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        ((1, 1, 64, 48), Box(0, 0, 64, 48)),
        ((0, 0, 64, 48), Box(0, 0, 64, 48)),
        ((5, 5, 5, 5), Box(4, 4, 5, 5)),
        (("5.5", "6.25", "7.0", "9"), Box(4.5, 5.25, 7, 9)),
    ],
)
def test_pixels_count_from_one_and_the_last_one_belongs_to_the_box(
    tmp_path: Path, corners: tuple[Any, ...], box: Box
) -> None:
    assert build(write(tmp_path / "set", {"a.xml": xml(objects=bounds(*corners)), "a.jpg": 1})) == 0
    assert boxes(tmp_path / "out") == {"a.xml": [("cat", box)]}


def test_a_size_from_before_a_change_scales_the_boxes(tmp_path: Path) -> None:
    size = "<width>128</width><height>96</height><depth>3</depth>"
    assert build(write(tmp_path / "set", {"a.xml": xml(objects=bounds(49, 37, 80, 60), size=size), "a.jpg": 1})) == 0
    assert boxes(tmp_path / "out") == {"a.xml": [("cat", BOX)]}


def test_an_xml_is_read_without_expanding_anything() -> None:
    assert parse_annotation(b"<annotation><filename>a&amp;b.jpg</filename></annotation>").filename == "a&b.jpg"
    with pytest.raises(DataError, match="document type"):
        parse_annotation(b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>')
    with pytest.raises(DataError, match="is an XML of <annotations>; expected <annotation>"):
        parse_annotation(b"<annotations/>")
