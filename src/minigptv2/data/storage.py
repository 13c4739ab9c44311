"""Where shards lie: byte ranges of files in a folder, on this machine or behind `http(s)://` and `s3://`.

Local files stay open, a bounded number of them over all corpora; they are copied to the node's own disk first where
`data/cache.py` has one. A file system that fails for a moment is asked again. Remote ones are in `data/remote.py`.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections import OrderedDict
from itertools import count
from pathlib import Path

from minigptv2.data.cache import ShardCache
from minigptv2.data.remote import RemoteFiles, is_remote, mirror
from minigptv2.errors import DataError, StorageError

_MAX_OPEN_SHARDS = 256
"""Of a process, whatever its corpora: the usual limit of open files is 1,024."""
_OF_THE_STORE = {
    errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOMEM, errno.ENOTCONN,
    errno.EHOSTDOWN, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO,
}  # fmt: skip
"""Errors that are not the sample's: a server or disk that is away, this process out of something."""
_PAUSES_S = (0.5, 2.0, 8.0)
_open_files: OrderedDict[tuple[int, str], int] = OrderedDict()
"""Descriptors by number of the `ShardFiles` and file, least recently used first."""
_numbers = count()


class ShardFiles:
    """Byte ranges of the files below one folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._cache = ShardCache.from_environment(os.environ)
        self._number = next(_numbers)
        weakref.finalize(self, _close_files_of, self._number)

    def read(self, file: str, size: int, offset: int, length: int) -> bytes:
        """`length` bytes of `file` from `offset`. Raises `DataError` if it is not there or not `size` bytes long, and
        `StorageError` where the file system still fails after a few tries: that loses no sample, it ends the run."""
        for pause in (*_PAUSES_S, None):
            try:
                data = os.pread(self._descriptor(file, size), length, offset)
                break
            except OSError as error:
                if error.errno not in _OF_THE_STORE:
                    raise DataError(f"{self.folder / file}: cannot be read: {error}") from error
                if pause is None:
                    raise StorageError(f"{self.folder / file}: {error}, in {len(_PAUSES_S) + 1} tries") from error
                self._forget(file)
                time.sleep(pause)
        if len(data) < length:
            raise DataError(f"{self.folder / file}: ends {length - len(data)} bytes early")
        return data

    def _descriptor(self, file: str, size: int) -> int:
        known = self._number, file
        if known in _open_files:
            _open_files.move_to_end(known)
            return _open_files[known]
        source = self.folder / file
        descriptor = os.open(source, os.O_RDONLY) if self._cache is None else self._cache.open(source, size)
        found = os.fstat(descriptor).st_size
        if found != size:
            os.close(descriptor)
            raise DataError(f"{self.folder / file}: {found} bytes, the manifest says {size}; copy or build it again")
        _open_files[known] = descriptor
        while len(_open_files) > _MAX_OPEN_SHARDS:
            os.close(_open_files.popitem(last=False)[1])
        return descriptor

    def _forget(self, file: str) -> None:
        """Close it, so that the next read opens it anew: a stale handle stays stale."""
        descriptor = _open_files.pop((self._number, file), None)
        if descriptor is not None:
            os.close(descriptor)


def _close_files_of(number: int) -> None:
    for known in [known for known in _open_files if known[0] == number]:
        os.close(_open_files.pop(known))


def files_of(folder: Path | str) -> ShardFiles | RemoteFiles:
    """The files of a corpus, wherever it lies."""
    return RemoteFiles(str(folder)) if is_remote(folder) else ShardFiles(folder)


def local_copy(folder: Path | str) -> Path:
    """The folder on this machine with the corpus's manifest, table and index."""
    return mirror(str(folder)) if is_remote(folder) else Path(folder)
