"""Makes the entry of one row of a table: the same entry as one JSON line with the keys that its columns hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.corpora.formats import labeled_image
from minigptv2.corpora.formats.entry import TOO_DEEP, OwnEntry, entry_of
from minigptv2.corpora.formats.table_columns import Columns
from minigptv2.corpora.formats.table_feature import Feature, classes_of, named, transposed
from minigptv2.corpora.frames import CORNERS, SIZES
from minigptv2.corpora.own_chat import CONVERSATION_KEYS
from minigptv2.corpora.own_entry import NORMALISED, PIXELS, XYWH, is_box, is_id, names_image, stated_size
from minigptv2.corpora.own_image import IMAGE_KEYS, as_json, cut, image_of, is_text, located
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.typed_marks import phrase_text

_TEXTS = ("answer", "raw", "text", "caption", "sentence")
"""Keys of an object that is an answer among several."""
_BOX, _PHRASES = "bbox", ("category", "categories", "label", "labels", "class", "category_name", "name")
"""Keys of objects with boxes, as tables of object detection have them."""
_OF_OBJECTS = ("id", "area", "iscrowd", "is_crowd", "segmentation", "bbox_id", "category_id", "attributes", "score")
"""Keys that describe such an object. They are passed over."""
_CROWDS = ("iscrowd", "is_crowd")
_LISTS = (*CONVERSATION_KEYS, "objects")
_WITH_BYTES = (*IMAGE_KEYS, *CONVERSATION_KEYS)
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class Row:
    """A row: its name in messages, its number in the corpus, and its values by column. `problem`: it cannot be read."""

    name: str
    number: int
    values: dict[str, Any]
    problem: str = ""


def row_entry(row: Row, columns: Columns, features: dict[str, Feature], file: Path, raw: Raw) -> OwnEntry:
    """The entry of a row, or what is wrong with it."""
    try:
        if row.problem:
            raise DataError(row.problem)
        entry = _entry(row, columns, features)
        _check_passed_over(row, columns, any(entry.get(key) for key in IMAGE_KEYS), raw)
        if _has_detections(entry):
            return _detections(row, entry, classes_of(features.get(columns.of_key["objects"])), file, raw)
    except DataError as error:
        return OwnEntry(_name_of(row, columns), None, str(error))
    except RecursionError:
        return OwnEntry(row.name, None, TOO_DEEP)
    found = entry_of(row.name, row.number, entry, file, raw)
    renamed = ", ".join(f"{key} is column '{cut(name)}'" for key, name in columns.of_key.items() if key != name)
    if found.draft is None and renamed:
        return OwnEntry(found.name, None, f"{found.problem} ({renamed})", found.mistake)
    return found


def _name_of(row: Row, columns: Columns) -> str:
    key = row.values.get(columns.of_key.get("id", ""))
    return f"{row.name} (id {as_json(key)})" if is_id(key) else row.name


def _entry(row: Row, columns: Columns, features: dict[str, Feature]) -> dict[str, Any]:
    """The keys that have a value. Raises `DataError` naming the column."""
    entry: dict[str, Any] = {"task": columns.task} if columns.task else {}
    for key, name in columns.of_key.items():
        try:
            value = _value(key, row.values.get(name), features.get(name))
        except DataError as error:
            raise DataError(f"column '{cut(name)}': {error}") from error
        if value is None and key in columns.needed:
            raise DataError(f"column '{cut(name)}' is null")
        if value is not None:
            entry[key] = value
    return entry


def _value(key: str, value: Any, feature: Feature) -> Any:
    """A value as a JSON line has it."""
    value = _plain(named(value, feature, key), key in _WITH_BYTES)
    if key in _LISTS:
        value = transposed(value)
    return _answers(value) if key == "answer" else value


def _plain(value: Any, with_bytes: bool) -> Any:
    """A value of JSON. Raises `DataError` for any other, such as a date. Bytes may be the image."""
    if isinstance(value, dict):
        return {key: _plain(one, with_bytes) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, with_bytes) for one in value]
    if value is None or isinstance(value, str | bool | int | float) or with_bytes and isinstance(value, bytes):
        return value
    raise DataError(f"a value of the type {type(value).__name__} is no text, number, list or object")


def _answers(value: Any) -> Any:
    """The texts of answers that are given as objects, as VQAv2 has them, or as the object of lists of COCO captions."""
    if isinstance(value, dict):
        return _text_of(value)
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return [_text_of(one) for one in value]
    return value


def _text_of(answer: dict[str, Any]) -> Any:
    keys = [key for key in _TEXTS if answer.get(key) is not None]
    if not keys:
        raise DataError(f"an answer has the keys {as_json(list(answer))}; expected one of {', '.join(_TEXTS)}")
    return answer[keys[0]]


def _check_passed_over(row: Row, columns: Columns, has_image: bool, raw: Raw) -> None:
    """Count the columns that are passed over. Raises `DataError` if one names an image, and the row has none."""
    has_image = has_image or any(row.values.get(columns.of_key.get(key, "")) for key in CONVERSATION_KEYS)
    for name in columns.passed_over:
        value = row.values.get(name)
        if value in _EMPTY:
            continue
        if not has_image and names_image(value):
            raise DataError(f"column '{cut(name)}' is {as_json(value)}: name the column of the image with --columns")
        raw.note(f"passed over column '{cut(name)}' in {{count}} of the rows")


def _has_detections(entry: dict[str, Any]) -> bool:
    """Whether the objects are boxes with categories, as tables of object detection have them."""
    objects = entry.get("objects")
    return isinstance(objects, list) and (
        any(isinstance(one, dict) and _BOX in one for one in objects) or not objects and "answer" not in entry
    )


def _detections(row: Row, entry: dict[str, Any], classes: list[str], file: Path, raw: Raw) -> OwnEntry:
    """The entry of an image with labeled boxes: x, y, width and height in pixels unless `boxes_in` says otherwise."""
    images = image_of(entry)
    if not images:
        raise DataError("objects with boxes need an image")
    kind = entry.get("boxes_in", XYWH)
    if kind not in (PIXELS, XYWH, NORMALISED):
        raise DataError(f"boxes_in is {as_json(kind)}, which is not one of {PIXELS}, {XYWH}, {NORMALISED}")
    boxes: list[labeled_image.LabeledBox] = []
    crowds: set[str] = set()
    for number, one in enumerate(entry["objects"], 1):
        what = f"object {number}"
        phrase = _phrase_of(one, what)
        if any(one.get(key) for key in _CROWDS):
            crowds.add(phrase)
        else:
            box = _box_of(one, what, sizes=kind == XYWH)
            boxes.append(labeled_image.LabeledBox(phrase, box, f"{row.name}, {what}"))
    key = str(entry.get("id", row.number))
    return labeled_image.entry_of(
        row.number,
        labeled_image.LabeledImage(
            f"{row.name} (id {as_json(entry['id'])})" if is_id(entry.get("id")) else row.name,
            key,
            located(images[0], file, raw),
            boxes,
            stated=stated_size(entry),
            frame=(1, 1) if kind == NORMALISED else None,
            form=SIZES if kind == XYWH else CORNERS,
            unboxed=frozenset(crowds),
        ),
        raw,
        classes,
    )


def _phrase_of(one: Any, what: str) -> str:
    if not isinstance(one, dict):
        raise DataError(f"{what} is {as_json(one)}; expected an object with {_BOX} and category")
    unknown = [key for key in one if key not in (_BOX, *_PHRASES, *_OF_OBJECTS) and one[key] not in _EMPTY]
    if unknown:
        raise DataError(f"{what} has the unknown key '{cut(unknown[0])}'; expected {_BOX} and category")
    keys = [key for key in _PHRASES if one.get(key) is not None]
    texts = [key for key in keys if isinstance(one[key], str)]
    if not texts:
        found = f"{keys[0]} is {as_json(one[keys[0]])}, a number without a name" if keys else "it has no category"
        raise DataError(f"{what}: {found}; store the name of the class, or the feature ClassLabel of `datasets`")
    if not is_text(one[texts[0]]):
        raise DataError(f"{what}: {texts[0]} is {as_json(one[texts[0]])}; expected a text")
    return phrase_text(one[texts[0]], f"{what}: {texts[0]}")


def _box_of(one: dict[str, Any], what: str, *, sizes: bool) -> Box:
    box = one.get(_BOX)
    if not is_box(box):
        raise DataError(f"{what}: {_BOX} is {as_json(box)}; expected four numbers")
    x, y, third, fourth = map(float, box)
    right, bottom = (x + third, y + fourth) if sizes else (third, fourth)
    if right <= x or bottom <= y:
        raise DataError(f"{what}: {_BOX} is {as_json(box)}; expected a width and a height above 0")
    return Box(x, y, right, bottom)
