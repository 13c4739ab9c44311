"""Writes every text file of a run, a report or a conversion, without secrets and in UTF-8.

The one place for it: values are redacted before they are rendered, so that quoting and escaping hide nothing. Control
characters are escaped, because people print such files in a terminal. Data keeps its bytes and is written elsewhere:
shards, answers of a model, tensors, copies of files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minigptv2.files import write_atomically
from minigptv2.secrets import guarded, redact_all
from minigptv2.terminal_text import printable_json


def json_text(document: Any, *, indent: int | None = 1) -> str:
    """A plain value as JSON, redacted."""
    return printable_json(redact_all(document), indent)


def json_lines(documents: Iterable[Any]) -> str:
    """Each plain value as a line of JSON, redacted."""
    return "".join(json_text(document, indent=None) + "\n" for document in documents)


def write_json(file: Path, document: Any, *, writer: str = "") -> None:
    """Write a plain value as JSON, atomically. `writer` is that of `write_atomically`."""
    write_atomically(file, (json_text(document) + "\n").encode(), writer=writer)


def write_text(file: Path, text: str) -> None:
    """Write a text. Unlike `write_json`, this works for a device such as `/dev/stdout`."""
    file.write_text(guarded(text), encoding="utf-8")


def append_json_lines(file: Path, documents: Iterable[Any]) -> None:
    """Append each plain value as a line of JSON."""
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(json_lines(documents))
