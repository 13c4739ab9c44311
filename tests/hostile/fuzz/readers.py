"""What a reader under test is: how a case is drawn from valid files, and how the package reads it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol


class Reader(Protocol):
    """A reader of foreign files. It is made with an empty folder of its own."""

    def unchanged(self) -> bytes:
        """The content of a valid file, which is accepted."""

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        """The name of a change, and the content of a file with it."""

    def read(self, data: bytes) -> bool:
        """Read the file as a command does, and use what was read. Whether it was accepted.

        Raises `MiniGPTv2Error` for a refused file. Any other exception is a fault of the package.
        """


class OneFile:
    """The part of a reader that writes a case to `_file` and reads it."""

    _file: Path

    def read(self, data: bytes) -> bool:
        """As `Reader.read`."""
        self._file.write_bytes(data)
        self.read_file(self._file)
        return True

    def read_file(self, file: Path) -> None:
        """Read the file as a command does."""
        raise NotImplementedError


class MakeReader(Protocol):
    """Makes a reader with its valid files in `folder`."""

    def __call__(self, folder: Path) -> Reader: ...
