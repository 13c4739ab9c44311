"""Finds the first frame of a GIF, and whether there are more (GIF89a specification).

Comments, other extensions and later frames are removed before Pillow sees the file, which joins comments in quadratic
time.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigptv2.shards.image_header import require_parts

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL = 0xF9
_HEADER_BYTES, _DESCRIPTOR_BYTES = 13, 10


@dataclass(frozen=True)
class GifFrame:
    """A GIF that holds only the first frame, and whether the file has more frames."""

    data: bytes
    has_more: bool


def first_frame(data: bytes) -> GifFrame:
    """The first frame. Data that ends too early is kept as it is, for the decoder to refuse.

    Raises `ImageFault` for more blocks than any program writes for so many pixels.
    """
    return _Blocks(data).first_frame()


class _Blocks:
    """Walks over the blocks of a GIF and counts them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
        self.count = 0

    def first_frame(self) -> GifFrame:
        data, at = self.data, _HEADER_BYTES + self._table_bytes(10)
        kept = [data[:at]]
        image = None
        while at < len(data):
            self._add()
            if data[at] == _TRAILER or data[at] == _IMAGE and image is not None:
                break
            end = self._end(at)
            if data[at] == _IMAGE:
                image = data[at:end]
                kept += [image, bytes([_TRAILER]) if end <= len(data) else b""]
            elif data[at : at + 2] == bytes([_EXTENSION, _GRAPHIC_CONTROL]) and image is None:
                kept.append(data[at:end])
            at = end
        return GifFrame(b"".join(kept), image is not None and at < len(data) and data[at] == _IMAGE)

    def _end(self, at: int) -> int:
        """The byte after the block that begins at `at`. Bytes that begin no block are skipped, as decoders do."""
        if self.data[at] == _EXTENSION:
            return self._after_sub_blocks(at + 2)
        if self.data[at] == _IMAGE:
            return self._after_sub_blocks(at + _DESCRIPTOR_BYTES + self._table_bytes(at + 9) + 1)
        return at + 1

    def _after_sub_blocks(self, at: int) -> int:
        while at < len(self.data) and (length := self.data[at]):
            self._add()
            at += 1 + length
        return at + 1

    def _table_bytes(self, at: int) -> int:
        """The bytes of the color table that the flags at `at` announce."""
        flags = self.data[at] if at < len(self.data) else 0
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    def _add(self) -> None:
        self.count += 1
        require_parts(self.count, *self.size, "blocks")
