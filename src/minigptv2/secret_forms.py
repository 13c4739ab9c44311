r"""Finds a secret in a text in every form that writers give it, and in a URL. Knows no environment.

A value can be quoted (`it''s`), escaped (`\n`, `\xe9`, `\u00e9`), folded over lines (YAML), percent-encoded, written
with HTML entities, or as base64 or hexadecimal digits, and several of these on top of each other. Letters and digits
stay what they are in all forms but the last two. The pattern of a value matches them literally, and the other
characters in any of their forms.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from functools import cached_property
from itertools import groupby
from urllib.parse import unquote, unquote_plus

_RUN_CHARACTER = re.compile(r"[\s\x00-\x1f\x7f-\x9f\\'\"]")
"""White space, controls, backslashes and quotes. They are doubled, escaped and folded, so a run of them is matched by
any run that is as long."""
_RUN_UNIT = (
    r"(?:[\s\x00-\x1f\x7f-\x9f\\'\"+]"
    r"|(?<=\\)(?:[abefnrtv0_NLP]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[A-Z -]{1,80}\})"
    r"|%(?:25)*[0-9a-fA-F]{2}|&#?\w{1,8};)"
)
_FOLD = r"(?:\\+(?:n|\n)\s*\\*)?"
"""A line break that YAML puts into a double-quoted text, where a character needed an escape."""
_MIN_ENCODED = 7
"""Shortest base64 or hexadecimal text that is searched for. Shorter ones are ordinary words."""
_MIN_ANCHOR = 3
_LONG = 512
"""Longer values are not searched with percent-encoded letters, which would make the pattern several times as large."""
_MAX_DECODINGS = 4


class SecretForms:
    """The forms of one secret value, compiled when a text first needs them."""

    def __init__(self, value: str) -> None:
        self.value = value.strip() or value

    def hide(self, text: str, instead: str) -> str:
        """The text with every form of the value replaced by `instead`."""
        for encoded in self._encoded:
            text = text.replace(encoded, instead)
        if not any(anchor in text or anchor in _percent_decoded(text) for anchor in self._anchors):
            return text
        return self._pattern.sub(lambda _: instead, text)

    def is_in_url(self, url: str) -> bool:
        """Whether a request for `url` would send the value, in any part of it and in upper or lower case."""
        wanted = self.value.casefold()
        for decoded in _url_readings(url):
            if wanted in decoded.casefold() or self.hide(decoded, "") != decoded:
                return True
        return _host_form(self.value) in url.casefold()

    @cached_property
    def _spellings(self) -> set[str]:
        return {self.value, *(unicodedata.normalize(form, self.value) for form in ("NFC", "NFD"))}

    @cached_property
    def _anchors(self) -> set[str]:
        """Per spelling, its longest run of letters and digits, which is in every form. Empty if there is none."""
        runs = (re.findall(r"[A-Za-z0-9]+", spelling) for spelling in self._spellings)
        longest = {max(found, key=len, default="") for found in runs}
        return {run if len(run) >= _MIN_ANCHOR else "" for run in longest}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(
            "|".join(_pattern_of(spelling) for spelling in sorted(self._spellings, key=len, reverse=True))
        )

    @cached_property
    def _encoded(self) -> list[str]:
        data = _bytes_of(self.value)
        found = {data.hex(), data.hex().upper(), *_base64_cores(data)}
        return sorted((text for text in found if len(text) >= _MIN_ENCODED), key=len, reverse=True)


def _pattern_of(value: str) -> str:
    parts = []
    for in_run, group in groupby(value, key=lambda one: bool(_RUN_CHARACTER.match(one))):
        characters = "".join(group)
        if in_run:
            parts.append(f"{_RUN_UNIT}{{{len(characters)},}}")
        else:
            parts += [_forms_of(one, short=len(value) <= _LONG) for one in characters]
    return "".join(parts)


def _forms_of(character: str, *, short: bool) -> str:
    """A pattern for one character outside of runs."""
    percent = "".join(f"%(?:25)*{byte:02x}" for byte in _bytes_of(character))
    if character.isascii() and character.isalnum():
        return f"(?:{character}|(?i:{percent}))" if short else character
    code = ord(character)
    escapes = [rf"\\+u{code:04x}", rf"\\+U{code:08x}", rf"\\+x{code:02x}", rf"&#(?:{code}|x0*{code:x});", r"&\w{2,8};"]
    if code > 0xFFFF:
        high, low = 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + (code & 0x3FF)
        escapes.append(rf"\\+u{high:04x}\\+u{low:04x}")
    if not character.isascii():
        escapes += ["".join(rf"\\+x{byte:02x}" for byte in _bytes_of(character)), r"\\+N\{[^}]*\}"]
    return rf"(?:\\*{re.escape(character)}|(?i:{'|'.join([*escapes, percent])})){_FOLD}"


def _bytes_of(text: str) -> bytes:
    """The bytes of a text of the environment, where surrogates stand for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _base64_cores(data: bytes) -> set[str]:
    """What is the same in the base64 of every text that holds `data`, at each of the three alignments."""
    cores = set()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + data).decode()
        start = -(-before * 8 // 6)
        end = (before + len(data)) * 8 // 6
        cores.add(encoded[start:end])
    return cores | {core.replace("+", "-").replace("/", "_") for core in cores}


def _percent_decoded(text: str) -> str:
    for _ in range(_MAX_DECODINGS):
        if "%" not in text or (decoded := unquote(text)) == text:
            break
        text = decoded
    return text


def _url_readings(url: str) -> set[str]:
    """The URL as it is written and with its percent-encoding removed, as often as there is one."""
    readings, newest = {url}, {url}
    for _ in range(_MAX_DECODINGS):
        newest = {decode(text) for text in newest for decode in (unquote, unquote_plus)} - readings
        readings |= newest
    return readings


def _host_form(value: str) -> str:
    """The value as a part of a host name, where characters outside of ASCII are written in Punycode."""
    try:
        return value.encode("idna").decode().casefold()
    except UnicodeError:
        return value.casefold()
