"""Reads the directories of a TIFF (TIFF 6.0, section 2): what decoding costs, and whether there are more pages.

Pillow loads the value of every tag, and every strip that is listed, so a small file can claim gigabytes of both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from minigptv2.shards.image_header import ImageFault, require_parts

_MAX_TAGS = 1024
"""Tags of one directory. Files of microscopes and of maps have about a hundred."""
_MAX_DIRECTORIES = 64
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value of each type."""
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I"}
_SUBFILE_TYPE, _WIDTH, _HEIGHT, _STRIPS, _STRIP_BYTES = 254, 256, 257, 273, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_REDUCED_OR_MASK = 0b101
"""Bits of the subfile type: a thumbnail, or a mask of another page."""
_MOST_READ = 4
"""How often the tags, or the strips, of a file may cover it. Those of a correct file cover it at most once."""
_MAX_TILE_PIXELS = 1 << 24

Tag = tuple[int, int, int]
"""Type, number of values, and offset of the values."""


def check_first_page(data: bytes) -> None:
    """Raise `ImageFault` if the first page lists more tags, strips, tiles or bytes than its pixels need."""
    tags = next(_directories(data), None)
    if tags is None:
        raise ImageFault("truncated TIFF data")
    claimed = sum(_SIZES.get(kind, 0) * count for kind, count, _ in tags.values())
    if claimed > _MOST_READ * len(data):
        raise ImageFault("damaged: the tags of the TIFF claim more data than there is")
    width, height = _first(data, tags, _WIDTH), _first(data, tags, _HEIGHT)
    for offsets, counts in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        require_parts(tags.get(offsets, (0, 0, 0))[1], width, height, "strips or tiles")
        if sum(_values(data, tags, counts)) > _MOST_READ * len(data) + width * height:
            raise ImageFault("damaged: the strips or tiles of the TIFF overlap")
    if _first(data, tags, _TILE_WIDTH) * _first(data, tags, _TILE_HEIGHT) > max(_MAX_TILE_PIXELS, width * height):
        raise ImageFault("damaged: a tile of the TIFF is larger than the image")


def has_more_pages(data: bytes) -> bool:
    """Whether there is a second page with a size that is no thumbnail and no mask."""
    pages = _directories(data)
    next(pages, None)
    return any(
        _first(data, tags, _WIDTH) and not _first(data, tags, _SUBFILE_TYPE) & _REDUCED_OR_MASK for tags in pages
    )


def _directories(data: bytes) -> Iterator[dict[int, Tag]]:
    """The tags of each directory by number. Ends where a directory is damaged."""
    order = _order(data)
    position, seen = 4, set[int]()
    while position + 4 <= len(data) and len(seen) < _MAX_DIRECTORIES:
        (start,) = struct.unpack_from(f"{order}I", data, position)
        if not start or start in seen or start + 2 > len(data):
            return
        seen.add(start)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        position = start + 2 + 12 * count
        if position > len(data):
            return
        if count > _MAX_TAGS:
            raise ImageFault(f"more than {_MAX_TAGS:,} tags in a TIFF directory; save the image again")
        tags: dict[int, Tag] = {}
        for at in range(start + 2, position, 12):
            number, kind, values = struct.unpack_from(f"{order}HHI", data, at)
            inline = _SIZES.get(kind, 0) * values <= 4
            tags[number] = kind, values, at + 8 if inline else struct.unpack_from(f"{order}I", data, at + 8)[0]
        yield tags


def _order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _values(data: bytes, tags: dict[int, Tag], number: int) -> tuple[int, ...]:
    """The integers of a tag. None if it is missing, of another type, or outside the file."""
    kind, count, at = tags.get(number, (0, 0, 0))
    if kind not in _INTEGERS or at + count * _SIZES[kind] > len(data):
        return ()
    return struct.unpack_from(f"{_order(data)}{count}{_INTEGERS[kind]}", data, at)


def _first(data: bytes, tags: dict[int, Tag], number: int) -> int:
    return next(iter(_values(data, tags, number)[:1]), 0)
