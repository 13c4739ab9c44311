"""Converts one entry of a user's file to a draft, or raises an error that says what to change."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, TypeGuard

from minigptv2.boxes import Box
from minigptv2.corpora.draft import Draft, clean
from minigptv2.corpora.frames import CORNERS, SIZES
from minigptv2.corpora.own_chat import CONVERSATION_KEYS, holds_image, read_conversation
from minigptv2.corpora.own_image import IMAGE_KEYS, as_json, cut, image_of, is_text, located
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError, nearest
from minigptv2.record import Region, Turn
from minigptv2.tasks import TASKS
from minigptv2.typed_marks import answer_text, phrase_text, query_text, require_images, without_image_marks

_TASK_KEYS = ("question", "answer", "phrase", "boxes", "objects", "boxes_in")
KEYS = (*IMAGE_KEYS, "task", *_TASK_KEYS, "width", "height", *CONVERSATION_KEYS, "id")
PIXELS, XYWH, NORMALISED = "pixels", "xywh", "normalised"
DESCRIPTIONS = (
    *("model", "source", "data_source", "dataset", "dataset_name", "split", "subset", "category", "type", "topic"),
    *("language", "lang", "license", "version", "score", "uid", "idx", "index", "question_id", "qid", "task"),
    *("conversation_id", "question_type", "meta", "metadata", "created_at", "tags"),
)
"""Keys with which known tools describe a conversation. They are passed over, and counted in the report of the build."""
DESCRIPTIONS_OF_IMAGES = (
    *("image_id", "img_id", "width", "height", "image_width", "image_height", "image_size", "width_list"),
    *("height_list", "url", "coco_url", "flickr_url", "file_name", "filename", "sha256", "md5"),
)
"""The same, of its image: only beside an image, since they may mean that there should be one."""
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif|jfif)\b|^data:image", re.IGNORECASE)
_IMAGE_KEY = re.compile(
    "im(age|g)|pic|photo|visual|media|frame|figure|screenshot|scan|thumb|attach|asset|src|video|audio|file|path",
    re.IGNORECASE,
)
EMPTY: tuple[Any, ...] = (None, "", [], {})
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=lambda value: "")
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can contain and UTF-8 cannot encode."""


def draft_of(number: int, entry: Any, file: Path, raw: Raw) -> Draft:
    """The draft of an entry. Raises `DataError` saying what to change."""
    if not isinstance(entry, dict):
        raise DataError(f'expected an object: {{"image": "a.jpg", "task": "caption", ...}}, got {as_json(entry)}')
    if half := _HALF.search(_ENCODER.encode(entry)):
        raise DataError(f"contains {as_json(half[0])}, half of a character: a text was truncated within a character")
    conversations = [key for key in CONVERSATION_KEYS if entry.get(key) is not None]
    if len(conversations) > 1:
        conversations = [key for key in conversations if entry[key] not in EMPTY] or conversations[:1]
    if len(conversations) > 1:
        raise DataError("conversations and messages are both given: remove one of them")
    images = image_of(entry)
    has_image = bool(images) or bool(conversations) and holds_image(entry[conversations[0]])
    for key in entry:
        _check_key(key, entry, conversations, has_image, raw)
    if conversations:
        read = read_conversation(entry, conversations[0], images)
        turns, image = read.turns, read.image
    else:
        image = images[0] if images else None
        turns = (_turn(entry, image is not None),)
    frame = (1.0, 1.0) if entry.get("boxes_in") == NORMALISED else None
    source = {"corpus": raw.corpus, "id": str(entry.get("id", number))}
    found = None if image is None else located(image, file, raw)
    form = SIZES if entry.get("boxes_in") == XYWH else CORNERS
    stated = None if conversations else stated_size(entry)  # conversations have no boxes of their own
    return Draft(f"{number:08d}", turns, found, source, frame=frame, stated=stated, form=form)


def stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height of the image that an entry states, or None. Some tools write 0 or null for an unknown size."""
    if not any(entry.get(key) for key in ("width", "height")):
        return None
    width, height = (_side(entry, key) for key in ("width", "height"))
    return width, height


def _side(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if not _is_number(value) or value != int(value) or value <= 0:
        raise DataError(f"{key} is {as_json(value)}; expected the image's {key} in pixels")
    return int(value)


def _check_key(key: str, entry: dict[str, Any], conversations: list[str], has_image: bool, raw: Raw) -> None:
    """Raise `DataError` for a key whose value would be lost. Keys that only describe an entry are counted."""
    value = entry[key]
    if not conversations:
        if key not in KEYS:
            raise DataError(f"unknown key '{cut(key)}'{nearest(cut(key), KEYS)} The keys are {', '.join(KEYS)}")
        return
    is_image = names_image(value)
    if key == "id" and is_image and not has_image:
        raise DataError(f"id is {as_json(value)}, and there is no image: give the image as image, or change the id")
    if key in (*IMAGE_KEYS, *CONVERSATION_KEYS, "system", "id") or value in EMPTY:
        return
    if key in _TASK_KEYS or key == "task" and isinstance(value, str) and value in TASKS and TASKS[value].identifier:
        raise DataError(f"{key} is given beside {conversations[0]}: an entry is one or the other; remove one of them")
    described = key in DESCRIPTIONS or has_image and key in DESCRIPTIONS_OF_IMAGES
    passed = raw.ignore_extra and not is_named_like_an_image(key)
    if (described or passed) and (has_image or not is_image):
        raw.note(f"passed over key '{cut(key)}' in {{count}} of the entries")
        return
    if is_image or is_named_like_an_image(key):
        raise DataError(f"unknown key '{cut(key)}', {as_json(value)}: an image is given as image or images")
    raise DataError(
        f"unknown key '{cut(key)}'{nearest(cut(key), KEYS)} Remove it, or pass over such keys with --ignore-extra"
    )


def is_named_like_an_image(key: str) -> bool:
    """Whether the name of a key says that it may hold an image, or a path."""
    return bool(_IMAGE_KEY.search(key))


def names_image(value: Any) -> bool:
    """Whether a value, or one inside it, looks like the path, the URL or the bytes of an image."""
    if isinstance(value, dict):
        return any(map(names_image, value.values()))
    if isinstance(value, list):
        return any(map(names_image, value))
    return isinstance(value, str) and bool(_IMAGE_NAME.search(value))


def _turn(entry: dict[str, Any], has_image: bool) -> Turn:
    task = entry.get("task")
    if not isinstance(task, str) or task not in TASKS:
        known = ", ".join(TASKS)
        if task is None:
            raise DataError(f"no task. The tasks are {known}")
        given = cut(str(task))
        raise DataError(f"unknown task '{given}'{nearest(given, tuple(TASKS))} The tasks are {known}")
    shape = TASKS[task].shape
    if shape.image and not has_image:
        raise DataError(f"task '{task}' needs an image: add image, or set task to 'language'")
    if has_image and not shape.image:
        raise DataError(f"task '{task}' has an image: set task to 'conversation', or remove image")
    _refuse_unused(entry, task)
    answers = tuple(answer_text(text, "answer") for text in _texts(entry, "answer"))
    if shape.spans:
        return _grounding(task, entry, answers or _missing(task, "answer"))
    if shape.regions == "some":
        return Turn(task, regions=tuple(_objects(entry, absent=shape.absent)))
    if shape.regions == "none":
        question = _query(_need(entry, "question"), task, "question", has_image) if shape.question else None
        return Turn(task, question, answers or _missing(task, "answer"))
    phrases = _phrases(entry, task)
    boxes = _boxes(entry)
    if len(boxes) != 1:
        raise DataError(f"task '{task}' requires one box, got {len(boxes)}")
    if shape.answers and not answers:
        _missing(task, "answer")
    regions = (Region(boxes, phrases or _missing(task, "phrase")),)
    return Turn(task, answers=answers if shape.answers else (), regions=regions)


def _refuse_unused(entry: dict[str, Any], task: str) -> None:
    """Raise `DataError` for a key that the task does not use, or that another key stands for."""
    shape, is_phrase = TASKS[task].shape, TASKS[task].query == "phrase"
    used = {"question"} if shape.question or is_phrase else set[str]()
    used |= {"answer"} if shape.answers or shape.regions != "some" and not is_phrase else set()
    used |= {"phrase", "boxes", "boxes_in"} if shape.regions != "none" else set()
    used |= {"objects"} if shape.regions == "some" else set()
    given = [key for key in _TASK_KEYS if entry.get(key) not in EMPTY]
    for key in given:
        if key not in used:
            raise DataError(f"task '{task}' does not use \"{key}\": remove it, or change the task")
    for one, other in (("question", "phrase"), ("answer", "phrase"), ("objects", "phrase"), ("objects", "boxes")):
        if one in given and other in given and not (one == "answer" and shape.answers):
            raise DataError(f'"{one}" and "{other}" are both given; task \'{task}\' uses one of them: remove the other')


def _phrases(entry: dict[str, Any], task: str) -> tuple[str, ...]:
    """The phrases of the only region: the query of the task, or the answer to it."""
    is_query = TASKS[task].query == "phrase"
    key = "question" if is_query else "answer"
    key = key if _texts(entry, key) else "phrase"
    texts = _texts(entry, key)
    return tuple(_query(text, task, key, True) if is_query else answer_text(text, key) for text in texts)


def _query(text: str, task: str, what: str, has_image: bool) -> str:
    """A query without image marks and without the task's identifier. Raises `DataError` for what is left of them."""
    typed = without_image_marks(text, what)
    require_images(typed, what, int(has_image))
    found = query_text(typed.text, task, what, has_image=has_image)
    if not found.strip():
        raise DataError(f"{what} has no text beside marks: an empty question")
    return found


