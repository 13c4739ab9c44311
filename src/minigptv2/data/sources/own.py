"""Your own data as a corpus: JSON lines, a CSV of pictures and captions, a COCO detection file, or LLaVA's list.

`docs/your-own-data.md` shows each. Pictures are looked for beside the file (or below `--root`). Every mistake is
named with its line and what to change; a build stops and shows the first thirty unless told to skip them.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import sys
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeGuard

from PIL import Image
from tqdm import tqdm

from minigptv2.boxes import Box
from minigptv2.data.sources.corpus import Corpus
from minigptv2.data.sources.draft import Draft, Rejected, clean, losses
from minigptv2.data.sources.llava import turns_of
from minigptv2.data.sources.raw import Raw
from minigptv2.errors import DataError, nearest
from minigptv2.record import CHAT, LANGUAGE, TASK_NAMES, Region, Turn

MAX_SHOWN = 30
MAX_BOXES_SHOWN = 8
THREADS, CHUNK = 16, 64
"""Who opens pictures in a check, and entries that one takes. Of a picture in memory all but the system's part holds the
lock: threads gain nothing there and lose nothing, and processes (measured) lose more than they gain by being started
and sent drafts. Of a disk or a network that takes 1 ms for a picture sixteen threads hide nine tenths."""
KEYS = ("image", "task", "question", "answer", "phrase", "boxes", "objects", "boxes_in", "conversations", "id")
PIXELS, XYWH, NORMALISED = "pixels", "xywh", "normalised"
FORMATS = {
    ".jsonl": "JSON lines",
    ".csv": "a CSV of image and caption",
    ".tsv": "a CSV with tabs",
    ".json": "a COCO detection file or LLaVA's list of conversations",
}
COCO_PARTS = ("images", "annotations", "categories")
_NOUN = {"images": "picture", "categories": "category"}
SAVE_AS_UTF8 = "save the file as UTF-8 (Excel: 'CSV UTF-8')"
TOO_DEEP = "its lists are nested too deeply"
_AS_IT_IS = json.JSONEncoder(ensure_ascii=False)
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can spell and no file can hold."""
_NO_UTF8 = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that are not UTF-8; UTF-8 itself never decodes to these."""


@dataclass(frozen=True, slots=True)
class Line:
    """One entry of a file and what to call it in messages: `line 3`, `image 17`.

    Without a draft `problem` says why; a `mistake` stops the build, what is none is only counted as dropped.
    """

    name: str
    draft: Draft | None
    problem: str = ""
    mistake: bool = True


def own_corpus(file: Path, *, skip_bad: bool = False) -> Corpus:
    """The corpus that a file of one's own makes, named after the file. Raises `DataError` for an unknown format.

    Its drafts raise `DataError` with every mistake, or with `skip_bad` leave the mistaken lines out and count them.
    """
    if file.suffix.lower() not in FORMATS:
        known = "; ".join(f"{suffix}: {what}" for suffix, what in FORMATS.items())
        raise DataError(f"{file}: the ending says the format, and '{file.suffix}' is none of {known}")
    if not os.path.isfile(file):  # Path.is_file raises for names that are too long
        raise DataError(f"{file} is a folder; name a file in it" if os.path.isdir(file) else f"there is no {file}")
    return Corpus(
        name=re.sub(r"[^0-9A-Za-z_-]+", "_", file.stem),
        title=f"your own: {FORMATS[file.suffix.lower()]}",
        drafts=partial(_drafts, file=file, skip_bad=skip_bad),
        tasks=("mixed",),
        expected={"train": None},
        counted="entries",
        license="yours",
        download="it is yours",
        yours=True,
    )


def _drafts(raw: Raw, split: str, *, file: Path, skip_bad: bool) -> Iterator[Draft | Rejected]:
    if not skip_bad:
        check(file, raw)
    for line in read(file, raw):
        if line.draft is not None:
            yield line.draft
        else:
            yield Rejected(line.name, line.problem)


def check(file: Path, raw: Raw) -> int:
    """How many entries the file has, none a mistake. Raises `DataError` with each mistake and what to change.

    Several threads open the pictures; what is held at a time does not grow with the file.
    """
    shown: list[str] = []
    number = bad = mistakes = 0
    shape = dict(desc=f"checking {file.name}", unit=" entries", smoothing=0.05, leave=False)
    with warnings.catch_warnings(), tqdm(**shape, disable=not sys.stderr.isatty()) as bar:
        # `images` switches this one off around each picture, which threads would do to each other
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for size, found in _looked_at(read(file, raw)):
            number, bad, mistakes = number + size, bad + len(found), mistakes + sum(map(len, found))
            shown += chain.from_iterable(found)
            del shown[MAX_SHOWN:]
            bar.update(size)
    if bad:
        more = [f"  and {mistakes - MAX_SHOWN} more"] if mistakes > MAX_SHOWN else []
        said = f"{file}: {bad} of {number} entries cannot be used; mend them, or leave them out with --skip-bad:"
        raise DataError("\n".join([said, *shown, *more]))
    if number == 0:
        raise DataError(f"{file}: is empty")
    return number


def _looked_at(lines: Iterator[Line]) -> Iterator[tuple[int, list[list[str]]]]:
    """Of each chunk of lines, in order: how many they are, and the mistakes of each that has any."""
    chunks = iter(lambda: list(islice(lines, CHUNK)), [])
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[tuple[int, list[list[str]]]]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_look_at, chunk))
                if len(pending) > 2 * THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _look_at(lines: list[Line]) -> tuple[int, list[list[str]]]:
    return len(lines), [found for found in map(_mistakes, lines) if found]


def _mistakes(line: Line) -> list[str]:
    """What is wrong with an entry, its picture opened."""
    if line.draft is None:
        return [f"  {line.name}: {line.problem}"] if line.mistake else []
    return [f"  {line.name}: {_advice(one.reason, line.draft)}" for one in losses(line.draft)]


def _advice(reason: str, draft: Draft) -> str:
    if reason == "image file missing":
        looked = draft.image if isinstance(draft.image, tuple) else ()
        return f"image file missing; looked for {' and '.join(looked)}. Give its path from the file's folder, or --root"
    if reason.startswith(("box", "empty or inverted box")):
        boxes = [str(box) for turn in draft.turns for region in turn.regions for box in region.boxes]
        more = f" and {len(boxes) - MAX_BOXES_SHOWN} more" if len(boxes) > MAX_BOXES_SHOWN else ""
        change = (
            "bbox is x, y, width, height in pixels of the picture"
            if draft.separate  # of a COCO file
            else f'Boxes are x1, y1, x2, y2 in pixels of the picture; say "boxes_in": "{XYWH}" for x, y, width, height '
            f'or "{NORMALISED}" for shares of 0..1'
        )
        return f"{reason}: {', '.join(boxes[:MAX_BOXES_SHOWN])}{more}. {change}"
    return reason


def read(file: Path, raw: Raw) -> Iterator[Line]:
    """The entries of a file, in order, each as a draft or with what is wrong."""
    readers: dict[str, Callable[[Path, Raw], Iterator[Line]]] = {
        ".jsonl": _from_jsonl,
        ".csv": partial(_from_csv, delimiter=","),
        ".tsv": partial(_from_csv, delimiter="\t"),
        ".json": _from_json,
    }
    return readers[file.suffix.lower()](file, raw)


def _open(file: Path) -> IO[str]:
    """The text of a file, line ends as they are. What is not UTF-8 comes as halves of surrogate pairs, one a byte, by
    which `_not_utf8` finds its line. Raises `DataError` for UTF-16 and UTF-32.
    """
    with open(file, "rb") as stream:
        head = stream.read(4)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in head:
        raise DataError(f"{file} is UTF-16 (Excel's 'Unicode text') or no text: {SAVE_AS_UTF8}")
    return open(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _not_utf8(text: str) -> str:
    """What to say of a line with bytes that are not UTF-8; nothing of any other."""
    found = _NO_UTF8.search(text)
    return f"not UTF-8 after '{' '.join(text[: found.start()].split())[-20:]}': {SAVE_AS_UTF8}" if found else ""


def _from_jsonl(file: Path, raw: Raw) -> Iterator[Line]:
    with _open(file) as stream:
        for number, text in enumerate(stream, 1):
            name = f"line {number}"
            if problem := _not_utf8(text):
                yield Line(name, None, problem)
            elif text.strip():
                try:
                    entry = json.loads(text)
                except ValueError as error:
                    yield Line(name, None, f"not JSON: {error}. Each line is one object in braces")
                except RecursionError:
                    yield Line(name, None, TOO_DEEP)
                else:
                    yield _line(name, number, entry, file, raw)


def _from_csv(file: Path, raw: Raw, delimiter: str) -> Iterator[Line]:
    """A row is called by the line on which it begins: a caption in quotes may hold line ends."""
    between = "tabs" if delimiter == "\t" else "commas"
    with _open(file) as stream:
        rows = _rows(stream, delimiter)
        first, columns, problem = next(rows, (1, [], ""))
        if problem or sorted(filter(None, columns)) != ["caption", "image"]:
            found = problem or f"the columns are {_shown(columns)}"
            raise DataError(
                f"{file}, line {first}: {found}; they must be image and caption, named so, {between} between"
            )
        for number, row, problem in rows:
            name, cells = f"line {number}", dict(zip(columns, row, strict=False))
            if not problem and (len(row) > len(columns) or not {"image", "caption"} <= set(cells)):
                held = between.removesuffix("s")
                problem = f'not two columns; put a caption that holds a {held} in quotes: a.jpg{delimiter}"one, two"'
            if problem:
                yield Line(name, None, problem)
            else:
                entry = {"image": cells["image"], "task": "caption", "answer": cells["caption"]}
                yield _line(name, number, entry, file, raw)


def _rows(stream: IO[str], delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """The rows of a CSV that are not blank: the line on which each begins, its cells, and what is wrong with it."""
    rows = csv.reader(stream, delimiter=delimiter, strict=True)
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            ends = f" (up to line {rows.line_num})" if rows.line_num > first else ""
            problem = f"not CSV{ends}: {error}. Quotes around a caption need an end, those within it are doubled"
            yield first, [], problem
            continue
        if row:
            yield first, row, _not_utf8(delimiter.join(row))


def _from_json(file: Path, raw: Raw) -> Iterator[Line]:
    document = _document(file)
    if isinstance(document, list):
        for number, entry in enumerate(document, 1):
            yield _line(f"entry {number}", number, entry, file, raw)
    elif isinstance(document, dict) and set(COCO_PARTS) <= set(document):
        yield from _from_coco(document, file, raw)
    else:
        raise DataError(f"{file}: want a list of conversations, or an object with images, annotations and categories")


def _document(file: Path) -> Any:
    data = file.read_bytes()
    try:
        return json.loads(data.decode(json.detect_encoding(data)))  # which may be UTF-16
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file}, line {line} is not UTF-8: {SAVE_AS_UTF8}") from error
    except RecursionError as error:
        raise DataError(f"{file}: {TOO_DEEP}") from error
    except ValueError as error:
        raise DataError(f"{file}: {f'not JSON: {error}' if data.strip() else 'is empty'}") from error


def _from_coco(document: dict[str, Any], file: Path, raw: Raw) -> Iterator[Line]:
    """A picture a draft; a turn for each category in it, with all its boxes. Crowds are left out, whatever their box.

    What cannot be used of categories, images and annotations is a mistake, each by itself; a picture without boxes is
    none, COCO has many.
    """
    if not all(isinstance(document[part], list) for part in COCO_PARTS):
        raise DataError(f"{file}: {', '.join(COCO_PARTS)} are to be lists")
    names: dict[Any, str] = {}
    pictures: dict[Any, str] = {}
    boxes: dict[Any, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    for kind, part, text, known in (
        ("category", "categories", "name", names),
        ("image", "images", "file_name", pictures),
    ):
        for number, entry in enumerate(document[part], 1):
            try:
                _keep(entry, text, known)
            except DataError as error:
                yield Line(_called(kind, entry, number), None, str(error))
    for number, entry in enumerate(document["annotations"], 1):
        try:
            box = _box_of(entry, pictures, names)
        except DataError as error:
            yield Line(_called("annotation", entry, number), None, str(error))
        else:
            if box is not None:
                boxes[entry["image_id"]][names[entry["category_id"]]].append(box)
    for number, (key, path) in enumerate(pictures.items(), 1):
        found, name = boxes.get(key), f"image {key} ({_cut(path)})"
        if not found:
            yield Line(name, None, "picture without boxes, crowds aside", mistake=False)
            continue
        turns = [Turn("detection", regions=(Region(tuple(at), (phrase,)),)) for phrase, at in found.items()]
        source = {"corpus": raw.corpus, "id": str(key)}
        yield Line(name, Draft(f"{number:08d}", tuple(turns), _paths(path, file, raw), source, separate=True))


def _called(kind: str, entry: Any, number: int) -> str:
    """What to call an entry of a COCO file: by its id, by its place in the list where it has none."""
    fields = entry if isinstance(entry, dict) else {}
    of = f" (image {_shown(fields['image_id'])})" if "image_id" in fields else ""
    return (
        f"{kind} {_shown(fields['id'])}{of}"
        if "id" in fields
        else f"{kind} without id, number {number} of its list{of}"
    )


def _keep(entry: Any, text: str, known: dict[Any, str]) -> None:
    """Put the `text` of an image or a category under its id. Raises `DataError` saying what to change."""
    if not isinstance(entry, dict):
        raise DataError(f'found {_shown(entry)}; want an object with "id" and "{text}"')
    if not _is_id(entry.get("id")):
        raise DataError(f"id is {_shown(entry.get('id'))}; want a number or a text")
    if entry["id"] in known:
        raise DataError("its id came before in the list; give each its own")
    if not _is_text(entry.get(text)):
        raise DataError(f"{text} is {_shown(entry.get(text))}; want a text")
    known[entry["id"]] = entry[text]


def _box_of(entry: Any, pictures: dict[Any, str], names: dict[Any, str]) -> Box | None:
    """The box of a COCO annotation, None of a crowd: that is one around many. Raises `DataError` as above."""
    if not isinstance(entry, dict):
        raise DataError(f"found {_shown(entry)}; want an object with image_id, category_id and bbox")
    for key, known, part in (("image_id", pictures, "images"), ("category_id", names, "categories")):
        if key not in entry:
            raise DataError(f"has no {key}; add it, or take the annotation out")
        if not _is_id(entry[key]) or entry[key] not in known:
            raise DataError(f"its {key} is not listed under {part}: add the {_NOUN[part]}, or take it out")
    if entry.get("iscrowd") not in (None, 0, 1):
        raise DataError(f"iscrowd is {_shown(entry['iscrowd'])}; want 0 or 1")
    if entry.get("iscrowd"):
        return None
    box = entry.get("bbox")
    if not _is_box(box) or box[2] <= 0 or box[3] <= 0:
        found = f"bbox is {_shown(box)}" if "bbox" in entry else "has no bbox"
        raise DataError(f"{found}; want [x, y, width, height] in pixels, width and height above 0")
    x, y, width, height = map(float, box)
    return Box(x, y, x + width, y + height)


def _line(name: str, number: int, entry: Any, file: Path, raw: Raw) -> Line:
    try:
        return Line(name, _draft(number, entry, file, raw))
    except DataError as error:
        return Line(name, None, str(error))
    except RecursionError:
        return Line(name, None, TOO_DEEP)


def _draft(number: int, entry: Any, file: Path, raw: Raw) -> Draft:
    """One entry. Raises `DataError` saying what to change."""
    if not isinstance(entry, dict):
        raise DataError(f'found {_shown(entry)}; want an object: {{"image": "a.jpg", "task": "caption", ...}}')
    if half := _HALF.search(_AS_IT_IS.encode(entry)):
        raise DataError(f"holds {_shown(half[0])}, half of a character: a text was cut in the middle of one")
    for key in entry:
        if key not in KEYS and "conversations" not in entry:
            raise DataError(f"unknown key '{_cut(key)}'{nearest(_cut(key), KEYS)} The keys are {', '.join(KEYS)}")
    image = entry.get("image")
    if image is not None and not _is_text(image):
        raise DataError(f"image is {_shown(image)}; want the path of a picture")
    frame = (1.0, 1.0) if entry.get("boxes_in") == NORMALISED else None
    talk = entry.get("conversations")
    turns = (_turn(entry, image),) if talk is None else _talk(talk, image is not None)
    source = {"corpus": raw.corpus, "id": str(entry.get("id", number))}
    return Draft(f"{number:08d}", turns, None if image is None else _paths(image, file, raw), source, frame=frame)


def _talk(conversation: Any, has_image: bool) -> tuple[Turn, ...]:
    shaped = isinstance(conversation, list) and all(
        isinstance(said, dict) and isinstance(said.get("from"), str) and isinstance(said.get("value"), str)
        for said in conversation
    )
    if not shaped:
        raise DataError('conversations is a list of {"from": "human", "value": ...}, {"from": "gpt", "value": ...}')
    return turns_of(conversation, has_image=has_image)


def _turn(entry: dict[str, Any], image: str | None) -> Turn:
    task = entry.get("task")
    if task not in TASK_NAMES:
        said = f"task '{_cut(str(task))}'{nearest(_cut(str(task)), TASK_NAMES)}" if task is not None else "no task"
        raise DataError(f"{said} The tasks are {', '.join(TASK_NAMES)}")
    if (task == LANGUAGE) != (image is None):
        change = (
            f"say task '{CHAT}', or take image out" if image is not None else f"add image, or say task '{LANGUAGE}'"
        )
        raise DataError(f"task '{task}' {'has' if image is not None else 'needs'} an image: {change}")
    answers = _texts(entry, "answer")
    if task in ("vqa", CHAT, LANGUAGE):
        return Turn(task, _need(entry, "question"), answers or _missing(task, "answer"))
    if task == "caption":
        return Turn(task, answers=answers or _missing(task, "answer"))
    if task == "grounding":
        return _grounding(entry, answers or _missing(task, "answer"))
    if task == "detection":
        return Turn(task, regions=tuple(_objects(entry)))
    phrases = _texts(entry, "question" if task == "refer" else "answer") or _texts(entry, "phrase")
    boxes = _boxes(entry)
    if len(boxes) != 1:
        raise DataError(f"task '{task}' takes one box, found {len(boxes)}")
    return Turn(task, regions=(Region(boxes, phrases or _missing(task, "phrase")),))


def _grounding(entry: dict[str, Any], answers: tuple[str, ...]) -> Turn:
    """The caption's phrases where they stand in it, one after the other."""
    caption, position, regions = clean(answers[0]), 0, []
    for region in _objects(entry):
        start = caption.find(region.phrases[0], position)
        if start < 0:
            raise DataError(
                f"phrase '{_cut(region.phrases[0])}' does not stand in the caption after character {position}; spell "
                "it as there, and list objects in the order in which it names them"
            )
        position = start + len(region.phrases[0])
        regions.append(Region(region.boxes, region.phrases, (start, position)))
    return Turn("grounding", answers=(caption,), regions=tuple(regions))


