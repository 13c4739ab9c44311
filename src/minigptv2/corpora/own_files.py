"""Reads the file formats of users' own data, entry by entry, as drafts or as errors that say what to change."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from minigptv2.boxes import Box
from minigptv2.corpora.draft import Draft
from minigptv2.corpora.frames import SIZES, Size
from minigptv2.corpora.own_entry import draft_of, is_box, is_id, stated_size
from minigptv2.corpora.own_image import as_json, cut, is_text, paths_of
from minigptv2.corpora.raw import Raw
from minigptv2.corpora.typed_marks import phrase_text
from minigptv2.errors import DataError
from minigptv2.record import Region, Turn

COCO_PARTS = ("images", "annotations", "categories")
_NOUN = {"images": "image", "categories": "category"}
SAVE_AS_UTF8 = "save the file as UTF-8 (Excel: 'CSV UTF-8')"
TOO_DEEP = "its lists are nested too deeply"
_NO_UTF8 = re.compile("[\udc80-\udcff]")
"""Characters to which `surrogateescape` decodes bytes that are not UTF-8. Valid UTF-8 never decodes to them."""


@dataclass(frozen=True, slots=True)
class OwnEntry:
    """One entry of a file, and its name in messages, such as `line 3` or `image 17`.

    Without a draft, `problem` says why. A `mistake` stops the build. Other problems are only counted as dropped.
    """

    name: str
    draft: Draft | None
    problem: str = ""
    mistake: bool = True


def read(file: Path, raw: Raw) -> Iterator[OwnEntry]:
    """The entries of a file in order, each with its draft or its problem. Raises `DataError` for an unreadable file."""
    readers: dict[str, Callable[[Path, Raw], Iterator[OwnEntry]]] = {
        ".jsonl": _from_jsonl,
        ".csv": partial(_from_csv, delimiter=","),
        ".tsv": partial(_from_csv, delimiter="\t"),
        ".json": _from_json,
    }
    return readers[file.suffix.lower()](file, raw)


def _open(file: Path) -> IO[str]:
    """The text of a file with unchanged line ends. A byte that is not UTF-8 becomes half a surrogate pair, by which
    `_not_utf8` finds its line. Raises `DataError` for UTF-16 and UTF-32.
    """
    with open(file, "rb") as stream:
        head = stream.read(4)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in head:
        raise DataError(f"{file} is UTF-16 (Excel's 'Unicode text') or not a text file: {SAVE_AS_UTF8}")
    return open(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _not_utf8(text: str) -> str:
    """The error for a line with bytes that are not UTF-8, or an empty text."""
    found = _NO_UTF8.search(text)
    return f"not UTF-8 after '{' '.join(text[: found.start()].split())[-20:]}': {SAVE_AS_UTF8}" if found else ""


def _from_jsonl(file: Path, raw: Raw) -> Iterator[OwnEntry]:
    with _open(file) as stream:
        for number, text in enumerate(stream, 1):
            name = f"line {number}"
            if problem := _not_utf8(text):
                yield OwnEntry(name, None, problem)
            elif text.strip():
                try:
                    entry = json.loads(text, object_pairs_hook=_unique)
                except DataError as error:
                    yield OwnEntry(name, None, str(error))
                except ValueError as error:
                    yield OwnEntry(name, None, f"not JSON: {error}. Each line must be one object in braces")
                except RecursionError:
                    yield OwnEntry(name, None, TOO_DEEP)
                else:
                    yield _line(name, number, entry, file, raw)


def _from_csv(file: Path, raw: Raw, delimiter: str) -> Iterator[OwnEntry]:
    """A row is named after the line on which it begins, since a caption in quotes may contain line ends."""
    between = "tabs" if delimiter == "\t" else "commas"
    with _open(file) as stream:
        rows = _rows(stream, delimiter)
        first, columns, problem = next(rows, (1, [], ""))
        if problem or sorted(filter(None, columns)) != ["caption", "image"]:
            found = problem or f"the columns are {as_json(columns)}"
            raise DataError(
                f"{file}, line {first}: {found}; the columns must be image and caption, separated by {between}"
            )
        for number, row, problem in rows:
            name, cells = f"line {number}", dict(zip(columns, row, strict=False))
            if not problem and (len(row) > len(columns) or not {"image", "caption"} <= set(cells)):
                held = between.removesuffix("s")
                problem = f'not two columns; put a caption that contains a {held} in quotes: a.jpg{delimiter}"one, two"'
            if problem:
                yield OwnEntry(name, None, problem)
            else:
                entry = {"image": cells["image"], "task": "caption", "answer": cells["caption"]}
                yield _line(name, number, entry, file, raw)


def _rows(stream: IO[str], delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """The rows of a CSV that are not blank: the line on which each begins, its cells, and its problem, if any."""
    rows = csv.reader(stream, delimiter=delimiter, strict=True)
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # the reader continues with the next line
            ends = f" (up to line {rows.line_num})" if rows.line_num > first else ""
            problem = f"not CSV{ends}: {error}. A quoted caption needs a closing quote, with quotes inside it doubled"
            yield first, [], problem
            continue
        if row:
            yield first, row, _not_utf8(delimiter.join(row))


def _from_json(file: Path, raw: Raw) -> Iterator[OwnEntry]:
    document = _document(file)
    if isinstance(document, list):
        for number, entry in enumerate(document, 1):
            yield _line(f"entry {number}", number, entry, file, raw)
    elif isinstance(document, dict) and set(COCO_PARTS) <= set(document):
        yield from _from_coco(document, file, raw)
    else:
        raise DataError(
            f"{file}: must be a list of conversations, or an object with images, annotations and categories"
        )


def _document(file: Path) -> Any:
    data = file.read_bytes()
    try:
        return json.loads(data.decode(json.detect_encoding(data)), object_pairs_hook=_unique)  # may be UTF-16
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file}, line {line} is not UTF-8: {SAVE_AS_UTF8}") from error
    except RecursionError as error:
        raise DataError(f"{file}: {TOO_DEEP}") from error
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except ValueError as error:
        lines = ". If each line is an object, name the file .jsonl" if str(error).startswith("Extra data") else ""
        raise DataError(f"{file}: {f'not JSON: {error}{lines}' if data.strip() else 'is empty'}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises `DataError` for a repeated key, of which one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key '{cut(repeated)}' occurs twice in one object: {as_json(found)}")
    return found


def _from_coco(document: dict[str, Any], file: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One draft per image, with one turn per category and all its boxes. Crowds are left out, whatever their box.

    Every unusable category, image or annotation is a mistake. An image without boxes is not: COCO has many.
    """
    if not all(isinstance(document[part], list) for part in COCO_PARTS):
        raise DataError(f"{file}: {', '.join(COCO_PARTS)} must be lists")
    names: dict[Any, str] = {}
    pictures: dict[Any, str] = {}
    sizes: dict[Any, Size | None] = {}
    boxes: dict[Any, dict[str, list[tuple[Box, str]]]] = defaultdict(lambda: defaultdict(list))
    for kind, part, text, known in (
        ("category", "categories", "name", names),
        ("image", "images", "file_name", pictures),
    ):
        for number, entry in enumerate(document[part], 1):
            try:
                value = _text_of(entry, text, known)
                if kind == "image":
                    sizes[entry["id"]] = stated_size(entry)
                known[entry["id"]] = value
            except DataError as error:
                yield OwnEntry(_called(kind, entry, number), None, str(error))
    for number, entry in enumerate(document["annotations"], 1):
        called = _called("annotation", entry, number)
        try:
            box = _box_of(entry, pictures, names)
        except DataError as error:
            yield OwnEntry(called, None, str(error))
        else:
            if box is not None:
                boxes[entry["image_id"]][names[entry["category_id"]]].append((box, called.partition(" (")[0]))
    for number, (key, path) in enumerate(pictures.items(), 1):
        found, name = boxes.get(key), f"image {key} ({cut(path)})"
        if not found:
            yield OwnEntry(name, None, "image without boxes other than crowds", mistake=False)
            continue
        turns = [
            Turn("detection", regions=(Region(tuple(box for box, _ in given), (phrase,)),))
            for phrase, given in found.items()
        ]
        draft = Draft(
            f"{number:08d}",
            tuple(turns),
            paths_of(path, file, raw),
            {"corpus": raw.corpus, "id": str(key)},
            separate=True,
            stated=sizes.get(key),
            label=f"image {key}",
            box_names=tuple(called for given in found.values() for _, called in given),
            form=SIZES,
            upright=True,
        )
        yield OwnEntry(name, draft)


