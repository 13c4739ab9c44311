"""Makes text from files and models harmless for a terminal, and starts progress bars.

Escape codes can retitle a window, move the cursor over earlier lines, or answer in the user's name. Carriage returns
overwrite a line, and bidirectional overrides show a name in another order than it has.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\ud800-\udfff]")
"""Control characters of C0 and C1 except tab and newline, other line breaks, bidirectional controls, and bytes that
are not UTF-8 (as surrogates, which no terminal can show)."""


def printable(text: str) -> str:
    r"""`text` with each character that could control a terminal written as an escape, such as `\x1b`.

    Tabs and newlines stay.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """As `printable`, with newlines and tabs escaped too: for a name within a line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(value: Any, indent: int | None = None, *, allow_nan: bool = True) -> str:
    """A plain value as JSON that is harmless for a terminal. Escapes are those of JSON, so no character is lost.

    Raises `ValueError` for a number that is not finite unless `allow_nan`.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}" if found[0] != "\n" else "\n", text)


def unguarded(stream: TextIO) -> TextIO:
    """The stream below the one of `secrets.guarded_output`: for the program's own colors and cursor movements."""
    below: TextIO = getattr(stream, "_wrapped", stream)
    return below


def progress_bar(items: Iterable[Item] | None = None, *, desc: str | None = None, **options: Any) -> tqdm[Item]:
    """A progress bar of tqdm on stderr, over `items`. It moves the cursor, so it writes to the unguarded stream."""
    from tqdm import tqdm

    return tqdm(items, desc=one_line(desc) if desc else None, file=unguarded(sys.stderr), **options)
