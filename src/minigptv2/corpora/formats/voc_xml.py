"""Reads one annotation file of Pascal VOC: an XML document with the image's name and size, and its objects.

Coordinates count from 1, and the box includes its last pixel (VOC devkit, `VOCcode/PASreadrecord.m`). So the left edge
is `xmin - 1` and the right edge is `xmax`. A document type, which can declare entities, is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from minigptv2.boxes import Box
from minigptv2.corpora.frames import Size
from minigptv2.corpora.own_entry import stated_size
from minigptv2.corpora.own_image import as_json, cut
from minigptv2.errors import DataError
from minigptv2.typed_marks import phrase_text

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OTHER_SHAPES = ("polygon", "robndbox", "cube", "points")
"""Shapes of labeling tools in the place of a box."""


@dataclass(frozen=True, slots=True)
class VocObject:
    """An object: its class and box in pixels, or its problem. `parts`: boxes of parts of it, which are passed over."""

    name: str
    box: Box | None
    problem: str = ""
    difficult: bool = False
    parts: int = 0


@dataclass(frozen=True, slots=True)
class VocAnnotation:
    """An annotation file: the name of its image, the size that it states, and its objects."""

    filename: str
    size: Size | None
    objects: tuple[VocObject, ...]


def parse_annotation(data: bytes) -> VocAnnotation:
    """The annotation in an XML file. Raises `DataError` saying what to change."""
    root = _parse(data)
    if root.tag != "annotation":
        raise DataError(f"is an XML of <{cut(root.tag)}>; expected <annotation>")
    size = root.find("size")
    stated = None if size is None else stated_size({key: _number(size, key) for key in ("width", "height")})
    return VocAnnotation(_text(root, "filename"), stated, tuple(_object(one) for one in root.findall("object")))


def is_annotation(data: bytes) -> bool:
    """Whether the data begins like an annotation of Pascal VOC."""
    return b"<annotation" in data


def _parse(data: bytes) -> Element:
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise DataError(f"is not XML: {error}") from error


def _refuse_doctype(name: str, *_: object) -> None:
    raise DataError(f"declares the document type '{cut(name)}', which may expand without end: remove <!DOCTYPE ...>")


def _text(element: Element, tag: str) -> str:
    found = element.findtext(tag)
    return "" if found is None else found.strip()


def _number(element: Element, tag: str) -> float | str | None:
    """The number in an element, its text if it is none, or None without the element."""
    text = _text(element, tag)
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _object(element: Element) -> VocObject:
    name, difficult = _text(element, "name"), _text(element, "difficult") not in ("", "0")
    parts = len(element.findall("part"))
    try:
        if not name:
            raise DataError("has no name")
        return VocObject(phrase_text(name, "name"), _box(element), difficult=difficult, parts=parts)
    except DataError as error:
        return VocObject(name, None, str(error), difficult)


def _box(element: Element) -> Box:
    bounds = element.find("bndbox")
    if bounds is None:
        other = next((tag for tag in _OTHER_SHAPES if element.find(tag) is not None), "")
        raise DataError(f"has a <{other}> and no <bndbox>: export boxes" if other else "has no <bndbox>")
    values = [_number(bounds, tag) for tag in _CORNERS]
    numbers = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    if len(numbers) != len(_CORNERS):
        raise DataError(f"its <bndbox> has {', '.join(_CORNERS)} {as_json(values)}; expected numbers")
    x1, y1, x2, y2 = numbers
    if x2 < x1 or y2 < y1:  # equal ones are a box of one pixel
        raise DataError(f"its <bndbox> {as_json(numbers)} is inverted; expected {', '.join(_CORNERS)}")
    return Box(x1 - 1, y1 - 1, x2, y2)
