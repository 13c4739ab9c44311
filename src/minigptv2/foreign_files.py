"""Opens and parses files from untrusted sources: checkpoints, exports, tokenizers, corpora.

A file is opened once, and everything that is checked or read comes from that open file. A FIFO, a device or a socket is
never opened. A file of a foreign folder lies in that folder: a link out of it is refused, because the file behind it
could be the user's own, and a converted folder would hold a copy. The one exception is the cache of Hugging Face,
whose `snapshots/<revision>/<file>` are links to `blobs` beside `snapshots`. Links in the path of a folder or file that
the user names are followed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from minigptv2.errors import MiniGPTv2Error
from minigptv2.files import disguise_in

MAX_JSON_BYTES = 8 << 20
"""Largest JSON file of a folder. Parsing takes at most 25 times as much memory."""
_MAX_HEADER_BYTES = 16 << 20
"""Largest header of a safetensors file. That of a model with 1,000 tensors has about 0.1 MiB."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NUMBER_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL")
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def open_regular(file: Path, error: type[MiniGPTv2Error], *, folder: Path | None = None) -> BufferedReader:
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
        raise error(f"{file}: cannot be read: {text}") from reason
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
        raise error(f"{file} is {_kind_of(mode)}; expected a regular file")


def _kind_of(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


@dataclass(frozen=True)
class FileIdentity:
    """What changes when the content of a file does: its place, size, times and numbers in the file system.

    The time of the last change (`changed_ns`) cannot be set, so a file that got its old modification time back differs.
    """

    path: str
    size: int
    modified_ns: int
    changed_ns: int
    device: int
    inode: int

    @classmethod
    def of(cls, file: Path, stream: BinaryIO) -> FileIdentity:
        """Return the identity of an open file."""
        facts = os.fstat(stream.fileno())
        place = os.path.realpath(file)
        return cls(place, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_dev, facts.st_ino)


def open_data(file: Path) -> int:
    """A descriptor of the regular file `file`, for reading. Links are followed: corpora may be spread over disks.

    Raises `OSError`, also for a named pipe or a device, which is not opened.
    """
    _require_regular(file, os.stat(file).st_mode)
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(file, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(file: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"is {_kind_of(mode)}; expected a regular file", str(file))


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


def read_json(file: Path, error: type[MiniGPTv2Error], *, folder: Path | None = None, kind: str = "JSON") -> Any:
    """The value of a small JSON file, which should be `kind`.

    Raises `error` if `open_regular` does, for a large file, for a web page or the like, and for text that is not JSON.
    """
    with open_regular(file, error, folder=folder) as stream:
        if disguise := disguise_in(stream, binary=False):
            raise error(f"{file} is {disguise}; expected {kind}")
        data = read_bounded(stream, file, error, limit=MAX_JSON_BYTES)
    try:
        return parse_json(data)
    except ValueError as reason:
        raise error(f"{file}: not valid JSON: {reason}") from reason


def open_safetensors(file: Path, error: type[MiniGPTv2Error], *, folder: Path | None = None) -> Any:
    """The handle of `safetensors.safe_open`, with tensors of torch, for a file that `open_regular` opens.

    Raises `error` as `safetensors_in` does.
    """
    with open_regular(file, error, folder=folder) as stream:
        return safetensors_in(stream, file, error)


def safetensors_in(stream: BinaryIO, file: Path, error: type[MiniGPTv2Error]) -> Any:
    """The handle of `safetensors.safe_open` for an open file. It stays valid when the stream is closed.

    Raises `error` for a file of another kind, a damaged one, and a number type that torch does not have.
    """
    from safetensors import SafetensorError, safe_open

    stream.seek(0)
    if disguise := disguise_in(stream, binary=True):
        raise error(f"{file} is {disguise}; expected a safetensors file")
    header = int.from_bytes(stream.read(8), "little")
    if header > _MAX_HEADER_BYTES:
        raise error(f"{file}: not a valid safetensors file: a header of {header:,} bytes")
    try:
        handle = safe_open(path_of_open(stream), framework="pt")
    except (SafetensorError, OSError, ValueError, RuntimeError) as reason:
        raise error(f"{file}: not a valid safetensors file: {reason}") from reason
    for name in handle.keys():  # noqa: SIM118  # not a dictionary
        kind = handle.get_slice(name).get_dtype()
        if kind not in _NUMBER_TYPES:
            raise error(f"{file}: {name} is of type {kind}; expected one of {', '.join(_NUMBER_TYPES)}")
    return handle
