"""The fast road from image bytes to pixels: within 2 levels of Pillow's, and as strict."""

import io

import numpy as np
import pytest
from PIL import Image

from minigptv2.data.images import open_image, square
from minigptv2.data.pixels import Stopwatch, square_pixels
from minigptv2.errors import DataError

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


def test_seconds_are_counted_by_stage() -> None:
    watch = Stopwatch()
    square_pixels(picture(160, 120), "here", SIDE, watch)
    assert set(watch.seconds) == {"decode", "resize"} and min(watch.seconds.values()) > 0