def _objects(entry: dict[str, Any]) -> list[Region]:
    """Phrases and boxes: from `objects`, or from `phrase` and `boxes` of the entry itself."""
    listed = entry.get("objects", [entry] if "boxes" in entry else None)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise DataError('want "objects": [{"phrase": "a dog", "boxes": [[x1, y1, x2, y2]]}, ...]')
    return [
        Region(_boxes({**one, "boxes_in": entry.get("boxes_in", PIXELS)}), (_need(one, "phrase"),)) for one in listed
    ]


def _boxes(entry: dict[str, Any]) -> tuple[Box, ...]:
    kind, boxes = entry.get("boxes_in", PIXELS), entry.get("boxes")
    if kind not in (PIXELS, XYWH, NORMALISED):
        raise DataError(f"boxes_in is {_shown(kind)}, which is not one of {PIXELS}, {XYWH}, {NORMALISED}")
    if isinstance(boxes, list) and len(boxes) == 4 and not any(isinstance(value, list) for value in boxes):
        boxes = [boxes]  # a single box
    if not isinstance(boxes, list) or not boxes or not all(_is_box(box) for box in boxes):
        raise DataError(f"boxes is {_shown(boxes)}; want [[x1, y1, x2, y2], ...], four numbers each")
    floats = [tuple(map(float, box)) for box in boxes]  # before they are added: a sum of integers may be no float
    corners = [
        (x, y, x + third, y + fourth) if kind == XYWH else (x, y, third, fourth) for x, y, third, fourth in floats
    ]
    if kind == PIXELS and all(0 <= value <= 1 for box in corners for value in box):
        raise DataError(f'boxes {_cut(str(corners))} are all within 0..1: add "boxes_in": "{NORMALISED}"')
    if kind == NORMALISED and any(not -0.001 <= value <= 1.001 for box in corners for value in box):
        raise DataError(f'boxes {_cut(str(corners))} are not within 0..1: take "boxes_in": "{NORMALISED}" out')
    return tuple(Box(*box) for box in corners)


