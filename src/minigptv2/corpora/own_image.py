"""Reads which image an entry of a user's file belongs to: a path, a list of one, an object, or the image itself.

A record has one image. Several images, URLs and keys that may hold an image under another name are refused by name.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

IMAGE_KEYS = ("image", "images")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_DATA = re.compile(r"^data:[^,]*;base64,", re.IGNORECASE)
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")
"""How a JPEG, PNG, WebP and GIF begin in base64."""
_SHORTEST_BASE64 = 64
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can contain and UTF-8 cannot encode."""

Reference = str | bytes
"""The path of an image as the entry gives it, or the bytes of the image file."""


def image_of(entry: dict[str, Any]) -> list[Reference]:
    """The images under `image` and `images` of an entry: none or one. Raises `DataError` for several."""
    given = {key: references(entry[key], key) for key in IMAGE_KEYS if entry.get(key) is not None}
    filled = {key: found for key, found in given.items() if found}
    if len(filled) == 2 and filled["image"] != filled["images"]:
        raise DataError("image and images name different images; a record has one image: remove one of the keys")
    found = next(iter(filled.values()), [])
    require_one(found, next(iter(filled), "image"))
    return found


def require_one(found: list[Reference], what: str) -> None:
    """Raise `DataError` if there are several images."""
    if len(found) > 1:
        raise DataError(f"{what} has {len(found)} images; a record has one image: split the entry, or leave it out")


def references(value: Any, what: str) -> list[Reference]:
    """The images that a value names: a path, bytes, an object with `path`, `url` or `bytes`, or a list of these."""
    if isinstance(value, list):
        return [one for item in value for one in references(item, what)]
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, dict):
        filled = {key: item for key, item in value.items() if item is not None}
        named = [key for key in ("path", "url", "image") if isinstance(filled.get(key), str)]
        if len(named) == 1 and set(filled) <= {named[0], "detail"}:
            return [_reference(filled[named[0]], f"{what}.{named[0]}")]
        data = filled.get("bytes")
        if isinstance(data, str | bytes) and set(filled) <= {"bytes", "path"}:
            return [data if isinstance(data, bytes) else _decoded(data, f"{what}.bytes")]
        raise DataError(f"{what} is {as_json(value)}; expected the path of an image")
    if not is_text(value):
        raise DataError(f"{what} is {as_json(value)}; expected the path of an image")
    return [_reference(value, what)]


def _reference(value: str, what: str) -> Reference:
    if not is_text(value):
        raise DataError(f"{what} is {as_json(value)}; expected the path of an image")
    if inside := _DATA.match(value):
        return _decoded(value[inside.end() :], what)
    if len(value) >= _SHORTEST_BASE64 and value.startswith(_BASE64):
        return _decoded(value, what)
    scheme = _SCHEME.match(value)
    if scheme is None:
        return value
    if scheme[1].lower() == "file":
        return unquote(urlsplit(value).path)
    raise DataError(f"{what} is the URL {as_json(value)}: download the image, and give its path")


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{what} begins like an image in base64 and is not valid: {error}") from error


def located(image: Reference, file: Path, raw: Raw) -> tuple[str, ...] | bytes:
    """Where an image may be, below the root or in the folder of the file, or the image itself."""
    return image if isinstance(image, bytes) else paths_of(image, file, raw)


def paths_of(image: str, file: Path, raw: Raw) -> tuple[str, ...]:
    """Where an image may be: below the root, or in the folder of the file."""
    return tuple(dict.fromkeys((str(raw.root / image), str(file.parent / image))))


def is_text(value: Any) -> bool:
    """Whether it is a text that may be a name or a path: not blank, without NUL, and valid in UTF-8."""
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and not _HALF.search(value)


def as_json(value: Any) -> str:
    """The beginning of a value as JSON, in ASCII, so that it can be printed to any stream."""
    return cut(json.dumps(value, default=_described))


def _described(value: Any) -> str:
    """A value of a table that JSON does not have, such as the bytes of an image, as a message shows it."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else f"{type(value).__name__} {value}"


def cut(text: str) -> str:
    """The text, shortened to 60 characters."""
    return text if len(text) <= 60 else f"{text[:60]}..."
