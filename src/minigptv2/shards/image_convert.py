"""Opens the images that people ask about, and converts GIF, BMP and TIFF, which shards do not store, to PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.TiffImagePlugin import TiffImageFile

from minigptv2.errors import DataError
from minigptv2.foreign_files import read_regular
from minigptv2.shards.image_cost import check_runs
from minigptv2.shards.image_files import (
    DECODER_ERRORS,
    MAX_SIDE,
    megapixels,
    open_image,
    read_header,
    to_rgb,
)
from minigptv2.shards.image_gif import first_frame
from minigptv2.shards.image_header import MAX_PIXELS, ImageFault
from minigptv2.shards.image_tiff import check_first_page

_CLASSES: tuple[tuple[bytes, str, type[Image.Image]], ...] = (
    (b"GIF8", "GIF", GifImageFile),
    (b"BM", "BMP", BmpImageFile),
    (b"II*\0", "TIFF", TiffImageFile),
    (b"MM\0*", "TIFF", TiffImageFile),
)
MAX_FILE_BYTES = 256 << 20
"""Largest image file that people ask about: 64 megapixels without compression have 192 MB."""
_UNKNOWN_RANGE = ("F", "I")
"""Pillow's modes of 32 bits per pixel. What is black and what is white is not known."""


@dataclass(frozen=True)
class Photo:
    """A decoded upright RGB image, and the size of its upright file in pixels.

    The file may be larger than the image (`image_files.FULL_PIXELS`).
    """

    image: Image.Image
    width: int
    height: int


def read_photo(file: Path, where: str) -> Photo:
    """The image in a file, as `open_photo` gives it. Raises `DataError` also for what is no regular file."""
    return open_photo(read_regular(file, DataError, limit=MAX_FILE_BYTES), where)


def open_photo(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS, convert: bool = True) -> Photo:
    """The image in `data` with the size of its file, in which the boxes of answers are given.

    Decodes what a build of a corpus accepts, to the same pixels. Without `convert` only JPEG, PNG and WebP, for images
    of requests. Raises `DataError`, prefixed by `where`.
    """
    readable = as_png(data, where, max_pixels=max_pixels) if convert else data
    header = read_header(readable, where)
    return Photo(open_image(readable, where, max_pixels=max_pixels), header.width, header.height)


def is_converted(data: bytes) -> bool:
    """Whether `as_png` converts it: a GIF, a BMP or a TIFF."""
    return data.startswith(tuple(start for start, _, _ in _CLASSES))


def as_png(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """The data unchanged unless it is a GIF, a BMP or a TIFF: then its first frame, upright, as a PNG.

    Raises `DataError`, prefixed by `where`, if it cannot be decoded.
    """
    found = next(((kind, made) for start, kind, made in _CLASSES if data.startswith(start)), None)
    if found is None:
        return data
    try:
        image = _first_frame(data, *found, max_pixels)
    except ImageFault as fault:
        raise DataError(f"{where}: {fault}") from fault
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _first_frame(data: bytes, kind: str, made: type[Image.Image], max_pixels: int) -> Image.Image:
    try:
        if kind == "GIF":
            data = first_frame(data).data
        elif kind == "TIFF":
            check_first_page(data)
        image = made(io.BytesIO(data))  # type: ignore[call-arg]  # the classes of files take a stream
        if image.width * image.height > max_pixels or max(image.size) > MAX_SIDE:
            stated, limit = megapixels(image.width * image.height), max_pixels // 1_000_000
            raise ImageFault(f"{stated} megapixels ({image.width} x {image.height}), the limit is {limit}")
        if kind == "BMP":
            check_runs(data, image.width * image.height)
        if image.mode in _UNKNOWN_RANGE:
            raise ImageFault(f"a {kind} with 32 bits per pixel; convert it to 8 bits")
        image.load()  # rotates a TIFF upright
        return to_rgb(image)
    except ImageFault:
        raise
    except DECODER_ERRORS as error:
        cut = "truncated" in str(error).lower() or "buffer" in str(error).lower()
        raise ImageFault(f"truncated {kind} data" if cut else f"damaged: its {kind} data cannot be decoded") from error