def _called(kind: str, entry: Any, number: int) -> str:
    """The name of an entry of a COCO file, from its id, or from its number in the list if it has none."""
    fields = entry if isinstance(entry, dict) else {}
    of = f" (image {as_json(fields['image_id'])})" if "image_id" in fields else ""
    return (
        f"{kind} {as_json(fields['id'])}{of}"
        if "id" in fields
        else f"{kind} without id, number {number} of its list{of}"
    )


def _text_of(entry: Any, text: str, known: dict[Any, str]) -> str:
    """The `text` of an image or a category with a new id. Raises `DataError` saying what to change."""
    if not isinstance(entry, dict):
        raise DataError(f'expected an object with "id" and "{text}", got {as_json(entry)}')
    if not is_id(entry.get("id")):
        raise DataError(f"id is {as_json(entry.get('id'))}; expected a number or a text")
    if entry["id"] in known:
        raise DataError("duplicate id; ids must be unique")
    if not is_text(entry.get(text)):
        raise DataError(f"{text} is {as_json(entry.get(text))}; expected a text")
    return phrase_text(entry[text], text) if text == "name" else str(entry[text])


def _box_of(entry: Any, pictures: dict[Any, str], names: dict[Any, str]) -> Box | None:
    """The box of a COCO annotation, or None for a crowd, which is one box around many. Raises `DataError` as above."""
    if not isinstance(entry, dict):
        raise DataError(f"expected an object with image_id, category_id and bbox, got {as_json(entry)}")
    for key, known, part in (("image_id", pictures, "images"), ("category_id", names, "categories")):
        if key not in entry:
            raise DataError(f"has no {key}; add it, or remove the annotation")
        if not is_id(entry[key]) or entry[key] not in known:
            raise DataError(f"its {key} is not listed in {part}: add the {_NOUN[part]}, or remove the annotation")
    if entry.get("iscrowd") not in (None, 0, 1):
        raise DataError(f"iscrowd is {as_json(entry['iscrowd'])}; expected 0 or 1")
    if entry.get("iscrowd"):
        return None
    box = entry.get("bbox")
    if not is_box(box) or box[2] <= 0 or box[3] <= 0:
        found = f"bbox is {as_json(box)}" if "bbox" in entry else "has no bbox"
        raise DataError(f"{found}; expected [x, y, width, height] in pixels, with width and height above 0")
    x, y, width, height = map(float, box)
    return Box(x, y, x + width, y + height)


def _line(name: str, number: int, entry: Any, file: Path, raw: Raw) -> OwnEntry:
    if isinstance(entry, dict) and is_id(entry.get("id")):
        name = f"{name} (id {as_json(entry['id'])})"
    try:
        return OwnEntry(name, replace(draft_of(number, entry, file, raw), label=name, upright=True))
    except DataError as error:
        return OwnEntry(name, None, str(error))
    except RecursionError:
        return OwnEntry(name, None, TOO_DEEP)
