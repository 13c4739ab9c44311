"""Reads a CSV, or a TSV with tabs, of images and captions."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from minigptv2.corpora.formats.entry import OwnEntry, entry_of
from minigptv2.corpora.formats.text_files import not_utf8, open_text
from minigptv2.corpora.own_image import as_json
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

TITLE = "a CSV of image and caption"
_DELIMITERS = {".csv": (",", "commas"), ".tsv": ("\t", "tabs")}


def matches(path: Path) -> bool:
    """Whether a path has the suffix of a CSV."""
    return path.is_file() and path.suffix.lower() in _DELIMITERS


def read(file: Path, raw: Raw) -> Iterator[OwnEntry]:
    """A row is named after the line on which it begins, since a caption in quotes may contain line ends."""
    delimiter, between = _DELIMITERS[file.suffix.lower()]
    with open_text(file) as stream:
        rows = rows_of(stream, delimiter)
        first, columns, problem = next(rows, (1, [], ""))
        if problem or sorted(filter(None, columns)) != ["caption", "image"]:
            found = problem or f"the columns are {as_json(columns)}"
            raise DataError(
                f"{file}, line {first}: {found}; the columns must be image and caption, separated by {between}"
            )
        for number, row, problem in rows:
            name, cells = f"line {number}", dict(zip(columns, row, strict=False))
            if not problem and (len(row) > len(columns) or not {"image", "caption"} <= set(cells)):
                held = between.removesuffix("s")
                problem = f'not two columns; put a caption that contains a {held} in quotes: a.jpg{delimiter}"one, two"'
            if problem:
                yield OwnEntry(name, None, problem)
            else:
                entry = {"image": cells["image"], "task": "caption", "answer": cells["caption"]}
                yield entry_of(name, number, entry, file, raw)


def rows_of(stream: IO[str], delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """The rows of a CSV that are not blank: the line on which each begins, its cells, and its problem, if any."""
    rows = csv.reader(stream, delimiter=delimiter, strict=True)
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # the reader continues with the next line
            ends = f" (up to line {rows.line_num})" if rows.line_num > first else ""
            problem = f"not CSV{ends}: {error}. A quoted caption needs a closing quote, with quotes inside it doubled"
            yield first, [], problem
            continue
        if row:
            yield first, row, not_utf8(delimiter.join(row))
