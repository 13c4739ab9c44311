"""Removes secrets from what a run writes: logs, configs, checkpoints, tracebacks. Knows no file formats.

A secret is the value of an environment variable whose name indicates one, the user part or a signed query of a URL, or
a string in the format of a known kind of token. `redact` replaces secrets in text. `guarded_output` replaces them in
all output of a process, including tracebacks and log lines of libraries.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TextIO

HIDDEN = "[secret]"
_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|COOKIE)", re.I)
_MIN_LENGTH = 8
"""Shorter values are ordinary words, such as `true` or a port. Replacing them would make logs unreadable."""
_USER = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.I)
_QUERY = re.compile(
    r"(?P<key>[?&;](?:[a-z0-9_-]*(?:token|secret|signature|credential|password|key)|sig|auth)=)[^&\s'\"#]+", re.I
)
_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[A-Za-z0-9_-]{20,}"
    r"|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"
)
_HEADER = re.compile(r"(?P<key>\b(?:Bearer|Basic)\s+)[A-Za-z0-9+/._~=-]{8,}")


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of variables whose names indicate a secret, longest first. An existing path is not a secret."""
    return list(_secret_values(tuple(sorted(environment.items()))))


@lru_cache(maxsize=4)
def _secret_values(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    values = {value for name, value in environment if _NAME.search(name) and len(value) >= _MIN_LENGTH}
    return tuple(sorted((value for value in values if not os.path.exists(value)), key=len, reverse=True))


def redact(text: str) -> str:
    """The text with secrets replaced by `HIDDEN`."""
    for value in secret_values(os.environ):
        text = text.replace(value, HIDDEN)
    return _redact_shapes(text)


def looks_secret(text: str) -> bool:
    """Whether the text contains a credential: a token of a known format, or one in a URL."""
    return _redact_shapes(text) != text


def _redact_shapes(text: str) -> str:
    text = _USER.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<key>{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<key>{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def redact_all(value: Any) -> Any:
    """Plain data (dictionaries, lists, leaves) with every string redacted."""
    if isinstance(value, dict):
        return {redact(key) if isinstance(key, str) else key: redact_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_all(item) for item in value]
    return redact(value) if isinstance(value, str) else value


class _Redacting:
    """A text stream that replaces secrets and writes to another stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded_output() -> Iterator[None]:
    """Redact all output of this process within the block. Enter it before libraries store the streams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Redacting(sys.stdout), _Redacting(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    except Exception:  # noqa: BLE001  # the interpreter would print it after the streams are restored
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout, sys.stderr = before
