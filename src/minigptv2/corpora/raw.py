"""Finds the original files of a corpus under one root, and reads large JSON in pieces, JSON lines and plain pickles.

A root has the official layout, that of each corpus's own download, or MiniGPT-4's: the folders that its download
instructions make. Both are looked for, the official one first. The error for a missing file names the paths of both
and the download. Nothing that is read is executed.
"""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from minigptv2.errors import DataError, MissingFilesError
from minigptv2.shards.passed_over import PassedOver

_CHUNK = 1 << 20
_SPACE = re.compile(r"[\s,]*")


OFFICIAL, MINIGPT4 = "the official layout", "MiniGPT-4's layout"


@dataclass(frozen=True)
class FoundPath:
    """A path below the root that is read. `left` is a path of the other layout that exists, too, and comes second."""

    path: str
    layout: str
    left: str = ""


@dataclass(frozen=True)
class Raw:
    """The folder with original files, and the download to name if one is missing.

    `found` collects what `find` and `glob` returned, for the report of the build. `notes` counts, by its description,
    what a reader passes over without loss, and `passed_over` names members of tars that are not used. `ignore_extra`
    passes over unknown keys of own conversations. `split` and `negatives` are for readers of own datasets: the split
    that is built, and the number of classes for which each image is also asked, although it does not have them.
    `columns` gives the column of a table that holds a key of an entry.
    """

    root: Path
    corpus: str
    download: str
    found: dict[str, FoundPath] = field(default_factory=dict, compare=False)
    notes: Counter[str] = field(default_factory=Counter, compare=False)
    passed_over: PassedOver = field(default_factory=PassedOver, compare=False)
    ignore_extra: bool = False
    split: str = "train"
    negatives: int = 0
    columns: tuple[tuple[str, str], ...] = ()

    def note(self, what: str, count: int = 1) -> None:
        """Count something that is passed over. `{count}` in the description stands for the number."""
        self.notes[what] += count

    def find(self, *candidates: str, minigpt4: Sequence[str] = ()) -> Path:
        """The first of the paths below the root that exists, file or folder, those of MiniGPT-4's layout last.

        Raises `MissingFilesError` naming all.
        """
        official, other = self._first(candidates), self._first(minigpt4)
        path = official or other
        if path is None:
            self.missing(*candidates, minigpt4=minigpt4)
        left = other if official and other and not official.startswith(f"{other}/") else ""
        return self._remember(FoundPath(path, OFFICIAL if official else MINIGPT4, left or ""))

    def beside(self, file: Path, *names: str) -> Path:
        """The first of the names that exists in the folder of a file that was found: in the layout of that file."""
        folder, layout = file.parent.relative_to(self.root), self._layout_of(file)
        candidates = [str(folder / name) for name in names]
        path = self._first(candidates)
        if path is None:
            self.missing(*candidates)
        return self._remember(FoundPath(path, layout))

    def has(self, candidate: str) -> bool:
        """Whether the path exists."""
        return (self.root / candidate).exists()

    def has_any(self, candidates: Sequence[str]) -> bool:
        """Whether one of the paths exists."""
        return any(map(self.has, candidates))

    def glob(self, *patterns: str, minigpt4: Sequence[str] = ()) -> list[Path]:
        """All files of the first pattern that matches any, sorted. Raises `MissingFilesError` naming all."""
        for pattern in (*patterns, *minigpt4):
            found = sorted(file for file in self.root.glob(pattern) if file.is_file())
            if found:
                self._remember(FoundPath(pattern, OFFICIAL if pattern in patterns else MINIGPT4))
                return found
        self.missing(*patterns, minigpt4=minigpt4)

    def missing(self, *candidates: str, minigpt4: Sequence[str] = ()) -> NoReturn:
        """Raise the error that names the paths that were tried and the download."""
        paths, others = (" or ".join(str(self.root / candidate) for candidate in one) for one in (candidates, minigpt4))
        tried = f"{paths} not found, nor in {MINIGPT4} {others}" if paths and others else f"{paths or others} not found"
        download = f" Download: {self.download}" if self.download else ""
        raise MissingFilesError(f"{self.corpus}: {tried}. Set --root to the folder above it.{download}")

    def describe(self) -> list[str]:
        """What was read in which layout, and what of the other layout was there, too. Empty if nothing was found."""
        lines = []
        for layout in (OFFICIAL, MINIGPT4):
            paths = [one.path for one in self.found.values() if one.layout == layout]
            lines += [f"read in {layout}: {', '.join(paths)}"] if paths else []
        return lines + [
            f"both layouts are there: {one.path} of {OFFICIAL} comes before {one.left} of {MINIGPT4}"
            for one in self.found.values()
            if one.left
        ]

    def _first(self, candidates: Sequence[str]) -> str | None:
        return next(filter(self.has, candidates), None)

    def _remember(self, found: FoundPath) -> Path:
        self.found[found.path] = found
        return self.root / found.path

    def _layout_of(self, file: Path) -> str:
        known = self.found.get(str(file.relative_to(self.root)))
        return known.layout if known else OFFICIAL


