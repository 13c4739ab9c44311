"""Tells whether an image file holds more frames or pages than the first, which is the only one that is used."""

from __future__ import annotations

from itertools import islice

from minigptv2.shards.image_gif import first_frame
from minigptv2.shards.image_header import PNG_START, ImageFault, png_chunks, webp_chunks
from minigptv2.shards.image_tiff import has_more_pages

LATER_FRAMES = "image with several frames or pages, of which the first is used"
"""Key of `Sample.counts`."""


def has_more_frames(data: bytes) -> bool:
    """Whether a GIF, PNG (APNG), WebP or TIFF holds several frames or pages. False if it is damaged before them."""
    try:
        if data[:8] == PNG_START:
            return _is_apng(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            frames = (name for name, _, _ in webp_chunks(data) if name == b"ANMF")
            return len(list(islice(frames, 2))) == 2
        if data[:4] == b"GIF8":
            return first_frame(data).has_more
        return data[:4] in (b"II*\0", b"MM\0*") and has_more_pages(data)
    except ImageFault:  # the decoder names the damage
        return False


def _is_apng(data: bytes) -> bool:
    """Whether an animation of several frames is announced before the image (PNG, third edition, 11.3.6)."""
    for kind, start, _ in png_chunks(data):
        if kind == b"IDAT":
            return False
        if kind == b"acTL":
            return int.from_bytes(data[start : start + 4], "big") > 1
    return False
