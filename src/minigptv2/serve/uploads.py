"""Decodes the images of requests: `data:` URLs in, small images out. Fetches no address and opens no path.

Size and cost are checked before a pixel is decoded (`shards.image_cost`), and `decoding` limits how many are decoded at
once. Decoded images are kept at the input size of the model, once per content, so that later turns neither decode nor
encode them again.
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

from PIL import Image

from minigptv2.errors import ConfigError, DataError
from minigptv2.predict.predictor import Predictor
from minigptv2.shards.image_convert import open_photo
from minigptv2.shards.image_header import MAX_PIXELS

KEPT_IMAGES = 128
"""The number of prepared images kept in memory: 0.6 MB each at 448 px."""
SHOWN_SIDE = 1280
"""The longer side, in pixels, of an image that is sent back to a browser."""
_DATA_URL = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)


@dataclass(frozen=True)
class UploadedImage:
    """An image at the input size of the model, its original size in pixels, and a JPEG to show, if requested."""

    prepared: Image.Image
    width: int
    height: int
    shown: bytes | None = None


def decode_data_url(url: str) -> bytes:
    """The bytes in a `data:` URL. Raises `DataError` for any other address: the server fetches nothing."""
    match = _DATA_URL.match(url)
    if match is None:
        shown = url[:60] + ("..." if len(url) > 60 else "")
        raise DataError(
            f"image address must be data:image/png;base64,... (or jpeg, webp), got {shown!r}. The server does not "
            "download addresses or open file paths"
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image is not valid base64: {error}") from error


def data_url(jpeg: bytes) -> str:
    """A JPEG as a `data:` URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


class ImageStore:
    """Decodes images within the limits and keeps the most recent ones."""

    def __init__(self, predictor: Predictor, *, max_megapixels: int) -> None:
        if max_megapixels * 1_000_000 > MAX_PIXELS:
            raise ConfigError(f"--max-megapixels must be at most {MAX_PIXELS // 1_000_000}, got {max_megapixels}")
        self._predictor = predictor
        self._max_pixels = max_megapixels * 1_000_000
        self._kept: OrderedDict[str, UploadedImage] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, data: bytes, *, to_show: bool = False) -> UploadedImage:
        """The image in `data`, with a JPEG for display if `to_show`.

        Raises `DataError` for an image that is too large, damaged, or not a JPEG, PNG or WebP.
        """
        key = f"{hashlib.sha256(data).hexdigest()} {to_show}"
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        image = self._decode(data, to_show)
        with self._lock:
            self._kept[key] = image
            while len(self._kept) > KEPT_IMAGES:
                self._kept.popitem(last=False)
        return image

    def _decode(self, data: bytes, to_show: bool) -> UploadedImage:
        photo = open_photo(data, "image", max_pixels=self._max_pixels, convert=False)
        shown = _jpeg(photo.image) if to_show else None
        return UploadedImage(self._predictor.prepare(photo.image), photo.width, photo.height, shown)


def _jpeg(image: Image.Image, side: int = SHOWN_SIDE) -> bytes:
    small, stream = image.copy(), io.BytesIO()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    small.save(stream, "JPEG", quality=90)
    return stream.getvalue()
