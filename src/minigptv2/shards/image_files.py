"""Decodes image files: limits of size, orientation, RGB pixels, and the square that the vision encoder sees.

There is one rule for building, verifying, training and inference: `check_image` accepts what `open_image` and
`pixels` decode, and each raises the same reason otherwise. JPEGs of the usual colors are decoded by libjpeg-turbo. It
gives the same pixels as Pillow, and reports damage that Pillow fills with gray. Pillow decodes everything else.

The square is squashed (no crop, no letterbox) by bicubic interpolation, uint8. Normalization is not done here: batches
carry uint8, and the model normalizes on its device.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from minigptv2.errors import DataError
from minigptv2.shards.image_cost import check_scans
from minigptv2.shards.image_faults import name_content, truncation
from minigptv2.shards.image_header import (
    MAX_PIXELS,
    ImageFault,
    ImageHeader,
    Incomplete,
    TooLarge,
    parse_header,
)
from minigptv2.shards.image_png import has_intact_rows, joined, kept_chunks

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Of shard members that are read as images. The writer uses all but `jpeg`."""
EXTENSION_OF = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Format to the extension under which the writer stores it."""
FULL_PIXELS = 25_000_000
"""Largest image that is decoded at full size. Larger ones are reduced by 2, 4 or 8 while or after they are decoded."""
_SHORT_SIDE = 1024
"""Shortest side to which a large image is reduced, more than twice the square of any model."""
_WEBP_MEMORY = 2
"""Memory of the WebP decoder relative to the others: it holds several canvases."""
MAX_SIDE = 65_535
"""Longest side, the limit of JPEG: the table of a bicubic filter needs 32 bytes per pixel of it."""
_STRIP_PIXELS = 1 << 21
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
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What decoders raise for damaged files."""
_HARMLESS = ("extraneous bytes before marker", "JFIF revision", "Adobe color transform")
"""In warnings of libjpeg after which the pixels are complete."""


def read_header(data: bytes, where: str) -> ImageHeader:
    """Format, size and orientation, from the header alone. Raises `DataError`, prefixed by `where`."""
    try:
        return _header(data)
    except ImageFault as fault:
        raise _located(fault, where) from fault


def image_size(data: bytes, where: str) -> tuple[str, int, int]:
    """Format (JPEG, PNG or WEBP), width and height in pixels of the upright image, from the header alone.

    Raises `DataError`, prefixed by `where`, for another format.
    """
    header = read_header(data, where)
    return header.kind, header.width, header.height


