"""Reads byte ranges of shards in a folder. Bounds the number of open files, and retries if the file system fails."""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections import OrderedDict
from itertools import count
from pathlib import Path

from minigptv2.errors import DataError, StorageError
from minigptv2.foreign_files import open_data
from minigptv2.shards.cache import ShardCache

_MAX_OPEN_SHARDS = 256
"""Per process, over all corpora. The usual limit of open files is 1,024."""
_STORAGE_ERRORS = {
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EREMOTEIO,
    errno.ENODEV,
    errno.ENXIO,
}
"""Errors that are not caused by the sample: a server or disk is unreachable, or this process is out of a resource."""
_PAUSES_S = (0.5, 2.0, 8.0)
_open_files: OrderedDict[tuple[int, str], int] = OrderedDict()
"""Descriptors by number of the `LocalFiles` and file name, least recently used first."""
_numbers = count()


class LocalFiles:
    """Byte ranges of the files in one folder, read through the node's shard cache if there is one."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._cache = ShardCache.from_environment(os.environ)
        self._number = next(_numbers)
        weakref.finalize(self, _close_files_of, self._number)

    def read(self, file: str, size: int, offset: int, length: int) -> bytes:
        """`length` bytes of `file` from `offset`.

        Raises `DataError` if the file is missing or is not `size` bytes long. Raises `StorageError` if the file
        system still fails after a few attempts: that ends the run, and drops no sample.
        """
        for pause in (*_PAUSES_S, None):
            try:
                data = self._pread(file, size, length, offset)
                break
            except OSError as error:
                if error.errno not in _STORAGE_ERRORS:
                    raise DataError(f"{self.folder / file}: cannot be read: {error}") from error
                if pause is None:
                    attempts = len(_PAUSES_S) + 1
                    raise StorageError(f"{self.folder / file}: {error}, after {attempts} attempts") from error
                self._close(file)
                time.sleep(pause)
        if len(data) < length:
            raise DataError(f"{self.folder / file}: ends {length - len(data)} bytes early")
        return data

    def _pread(self, file: str, size: int, length: int, offset: int) -> bytes:
        return os.pread(self._descriptor(file, size), length, offset)

    def _descriptor(self, file: str, size: int) -> int:
        known = self._number, file
        if known in _open_files:
            _open_files.move_to_end(known)
            return _open_files[known]
        source = self.folder / file
        descriptor = open_data(source) if self._cache is None else self._cache.open(source, size)
        try:
            self._check_size(file, descriptor, size)
        except DataError:
            os.close(descriptor)
            raise
        _open_files[known] = descriptor
        while len(_open_files) > _MAX_OPEN_SHARDS:
            os.close(_open_files.popitem(last=False)[1])
        return descriptor

    def _check_size(self, file: str, descriptor: int, size: int) -> None:
        found = os.fstat(descriptor).st_size
        if found != size:
            raise DataError(f"{self.folder / file}: {found} bytes, the manifest says {size}; copy or build it again")

    def _close(self, file: str) -> None:
        """Close the file, so that the next read opens it again: a stale handle stays stale."""
        descriptor = _open_files.pop((self._number, file), None)
        if descriptor is not None:
            os.close(descriptor)


class ScatteredFiles(LocalFiles):
    """Byte ranges of the files in one folder, for a few reads from many files. Threads may share it.

    It opens a file for each read, and leaves the shard cache alone, which would copy every file that it is asked for.
    """

    def _pread(self, file: str, size: int, length: int, offset: int) -> bytes:
        descriptor = open_data(self.folder / file)
        try:
            self._check_size(file, descriptor, size)
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)


def _close_files_of(number: int) -> None:
    for known in [known for known in _open_files if known[0] == number]:
        os.close(_open_files.pop(known))
