"""Original files of a corpus under one root: finding them, reading large JSON piece by piece, and plain pickles.

Every "not there" names the paths looked for and where to get them. Nothing read here is executed.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from minigptv2.errors import DataError, MissingFilesError

_CHUNK = 1 << 20
_SPACE = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Raw:
    """The folder with original files, and what to say where one is missing."""

    root: Path
    corpus: str
    download: str

    def find(self, *candidates: str) -> Path:
        """The first of the paths below the root that exists, file or folder. Raises `MissingFilesError`, naming all."""
        for candidate in candidates:
            if (self.root / candidate).exists():
                return self.root / candidate
        self.missing(*candidates)

    def has(self, candidate: str) -> bool:
        """Whether the path is there."""
        return (self.root / candidate).exists()

    def glob(self, *patterns: str) -> list[Path]:
        """All files of the first pattern that matches any, sorted. Raises `MissingFilesError`, naming all."""
        for pattern in patterns:
            found = sorted(file for file in self.root.glob(pattern) if file.is_file())
            if found:
                return found
        self.missing(*patterns)

    def missing(self, *candidates: str) -> NoReturn:
        """Raise the error that says what was looked for and where to get it."""
        looked = " or ".join(str(self.root / candidate) for candidate in candidates)
        raise MissingFilesError(
            f"{self.corpus}: there is no {looked}. Set --root to the folder above it. Get it: {self.download}"
        )


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
    """The items of a top-level list (their number as a text) or object, or of the one under `key` of a top-level
    object.

    One item is held at a time: Visual Genome's regions and GQA's questions take gigabytes as one document.
    """
    text = _Text(file)
    if key is not None:
        if text.next() != "{":
            text.fail(f"want an object with '{key}'")
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
        text.fail("want a list or an object")


def is_list(file: Path) -> bool:
    """Whether a JSON file's document is a list."""
    return _Text(file).next() == "["


class _Text:
    """A JSON text read in pieces: a value is parsed once it and the character behind it are there."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stream = open(file, encoding="utf-8-sig", errors="strict")  # noqa: SIM115 - lives as long as this
        self.text, self.at = "", 0
        self.decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no space or comma."""
        self.at = self._skip()
        if self.at >= len(self.text):
            self.fail("ends early")
        self.at += 1
        return self.text[self.at - 1]

    def ends(self, bracket: str) -> bool:
        """Whether the bracket comes next; it is passed."""
        self.at = self._skip()
        if self.text[self.at : self.at + 1] == bracket:
            self.at += 1
            return True
        return False

    def key(self) -> str | None:
        """The next key of an object, its colon passed; None at the object's end."""
        if self.ends("}"):
            return None
        name = self.value()
        if not isinstance(name, str) or self.next() != ":":
            self.fail("want a key")
        return name

    def value(self) -> Any:
        """The next value, whole."""
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
        raise DataError(f"{self.file}: not the JSON expected: {what}")

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
    """Reads pickles of numbers, texts, lists, tuples and dicts. Whatever names a class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"asks for {module}.{name}; only plain lists, dicts, texts and numbers are read")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("holds a persistent id; only plain lists, dicts, texts and numbers are read")


def read_plain_pickle(file: Path) -> Any:
    """The plain containers in a pickle (REFER's, written by Python 2). Raises `DataError` for anything else in it."""
    try:
        with open(file, "rb") as stream:
            return PlainUnpickler(stream, encoding="utf-8").load()
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise DataError(f"{file}: not a plain pickle: {type(error).__name__}: {error}") from error
