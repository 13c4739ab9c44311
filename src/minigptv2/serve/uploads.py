"""Pictures from requests: `data:` URLs in, small images out. Nothing is fetched, no path is opened.

The size is read before a pixel is decoded; decoded pictures are kept as small as the model sees them, and once per
content, so that later turns about one neither decode nor encode it again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from minigptv2.errors import ConfigError, DataError
from minigptv2.predict.predictor import Predictor
from minigptv2.shards.image_files import MAX_PIXELS, open_photo

KEPT_PICTURES = 128
"""Small pictures that are remembered: 0.6 MB each at 448 px."""
DECODED_AT_ONCE = 2
"""Pictures that are decoded at the same time: each may take 4 bytes a pixel for a moment."""
SHOWN_SIDE = 1280
"""Pixels of the longer side of a picture that is sent back to a browser."""
_DATA_URL = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """A picture as the model sees it, its size in pixels before that, and, if asked for, a JPEG to show."""

    prepared: Image.Image
    width: int
    height: int
    shown: bytes | None = None


def decode_data_url(url: str) -> bytes:
    """The bytes in a `data:` URL. Raises `DataError` for any other address: the server fetches nothing."""
    match = _DATA_URL.match(url)
    if match is None:
        said = url[:60] + ("..." if len(url) > 60 else "")
        raise DataError(
            f"image address {said!r}: want data:image/png;base64,... (or jpeg, webp). The server fetches no address "
            "and opens no path"
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image: not base64: {error}") from error


def data_url(jpeg: bytes) -> str:
    """A JPEG as a `data:` URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


class PictureStore:
    """Decodes pictures within limits and remembers the latest."""

    def __init__(self, predictor: Predictor, *, max_megapixels: int) -> None:
        if max_megapixels * 1_000_000 > MAX_PIXELS:
            raise ConfigError(f"--max-megapixels {max_megapixels}: at most {MAX_PIXELS // 1_000_000} are decoded")
        self._predictor = predictor
        self._max_pixels = max_megapixels * 1_000_000
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.Semaphore(DECODED_AT_ONCE)

    def open(self, data: bytes, *, to_show: bool = False) -> Picture:
        """The picture in `data`. Raises `DataError` for one too large, damaged, or not a JPEG, PNG or WebP."""
        key = f"{hashlib.sha256(data).hexdigest()} {to_show}"
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._decoding:
            picture = self._decode(data, to_show)
        with self._lock:
            self._kept[key] = picture
            while len(self._kept) > KEPT_PICTURES:
                self._kept.popitem(last=False)
        return picture

    def _decode(self, data: bytes, to_show: bool) -> Picture:
        _check_size(data, self._max_pixels)
        image = open_photo(data, "image")
        return Picture(self._predictor.prepare(image), image.width, image.height, _jpeg(image) if to_show else None)


def _check_size(data: bytes, max_pixels: int) -> None:
    """Raise `DataError` for a picture whose head says that it is too large, or none; no pixel is decoded."""
    limit = f"over the limit of {max_pixels // 1_000_000} megapixels"
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > max_pixels:
                raise DataError(f"image: {image.width} x {image.height} is {limit}")
    except Image.DecompressionBombError as error:
        raise DataError(f"image: {limit}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError("image: not a valid JPEG, PNG or WebP") from error


def _jpeg(image: Image.Image, side: int = SHOWN_SIDE) -> bytes:
    small, stream = image.copy(), io.BytesIO()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    small.save(stream, "JPEG", quality=90)
    return stream.getvalue()
