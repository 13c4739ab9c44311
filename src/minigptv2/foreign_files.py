"""Opens and parses files from untrusted sources: checkpoints, exports, tokenizers, corpora. Knows no file formats.

A file is opened once, and everything that is checked or read comes from that open file. A FIFO, a device or a socket is
never opened. A file of a foreign folder lies in that folder: a link out of it is refused, because the file behind it
could be the user's own, and a converted folder would hold a copy. The one exception is the cache of Hugging Face,
whose `snapshots/<revision>/<file>` are links to `blobs` beside `snapshots`. Links in the path of a folder or file that
the user names are followed.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from minigptv2.errors import MiniGPTv2Error

MAX_JSON_BYTES = 8 << 20
"""Largest JSON file of a folder. Parsing takes at most 25 times as much memory."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def open_regular(file: Path, error: type[MiniGPTv2Error], *, folder: Path | None = None) -> BinaryIO:
    """The regular file `file`, open for reading. With `folder`, it has to lie in that folder (see the module).

    Raises `error` if it is missing, cannot be read, is no regular file, or lies elsewhere.
    """
    try:
        place = os.path.realpath(file, strict=True)
        if folder is not None and not _lies_in(Path(place), folder):
            raise error(f"{file} is a link out of its folder, to {place}; copy the file to its place, or name {place}")
        _check_kind(file, os.stat(place, follow_symlinks=False).st_mode, error)
        descriptor = os.open(place, _FLAGS)
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the name
        text = reason.strerror if isinstance(reason, OSError) else reason
        raise error(f"{file}: cannot be opened: {text}") from reason
    try:
        _check_kind(file, os.fstat(descriptor).st_mode, error)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _lies_in(place: Path, folder: Path) -> bool:
    root = folder.resolve()
    roots = [root]
    for above in (root, *root.parents):
        if above.parent.name == "snapshots":
            roots.append(above.parent.parent / "blobs")
    return any(place.is_relative_to(allowed) for allowed in roots)


def _check_kind(file: Path, mode: int, error: type[MiniGPTv2Error]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise error(f"{file} is {kind}; expected a regular file")


def path_of_open(stream: BinaryIO) -> str:
    """A path that opens the file behind `stream` again, for libraries that take paths only.

    Another file that has the old name by then is not opened.
    """
    return f"/dev/fd/{stream.fileno()}"


def read_regular(file: Path, error: type[MiniGPTv2Error], *, limit: int, folder: Path | None = None) -> bytes:
    """The content of a file that `open_regular` opens. Raises `error` for more than `limit` bytes, before reading."""
    with open_regular(file, error, folder=folder) as stream:
        return read_bounded(stream, file, error, limit=limit)


def read_bounded(stream: BinaryIO, file: Path, error: type[MiniGPTv2Error], *, limit: int) -> bytes:
    """The content of an open file from its beginning. Raises `error` for more than `limit` bytes, before reading."""
    size = os.fstat(stream.fileno()).st_size
    if size > limit:
        raise error(f"{file} has {size:,} bytes; at most {limit:,} are read")
    stream.seek(0)
    return stream.read(limit)


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. Raises `ValueError` for text that is not JSON or is nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("the values are nested too deeply") from None


def read_json(file: Path, error: type[MiniGPTv2Error], *, folder: Path | None = None) -> Any:
    """The value of a small JSON file. Raises `error` if `open_regular` does, if it is large, and if it is not JSON."""
    data = read_regular(file, error, limit=MAX_JSON_BYTES, folder=folder)
    try:
        return parse_json(data)
    except ValueError as reason:
        raise error(f"{file}: not valid JSON: {reason}") from reason
