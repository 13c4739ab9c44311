"""The fast road from image bytes to pixels: within 2 levels of Pillow's, and as strict."""

import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from minigptv2.errors import DataError
from minigptv2.shards.fast_decode import Stopwatch, square_pixels
from minigptv2.shards.image_convert import open_photo
from minigptv2.shards.image_files import open_image, square

SIDE = 112


def picture(width: int, height: int, mode: str = "RGB", *, noise: bool = True, format: str = "JPEG") -> bytes:
    rng = np.random.default_rng(width * 1000 + height)
    small = rng.integers(0, 256, (height if noise else 4, width if noise else 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height)).convert(mode).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("size", [(160, 120), (120, 160), (112, 112), (75, 50), (50, 225), (400, 300), (1, 1)])
def test_pixels_are_within_two_levels_of_pillows(size: tuple[int, int], noise: bool) -> None:
    data = picture(*size, noise=noise)
    ours = square_pixels(data, "here", SIDE, Stopwatch())
    theirs = square(open_image(data, "here"), SIDE)
    assert ours.shape == (3, SIDE, SIDE) and ours.is_contiguous()
    assert np.abs(ours.numpy().astype(int) - theirs.astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "WEBP"), ("L", "PNG")],
)
def test_every_allowed_kind_of_image_is_read_as_pillow_reads_it(mode: str, format: str) -> None:
    data = picture(SIDE, SIDE, mode, format=format)
    ours = square_pixels(data, "here", SIDE, Stopwatch()).numpy()
    assert np.array_equal(ours, square(open_image(data, "here"), SIDE))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_cut_image_is_an_error_at_every_length(format: str) -> None:
    data = picture(60, 40, format=format)
    for length in range(0, len(data) - 2, max(1, len(data) // 60)):
        with pytest.raises(DataError, match="here"):
            square_pixels(data[:length], "here", SIDE, Stopwatch())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\x01\x01\x00", b"\x02\x01\x00", 1),  # a JFIF revision of tomorrow
        lambda data: data.replace(b"\xff\xdb", b"\x00\x00\xff\xdb", 1),  # bytes between two markers
    ],
)
def test_what_pillow_reads_is_read(change: Callable[[bytes], bytes]) -> None:
    data = change(picture(SIDE, SIDE))
    assert data != picture(SIDE, SIDE)
    ours = square_pixels(data, "here", SIDE, Stopwatch()).numpy()
    assert np.abs(ours.astype(int) - square(open_image(data, "here"), SIDE).astype(int)).max() <= 2


def encoded(image: Image.Image, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **more)
    return buffer.getvalue()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    read = np.asarray(open_image(encoded(ramp), "here"))
    assert read[..., 0].tolist() == (np.arange(65536).reshape(256, 256) // 256).tolist()


def test_sixteen_bits_take_little_more_than_the_picture() -> None:
    data = encoded(Image.fromarray(np.zeros((3000, 3000), dtype=np.uint16)))
    tracemalloc.start()
    open_image(data, "here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 3000 * 3000, "numpy's copies of 16 bits and more stood in memory whole"


def test_a_transparent_colour_is_laid_on_white() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    for image, hidden in ((palette, 1), (Image.new("RGB", (4, 4), (0, 0, 0)), (0, 0, 0))):
        assert np.asarray(open_image(encoded(image, transparency=hidden), "here")).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_image_is_rotated_upright(orientation: int) -> None:
    image = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(open_photo(data, "here").image), np.asarray(upright.convert("RGB")))
    assert np.array_equal(np.asarray(open_image(data, "here")), np.asarray(upright.convert("RGB")))


def test_seconds_are_counted_by_stage() -> None:
    watch = Stopwatch()
    square_pixels(picture(160, 120), "here", SIDE, watch)
    assert set(watch.seconds) == {"decode", "resize"} and min(watch.seconds.values()) > 0
