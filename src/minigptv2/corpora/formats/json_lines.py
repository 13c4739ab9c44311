"""Reads JSON lines: one entry of a task or a conversation in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigptv2.corpora.formats.entry import TOO_DEEP, OwnEntry, entry_of
from minigptv2.corpora.formats.text_files import not_utf8, open_text, unique_keys
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

TITLE = "JSON lines"


def matches(path: Path) -> bool:
    """Whether a path has the suffix of JSON lines."""
    return path.is_file() and path.suffix.lower() == ".jsonl"


def read(file: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One entry per line that is not blank."""
    for number, entry, problem in objects_of(file):
        name = f"line {number}"
        yield OwnEntry(name, None, problem) if problem else entry_of(name, number, entry, file, raw)


def objects_of(file: Path) -> Iterator[tuple[int, Any, str]]:
    """The number, the value and the problem, if any, of each line that is not blank."""
    with open_text(file) as stream:
        for number, text in enumerate(stream, 1):
            if problem := not_utf8(text):
                yield number, None, problem
            elif text.strip():
                try:
                    yield number, json.loads(text, object_pairs_hook=unique_keys), ""
                except DataError as error:
                    yield number, None, str(error)
                except ValueError as error:
                    yield number, None, f"not JSON: {error}. Each line must be one object in braces"
                except RecursionError:
                    yield number, None, TOO_DEEP
