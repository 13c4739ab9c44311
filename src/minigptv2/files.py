"""Hashes, syncs and atomically writes files, and tells what a file is that is not what its name promises."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from minigptv2.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_WEB = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--", b"<error")
_SHOWN = 40


def disguise_of(file: Path, *, binary: bool) -> str | None:
    """What a file is instead of the data that its name promises, or None if its first bytes are no sign of that.

    Recognizes an empty file, a Git LFS pointer, a web page and, where `binary` data is expected, any other text, such
    as the error message of a server. Raises `OSError` if the file cannot be read.
    """
    with open(file, "rb") as stream:
        return disguise_in(stream, binary=binary)


def disguise_in(stream: BinaryIO, *, binary: bool) -> str | None:
    """As `disguise_of`, for an open file at its beginning, where it is again afterwards."""
    head = stream.read(512)
    stream.seek(0)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "an empty file"
    if text.startswith((b"version https://git-lfs", b"version https://hawser")):
        return "a Git LFS pointer, not the file itself (`git lfs pull` in its repository downloads it)"
    if text[:16].lower().startswith(_WEB):
        return "a web page, not the file itself (the download needed a login, or had another address)"
    if binary and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        shown = head.decode("utf-8", "backslashreplace").split("\n")[0].strip()
        return f"a text file that begins with '{shown[:_SHOWN]}'"
    return None


def home_expanded(path: str) -> str:
    """`path` with `~` or `~user` at its beginning replaced by the home folder. Raises `ConfigError` without one."""
    expanded = os.path.expanduser(path)
    if expanded == path and path.startswith("~") and (path == "~" or "/" in path):
        raise ConfigError(
            f"{path}: there is no home folder for '{path.split('/')[0]}'. Write the full path, or ./{path}"
        )
    return expanded


def sync_file(file: Path) -> None:
    """Flush the file's content to the disk."""
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())


def finish_file(file: Path) -> None:
    """Sync a file that a library wrote and apply the umask, because safetensors creates private files."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)
    sync_file(file)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries (a rename, a new file) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_atomically(file: Path, data: bytes, *, writer: str = "") -> None:
    """Write, sync and rename, so that `file` has either the old or the new content, never a part of it.

    `writer` tells apart processes that write the same file at once and may have equal host names and ids, as in pods.
    """
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}{writer and f'.{writer}'}.tmp")
    try:
        with new_file(temporary) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a folder with its content. Links are not followed. Raises `OSError` if one stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_or_report(path: Path) -> None:
    """As `remove_tree`, but prints what stays and why: for what nobody needs any more, after a result or an error."""
    try:
        remove_tree(path)
    except OSError as error:
        print(f"warning: {path} could not be removed: {error.strerror} ({error.filename})", file=sys.stderr, flush=True)


def new_file(file: Path, mode: int = 0o666) -> BinaryIO:
    """A new file, open for writing, in the place of an old one. A link that stands there is removed, not followed."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    return os.fdopen(descriptor, "wb")


def own_folder(folder: Path) -> None:
    """Make `folder` for this user alone. Raises `ConfigError` for a link and for a folder that others can write to."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise ConfigError(f"{folder} is a link or a file; expected a folder of this user")
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise ConfigError(f"{folder} belongs to another user, or others can write to it; choose a folder of your own")


def close_and_remove(stream: IO[Any], file: Path) -> None:
    """Discard a file that was being written. Errors of its stream are ignored, because the disk may be full."""
    with suppress(OSError):
        stream.close()
    file.unlink(missing_ok=True)


class HashedFile(io.RawIOBase):
    """A new file whose size and SHA-256 are known when its last byte is written. Raises `OSError`, such as a full disk.

    Bytes are written in pieces of `PIECE` through `os.write`, which releases the interpreter lock. With
    `evict_page_cache` each piece is sent to the disk at once and leaves the page cache when it has arrived. Otherwise a
    corpus, which is larger than memory and not read back, would displace files that are in use. Reused pages are
    also faster than new ones. File systems may ignore this hint. A raw stream, for `io.BufferedWriter` to gather
    small writes.
    """

    PIECE = 1 << 22

    def __init__(self, file: Path, *, evict_page_cache: bool = False) -> None:
        self.bytes = 0
        self._descriptor = -1  # the finalizer also closes it if opening the file fails
        self._evict_page_cache = evict_page_cache
        self._hash = hashlib.sha256()
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Append all of `data`. Returns its number of bytes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self.PIECE):
            piece = view[start : start + self.PIECE]
            self._hash.update(piece)
            while piece:
                written = os.write(self._descriptor, piece)
                self.bytes += written
                piece = piece[written:]
            self._forget()
        return len(view)

    def finish(self) -> dict[str, int | str]:
        """Sync and close. Returns `bytes` and `sha256`."""
        os.fsync(self._descriptor)
        self._forget()
        self.close()
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close without syncing. Closing twice is allowed."""
        descriptor, self._descriptor = self._descriptor, -1
        try:
            if descriptor >= 0:
                os.close(descriptor)
        finally:
            super().close()

    def _forget(self) -> None:
        """Start writing dirty pages to the disk and free the clean ones."""
        if self._evict_page_cache and hasattr(os, "posix_fadvise"):  # not on macOS
            with suppress(OSError):  # the file system supports no hints
                os.posix_fadvise(self._descriptor, 0, self.bytes, os.POSIX_FADV_DONTNEED)


def wait_until_seen(file: Path, num_bytes: int, timeout_s: float = 60.0) -> None:
    """Return once `file` is visible here with `num_bytes`. Network file systems show other nodes' files late.

    Raises `TimeoutError` naming this host after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            os.scandir(file.parent).close()  # makes a network file system refresh its cache
            if file.stat().st_size == num_bytes:
                return
        except FileNotFoundError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{socket.gethostname()} does not see {file} of {num_bytes} bytes, which another node has, after "
                f"{timeout_s:.0f} s: is it the same file system?"
            )
        time.sleep(0.2)