def check_image(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """The header of an image that `open_image` opens. Raises the same `DataError` otherwise.

    Unpacks all data, and computes no more pixels than it must.
    """
    try:
        header = _affordable(data, max_pixels)
        if not _is_intact(data, header):
            image = _pillow(data, header)
            _converted(image.crop((0, 0, image.width, 1)), header, 1)  # a wrong palette shows in every row
        return header
    except ImageFault as fault:
        raise _located(fault, where) from fault


def open_image(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded upright RGB image, reduced if it has more than `FULL_PIXELS`.

    Raises `DataError`, prefixed by `where`, for anything but a complete JPEG, PNG or WebP of at most `max_pixels`.
    """
    decoded, orientation = _decode(data, where, max_pixels)
    image = decoded if isinstance(decoded, Image.Image) else Image.fromarray(decoded)
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def pixels(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 [H, W, 3]: the pixels of `open_image`. Rotated images are views."""
    decoded, orientation = _decode(data, where, max_pixels)
    array = np.asarray(decoded)
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def bake(data: bytes, side: int, quality: int, where: str, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """The image squashed to `side` x `side` as the model sees it, as a JPEG without chroma subsampling."""
    squashed = Image.fromarray(square(open_image(data, where, max_pixels=max_pixels), side).transpose(1, 2, 0))
    buffer = io.BytesIO()
    squashed.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


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


def megapixels(count: int) -> str:
    """Millions of pixels, rounded up to a tenth."""
    return f"{-(-count // 100_000) / 10:.1f}".removesuffix(".0")


def _located(fault: ImageFault, where: str) -> DataError:
    reason = f"{where}: {fault}"
    return TooLarge(reason, fault.needed) if isinstance(fault, TooLarge) else DataError(reason)


def _header(data: bytes) -> ImageHeader:
    try:
        header = parse_header(data)
    except Incomplete as error:
        raise ImageFault(str(error) if error.header is None else truncation(data, error.header)) from error
    if header is None:
        raise ImageFault(name_content(data))
    return header


def _affordable(data: bytes, max_pixels: int) -> ImageHeader:
    """The header of an image whose size and cost are within the limits. Raises `ImageFault`."""
    header = _header(data)
    check_size(header, max_pixels)
    if header.kind == "JPEG":
        check_scans(data, header)
    return header


def check_size(header: ImageHeader, max_pixels: int = MAX_PIXELS) -> None:
    """Raise `TooLarge` for more pixels than are decoded, and `ImageFault` for a side that is too long."""
    count, webp = header.width * header.height, header.kind == "WEBP"
    limit = max_pixels // (_WEBP_MEMORY if webp else 1)
    if count > limit:
        of = "limit for WebP" if webp else "limit"
        needed = -(-count * (_WEBP_MEMORY if webp else 1) // 1_000_000)
        raise TooLarge(f"{megapixels(count)} megapixels, the {of} is {megapixels(limit)}", needed)
    if max(header.width, header.height) > MAX_SIDE:
        raise ImageFault(f"{header.width} x {header.height} pixels, the limit is {MAX_SIDE} per side")


def reduction(width: int, height: int) -> int:
    """The factor by which an image is reduced when it is decoded: 1, 2, 4 or 8."""
    if width * height <= FULL_PIXELS:
        return 1
    return next((factor for factor in (8, 4) if min(width, height) >= factor * _SHORT_SIDE), 2)


def _decode(data: bytes, where: str, max_pixels: int) -> tuple[np.ndarray | Image.Image, int]:
    """The RGB pixels as stored, reduced, and the orientation."""
    try:
        header = _affordable(data, max_pixels)
        array = _turbo(data, header, "RGB") if header.kind == "JPEG" else None
        if array is not None:
            return array, header.orientation
        image = _pillow(data, header)
        factor = reduction(header.width, header.height) if header.kind != "JPEG" else 1
        return _converted(image, header, factor), header.orientation
    except ImageFault as fault:
        raise _located(fault, where) from fault


def _converted(image: Image.Image, header: ImageHeader, factor: int) -> Image.Image:
    """The image as RGB. Raises `ImageFault` if its palette or its transparency is damaged."""
    try:
        return to_rgb(image, factor)
    except DECODER_ERRORS as error:
        raise ImageFault(_damaged(header)) from error


def _turbo(data: bytes, header: ImageHeader, color: str, *, smallest: bool = False) -> np.ndarray | None:
    """The pixels of a JPEG, or None if Pillow has to decode it. Raises `ImageFault` for damage.

    `smallest` decodes all data at an eighth of the size, which finds the same faults in less time.
    """
    factor = 8 if smallest else reduction(header.width, header.height)
    sizes = [0 if factor == 1 else -(-side // factor) for side in (header.stored_width, header.stored_height)]
    try:
        stored = simplejpeg.decode_jpeg_header(data)[2]
        plain = stored in ("YCbCr", "Gray")
        decoded = simplejpeg.decode_jpeg(
            data,
            color if plain else "RGB" if stored == "RGB" else "CMYK",
            fastupsample=False,
            fastdct=False,
            min_width=sizes[0],
            min_height=sizes[1],
            min_factor=factor,
            strict=True,
        )
    except ValueError as error:
        _judge(str(error), data, header)
        return None
    return decoded if plain else None


def _judge(message: str, data: bytes, header: ImageHeader) -> None:
    """Raise `ImageFault` if a message of libjpeg means that pixels are missing or wrong."""
    lower = message.lower()
    if "premature end" in lower:
        raise ImageFault(truncation(data, header))
    if "corrupt jpeg data" in lower and not any(words.lower() in lower for words in _HARMLESS):
        raise ImageFault("damaged: its JPEG data cannot be decoded")


def _is_intact(data: bytes, header: ImageHeader) -> bool:
    """Whether the image certainly decodes. Raises `ImageFault` for damage. False: Pillow has to decode it."""
    if header.kind == "PNG":
        return has_intact_rows(kept_chunks(data, header))
    return header.kind == "JPEG" and _turbo(data, header, "GRAY", smallest=True) is not None


def _pillow(data: bytes, header: ImageHeader) -> Image.Image:
    """The image as Pillow decodes it, in its own mode. Classes of formats are called directly, because `Image.open`
    imposes a limit of its own that can be changed only for the whole process."""
    try:
        if header.kind == "PNG":
            image: Image.Image = PngImageFile(io.BytesIO(joined(kept_chunks(data, header))))
        elif header.kind == "WEBP":
            image = WebPImageFile(io.BytesIO(data))
        else:
            image = JpegImageFile(io.BytesIO(data))
            factor = reduction(header.width, header.height)
            if factor > 1:
                image.draft(None, (header.stored_width // factor, header.stored_height // factor))
        if header.kind != "JPEG" and image.size != (header.stored_width, header.stored_height):
            raise ImageFault("damaged: its header and its data state different sizes")
        image.load()
    except DECODER_ERRORS as error:
        if isinstance(error, ImageFault):
            raise
        short = header.kind == "WEBP" or "truncated" in str(error).lower()
        raise ImageFault(truncation(data, header) if short else _damaged(header)) from error
    return image


def _damaged(header: ImageHeader) -> str:
    return f"damaged: its {header.kind} data cannot be decoded"


def to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """RGB, with transparency on a white background, reduced by `factor`.

    Works strip by strip: converting at once would hold several more copies in memory.
    """
    if factor == 1 and image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = max(1, _STRIP_PIXELS // image.width // factor) * factor
    for top in range(0, image.height, rows):
        strip = _stripto_rgb(image.crop((0, top, image.width, min(image.height, top + rows))))
        rgb.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return rgb


def _stripto_rgb(strip: Image.Image) -> Image.Image:
    if strip.mode.startswith("I"):  # 16 bits per pixel: Pillow's own conversion clips instead of scaling
        strip = Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8))
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    ground = Image.new("RGBA", strip.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, strip.convert("RGBA")).convert("RGB")