def _is_box(box: Any) -> TypeGuard[list[float]]:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> bool:
    """Whether it is one that a float can hold: JSON's may have any length, and Python reads NaN and Infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_id(value: Any) -> bool:
    return isinstance(value, int | float) or _is_text(value)


def _texts(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    """A text or a list of texts; empty ones are a mistake."""
    given = entry.get(key)
    if given is None:
        return ()
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{key} is {_shown(given)}; want a text, or a list of texts, none of them empty")
    return tuple(texts)


def _need(entry: dict[str, Any], key: str) -> str:
    texts = _texts(entry, key)
    if len(texts) != 1:
        raise DataError(f'want one "{key}", found {len(texts)}')
    return texts[0]


def _missing(task: str, key: str) -> Any:
    raise DataError(f"task '{task}' needs \"{key}\"")


def _is_text(value: Any) -> bool:
    """Whether it is a text that may name something, a file too: not blank, and one that UTF-8 can hold."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and not _HALF.search(value)


def _shown(value: Any) -> str:
    """The beginning of a value as JSON: in ASCII, so that any stream takes it."""
    return _cut(json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def _paths(image: str, file: Path, raw: Raw) -> tuple[str, ...]:
    return tuple(dict.fromkeys((str(raw.root / image), str(file.parent / image))))
