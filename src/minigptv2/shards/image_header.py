"""Reads the header of an image file: format, size and EXIF orientation, without decoding a pixel.

This is the only place that decides which way is up. Sizes of a header are those of the upright image, and the decoder
rotates by the same orientation. The number of parts of a file (segments, chunks) that are looked at is limited.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from minigptv2.errors import DataError

MAX_PIXELS = 64_000_000
"""Largest image that is decoded unless a corpus was built with another limit. A small file can claim more."""
JPEG_START, PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_TURNED = (5, 6, 7, 8)
"""Orientations that exchange width and height (EXIF 2.3, table 6)."""
_ORIENTATION = 0x0112
_VALUES = {1: "B", 3: "H", 4: "I"}
"""EXIF types of an integer to the format of `struct`."""
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
"""Markers from 0xC0 to 0xCF that do not begin a frame (ITU T.81, table B.1)."""
_WITH_LENGTH = frozenset((*range(0xC0, 0xD0), *range(0xD9, 0xFF)))
"""Markers of a JPEG with a length. Decoders skip the others: restarts, the start and reserved ones."""
_MARKER = re.compile(b"\xff[" + re.escape(bytes(sorted(_WITH_LENGTH))) + b"]")
SCAN, _JPEG_END = 0xDA, 0xD9
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_PARTS = 10_000
_PARTS_PER_ROW = 4
"""Some programs write a strip or a chunk for each row, and each color."""
_PIXELS_PER_PART = 256
_MOST_BETWEEN = 1 << 16
"""Bytes before the first scan of a JPEG that are in no segment. Pillow reads them one by one."""


class ImageFault(DataError):
    """What is wrong with an image file, as a reason without a location: `truncated after 61 %`."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Format (JPEG, PNG or WEBP), size in pixels as stored, and EXIF orientation, 1 to 8."""

    kind: str
    stored_width: int
    stored_height: int
    orientation: int = 1
    progressive: bool = False

    @property
    def width(self) -> int:
        """Width of the upright image."""
        return self.stored_height if self.orientation in _TURNED else self.stored_width

    @property
    def height(self) -> int:
        """Height of the upright image."""
        return self.stored_width if self.orientation in _TURNED else self.stored_height


class Incomplete(ImageFault):
    """The data ends before all that may state the orientation. `header` is what is known, if anything."""

    def __init__(self, header: ImageHeader | None = None) -> None:
        super().__init__("truncated in its header" if header is None else "truncated")
        self.header = header


class TooLarge(ImageFault):
    """The image has more pixels than the limit. `needed`: the limit, in megapixels, that would accept it."""

    def __init__(self, reason: str, needed: int) -> None:
        super().__init__(reason)
        self.needed = needed

    @property
    def advice(self) -> str:
        """What makes a build accept the image."""
        return f"`--max-pixels {self.needed}` accepts it"


def parse_header(data: bytes) -> ImageHeader | None:
    """The header of a JPEG, PNG or WebP. None for another format. Raises `ImageFault` if it is damaged.

    Raises `Incomplete` if `data` ends before all that may state the orientation.
    """
    if data[:2] == JPEG_START:
        return _parse_jpeg(data)
    if data[:8] == PNG_START:
        return _parse_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _parse_webp(data)
    return None


