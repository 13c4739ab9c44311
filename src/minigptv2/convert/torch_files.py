"""Reads files of `torch.save`, in the zip format and the one before torch 1.6: tensors and plain values, nothing else.

A file is opened once and mapped. Tensors refer to the mapped bytes, so a large file takes no memory until its tensors
are used. Its pickle is read by `pickles`, which calls no code. Compressed entries, which `torch.save` does not write,
are refused.
"""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from minigptv2.convert.pickles import MAX_BYTES, MAX_REPEATS, ForeignObjectError, Storage, StorageType, read_pickle
from minigptv2.errors import CheckpointError
from minigptv2.files import disguise_in
from minigptv2.foreign_files import open_regular

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
_ZIP = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26xHH")
"""The lengths of name and extra field, at the end of the 30 bytes before them."""
_ENCRYPTED = 1
_PICKLE, _BYTE_ORDER = "data.pkl", "byteorder"


def read_torch(file: Path, *, folder: Path | None = None) -> Any:
    """The content of a file of `torch.save`: tensors, memory-mapped, and plain values.

    With `folder`, the file has to lie in it. Raises `CheckpointError` for a file that is missing, incomplete or not
    regular, and for one that contains Python objects. Such objects may run code when they are read by others.
    """
    if not os.path.lexists(file):
        raise CheckpointError(f"file {file} does not exist")
    with open_regular(file, CheckpointError, folder=folder) as stream:
        if disguise := disguise_in(stream, binary=True):
            raise CheckpointError(f"{file} is {disguise}; expected a file of torch.save")
        try:
            return _read(stream)
        except ForeignObjectError as error:
            raise CheckpointError(
                f"{file} contains a Python object ({error}) that may run code when read; only tensors and plain values "
                "are allowed"
            ) from error
        except (ValueError, struct.error, zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
            raise CheckpointError(f"{file}: not a valid PyTorch file: {error}") from error


def _read(stream: BinaryIO) -> Any:
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # nothing is written back
    return _read_zip(stream, mapped) if mapped[: len(_ZIP)] == _ZIP else _read_old(mapped)


def _read_zip(stream: BinaryIO, mapped: mmap.mmap) -> Any:
    with zipfile.ZipFile(cast(BinaryIO, _SmallReads(stream))) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name == _PICKLE or name.endswith(f"/{_PICKLE}")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} entries {_PICKLE}, expected one")
    if sum(entry.file_size for entry in entries.values()) > len(mapped):
        raise ValueError("its entries are larger than the file")
    prefix = pickles[0].removesuffix(_PICKLE)
    if f"{prefix}{_BYTE_ORDER}" in entries:
        order = _content(entries[f"{prefix}{_BYTE_ORDER}"], mapped)
        if mapped[order.start : order.stop] != b"little":
            raise ValueError("its numbers are not little-endian")
    known: dict[str, torch.UntypedStorage] = {}

    def open_storage(kind: StorageType, key: str, elements: int) -> Storage:
        if key not in known:
            place = _content(entries[f"{prefix}data/{key}"], mapped)
            known[key] = _bytes_at(mapped, place.start, len(place))
        if known[key].nbytes() != elements * _item_size(kind):
            raise ValueError(f"storage {key} has {known[key].nbytes()} bytes for {elements} numbers")
        return Storage(kind.dtype, known[key])

    place = _content(entries[pickles[0]], mapped)
    if len(place) > MAX_BYTES:
        raise ValueError(f"its pickle has {len(place):,} bytes; at most {MAX_BYTES:,} are read")
    return read_pickle(mapped[place.start : place.stop], open_storage, MAX_REPEATS * len(mapped))[0]


class _SmallReads:
    """A stream for `zipfile`, which reads the whole table of entries at once, whatever size the file states."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(MAX_BYTES + 1 if size < 0 else min(size, MAX_BYTES + 1))
        if len(data) > MAX_BYTES:
            raise ValueError(f"its table of entries is too large; at most {MAX_BYTES:,} bytes are read")
        return data


def _content(entry: zipfile.ZipInfo, mapped: mmap.mmap) -> range:
    """The positions of the content of an entry in the file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        raise ValueError(f"its entry {entry.filename} is compressed or encrypted, which torch.save does not write")
    name, extra = _LOCAL_HEADER.unpack_from(mapped, entry.header_offset)
    start = entry.header_offset + _LOCAL_HEADER.size + name + extra
    if start + entry.file_size > len(mapped):
        raise ValueError(f"its entry {entry.filename} is cut")
    return range(start, start + entry.file_size)


def _read_old(mapped: mmap.mmap) -> Any:
    """The format before torch 1.6: five pickles (the third is the content), then the storages one after the other."""
    position = 0
    waiting: dict[str, tuple[torch.UntypedStorage, int]] = {}
    left = len(mapped)

    def open_storage(kind: StorageType, key: str, elements: int) -> Storage:
        nonlocal left
        size = elements * _item_size(kind)
        if key not in waiting:
            left -= size
            if left < 0:
                raise ValueError("its storages are larger than the file")
            waiting[key] = torch.UntypedStorage(size), elements
        if waiting[key][0].nbytes() != size:
            raise ValueError(f"storage {key} has two sizes")
        return Storage(kind.dtype, waiting[key][0])

    def read(opening: Callable[[StorageType, str, int], Storage] = _no_storage) -> Any:
        nonlocal position
        value, length = read_pickle(mapped[position : position + MAX_BYTES], opening, MAX_REPEATS * len(mapped))
        position += length
        return value

    if read() != MAGIC_NUMBER or read() != PROTOCOL_VERSION:
        raise ValueError("it has an unknown or old format")
    system = read()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    content, keys = read(open_storage), read()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(waiting):
        raise ValueError("its list of storages does not match its content")
    for key in keys:
        storage, elements = waiting[key]
        if mapped[position : position + 8] != struct.pack("<q", elements):
            raise ValueError(f"storage {key} is cut or has another size")
        storage.copy_(_bytes_at(mapped, position + 8, storage.nbytes()))
        position += 8 + storage.nbytes()
    return content


def _no_storage(kind: StorageType, key: str, elements: int) -> Storage:
    raise ValueError("a storage where none is expected")


def _bytes_at(mapped: mmap.mmap, start: int, size: int) -> torch.UntypedStorage:
    if start + size > len(mapped):
        raise ValueError("it is cut")
    return torch.frombuffer(mapped, dtype=torch.uint8, offset=start, count=size).untyped_storage() if size else _empty()


def _empty() -> torch.UntypedStorage:
    return torch.UntypedStorage(0)


def _item_size(kind: StorageType) -> int:
    return 1 if kind.dtype is None else kind.dtype.itemsize