def _grounding(task: str, entry: dict[str, Any], answers: tuple[str, ...]) -> Turn:
    """The caption, with the position of each phrase in it."""
    caption, position, regions = clean(answers[0]), 0, []
    for region in _objects(entry, absent=False):
        start = caption.find(region.phrases[0], position)
        if start < 0:
            raise DataError(
                f"phrase '{cut(region.phrases[0])}' does not occur in the caption after character {position}; spell it "
                "as in the caption, and list objects in the order in which the caption names them"
            )
        position = start + len(region.phrases[0])
        regions.append(Region(region.boxes, region.phrases, (start, position)))
    return Turn(task, answers=(caption,), regions=tuple(regions))


def _objects(entry: dict[str, Any], *, absent: bool) -> list[Region]:
    """Phrases and boxes: from `objects`, or from `phrase` and `boxes` of the entry. `absent`: boxes may be []."""
    listed = entry.get("objects", [entry] if "boxes" in entry else None)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise DataError('expected "objects": [{"phrase": "a dog", "boxes": [[x1, y1, x2, y2]]}, ...]')
    for one in listed if "objects" in entry else ():
        for key in one:
            if key not in ("phrase", "boxes") and one[key] not in EMPTY:
                raise DataError(f"an object of objects has the unknown key '{cut(key)}': it has phrase and boxes")
    regions = [
        Region(
            () if absent and one.get("boxes") == [] else _boxes({**one, "boxes_in": entry.get("boxes_in", PIXELS)}),
            (phrase_text(_need(one, "phrase"), "phrase"),),
        )
        for one in listed
    ]
    boxed = {region.phrases for region in regions if region.boxes}
    for region in regions:
        if not region.boxes and region.phrases in boxed:
            raise DataError(f"phrase '{cut(region.phrases[0])}' is given with boxes and with \"boxes\": []: remove one")
    return regions


def _boxes(entry: dict[str, Any]) -> tuple[Box, ...]:
    kind, boxes = entry.get("boxes_in", PIXELS), entry.get("boxes")
    if kind not in (PIXELS, XYWH, NORMALISED):
        raise DataError(f"boxes_in is {as_json(kind)}, which is not one of {PIXELS}, {XYWH}, {NORMALISED}")
    if isinstance(boxes, list) and len(boxes) == 4 and not any(isinstance(value, list) for value in boxes):
        boxes = [boxes]  # a single box
    if not isinstance(boxes, list) or not boxes or not all(is_box(box) for box in boxes):
        absent = "; only task 'detection' takes no box, for what is not in the image" if boxes == [] else ""
        raise DataError(f"boxes is {as_json(boxes)}; expected [[x1, y1, x2, y2], ...], four numbers each{absent}")
    floats = [tuple(map(float, box)) for box in boxes]  # before adding: a sum of integers may exceed a float
    corners = [
        (x, y, x + third, y + fourth) if kind == XYWH else (x, y, third, fourth) for x, y, third, fourth in floats
    ]
    if kind == PIXELS and all(0 <= value <= 1 for box in corners for value in box):
        raise DataError(f'boxes {cut(str(corners))} are all within 0..1: add "boxes_in": "{NORMALISED}"')
    if kind == NORMALISED and any(not -0.001 <= value <= 1.001 for box in corners for value in box):
        raise DataError(f'boxes {cut(str(corners))} are not within 0..1: remove "boxes_in": "{NORMALISED}"')
    return tuple(Box(*box) for box in corners)


def is_box(box: Any) -> TypeGuard[list[float]]:
    """Whether it is a list of four numbers."""
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number that a float can hold. JSON integers may have any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_id(value: Any) -> bool:
    """Whether it is a number or a text that may be an id."""
    return _is_number(value) or is_text(value)


def _texts(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    """A text or a list of texts. Empty texts are an error."""
    given = entry.get(key)
    if given is None:
        return ()
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{key} is {as_json(given)}; expected a text, or a list of texts, none of them empty")
    return tuple(texts)


def _need(entry: dict[str, Any], key: str) -> str:
    texts = _texts(entry, key)
    if len(texts) != 1:
        raise DataError(f'expected one "{key}", got {len(texts)}')
    return texts[0]


def _missing(task: str, key: str) -> Any:
    raise DataError(f"task '{task}' needs \"{key}\"")
