"""Refuses texts whose characters were damaged before they came here."""

from __future__ import annotations

from minigptv2.errors import DataError

BYTE_ORDER_MARK = "\ufeff"
_LOST = "\ufffd"


def checked(text: str, what: str) -> str:
    """The text without byte order marks. Raises `DataError`, which names it as `what`, for damaged characters."""
    if "\0" in text:
        raise DataError(f"{what} contains NUL: it is UTF-16 without a byte order mark, or not a text")
    if _LOST in text:
        raise DataError(f"{what} contains U+FFFD, the sign of a character that an earlier conversion lost")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} contains half of a character (a surrogate)") from error
    return text.replace(BYTE_ORDER_MARK, "")
