"""Writes and maps the `.npy` files beside a corpus's tars: row by row, synced, renamed when complete, and hashed."""

from __future__ import annotations

import hashlib
import os
import tokenize
from pathlib import Path

import numpy as np

from minigptv2.errors import DataError
from minigptv2.files import close_and_remove, sha256_of, sync_file
from minigptv2.foreign_files import open_regular, path_of_open

_MAX_HASHED_BYTES = 1 << 20
"""Arrays are hashed when they are mapped if they are at most this large (a few milliseconds)."""

_DAMAGED = (
    *(OSError, ValueError, EOFError, OverflowError, SyntaxError, MemoryError, RecursionError),
    tokenize.TokenError,  # numpy parses the header as Python's literals
)
_AGAIN = "`minigptv2 shards index` writes it again"


class ArrayWriter:
    """Appends rows to an array on disk, under a temporary name, so that no row stays in memory."""

    def __init__(self, file: Path, dtype: np.dtype) -> None:
        self.rows = 0
        self.temporary = temporary_of(file)
        self._file, self._dtype = file, dtype
        self._stream = open(self.temporary, "wb")  # noqa: SIM115  # closed by `finish` or `abandon`
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Append `rows`, which have the writer's dtype."""
        self._stream.write(rows.tobytes())
        self.rows += len(rows)

    def finish(self) -> str:
        """Give the file its final name. Returns its SHA-256."""
        self._stream.seek(0)
        self._write_header()
        self._stream.close()
        return _publish(self.temporary, self._file)

    def abandon(self) -> None:
        """Remove the temporary file, unless the array is finished."""
        close_and_remove(self._stream, self.temporary)

    def _write_header(self) -> None:
        """Write the header of `numpy.save`, which has the same size for any number of rows."""
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._stream, {**described, "shape": (self.rows,)})


def temporary_of(file: Path) -> Path:
    """The name under which this process writes `file`."""
    return file.with_name(f".{file.name}.{os.getpid()}.tmp")


def save_array(file: Path, array: np.ndarray) -> str:
    """Write `array` as a whole. Returns the file's SHA-256."""
    temporary = temporary_of(file)
    with open(temporary, "wb") as stream:
        np.save(stream, array)
    return _publish(temporary, file)


def map_array(file: Path, sha256: str, rows: int) -> np.ndarray:
    """The memory-mapped array of `rows` rows. Raises `DataError` if it is missing or is not what the manifest lists."""
    try:
        opened = open_regular(file, DataError, folder=file.parent)
    except DataError as error:
        raise DataError(f"{error}; {_AGAIN}") from error
    with opened as stream:
        try:
            array = np.load(path_of_open(stream), mmap_mode="r", allow_pickle=False)
        except _DAMAGED as error:
            reason = str(error).partition("\n")[0]  # later lines advise to trust the file
            raise DataError(f"{file}: cannot be read: {reason}; {_AGAIN}") from error
        if not isinstance(array, np.ndarray) or array.shape != (rows,):
            found = getattr(array, "shape", type(array).__name__)
            raise DataError(f"{file}: {found} entries, manifest.json says {rows}")
        size = os.fstat(stream.fileno()).st_size
        if size <= _MAX_HASHED_BYTES and hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            raise DataError(f"{file}: does not match the hash in its manifest")
    return np.asarray(array)  # the mapped memory without numpy's subclass, whose every slice costs microseconds


def _publish(temporary: Path, file: Path) -> str:
    """Sync the file and give it its final name. Returns its SHA-256."""
    sync_file(temporary)
    digest = sha256_of(temporary)
    os.replace(temporary, file)
    return digest
