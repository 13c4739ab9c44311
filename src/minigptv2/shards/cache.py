"""Caches shards on a node's local disk, in a bounded folder that the processes of the node share. Off by default.

MINIGPTV2_CACHE sets the folder, MINIGPTV2_CACHE_GIB its maximum size. Both belong to the machine, not to the run, so
they are environment variables and not config fields. The first process that needs a shard copies it, and the others
wait for that copy. The least recently opened shards are removed to free space. A file in use may be removed, since its
readers keep it open. A shard that cannot be cached (too large, disk full) is read from its original place, with one
warning.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from minigptv2.errors import ConfigError
from minigptv2.files import home_expanded, new_file, own_folder
from minigptv2.foreign_files import open_data

FOLDER, SIZE = "MINIGPTV2_CACHE", "MINIGPTV2_CACHE_GIB"
_GIB = 1 << 30
_COPYING = ".part"


class ShardCache:
    """At most `max_bytes` of copied shards in `folder`, which must be local to one node."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._warned = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ShardCache | None:
        """The node's cache, or None. Raises `ConfigError` for a folder without a valid maximum size."""
        folder, size = environment.get(FOLDER, ""), environment.get(SIZE, "")
        if not folder:
            return None
        try:
            max_bytes = int(float(size) * _GIB)
        except ValueError:
            max_bytes = 0
        if max_bytes <= 0:
            raise ConfigError(f"{FOLDER}={folder} requires {SIZE}, its maximum size in GiB, got '{size}'")
        return cls(Path(home_expanded(folder)), max_bytes)

    def open(self, source: Path, num_bytes: int) -> int:
        """A file descriptor for the shard `source`, which has `num_bytes`: of the node's copy, or of the original.

        Raises `OSError` if the source cannot be opened, and `ConfigError` if others can write to the folder.
        """
        copy = self._copy_of(source, num_bytes)
        if os.path.lexists(self.folder):
            own_folder(self.folder)
        descriptor = self._open_copy(copy, num_bytes)
        if descriptor is not None:
            return descriptor
        if source.stat().st_size != num_bytes:
            return open_data(source)  # differs from its manifest: the reader reports it
        if num_bytes > self.max_bytes:
            self._warn(f"{source} is larger than the whole cache ({SIZE})")
            return open_data(source)
        try:
            own_folder(self.folder)
            with self._locked(copy.name + ".lock"):  # one process copies a shard, the others find the copy
                descriptor = self._open_copy(copy, num_bytes)
                return self._fetch(source, copy, num_bytes) if descriptor is None else descriptor
        except OSError as error:
            self._warn(f"{error}; shards are read from their original place")
            return open_data(source)

    def _copy_of(self, source: Path, num_bytes: int) -> Path:
        """The name contains a hash of path, size and modification time, so that a rebuilt shard gets another copy."""
        changed = source.stat().st_mtime_ns
        digest = hashlib.sha256(f"{source.resolve()} {num_bytes} {changed}".encode()).hexdigest()[:24]
        return self.folder / f"{digest}-{source.name}"

    def _open_copy(self, copy: Path, num_bytes: int) -> int | None:
        try:
            descriptor = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link, which the copy replaces
                return None
            raise
        if os.fstat(descriptor).st_size != num_bytes:
            os.close(descriptor)
            return None
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))  # the order of removal. The kernel's own clock is too coarse for it
        return descriptor

    def _fetch(self, source: Path, copy: Path, num_bytes: int) -> int:
        part = copy.with_name(copy.name + _COPYING)
        with self._locked("room.lock"):  # one process at a time frees and claims space
            self._free_space(num_bytes)
            with new_file(part, 0o600) as stream:
                os.posix_fallocate(stream.fileno(), 0, max(1, num_bytes))
        try:
            reading, writing = open_data(source), os.open(part, os.O_RDWR | os.O_NOFOLLOW)
            with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "r+b") as writer:
                shutil.copyfileobj(reader, writer, 8 << 20)
                writer.truncate()
            os.replace(part, copy)
        finally:
            part.unlink(missing_ok=True)
        descriptor = self._open_copy(copy, num_bytes)
        if descriptor is None:
            raise OSError(f"{source} changed while it was copied")
        return descriptor

    def _free_space(self, num_bytes: int) -> None:
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        for _, size, file in entries:
            if used + num_bytes <= self.max_bytes:
                return
            if file.suffix == _COPYING and self._is_being_copied(file):
                continue
            file.unlink(missing_ok=True)
            used -= size
        if used + num_bytes > self.max_bytes:
            raise OSError(f"{self.folder}: shards that are being copied fill the cache ({SIZE})")

    def _is_being_copied(self, part: Path) -> bool:
        """Whether a running process holds the copy's lock. An incomplete copy of a dead process is removed."""
        lock = part.with_name(part.name.removesuffix(_COPYING) + ".lock")
        try:
            with _open_lock(lock) as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last opening, bytes, file) of every complete and incomplete copy."""
        found = []
        for file in self.folder.iterdir() if self.folder.is_dir() else ():
            if file.suffix != ".lock":
                try:
                    facts = file.stat()
                except FileNotFoundError:
                    continue
                found.append((facts.st_mtime_ns, facts.st_size, file))
        return found

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with _open_lock(self.folder / name) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # the kernel releases it when its holder dies
            yield

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"warning: shard cache {self.folder}: {text}", file=sys.stderr, flush=True)


def _open_lock(file: Path) -> IO[bytes]:
    return os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b")
