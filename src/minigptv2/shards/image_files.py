"""Reads image files: formats, size limits, orientation, RGB pixels, and the square that the vision encoder sees.

The square is squashed (no crop, no letterbox) by bicubic interpolation, uint8. Normalization is not done here: batches
carry uint8, and the model normalizes on its device.
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import Image

from minigptv2.errors import DataError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Of shard members that are read as images. The writer uses all but `jpeg`."""
EXTENSION_OF = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Format to the extension under which the writer stores it."""
MAX_PIXELS = 25_000_000
"""Largest image that is decoded: 25 megapixels, for which a decoder needs up to 300 MB. A small file can claim more."""
_WEBP_MEMORY = 2
"""Memory of the WebP decoder relative to the others: it holds several canvases."""
MAX_SIDE = 65_535
"""Longest side, the limit of JPEG: the table of a bicubic filter needs 32 bytes per pixel of it."""
_STRIP_PIXELS = 1 << 21
_FORMATS = ("JPEG", "PNG", "WEBP")
_NAMES = {"MPO": "JPEG"}
"""Pillow's name for a JPEG that is followed by a second image. Only the JPEG is read."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.3, table 6: orientation to the transposition that makes a stored image upright."""
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Markers of the frames that are decoded: baseline, extended and progressive."""


def open_image(data: bytes, where: str) -> Image.Image:
    """The decoded RGB image. Raises `DataError`, prefixed by `where`, for anything but a complete JPEG, PNG or WebP."""
    return _rgb(_loaded(data, where))


def _loaded(data: bytes, where: str) -> Image.Image:
    image = _open(data, where)
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a valid JPEG, PNG or WebP image: {error}") from error
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel: Pillow's own conversion clips instead of scaling
        image = _eight_bits(image)
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def open_photo(data: bytes, where: str) -> Image.Image:
    """`open_image`, rotated upright by its EXIF orientation as viewers do: for images that users provide.

    Images of corpora are not rotated: their boxes are in pixels of the file.
    """
    image = _loaded(data, where)
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):  # damaged EXIF: do not rotate
        turn = None
    return _rgb(image) if turn is None else _rgb(image).transpose(turn)


def image_size(data: bytes, where: str) -> tuple[str, int, int]:
    """Format (JPEG, PNG or WEBP), width and height in pixels, from the header alone. Nothing is decoded.

    Raises `DataError`, prefixed by `where`, for another format and for more than `MAX_PIXELS`.
    """
    found = _jpeg_size(data) if data[:2] == b"\xff\xd8" else _png_size(data)
    if found is None:
        image = _open(data, where)
        return _NAMES.get(str(image.format), str(image.format)), image.width, image.height
    if found[1] * found[2] > MAX_PIXELS:
        raise DataError(f"{where}: {found[1]} x {found[2]} px is over the {MAX_PIXELS} pixel limit")
    return found


def _jpeg_size(data: bytes) -> tuple[str, int, int] | None:
    """Size of a JPEG from its frame header (ITU T.81, B.2.2), in a few microseconds. None if Pillow has to read it."""
    at, last = 2, len(data) - 9
    while at < last and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return ("JPEG", width, height) if height and width else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _png_size(data: bytes) -> tuple[str, int, int] | None:
    """Size of a PNG from its first chunk. None if Pillow has to read it."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return ("PNG", width, height) if height and width else None


def bake(data: bytes, side: int, quality: int, where: str) -> bytes:
    """The image squashed to `side` x `side` as the model sees it, as a JPEG without chroma subsampling."""
    squashed = Image.fromarray(square(open_image(data, where), side).transpose(1, 2, 0))
    buffer = io.BytesIO()
    squashed.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _open(data: bytes, where: str) -> Image.Image:
    """The image with its header read and its pixels not yet decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a JPEG, PNG or WebP image: {error}") from error
    limit = MAX_PIXELS // (_WEBP_MEMORY if image.format == "WEBP" else 1)
    if image.width * image.height > limit or max(image.size) > MAX_SIDE:
        size = f"{image.width} x {image.height} px"
        raise DataError(f"{where}: {size} is over the limit of {limit} pixels and {MAX_SIDE} per side")
    return image


def square(image: Image.Image, side: int) -> np.ndarray:
    """uint8 [3, side, side]: the image squashed to a square by bicubic interpolation, as published.

    Gives the same pixels under every version of Pillow. Since 13.0 Pillow resizes the height first if it shrinks more
    than twice as much as the width. Before, it always resized the width first. The order changes the rounding, by up to
    4 levels on noise.
    """
    width, height = image.size
    height_first = height > side and height - side > 2 * (width - side)
    between = (width, side) if height_first else (side, height)
    resized = image
    for size in (between, (side, side)):
        if resized.size != size:
            resized = resized.resize(size, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray converted to 8 bits, strip by strip for the same reason as in `_on_white`."""
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        grey[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom))) >> 8
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB on a white background, strip by strip: converting at once would hold three more copies in memory."""
    flat = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows))).convert("RGBA")
        ground = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        flat.paste(Image.alpha_composite(ground, strip).convert("RGB"), (0, top))
    return flat
