"""Removes secrets from what a run writes: logs, configs, checkpoints, tracebacks. Knows no file formats.

A secret is the value of an environment variable whose name indicates one, the password of a URL in any variable, the
user part or a signed query of a URL, or a string in the format of a known kind of token. `redact` replaces secrets in
text, in every form that `secret_forms` knows. `guarded_output` replaces them in all output of a process, including
tracebacks and log lines of libraries, and removes control characters from it.
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
from urllib.parse import unquote, urlsplit

from minigptv2.secret_forms import SecretForms
from minigptv2.terminal_text import printable

HIDDEN = "[secret]"
_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|CREDENTIAL|COOKIE|WEBHOOK|CONN(ECTION)?_?STR"
    r"|(PASS|KEY)S?(?![A-Z])|(?<![A-Z])(PW|PWD|PAT|DSN|JWT|SAS|AUTH|CREDS?|PIN)S?(?![A-Z])"
    r"|(?<![A-Z])(DATABASE|DB|REDIS|MONGO(DB)?|POSTGRES(QL)?|MYSQL|AMQP|BROKER)_?UR[LI](?![A-Z])",
    re.I,
)
_NOT_NAMES = ("PWD", "OLDPWD")
_COUNT = re.compile(r"MAX|MIN|NUM|COUNT|LIMIT|SIZE|TOKENS", re.I)
"""Parts of names of counts, such as `MAX_TOKENS`. A number in such a variable is not a secret."""
_MIN_LENGTH = 8
_MIN_MIXED_LENGTH = 6
"""A shorter value is an ordinary word, such as `true` or a port, unless it mixes letters and digits. Replacing it would
make logs unreadable."""
_ORDINARY = re.compile(
    r"disabled|required|optional|production|development|localhost|password|passphrase|undefined|unlimited|credentials",
    re.I,
)
"""Words that are settings, or that stand for a missing secret."""
_PASSWORD_OF_DSN = re.compile(r"(?:password|pwd)\s*=\s*('(?:[^'\\]|\\.)*'|[^\s;'\"]+)", re.I)
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
    """Values of variables whose names indicate a secret, their lines, and passwords of URLs, longest first.

    An ordinary word and an existing absolute path are not secrets.
    """
    return [forms.value for forms in _secrets(tuple(sorted(environment.items())))]


@lru_cache(maxsize=4)
def _secrets(environment: tuple[tuple[str, str], ...]) -> tuple[SecretForms, ...]:
    values = {value.strip() for name, text in environment for value in _values_of(name, text)}
    kept = (value for value in values if _is_secret(value))
    return tuple(SecretForms(value) for value in sorted(kept, key=lambda value: (-len(value), value)))


def _values_of(name: str, text: str) -> Iterator[str]:
    """What is secret of one variable: all of it, and each line of a key, if its name says so; passwords in it."""
    if _NAME.search(name) and name not in _NOT_NAMES and not (text.isdigit() and _COUNT.search(name)):
        yield text
        yield from text.splitlines()
    yield from (found.strip("'") for found in _PASSWORD_OF_DSN.findall(text))
    try:
        password = urlsplit(text).password
    except ValueError:  # no URL
        return
    if password:
        yield password
        yield unquote(password)


def _is_secret(value: str) -> bool:
    mixed = any(one.isdigit() for one in value) and any(one.isalpha() for one in value)
    if len(value) < (_MIN_MIXED_LENGTH if mixed else _MIN_LENGTH) or _ORDINARY.fullmatch(value):
        return False
    return not (os.path.isabs(value) and os.path.exists(value))


def redact(text: str) -> str:
    """The text with secrets replaced by `HIDDEN`, in whatever form they are written."""
    for forms in _secrets(tuple(sorted(os.environ.items()))):
        text = forms.hide(text, HIDDEN)
    return _redact_shapes(text)


def sends_secret(url: str) -> bool:
    """Whether a request for `url` would send the value of a secret of the environment, in any form and any part."""
    return any(forms.is_in_url(url) for forms in _secrets(tuple(sorted(os.environ.items()))))


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


def guarded(text: str) -> str:
    """The text without secrets and without control characters, as it may be printed or written to a log."""
    return printable(redact(text))


class _Guarded:
    """A text stream without secrets and control characters. Writes to another stream."""

    def __init__(self, stream: TextIO) -> None:
        self._wrapped = stream
        """The name that tqdm compares streams by, so that its bars move below what is printed."""

    def write(self, text: str) -> int:
        self._wrapped.write(guarded(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


@contextmanager
def guarded_output() -> Iterator[None]:
    """Guard all output of this process within the block. Enter it before libraries store the streams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Guarded(sys.stdout), _Guarded(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    except Exception:  # noqa: BLE001  # the interpreter would print it after the streams are restored
        sys.stderr.write(traceback.format_exc())  # as one text: a secret of several lines is not found in parts
        sys.exit(1)
    finally:
        sys.stdout, sys.stderr = before
