"""Where shards lie: byte ranges of files in a folder, on this machine or behind `http(s)://` and `s3://`.

Local files stay open, a bounded number of them; they are copied to the node's own disk first where `data/cache.py` has
one. Remote ones are in `data/remote.py`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from minigptv2.data.cache import ShardCache
from minigptv2.data.remote import RemoteFiles, is_remote, mirror
from minigptv2.errors import DataError

_MAX_OPEN_SHARDS = 64


class ShardFiles:
    """Byte ranges of the files below one folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._cache = ShardCache.from_environment(os.environ)
        self._open_files: OrderedDict[str, int] = OrderedDict()

    def read(self, file: str, size: int, offset: int, count: int) -> bytes:
        """`count` bytes of `file` from `offset`. Raises `DataError` if it is not there or not `size` bytes long."""
        try:
            data = os.pread(self._descriptor(file, size), count, offset)
        except OSError as error:
            raise DataError(f"{self.folder / file}: cannot be read: {error}") from error
        if len(data) < count:
            raise DataError(f"{self.folder / file}: ends {count - len(data)} bytes early")
        return data

    def _descriptor(self, file: str, size: int) -> int:
        if file in self._open_files:
            self._open_files.move_to_end(file)
            return self._open_files[file]
        source = self.folder / file
        descriptor = os.open(source, os.O_RDONLY) if self._cache is None else self._cache.open(source, size)
        found = os.fstat(descriptor).st_size
        if found != size:
            os.close(descriptor)
            raise DataError(f"{self.folder / file}: {found} bytes, the manifest says {size}; copy or build it again")
        self._open_files[file] = descriptor
        if len(self._open_files) > _MAX_OPEN_SHARDS:
            os.close(self._open_files.popitem(last=False)[1])
        return descriptor


def files_of(folder: Path | str) -> ShardFiles | RemoteFiles:
    """The files of a corpus, wherever it lies."""
    return RemoteFiles(str(folder)) if is_remote(folder) else ShardFiles(folder)


def local_copy(folder: Path | str) -> Path:
    """The folder on this machine with the corpus's manifest, table and index."""
    return mirror(str(folder)) if is_remote(folder) else Path(folder)
