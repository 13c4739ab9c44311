"""Finds members of tar archives strictly, and writes headers deterministically. Nothing is ever extracted.

Reads what webdataset, img2dataset, GNU tar and Python write (ustar, GNU long names, pax headers). A link, a device or
a name that cannot be used is a problem of that member. Only a wrong header or a wrong end is a damaged archive, a
`TarError`. Python's `tarfile` is lenient (a damaged header ends the archive silently) and slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
MAX_NAME_BYTES = 100
"""Length of a name in a plain ustar header. Our writer refuses longer names, the reader accepts them."""

_REGULAR = (b"0", b"\0", b"7")
_DIRECTORY, _LONG_NAME, _LONG_LINK, _GNU_SPARSE = b"5", b"L", b"K", b"S"
_PAX, _PAX_GLOBAL = (b"x", b"X"), b"g"
_VOLUME_LABEL = b"V"
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_CALLED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a named pipe"}
_LARGEST_EXTENSION = 1 << 20
_MOST_PAX_DIGITS = 9
_SPARSE_FLAG_OF_HEADER, _SPARSE_FLAG_OF_BLOCK = 482, 504
"""Position of the byte that says whether a block of GNU's list of holes follows."""
_OTHER_FORMATS = (
    (b"\x1f\x8b", "is compressed: decompress it with gunzip"),
    (b"BZh", "is compressed: decompress it with bunzip2"),
    (b"\xfd7zXZ", "is compressed: decompress it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed: decompress it with unzstd"),
    (b"\x04\x22\x4d\x18", "is compressed: decompress it with unlz4"),
    (b"PK\x03\x04", "is a zip file, not a tar: unzip it and pack its files with tar"),
    (b"version https://git-lfs", "is a Git LFS pointer: fetch the file with git lfs pull"),
    (b"<!DOCTYPE", "is a web page, not a tar: download the file again"),
    (b"<html", "is a web page, not a tar: download the file again"),
)


class TarError(ValueError):
    """The bytes are not a tar archive, or a member is not a plain file. The message says where and why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: byte offsets of its first header (also extended) and of its data, and the data's size.

    `problem` says why the member cannot be used: it is not a plain file, or its name is unusable. Bytes of a name that
    are not UTF-8 are decoded with `surrogateescape`, and `printable` shows them.
    """

    name: str
    offset: int
    data_offset: int
    size: int
    problem: str = ""

    @property
    def end(self) -> int:
        """The byte after the member's padding."""
        return self.data_offset + padded(self.size)


