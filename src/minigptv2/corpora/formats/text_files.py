"""Opens the text files of users: strictly as UTF-8, with errors that say how to save them."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import IO, Any

from minigptv2.corpora.formats.entry import TOO_DEEP
from minigptv2.corpora.own_image import as_json, cut
from minigptv2.errors import DataError

SAVE_AS_UTF8 = "save the file as UTF-8 (Excel: 'CSV UTF-8')"
_NO_UTF8 = re.compile("[\udc80-\udcff]")
"""Characters to which `surrogateescape` decodes bytes that are not UTF-8. Valid UTF-8 never decodes to them."""


def open_text(file: Path) -> IO[str]:
    """The text of a file with unchanged line ends. A byte that is not UTF-8 becomes half a surrogate pair, by which
    `not_utf8` finds its line. Raises `DataError` for UTF-16 and UTF-32.
    """
    with open(file, "rb") as stream:
        head = stream.read(4)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in head:
        raise DataError(f"{file} is UTF-16 (Excel's 'Unicode text') or not a text file: {SAVE_AS_UTF8}")
    return open(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def not_utf8(text: str) -> str:
    """The error for a line with bytes that are not UTF-8, or an empty text."""
    found = _NO_UTF8.search(text)
    return f"not UTF-8 after '{' '.join(text[: found.start()].split())[-20:]}': {SAVE_AS_UTF8}" if found else ""


def read_document(file: Path) -> Any:
    """The document of a JSON file, which may be UTF-16. Raises `DataError` naming the file."""
    data = file.read_bytes()
    try:
        return json.loads(data.decode(json.detect_encoding(data)), object_pairs_hook=unique_keys)  # may be UTF-16
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


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises `DataError` for a repeated key, of which one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key '{cut(repeated)}' occurs twice in one object: {as_json(found)}")
    return found
