"""Finds members of tar archives strictly, and writes headers deterministically. Nothing is ever extracted.

Reads what webdataset, img2dataset, GNU tar and Python write (ustar, GNU long names, pax paths). Anything else in an
archive is a `TarError`. Python's `tarfile` is lenient (a damaged header ends the archive silently) and slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
MAX_NAME_BYTES = 100
"""Length of a name in a plain ustar header. Our writer refuses longer names, the reader accepts them."""

_REGULAR = (b"0", b"\0", b"7")
_DIRECTORY, _LONG_NAME, _PAX, _PAX_GLOBAL = b"5", b"L", b"x", b"g"
_LARGEST_EXTENSION = 1 << 20
_MOST_PAX_DIGITS = 9


class TarError(ValueError):
    """The bytes are not a tar archive of plain files. The message says where and why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: byte offsets of its first header (also extended) and of its data, and the data's size."""

    name: str
    offset: int
    data_offset: int
    size: int

    @property
    def end(self) -> int:
        """The byte after the member's padding."""
        return self.data_offset + padded(self.size)


def padded(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def find_members(data: bytes | memoryview, start: int = 0, *, whole: bool = True) -> Iterator[Member]:
    """Yield the plain files in `data` from byte `start` on.

    `whole` requires the end mark of an archive (a block of zeros). Without it the data may stop after any member.
    Raises `TarError` for a wrong checksum, a member that extends past the end, links, devices, sparse files and
    names that point outside the archive.
    """
    position, first, long_name = start, start, None
    while True:
        header = bytes(data[position : position + BLOCK])
        if len(header) < BLOCK:
            if whole or header:
                raise TarError(f"ends at byte {position + len(header)} without an end mark")
            return
        if header == END_OF_ARCHIVE[:BLOCK]:
            if bytes(data[position:]).strip(b"\0"):
                raise TarError(f"bytes after the end mark at {position}")
            return
        name, size, kind = _parse_header(header, position)
        body = position + BLOCK
        if body + padded(size) > len(data):
            over = body + padded(size) - len(data)
            raise TarError(f"member '{name}' at byte {position} extends {over} bytes past the end")
        if kind in (_LONG_NAME, _PAX):
            if size > _LARGEST_EXTENSION:
                raise TarError(f"extended header of {size} bytes at byte {position} is too large")
            extension = bytes(data[body : body + size])
            long_name = _gnu_name(extension) if kind == _LONG_NAME else _pax_name(extension, position) or long_name
        elif kind in (_DIRECTORY, _PAX_GLOBAL):
            first, long_name = body + padded(size), None
        elif kind in _REGULAR:
            yield Member(_safe_name(long_name or name), first, body, size)
            first, long_name = body + padded(size), None
        else:
            raise TarError(f"member '{name}' at byte {position} is not a plain file (type {kind!r})")
        position = body + padded(size)


def header_of(name: str, size: int) -> bytes:
    """A ustar header for a plain file. The same arguments give the same bytes on every machine (time 0, owner 0).

    Raises `TarError` for a name that does not fit a plain header.
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME_BYTES or not 0 <= size < 8**11:
        raise TarError(f"member '{name}' of {size} bytes does not fit a tar header (name of {MAX_NAME_BYTES} bytes)")
    header = bytearray(_TEMPLATE)
    header[: len(encoded)] = encoded
    header[124:135] = b"%011o" % size
    header[148:155] = b"%06o\0" % (_TEMPLATE_SUM + sum(encoded) + sum(header[124:135]))
    return bytes(header)


def _parse_header(header: bytes, position: int) -> tuple[str, int, bytes]:
    stated = _number(header[148:156], position)
    if stated != sum(header) - sum(header[148:156]) + 8 * 32:
        raise TarError(f"damaged header at byte {position}: wrong checksum")
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    full = prefix + b"/" + name if prefix else name
    try:
        return full.decode(), _number(header[124:136], position), header[156:157]
    except UnicodeDecodeError as error:
        raise TarError(f"the name at byte {position} is not UTF-8") from error


def _number(text: bytes, position: int) -> int:
    """An octal field, or GNU's base-256 field. Negative numbers are refused (lenient readers loop on them)."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b"\0 ")
    if not digits:
        return 0
    if not all(0x30 <= byte <= 0x37 for byte in digits):
        raise TarError(f"damaged header at byte {position}: {text!r} is not an octal number")
    return int(digits, 8)


def _gnu_name(data: bytes) -> str:
    return _decoded(data.rstrip(b"\0"))


def _pax_name(data: bytes, position: int) -> str | None:
    """The `path` of a pax header. Raises if the header overrides the size: no image or record is so large."""
    path, rest = None, data
    while rest.strip(b"\0"):
        length, space, _ = rest.partition(b" ")
        counted = bool(space) and length.isdigit() and len(length) <= _MOST_PAX_DIGITS
        if not counted or not len(length) + 3 < int(length) <= len(rest):
            raise TarError(f"damaged pax header at byte {position}")
        key, _, value = rest[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise TarError(f"a pax header at byte {position} sets {key.decode()}, which is not supported")
        path = _decoded(value) if key == b"path" else path
        rest = rest[int(length) :]
    return path


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise TarError(f"the name {name!r} is not UTF-8") from error


def _safe_name(name: str) -> str:
    """The name without a leading `./`. Raises for names that would be extracted outside the target folder."""
    while name.startswith("./"):
        name = name[2:]
    if not name or name.startswith("/") or "\\" in name or ".." in name.split("/") or not name.isprintable():
        raise TarError(f"unsafe member name {name!r}")
    return name


def _template() -> bytes:
    header = bytearray(BLOCK)
    header[100:108] = b"0000444\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[136:148] = b"%011o\0" % 0
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)
