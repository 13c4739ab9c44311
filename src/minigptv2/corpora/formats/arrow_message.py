"""Measures the record batches of an Arrow file or stream from their headers, before pyarrow unpacks them.

A compressed buffer states its size after unpacking, which pyarrow allocates without a limit. The layout is that of
"Encapsulated message format" and `Message.fbs` in the Arrow specification, version 1.5.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import IO

_CONTINUATION = 0xFFFFFFFF
_DICTIONARY, _RECORD_BATCH = 2, 3
_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
"""Fields of a message, by their place in its table."""
_BUFFERS, _COMPRESSION = 2, 3
"""Fields of a record batch."""
_DATA = 1
"""The field of a dictionary that is a record batch."""
_MAX_HEADER = 1 << 26


def unpacked_bytes(stream: IO[bytes]) -> Iterator[int]:
    """The bytes to which each record batch and dictionary is unpacked. Ends where no message comes next."""
    while header := _next_header(stream):
        try:
            message = _table(header, 0)
            kind, batch = header[_place(header, message, _TYPE)], _place(header, message, _HEADER)
            body = _body_length(header, message)
            start = stream.tell()
            if kind == _RECORD_BATCH:
                yield _size(stream, header, _table(header, batch), start)
            elif kind == _DICTIONARY:
                data = _table(header, _place(header, _table(header, batch), _DATA))
                yield _size(stream, header, data, start)
        except (struct.error, IndexError):  # pyarrow names the damage
            return
        if body < 0 or start + body > os.fstat(stream.fileno()).st_size:
            return
        stream.seek(start + body)


def _next_header(stream: IO[bytes]) -> bytes:
    """The header of the next message, or nothing."""
    prefix = stream.read(4)
    if len(prefix) == 4 and struct.unpack("<I", prefix)[0] == _CONTINUATION:
        prefix = stream.read(4)
    length = struct.unpack("<I", prefix)[0] if len(prefix) == 4 else 0
    return stream.read(length) if 0 < length <= _MAX_HEADER else b""


def _size(stream: IO[bytes], header: bytes, batch: int, start: int) -> int:
    """The stated sizes of the buffers of a compressed batch. 0 if it is not compressed: it is mapped, not read."""
    if not _offset(header, batch, _COMPRESSION):
        return 0
    vector = _table(header, _place(header, batch, _BUFFERS))
    total = 0
    for number in range(struct.unpack_from("<I", header, vector)[0]):
        offset, length = struct.unpack_from("<qq", header, vector + 4 + 16 * number)
        if length >= 8:
            stream.seek(start + max(0, offset))
            stated = struct.unpack("<q", stream.read(8))[0]
            total += length - 8 if stated == -1 else abs(stated)
    return total


def _table(data: bytes, place: int) -> int:
    """Where the table or vector starts to which an offset refers."""
    return place + int(struct.unpack_from("<I", data, place)[0])


def _offset(data: bytes, table: int, field: int) -> int:
    """The offset of a field in its table. 0: the table does not have it."""
    fields = table - int(struct.unpack_from("<i", data, table)[0])
    at = 4 + 2 * field
    return int(struct.unpack_from("<H", data, fields + at)[0]) if at < struct.unpack_from("<H", data, fields)[0] else 0


def _place(data: bytes, table: int, field: int) -> int:
    offset = _offset(data, table, field)
    if not offset:
        raise IndexError(f"field {field} is missing")
    return table + offset


def _body_length(data: bytes, message: int) -> int:
    """0 if the field is missing: its default is not written."""
    offset = _offset(data, message, _BODY_LENGTH)
    return int(struct.unpack_from("<q", data, message + offset)[0]) if offset else 0