def require_parts(number: int, width: int, height: int, what: str) -> None:
    """Raise `ImageFault` if an image has more parts (`what`) than any program writes for its size.

    Decoders need microseconds for a part, however short it is. The limit keeps the time proportional to the pixels.
    """
    limit = _PARTS + _PARTS_PER_ROW * height + width * height // _PIXELS_PER_PART
    if number > limit:
        raise ImageFault(f"more than {limit:,} {what}, which take long to read; save the image again")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, offset of the content and its length, for each segment up to the end of the JPEG (ITU T.81, B.2).

    Compressed data and other bytes between two markers are skipped, as libjpeg does, so that every scan it decodes is
    found. Raises `ImageFault` for too many segments. Ends early if the data does.
    """
    at, between, scanned, size = 2, 0, False, len(data)
    for number in count():
        if number > _PARTS:
            require_parts(number, 0, 0, "segments")
        if at + 4 > size:
            return
        if data[at] != 0xFF or data[at + 1] not in _WITH_LENGTH:
            found = _MARKER.search(data, at)
            if found is None or found.start() + 4 > size:
                return
            between += 0 if scanned else found.start() - at
            at = found.start()
        if between > _MOST_BETWEEN:
            raise ImageFault("damaged: its JPEG segments are far apart")
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        yield marker, at + 4, length - 2
        if marker == _JPEG_END:
            return
        scanned |= marker == SCAN
        at += 2 + (length if length > 2 else 2)


def _parse_jpeg(data: bytes) -> ImageHeader:
    """Segments up to the first scan."""
    frame: tuple[int, int, int] | None = None
    orientation = 0
    for marker, at, length in jpeg_segments(data):
        if marker in (SCAN, _JPEG_END):
            break
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES and at + 5 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 1)
            frame = frame or (width, height, marker)
        elif marker == 0xE1 and not orientation and data[at : at + 6] == b"Exif\0\0":
            if at + length > len(data):
                raise Incomplete()
            orientation = orientation_of(data[at + 6 : at + length])
    else:
        raise Incomplete()
    if frame is None:
        raise ImageFault("damaged: the JPEG states no size")
    width, height, marker = frame
    return _checked(ImageHeader("JPEG", width, height, orientation or 1, marker in _PROGRESSIVE))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, offset and length of the content of each chunk up to IEND. Raises `Incomplete` if the data ends earlier.

    Raises `ImageFault` for too many chunks.
    """
    at, number = len(PNG_START), 0
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    while at + 12 <= len(data):
        number += 1
        require_parts(number, width, height, "chunks")
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if at + 12 + length > len(data):
            break
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        at += 12 + length
    raise Incomplete()


def _parse_png(data: bytes) -> ImageHeader:
    if len(data) < 33:
        raise Incomplete()
    if data[12:16] != b"IHDR":
        raise ImageFault("damaged: the PNG does not begin with IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    header = _checked(ImageHeader("PNG", width, height))
    try:
        for kind, start, length in png_chunks(data):
            if kind == b"eXIf":
                return replace(header, orientation=orientation_of(data[start : start + length]))
    except Incomplete as error:
        raise Incomplete(header) from error
    return header


def _parse_webp(data: bytes) -> ImageHeader:
    """Container of WebP: one image chunk, or VP8X with the size of the canvas and flags (RFC 9649)."""
    if len(data) < 30:
        raise Incomplete()
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
        return _checked(ImageHeader("WEBP", width, height))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return _checked(ImageHeader("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
    if kind != b"VP8X":
        raise ImageFault("damaged: the WebP does not begin with an image")
    width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    header = ImageHeader("WEBP", width, height)
    for name, at, length in webp_chunks(data) if data[20] & 0x08 else ():
        if name == b"EXIF" and at + length <= len(data):
            return replace(header, orientation=orientation_of(data[at : at + length]))
    if data[20] & 0x08 and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise Incomplete(header)
    return header


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, offset and length of the content of each chunk of a WebP. Raises `ImageFault` for too many."""
    at, number = 12, 0
    while at + 8 <= len(data):
        number += 1
        require_parts(number, 0, 0, "chunks")
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, length
        at += 8 + length + length % 2


def _checked(header: ImageHeader) -> ImageHeader:
    if not header.stored_width or not header.stored_height:
        raise ImageFault(f"damaged: its header states {header.stored_width} x {header.stored_height} pixels")
    return header


def orientation_of(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8. It is 1 (upright) if the block states none or is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION and kind in _VALUES:
                (value,) = struct.unpack_from(f"{order}{_VALUES[kind]}", tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the block is damaged: viewers show such an image as stored
        return 1
    return 1
