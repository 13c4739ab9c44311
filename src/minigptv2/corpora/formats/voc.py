"""Reads Pascal VOC datasets: an XML file of boxes per image.

Objects marked as difficult are kept, because their classes are in the image. Parts of objects are passed over. Both are
counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.formats.labeled_image import LabeledBox, LabeledImage, entry_of
from minigptv2.corpora.formats.voc_layout import (
    VocLayout,
    find_layout,
    has_annotations,
    image_of,
    images_without_annotation,
)
from minigptv2.corpora.formats.voc_xml import VocAnnotation, parse_annotation
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

TITLE = "Pascal VOC boxes"
_UNLABELED = "image without an annotation file"


def matches(path: Path) -> bool:
    """Whether a path is a folder with annotation files of Pascal VOC."""
    return has_annotations(path)


def read(path: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One entry per annotation file, with one turn per class, and one per mistake in an object."""
    layout = find_layout(path, raw)
    classes = _classes(layout) if raw.negatives else []
    used: dict[str, str] = {}
    for number, file in enumerate(layout.files, 1):
        name = str(file.relative_to(layout.annotations))
        try:
            annotation = _annotation(file)
            paths = image_of(file, annotation.filename, layout, raw)
            if len(paths) == 1 and used.setdefault(paths[0], name) != name:
                raise DataError(f"its image {Path(paths[0]).name} is that of {used[paths[0]]}: correct <filename>")
        except DataError as error:
            yield OwnEntry(name, None, str(error))
            continue
        yield from _entries(number, annotation, paths, raw, name=name, classes=classes)
    for image in images_without_annotation(layout, set(used)):
        yield OwnEntry(str(image.relative_to(layout.folder)), None, _UNLABELED, mistake=False)


def _annotation(file: Path) -> VocAnnotation:
    try:
        return parse_annotation(file.read_bytes())
    except OSError as error:
        reason = f"cannot be read: {error.strerror}" if os.path.exists(file) else "is listed, and does not exist"
        raise DataError(reason) from error


def _classes(layout: VocLayout) -> list[str]:
    """The classes of all files that can be read, in the order of their first object."""
    names: dict[str, None] = {}
    for file in layout.files:
        try:
            names |= dict.fromkeys(one.name for one in _annotation(file).objects if not one.problem)
        except DataError:  # reported by `read`
            continue
    return list(names)


def _entries(
    number: int, annotation: VocAnnotation, paths: tuple[str, ...], raw: Raw, *, name: str, classes: list[str]
) -> Iterator[OwnEntry]:
    """The mistakes in the objects of an image, then the image with its other boxes."""
    boxes, faults = [], 0
    for place, one in enumerate(annotation.objects, 1):
        called = f"{name}: object {place}"
        if one.parts:
            raw.note("passed over the boxes of {count} parts of objects", one.parts)
        if one.box is None:
            faults += 1
            yield OwnEntry(f"{called} ({one.name})" if one.name else called, None, one.problem)
            continue
        if one.difficult:
            raw.note("kept {count} objects marked as difficult")
        boxes.append(LabeledBox(one.name, one.box, called))
    unboxed = frozenset(classes) if faults else frozenset[str]()
    labeled = LabeledImage(name, name, paths, boxes, stated=annotation.size, unboxed=unboxed)
    yield entry_of(number, labeled, raw, classes)
