"""Refuses images that cost many times what decoding their pixels does, before a pixel is decoded.

A decoder visits every block of a JPEG once per scan, and reads a run-length coded BMP in Python. `image_header`
limits the number of segments and chunks, `image_tiff` the strips and tiles, and `image_gif` the blocks.
"""

from __future__ import annotations

from minigptv2.shards.image_header import SCAN, ImageFault, ImageHeader, jpeg_segments

MAX_SCANS = 100
"""Scans of a JPEG. Encoders write 10 to 20, and libtiff has the same limit. One costs about 2 ns per pixel."""
_FEWEST_SCANS = 20
_SCANNED_PIXELS = 1_280_000_000
"""Pixels times scans of a large image: about 3 s. It allows 20 scans of 64 megapixels."""
_RUN_LENGTHS = (1, 2)
"""Compressions of a BMP (RLE8, RLE4) that Pillow decodes in Python."""
_MAX_RUN_LENGTH_PIXELS = 2_000_000


def check_scans(data: bytes, header: ImageHeader) -> None:
    """Raise `ImageFault` for a JPEG with more scans than any encoder writes. Counts them without decoding."""
    allowed = _SCANNED_PIXELS // (header.stored_width * header.stored_height)
    limit = min(MAX_SCANS, max(_FEWEST_SCANS, allowed))
    if data.count(b"\xff\xda") <= limit:  # an upper bound: thumbnails and what follows the image are included
        return
    count = 0
    for marker, _, _ in jpeg_segments(data):
        count += marker == SCAN
        if count > limit:
            raise ImageFault(f"more than {limit} scans, which take long to decode; save the JPEG again")


def check_runs(data: bytes, num_pixels: int) -> None:
    """Raise `ImageFault` for a run-length coded BMP that is large, or has much more data than pixels."""
    if int.from_bytes(data[30:34], "little") not in _RUN_LENGTHS or data[14] < 40:
        return
    if num_pixels > _MAX_RUN_LENGTH_PIXELS or len(data) > 4 * num_pixels + (1 << 16):
        limit = _MAX_RUN_LENGTH_PIXELS // 1_000_000
        raise ImageFault(f"a run-length coded BMP of more than {limit} megapixels, or with unused data; save it as PNG")
