"""Tests that the check of a PNG's rows accepts only what decodes, and every file of the usual form."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minigptv2.errors import DataError
from minigptv2.shards import image_png
from minigptv2.shards.image_files import check_image, open_image, read_header
from minigptv2.shards.image_header import PNG_START
from minigptv2.shards.image_png import has_intact_rows, kept_chunks
from tests.images.making import chunk, in_mode, scene, with_chunk
from tests.shards.fuzz import change_bytes, damage_rows, flip_a_bit, reseal

MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")


def is_intact(data: bytes) -> bool:
    return has_intact_rows(kept_chunks(data, read_header(data, "")))


def png(mode: str = "RGB", size: tuple[int, int] = (53, 37), **options: object) -> bytes:
    buffer = io.BytesIO()
    in_mode(scene(*size), mode).save(buffer, "PNG", **options)
    return buffer.getvalue()


def of_rows(rows: bytes, width: int = 4, height: int = 3, depth: int = 8, color: int = 2, last: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, last)
    return PNG_START + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (53, 37), (300, 200)])
@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"optimize": True}])
def test_a_whole_png_is_intact(mode: str, size: tuple[int, int], options: dict[str, object]) -> None:
    assert is_intact(png(mode, size, **options))


@pytest.mark.parametrize("mode", MODES)
def test_pieces_of_any_size_give_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, short = png(mode), reseal(lambda data, rng: data[:-8])(png(mode), random.Random(1))
    for piece, read in ((7, 3), (64, 1000), (1 << 20, 1)):
        monkeypatch.setattr(image_png, "_PIECE", piece)
        monkeypatch.setattr(image_png, "_READ", read)
        assert is_intact(whole) and not is_intact(short)


@pytest.mark.parametrize(
    "rows",
    [b"", bytes(38), bytes(40), b"\5" + bytes(38), bytes(13) + b"\xff" + bytes(25), bytes(39 * 50)],
    ids=["none", "one byte less", "one byte more", "unknown filter", "unknown filter of a later row", "many more"],
)
def test_wrong_rows_are_not_intact(rows: bytes) -> None:
    assert is_intact(of_rows(bytes(39))) and not is_intact(of_rows(rows))


@pytest.mark.parametrize(
    "data",
    [
        of_rows(bytes(39), last=1),
        of_rows(bytes(15), color=3),
        of_rows(bytes(39), depth=4),
        with_chunk(of_rows(bytes(39)), b"IHDR", bytes(13)),
        with_chunk(png("P"), b"tRNS", bytes(300)),
        png("RGB", transparency=(0, 0, 0)),
        png("L", transparency=7),
    ],
    ids=["interlaced", "no palette", "unknown depth", "two headers", "long transparency", "a color", "a gray"],
)
def test_the_decoder_decides_about_what_is_unusual(data: bytes) -> None:
    assert not is_intact(data)
    reasons = []
    for see in (check_image, open_image):
        try:
            see(data, "")
            reasons.append("")
        except DataError as error:
            reasons.append(str(error))
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize("damage", [reseal(flip_a_bit), reseal(change_bytes), damage_rows])
def test_what_passes_the_check_is_decoded(damage: object) -> None:
    rng, passed = random.Random(5), 0
    wholes = [png(mode, (17, 11)) for mode in MODES]
    for _ in range(300):
        data = damage(rng.choice(wholes), rng)  # type: ignore[operator]
        try:
            intact = is_intact(data)
        except DataError:
            continue
        if intact:
            assert np.asarray(open_image(data, "")).shape[2] == 3
            passed += 1
    assert passed or damage is not damage_rows


def test_a_changed_checksum_of_the_stream_is_left_to_the_decoder() -> None:
    whole = of_rows(bytes(39))
    packed = zlib.compress(bytes(39))
    data = PNG_START + whole[8:33] + chunk(b"IDAT", packed[:-1] + b"\0") + chunk(b"IEND", b"")
    assert not is_intact(data)
    assert Image.open(io.BytesIO(data)).size == (4, 3)
