"""Reads JSON lines: one entry of a task or a conversation in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

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
    with open_text(file) as stream:
        for number, text in enumerate(stream, 1):
            name = f"line {number}"
            if problem := not_utf8(text):
                yield OwnEntry(name, None, problem)
            elif text.strip():
                try:
                    entry = json.loads(text, object_pairs_hook=unique_keys)
                except DataError as error:
                    yield OwnEntry(name, None, str(error))
                except ValueError as error:
                    yield OwnEntry(name, None, f"not JSON: {error}. Each line must be one object in braces")
                except RecursionError:
                    yield OwnEntry(name, None, TOO_DEEP)
                else:
                    yield entry_of(name, number, entry, file, raw)
