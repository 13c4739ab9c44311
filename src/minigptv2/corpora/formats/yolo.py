"""Reads YOLO datasets: a text file of classes and normalized boxes beside each image or in `labels/`.

Boxes are in the upright image, as Ultralytics reads it. A polygon becomes the box around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from minigptv2.boxes import Box
from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.formats.labeled_image import LabeledBox, LabeledImage, entry_of
from minigptv2.corpora.formats.yolo_images import YoloImage, images_of
from minigptv2.corpora.formats.yolo_layout import YoloLayout, find_layout
from minigptv2.corpora.frames import CENTERS
from minigptv2.corpora.own_image import cut
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.shards.tar_captions import decode_text

TITLE = "YOLO boxes"
_BOX, _CONFIDENCE, _POLYGON = 5, 6, 7
"""Values of a row: a class and a box; the same with a confidence; a class and at least three points."""
_BACKGROUND, _UNLABELED = "image with an empty label file", "image without a label file"


def matches(path: Path) -> bool:
    """Whether a path is a `data.yaml`, an `obj.data`, a list of classes, or a folder with one of them."""
    return find_layout(path) is not None


def read(path: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One entry per image, with one turn per class, and one per mistake in a row."""
    layout = find_layout(path)
    if layout is None:
        raise DataError(f"{path}: has no data.yaml, obj.names or classes.txt, which name the classes of YOLO boxes")
    used: dict[tuple[str, ...], str] = {}
    for number, image in enumerate(images_of(layout, raw), 1):
        first = used.setdefault(image.paths, image.name) if image.paths else image.name
        if first != image.name:
            yield OwnEntry(image.name, None, f"its image {image.paths[0]} is that of {first}: rename one of them")
        else:
            yield from _entries(number, image, layout, raw)


def _entries(number: int, image: YoloImage, layout: YoloLayout, raw: Raw) -> Iterator[OwnEntry]:
    """The mistakes in the rows of an image, then the image with its other boxes."""
    if image.problem:
        yield OwnEntry(image.name, None, image.problem)
        return
    classes, boxes, faults = list(layout.names.values()), [], 0
    try:
        rows = [] if image.label is None else _rows_of(image.label)
    except DataError as error:
        yield OwnEntry(image.name, None, str(error))
        return
    for line, row in rows:
        name = f"{image.name}: line {line} of its labels"
        try:
            boxes.append(_box_of(row, name, layout, raw))
        except DataError as error:
            faults += 1
            yield OwnEntry(name, None, str(error))
    labeled = LabeledImage(
        image.name,
        image.name,
        image.paths,
        boxes,
        frame=(1, 1),
        form=CENTERS,
        no_boxes=_UNLABELED if image.label is None else _BACKGROUND,
        unboxed=frozenset(classes) if faults or image.label is None else frozenset(),
    )
    yield entry_of(number, labeled, raw, classes)


def _rows_of(label: Path) -> list[tuple[int, list[str]]]:
    """The rows of a label file that are not blank, each with the number of its line."""
    try:
        text = decode_text(label.read_bytes(), label.name)
    except OSError as error:
        raise DataError(f"{label.name} cannot be read: {error.strerror}") from error
    return [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _box_of(row: list[str], name: str, layout: YoloLayout, raw: Raw) -> LabeledBox:
    """The box of a row. A polygon becomes the box around it, which is noted."""
    try:
        values = [float(value) for value in row]
    except ValueError as error:
        raise DataError(f"'{cut(' '.join(row))}' is not a class and numbers") from error
    if not all(map(math.isfinite, values)):
        raise DataError(f"'{cut(' '.join(row))}' has a value that is not finite")
    phrase = layout.class_of(values[0])
    if len(values) == _BOX or layout.num_keypoint_values and len(values) == _BOX + layout.num_keypoint_values:
        if len(values) > _BOX:
            raw.note("passed over the keypoints of {count} boxes")
        x, y, width, height = values[1:_BOX]
        if width <= 0 or height <= 0:
            raise DataError(f"the box '{cut(' '.join(row))}' is empty: its width and height must be above 0")
        return LabeledBox(phrase, Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), name)
    if len(values) >= _POLYGON and len(values) % 2 == 1:
        raw.note("took the box around each of {count} polygons")
        xs, ys = values[1::2], values[2::2]
        return LabeledBox(phrase, Box(min(xs), min(ys), max(xs), max(ys)), name)
    hint = ": a sixth value is the confidence of a model; remove it" if len(values) == _CONFIDENCE else ""
    raise DataError(
        f"has {len(values)} values; expected a class and x, y, width, height of its box, from 0 to 1, or the points of "
        f"a polygon{hint}"
    )
