"""Keeps a program running whose output nobody reads any more: a closed terminal, `| head`, a full disk, `>&-`."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO

_READER_IS_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def open_standard_files() -> None:
    """Open the standard files that are closed, so that no other file gets their numbers and the output of libraries."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # open as long as the program
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


class DurableStream:
    """A text stream whose errors of output do not reach the caller.

    If the reader is gone, this process writes to nowhere from then on, libraries included. A text is left out if the
    disk has no space for it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text. Returns its length."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._survive(error)
        return len(text)

    def flush(self) -> None:
        """Send what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._survive(error)

    def _survive(self, error: OSError) -> None:
        if error.errno in _READER_IS_GONE:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        elif error.errno not in _DISK_IS_FULL:
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_durable() -> None:
    """Let the standard streams outlive their readers. Called once, before libraries store the streams."""
    sys.stdout, sys.stderr = DurableStream(sys.stdout), DurableStream(sys.stderr)  # type: ignore[assignment]