def read_json(file: Path) -> Any:
    """The document of a JSON file. Raises `DataError` naming the file."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error


def read_lines(file: Path) -> Iterator[Any]:
    """The documents of a JSON-lines file. Raises `DataError` naming file and line."""
    with open(file, encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(f"{file}, line {number}: not JSON: {error}") from error


def stream_json(file: Path, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """The items of a list (with their number as a text) or of an object: the document, or its value for `key`.

    Holds one item at a time, since Visual Genome's regions and GQA's questions need gigabytes as one document. Raises
    `DataError` naming the file if it has another structure.
    """
    text = _Text(file)
    if key is not None:
        if text.next() != "{":
            text.fail(f"must be an object with '{key}'")
        while (found := text.key()) != key:
            if found is None:
                text.fail(f"has no '{key}'")
            text.value()
    opening = text.next()
    if opening == "[":
        number = 0
        while not text.ends("]"):
            yield str(number), text.value()
            number += 1
    elif opening == "{":
        while (name := text.key()) is not None:
            yield name, text.value()
    else:
        text.fail("must be a list or an object")


def is_list(file: Path) -> bool:
    """Whether a JSON file's document is a list."""
    return _Text(file).next() == "["


class _Text:
    """A JSON text that is read in pieces. A value is parsed once it and the next character have been read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stream = open(file, encoding="utf-8-sig", errors="strict")  # noqa: SIM115 - open as long as this object
        self.text, self.at = "", 0
        self.decoder = json.JSONDecoder()

    def next(self) -> str:
        """Skip spaces and commas, and return the next character."""
        self.at = self._skip()
        if self.at >= len(self.text):
            self.fail("ends early")
        self.at += 1
        return self.text[self.at - 1]

    def ends(self, bracket: str) -> bool:
        """Whether the bracket comes next. If so, it is skipped."""
        self.at = self._skip()
        if self.text[self.at : self.at + 1] == bracket:
            self.at += 1
            return True
        return False

    def key(self) -> str | None:
        """The next key of an object, with its colon skipped. None at the end of the object."""
        if self.ends("}"):
            return None
        name = self.value()
        if not isinstance(name, str) or self.next() != ":":
            self.fail("expected a key")
        return name

    def value(self) -> Any:
        """The next complete value."""
        self.at = self._skip()
        need = _CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or not self._more(need):
                    break
            except ValueError as error:
                if not self._more(need):
                    self.fail(str(error))
            need *= 2
        self.text, self.at = (self.text[end:], 0) if end > _CHUNK else (self.text, end)
        return value

    def fail(self, what: str) -> NoReturn:
        """Raise the error for a file with another structure."""
        raise DataError(f"{self.file}: unexpected JSON: {what}")

    def _skip(self) -> int:
        while True:
            match = _SPACE.match(self.text, self.at)
            end = match.end() if match else self.at
            if end < len(self.text) or not self._more(_CHUNK):
                return end

    def _more(self, count: int) -> bool:
        if self.stream.closed:
            return False
        try:
            more = self.stream.read(count)
        except UnicodeDecodeError as error:
            self.fail(str(error))
        self.text += more
        if not more:
            self.stream.close()
        return bool(more)


class PlainUnpickler(pickle.Unpickler):
    """Reads pickles of numbers, texts, lists, tuples and dicts. Refuses references to classes and functions."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class and function."""
        raise DataError(f"refers to {module}.{name}; only plain lists, dicts, texts and numbers are read")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse every persistent id."""
        raise DataError("contains a persistent id; only plain lists, dicts, texts and numbers are read")


def read_plain_pickle(file: Path) -> Any:
    """The plain containers in a pickle (REFER's, written by Python 2). Raises `DataError` if it holds anything else."""
    try:
        with open(file, "rb") as stream:
            return PlainUnpickler(stream, encoding="utf-8").load()
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise DataError(f"{file}: not a plain pickle: {type(error).__name__}: {error}") from error