def padded(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def find_members(data: bytes | memoryview, start: int = 0, *, whole: bool = True) -> Iterator[Member]:
    """As `scan_members`, for archives of plain files only. Raises `TarError` also for a member with a problem."""
    for member in scan_members(data, start, whole=whole):
        if member.problem:
            raise TarError(f"member '{printable(member.name)}' at byte {member.offset} {member.problem}")
        yield member


def scan_members(data: bytes | memoryview, start: int = 0, *, whole: bool = True) -> Iterator[Member]:
    """Yield the files in `data` from byte `start` on. Directories and labels are skipped.

    Links, devices, sparse files and unusable names are yielded with their `problem`. `whole` requires the end mark of
    an archive (a block of zeros). Without it the data may stop after any member. Raises `TarError` for a damaged
    archive: a wrong checksum, or a member that extends past the end.
    """
    position, first, extended = start, start, _Extended()
    if start == 0 and not _is_header(bytes(data[:BLOCK])) and (advice := _other_format(data)):
        raise TarError(advice)
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
        if kind == _GNU_SPARSE:
            body = _after_holes(data, header, body)
        if kind in _WITHOUT_DATA:
            size = _size_of_link(data, body, size)
        elif extended.size is not None and kind in _REGULAR:
            size = extended.size
        position = body + padded(size)
        if position > len(data):
            over = position - len(data)
            raise TarError(f"member '{printable(_decoded(name))}' at byte {first} extends {over} bytes past the end")
        if kind in (_LONG_NAME, _LONG_LINK, *_PAX):
            if size > _LARGEST_EXTENSION:
                raise TarError(f"extended header of {size} bytes at byte {first} is too large")
            extended.add(kind, bytes(data[body : body + size]), first)
            continue
        member = _member(extended.name or name, first, body, size, kind, sparse=extended.is_sparse)
        if member is not None:
            yield member
        first, extended = position, _Extended()


def printable(name: str) -> str:
    """The name as it can be printed. Bytes that are not UTF-8, and control characters, are escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _other_format(data: bytes | memoryview) -> str:
    """Why a file that is named like a tar is none, and what to do, if its first bytes tell. Else an empty text."""
    head = bytes(data[:64])
    return next((advice for magic, advice in _OTHER_FORMATS if head.startswith(magic)), "")


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


def _parse_header(header: bytes, position: int) -> tuple[bytes, int, bytes]:
    stated = _number(header[148:156], position)
    if stated != sum(header) - sum(header[148:156]) + 8 * 32:
        raise TarError(f"damaged header at byte {position}: wrong checksum")
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    full = prefix + b"/" + name if prefix else name
    return full, _number(header[124:136], position), header[156:157]


def _is_header(header: bytes) -> bool:
    """Whether a block is a header with the right checksum, or the end mark."""
    if len(header) < BLOCK or header == END_OF_ARCHIVE[:BLOCK]:
        return len(header) == BLOCK
    try:
        _parse_header(header, 0)
    except TarError:
        return False
    return True


def _size_of_link(data: bytes | memoryview, body: int, size: int) -> int:
    """Bytes of data behind the header of a link. Some writers state the size of the target and write no data."""
    return 0 if size == 0 or _is_header(bytes(data[body : body + BLOCK])) else size


def _after_holes(data: bytes | memoryview, header: bytes, body: int) -> int:
    """Where the data of GNU's old form of a sparse file begins: after the blocks that list its holes."""
    more = header[_SPARSE_FLAG_OF_HEADER]
    while more and body + BLOCK <= len(data):
        more = data[body + _SPARSE_FLAG_OF_BLOCK]
        body += BLOCK
    return body


def _member(name: bytes, first: int, body: int, size: int, kind: bytes, *, sparse: bool) -> Member | None:
    """The member, with its problem if it has one. None for a directory, a label, or headers for all members."""
    is_folder = kind == _DIRECTORY or kind in _REGULAR and size == 0 and name.endswith(b"/")
    if is_folder or kind in (_PAX_GLOBAL, _VOLUME_LABEL):
        return None
    text = _decoded(name)
    while text.startswith("./"):
        text = text[2:]
    if kind in _REGULAR and not sparse:
        return Member(text, first, body, size, _name_problem(text))
    called = (
        "a sparse file" if sparse or kind == _GNU_SPARSE else _CALLED.get(kind, f"of type '{kind.decode('latin1')}'")
    )
    return Member(text, first, body, size, f"is {called}, not a plain file")


def _name_problem(name: str) -> str:
    """Why the name cannot be used: it is not UTF-8, or would be extracted outside the target folder."""
    if any("\udc80" <= one <= "\udcff" for one in name):
        return "has a name that is not UTF-8"
    if not name or name.startswith("/") or "\\" in name or ".." in name.split("/") or not name.isprintable():
        return "has an unsafe member name"
    return ""


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


@dataclass
class _Extended:
    """What extended headers say about the next member."""

    name: bytes | None = None
    size: int | None = None
    is_sparse: bool = False

    def add(self, kind: bytes, data: bytes, position: int) -> None:
        if kind == _LONG_NAME:
            self.name = data.rstrip(b"\0")
        elif kind in _PAX:
            self._add_pax(data, position)

    def _add_pax(self, rest: bytes, position: int) -> None:
        while rest.strip(b"\0"):
            length, space, _ = rest.partition(b" ")
            counted = bool(space) and length.isdigit() and len(length) <= _MOST_PAX_DIGITS
            if not counted or not len(length) + 3 < int(length) <= len(rest):
                raise TarError(f"damaged pax header at byte {position}")
            key, _, value = rest[len(length) + 1 : int(length) - 1].partition(b"=")
            if key == b"path":
                self.name = value
            elif key == b"size":
                if not value.isdigit():
                    raise TarError(f"damaged pax header at byte {position}: size is {value!r}")
                self.size = int(value)
            elif key.startswith(b"GNU.sparse"):
                self.is_sparse = True
            rest = rest[int(length) :]


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


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
