"""Image bytes to the square the vision encoder sees: RGB, squashed (no crop, no letterbox), bicubic, uint8.

Normalisation is not done here: batches carry uint8, the model normalises on its device.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from minigptv2.errors import DataError

MAX_PIXELS = 64_000_000
"""Largest image that is decoded: 64 megapixels, 192 MB as RGB. A small file can claim far more."""
_FORMATS = ("JPEG", "PNG", "WEBP")


def open_image(data: bytes, where: str) -> Image.Image:
    """The decoded RGB image. Raises `DataError`, beginning with `where`, for anything but a whole JPEG, PNG or WebP."""
    image = _open(data, where)
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a whole JPEG, PNG or WebP image: {error}") from error
    return _on_white(image).convert("RGB") if image.mode in ("RGBA", "LA", "PA") else image.convert("RGB")


def image_size(data: bytes, where: str) -> tuple[str, int, int]:
    """Format (JPEG, PNG or WEBP), width and height in pixels, from the header alone: nothing is decoded.

    Raises `DataError`, beginning with `where`, for another format and for more than `MAX_PIXELS`.
    """
    image = _open(data, where)
    return str(image.format), image.width, image.height


def bake(data: bytes, side: int, quality: int, where: str) -> bytes:
    """The image squashed to `side` x `side` as the model sees it, as a JPEG without chroma subsampling."""
    squashed = Image.fromarray(square(open_image(data, where), side).transpose(1, 2, 0))
    buffer = io.BytesIO()
    squashed.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _open(data: bytes, where: str) -> Image.Image:
    """The image, its header read and its pixels not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a JPEG, PNG or WebP image: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{where}: {image.width} x {image.height} px is over the {MAX_PIXELS} pixel limit")
    return image


def square(image: Image.Image, side: int) -> np.ndarray:
    """uint8 [3, side, side]: the image squashed to a square by bicubic interpolation, as published.

    The same pixels under every Pillow: since 13.0 it resizes the height first where that shrinks more than twice as
    much as the width does, which rounds otherwise (up to 4 levels on noise); before, always the width first.
    """
    width, height = image.size
    height_first = height > side and height - side > 2 * (width - side)
    between = (width, side) if height_first else (side, height)
    resized = image
    for size in (between, (side, side)):
        if resized.size != size:
            resized = resized.resize(size, Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, rgba)
