"""Shards on a node's own disk: a bounded cache that the processes of a node share. Off unless the node names a folder.

MINIGPTV2_CACHE names the folder, MINIGPTV2_CACHE_GIB bounds it. It is a matter of the machine, not of the run, so it
stands in the environment and in no config. Whoever needs a shard first copies it, the others wait for that copy; the
least recently opened ones make room. A file in use may be removed: its readers keep it open. What cannot be cached
(too large, disk full) is read where it lies, and said once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from minigptv2.errors import ConfigError

FOLDER, SIZE = "MINIGPTV2_CACHE", "MINIGPTV2_CACHE_GIB"
_GIB = 1 << 30
_COPYING = ".part"


class ShardCache:
    """At most `max_bytes` of copied shards in `folder`, a folder that only the processes of one node see."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._said = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ShardCache | None:
        """The node's cache, None where it has none. Raises `ConfigError` for a folder without a size or a bad size."""
        folder, size = environment.get(FOLDER, ""), environment.get(SIZE, "")
        if not folder:
            return None
        try:
            max_bytes = int(float(size) * _GIB)
        except ValueError:
            max_bytes = 0
        if max_bytes <= 0:
            raise ConfigError(f"{FOLDER}={folder} needs {SIZE}, the most GiB it may take, and not '{size}'")
        return cls(Path(folder), max_bytes)

    def open(self, source: Path, num_bytes: int) -> int:
        """A descriptor of the shard `source`, which has `num_bytes`: of the node's copy, or of itself.

        Raises `OSError` if the source cannot be opened.
        """
        copy = self._copy_of(source, num_bytes)
        descriptor = self._open_whole(copy, num_bytes)
        if descriptor is not None:
            return descriptor
        if source.stat().st_size != num_bytes:
            return os.open(source, os.O_RDONLY)  # not what its manifest says: the reader refuses it by name
        if num_bytes > self.max_bytes:
            self._say(f"{source} is larger than {SIZE} allows in all")
            return os.open(source, os.O_RDONLY)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(copy.name + ".lock"):  # one process copies a shard, the others find it done
                descriptor = self._open_whole(copy, num_bytes)
                return self._fetch(source, copy, num_bytes) if descriptor is None else descriptor
        except OSError as error:
            self._say(f"{error}; shards are read where they lie")
            return os.open(source, os.O_RDONLY)

    def _copy_of(self, source: Path, num_bytes: int) -> Path:
        """Named by path, size and time of change, so that a rebuilt shard is another file."""
        changed = source.stat().st_mtime_ns
        digest = hashlib.sha256(f"{source.resolve()} {num_bytes} {changed}".encode()).hexdigest()[:24]
        return self.folder / f"{digest}-{source.name}"

    def _open_whole(self, copy: Path, num_bytes: int) -> int | None:
        try:
            descriptor = os.open(copy, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if os.fstat(descriptor).st_size != num_bytes:
            os.close(descriptor)
            return None
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))  # the least recently opened goes first; the kernel's own clock is coarse
        return descriptor

    def _fetch(self, source: Path, copy: Path, num_bytes: int) -> int:
        part = copy.with_name(copy.name + _COPYING)
        with self._locked("room.lock"):  # room is made and taken by one process at a time
            self._make_room(num_bytes)
            with open(part, "wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, max(1, num_bytes))
        try:
            with open(source, "rb") as reader, open(part, "r+b") as writer:
                shutil.copyfileobj(reader, writer, 8 << 20)
                writer.truncate()
            os.replace(part, copy)
        finally:
            part.unlink(missing_ok=True)
        descriptor = self._open_whole(copy, num_bytes)
        if descriptor is None:
            raise OSError(f"{source} changed while it was copied")
        return descriptor

    def _make_room(self, num_bytes: int) -> None:
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
            raise OSError(f"{self.folder}: shards being copied take up all of {SIZE}")

    def _is_being_copied(self, part: Path) -> bool:
        """Whether a living process holds the copy's lock; a half-made copy of a dead one is rubbish."""
        lock = part.with_name(part.name.removesuffix(_COPYING) + ".lock")
        try:
            with open(lock, "w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last opening, bytes, file) of every copy."""
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
        with open(self.folder / name, "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # the kernel frees it when its holder dies
            yield

    def _say(self, text: str) -> None:
        if not self._said:
            self._said = True
            print(f"warning: shard cache {self.folder}: {text}", file=sys.stderr, flush=True)
