"""Reads the chunks of a PNG that pixels depend on, and checks its rows without computing a pixel.

Text, color profiles and other chunks are removed before Pillow sees the file: it limits their size, refuses errors in
them, and would otherwise unpack them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from minigptv2.shards.image_faults import truncation
from minigptv2.shards.image_header import PNG_START, ImageFault, ImageHeader, Incomplete, png_chunks

_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Color type to samples per pixel (PNG, third edition, table 11.1)."""
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_LAST_FILTER = 4
_PALETTE = 3
_PIECE, _READ = 1 << 20, 1 << 16

Chunk = tuple[bytes, memoryview]
"""The type of a chunk, and all its bytes: length, type, content and checksum."""


def kept_chunks(data: bytes, header: ImageHeader) -> list[Chunk]:
    """The chunks that pixels depend on. Raises `ImageFault` for truncation and wrong checksums."""
    chunks, view = [], memoryview(data)
    try:
        for kind, start, length in png_chunks(data):
            if kind in _KEPT:
                end = start + length
                if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
                    raise ImageFault("damaged: a checksum of its PNG data is wrong")
                chunks.append((kind, view[start - 8 : end + 4]))
    except Incomplete as error:
        raise ImageFault(truncation(data, header)) from error
    return chunks


def joined(chunks: Sequence[Chunk]) -> bytes:
    """The PNG of these chunks."""
    return b"".join([PNG_START, *(chunk for _, chunk in chunks)])


def has_intact_rows(chunks: Sequence[Chunk]) -> bool:
    """Whether the PNG is of the usual form and certainly decodes: all rows are there and every checksum is right.

    It unpacks the rows and does not undo their filters, which takes half the time of decoding. False says nothing: the
    decoder decides about interlaced, unusual and damaged files.
    """
    kinds = [kind for kind, _ in chunks]
    first = kinds.index(b"IDAT") if b"IDAT" in kinds else len(kinds)
    head, content = dict(chunks[:first]), [chunk for kind, chunk in chunks[first:-1] if kind == b"IDAT"]
    usual = [b"IHDR", b"PLTE", b"tRNS"][: len(head)]
    if kinds != [*usual, *[b"IDAT"] * len(content), b"IEND"] or len(head[b"IHDR"]) != 25:
        return False
    width, height, depth, color, *methods = struct.unpack_from(">IIBBBBB", head[b"IHDR"], 8)
    if any(methods) or depth not in _DEPTHS.get(color, ()):
        return False
    if (color == _PALETTE or len(head) > 1) and not _is_paletted(head, color):
        return False
    return _are_intact(content, 1 + (width * _SAMPLES[color] * depth + 7) // 8, height)


def _is_paletted(head: dict[bytes, memoryview], color: int) -> bool:
    """Whether the palette, and its transparency, have a usual length. 12 bytes of a chunk are not content."""
    palette, alphas = (len(head[kind]) - 12 if kind in head else 0 for kind in (b"PLTE", b"tRNS"))
    return color == _PALETTE and 0 < palette <= 768 and palette % 3 == 0 and alphas <= palette // 3


def _are_intact(content: list[memoryview], stride: int, height: int) -> bool:
    """Whether IDAT chunks hold one intact stream of `height` rows of `stride` bytes, each with a known filter."""
    inflater, produced = zlib.decompressobj(), 0
    try:
        for chunk in content:
            for at in range(8, len(chunk) - 4, _READ):
                piece: bytes | memoryview = chunk[at : min(at + _READ, len(chunk) - 4)]
                while piece:
                    rows = inflater.decompress(piece, _PIECE)
                    if max(rows[-produced % stride :: stride], default=0) > _LAST_FILTER:
                        return False
                    produced += len(rows)
                    if produced > stride * height or inflater.unused_data:
                        return False
                    piece = inflater.unconsumed_tail
    except zlib.error:
        return False
    return inflater.eof and produced == stride * height
