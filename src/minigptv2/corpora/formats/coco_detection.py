"""Reads the document of a COCO detection file: images, annotations with boxes, and categories."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from minigptv2.boxes import Box
from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.formats.labeled_image import LabeledBox, LabeledImage, entry_of
from minigptv2.corpora.frames import SIZES
from minigptv2.corpora.own_entry import is_box, is_id, stated_size
from minigptv2.corpora.own_image import as_json, cut, is_text, paths_of
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.typed_marks import phrase_text

PARTS = ("images", "annotations", "categories")
_NOUN = {"images": "image", "categories": "category"}


def entries(document: dict[str, Any], file: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One entry per image, and one per unusable category, image and annotation.

    Crowds are left out, whatever their box. An image without boxes is not a mistake: COCO has many.
    """
    if not all(isinstance(document[part], list) for part in PARTS):
        raise DataError(f"{file}: {', '.join(PARTS)} must be lists")
    names: dict[Any, str] = {}
    images: dict[Any, LabeledImage] = {}
    unboxed: dict[Any, set[str]] = defaultdict(set)
    for number, entry in enumerate(document["categories"], 1):
        try:
            key = new_id(entry, "name", names)
            names[key] = phrase_text(entry["name"], "name")
        except DataError as error:
            yield OwnEntry(called("category", entry, number), None, str(error))
    for number, entry in enumerate(document["images"], 1):
        try:
            key = new_id(entry, "file_name", images)
            images[key] = _image_of(entry, file, raw)
        except DataError as error:
            yield OwnEntry(called("image", entry, number), None, str(error))
    for number, entry in enumerate(document["annotations"], 1):
        name = called("annotation", entry, number)
        try:
            box = _box_of(entry, images, names)
        except DataError as error:
            unboxed[_image_id(entry)].update(names.values())
            yield OwnEntry(name, None, str(error))
            continue
        phrase = names[entry["category_id"]]
        if box is None:
            unboxed[entry["image_id"]].add(phrase)
        else:
            images[entry["image_id"]].boxes.append(LabeledBox(phrase, box, name.partition(" (")[0]))
    for number, (key, image) in enumerate(images.items(), 1):
        yield entry_of(number, replace(image, unboxed=frozenset(unboxed[key])), raw, list(names.values()))


def _image_of(entry: dict[str, Any], file: Path, raw: Raw) -> LabeledImage:
    """An image without its boxes."""
    key, path = entry["id"], entry["file_name"]
    return LabeledImage(
        f"image {key} ({cut(path)})",
        str(key),
        image_paths(path, file, raw),
        stated=stated_size(entry),
        form=SIZES,
        no_boxes="image without boxes other than crowds",
    )


def image_paths(path: str, file: Path, raw: Raw) -> tuple[str, ...]:
    """Where the image of a COCO file may be: below the root, in the folder of the file, or where known tools put it.

    These are `images/` and `images/train/` beside `annotations/instances_train.json` (CVAT), and `train2017/` (COCO).
    A path of another machine is looked for by its name (Label Studio).
    """
    paths = paths_of(path, file, raw)
    if any(map(os.path.isfile, paths)):
        return paths
    given, above, split = PureWindowsPath(path), file.parent.parent, file.stem.rpartition("_")[2]
    name = given.name if given.root else given.as_posix()
    folders = (raw.root, file.parent / "images", above / "images", above / "images" / split, above / split, above)
    found = next((str(folder / name) for folder in folders if os.path.isfile(folder / name)), None)
    return paths if found is None else (found,)


def _image_id(entry: Any) -> Any:
    """The id of the image of an annotation, or None if it is no id."""
    key = entry.get("image_id") if isinstance(entry, dict) else None
    return key if is_id(key) else None


def called(kind: str, entry: Any, number: int) -> str:
    """The name of an entry of a COCO file, from its id, or from its number in the list if it has none."""
    fields = entry if isinstance(entry, dict) else {}
    of = f" (image {as_json(fields['image_id'])})" if "image_id" in fields else ""
    return (
        f"{kind} {as_json(fields['id'])}{of}"
        if "id" in fields
        else f"{kind} without id, number {number} of its list{of}"
    )


def new_id(entry: Any, text: str, known: dict[Any, Any]) -> Any:
    """The id of an image or a category that also has a `text`. Raises `DataError` saying what to change."""
    if not isinstance(entry, dict):
        raise DataError(f'expected an object with "id" and "{text}", got {as_json(entry)}')
    if not is_id(entry.get("id")):
        raise DataError(f"id is {as_json(entry.get('id'))}; expected a number or a text")
    if entry["id"] in known:
        raise DataError("duplicate id; ids must be unique")
    if not is_text(entry.get(text)):
        raise DataError(f"{text} is {as_json(entry.get(text))}; expected a text")
    return entry["id"]


def _check_upright(entry: dict[str, Any]) -> None:
    """Raise `DataError` for a box that a labeling tool has rotated: its `bbox` is the box before the rotation."""
    attributes = entry.get("attributes")
    for fields in (entry, attributes if isinstance(attributes, dict) else {}):
        rotation = fields.get("rotation")
        if isinstance(rotation, (int, float)) and rotation % 360:
            raise DataError(
                f"rotation is {as_json(rotation)}, and a box has no rotation here: export upright boxes, or remove the "
                "annotation"
            )


def _box_of(entry: Any, images: dict[Any, Any], names: dict[Any, str]) -> Box | None:
    """The box of a COCO annotation, or None for a crowd, which is one box around many. Raises `DataError` as above."""
    if not isinstance(entry, dict):
        raise DataError(f"expected an object with image_id, category_id and bbox, got {as_json(entry)}")
    for key, known, part in (("image_id", images, "images"), ("category_id", names, "categories")):
        if key not in entry:
            raise DataError(f"has no {key}; add it, or remove the annotation")
        if not is_id(entry[key]) or entry[key] not in known:
            raise DataError(f"its {key} is not listed in {part}: add the {_NOUN[part]}, or remove the annotation")
    if entry.get("iscrowd") not in (None, 0, 1):
        raise DataError(f"iscrowd is {as_json(entry['iscrowd'])}; expected 0 or 1")
    if entry.get("iscrowd"):
        return None
    _check_upright(entry)
    box = entry.get("bbox")
    if not is_box(box) or box[2] <= 0 or box[3] <= 0:
        found = f"bbox is {as_json(box)}" if "bbox" in entry else "has no bbox"
        raise DataError(f"{found}; expected [x, y, width, height] in pixels, with width and height above 0")
    x, y, width, height = map(float, box)
    return Box(x, y, x + width, y + height)
