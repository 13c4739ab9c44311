"""Reads the caption of a sample in another program's tar: from its json, else from its txt.

Text is decoded strictly. A byte order mark is removed. Text that is not UTF-8 (or UTF-16 and UTF-32 with their mark),
and text with characters that show damage, is refused. Building, indexing and training use the same functions.
"""

from __future__ import annotations

import codecs
import json
from typing import Any

from minigptv2.damaged_text import checked
from minigptv2.errors import DataError

TEXT_EXTENSIONS = ("json", "txt")
"""Of members that may hold a caption, the preferred one first."""
CAPTION_KEYS = ("caption", "text")
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = (type(None), str)


def facts_of(data: bytes) -> dict[str, Any]:
    """The object in the json of a sample. Raises `DataError` if it is not one."""
    try:
        facts = json.loads(_decoded(data, json.detect_encoding(data)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"its json is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise DataError(f"its json is damaged: expected an object, got {type(facts).__name__}")
    return facts


def caption_of(facts: dict[str, Any], text: bytes | None = None) -> str:
    """The caption in the facts of the json, else in the bytes of the txt. Empty if neither has one.

    A caption in the json that is null or blank does not count. Raises `DataError` for a caption that is no text, or
    whose characters were damaged.
    """
    for key in CAPTION_KEYS:
        value = facts.get(key)
        if not isinstance(value, _NO_TEXT) and value not in ([], {}):
            raise DataError(f"'{key}' in its json is of type {type(value).__name__}, expected a text")
        if value and (caption := checked(value, f"'{key}' in its json")).strip():
            return caption
    return decode_text(text, "its txt") if text else ""


def is_other_text(text: bytes, caption: str) -> bool:
    """Whether the txt of a sample says something else than its caption from the json. White space does not count."""
    try:
        return decode_text(text, "the txt").split() != caption.split()
    except DataError:
        return True


def decode_text(data: bytes, what: str) -> str:
    """The text of a file. Raises `DataError`, which names the file as `what`, if it cannot be read without loss."""
    encoding = next((encoding for mark, encoding in _ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        text = _decoded(data, encoding)
    except ValueError as error:
        raise DataError(f"{what} is {error}") from error
    return checked(text, what)


def _decoded(data: bytes, encoding: str) -> str:
    """As `bytes.decode`, with an error that names the position."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(f"not {name} (byte {error.start})") from error
