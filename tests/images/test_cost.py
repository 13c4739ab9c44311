"""Tests that an image which costs many times what its pixels do is refused before it is decoded, in every command."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minigptv2.cli import main as cli
from minigptv2.errors import DataError
from minigptv2.shards.fast_decode import Stopwatch, square_pixels
from minigptv2.shards.image_convert import as_png, is_converted, open_photo
from minigptv2.shards.image_files import check_image, open_image
from minigptv2.shards.image_gif import first_frame
from minigptv2.shards.reader import CorpusReader
from tests.images.making import (
    KINDS,
    animated,
    build,
    captions,
    chunk,
    encode,
    in_mode,
    run_lengths,
    scene,
    tiff,
    with_blocks,
    with_chunk,
    with_scans,
)

_OFFSETS = struct.pack("<I", 1000) * 100_000
_FLAT = encode(Image.new("RGB", (1000, 1000), "gray"), "jpeg-progressive")
_ROWS = zlib.compress(bytes(64 * 193))


def _png(data: list[bytes], before: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), before, *(chunk(b"IDAT", one) for one in data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _webp(chunks: int) -> bytes:
    """An extended WebP that announces EXIF behind so many unknown chunks."""
    size = b"\x0f\0\0" * 2
    body = b"WEBPVP8X\x0a\0\0\0\x08\0\0\0" + size + b"ABCD\0\0\0\0" * chunks + encode(scene(16, 16), "webp")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


COSTLY: dict[str, tuple[Any, str]] = {
    "jpeg-scans": (lambda: with_scans(_FLAT, 1000), "more than 100 scans"),
    "jpeg-scans-gray": (lambda: with_scans(encode(Image.new("L", (900, 900)), "jpeg-progressive"), 500), "100 scans"),
    "jpeg-scans-large": (
        lambda: with_scans(encode(Image.new("RGB", (6000, 6000)), "jpeg-progressive"), 60),
        "more than 35 scans",
    ),
    "jpeg-scans-baseline": (lambda: with_scans(encode(scene()), 300), "more than 100 scans"),
    "jpeg-scans-cmyk": (
        lambda: with_scans(encode(Image.new("RGB", (400, 400)), "jpeg-cmyk", progressive=True), 2000),
        "more than 100 scans",
    ),
    "jpeg-scans-behind-comments": (lambda: with_scans(_FLAT[:-2] + b"\xff\xfe\0\4" + _FLAT[-2:] * 2, 200), "100 scans"),
    "jpeg-segments": (lambda: encode(scene())[:2] + b"\xff\xfe\0\2" * 500_000 + encode(scene())[2:], "segments"),
    "jpeg-fill-bytes": (
        lambda: encode(scene(), "jpeg-cmyk")[:2] + b"\xff" * (2 << 20) + encode(scene(), "jpeg-cmyk")[2:],
        "far apart",
    ),
    "jpeg-restarts": (lambda: encode(scene())[:2] + b"\xff\xd0" * (1 << 20) + encode(scene())[2:], "far apart"),
    "png-empty-data": (lambda: _png([_ROWS, *[b""] * 200_000]), "more than 10,272 chunks"),
    "png-data-by-byte": (
        lambda: _png([bytes([one]) for one in zlib.compress(np.random.default_rng(1).bytes(12_352))]),
        "chunks",
    ),
    "png-texts": (lambda: _png([_ROWS], chunk(b"tEXt", b"a\0b") * 300_000), "chunks"),
    "png-palettes": (lambda: _png([_ROWS], chunk(b"PLTE", bytes(3)) * 200_000), "chunks"),
    "webp-chunks": (lambda: _webp(1_000_000), "more than 10,000 chunks"),
    "gif-comments": (lambda: with_blocks(encode(scene(), "gif"), b"\x21\xfe\1x\0" * 300_000), "blocks"),
    "gif-long-comment": (
        lambda: with_blocks(encode(scene(), "gif"), b"\x21\xfe" + (b"\xff" + bytes(255)) * 30_000),
        "blocks",
    ),
    "gif-controls": (lambda: with_blocks(encode(scene(), "gif"), b"\x21\xf9\4\0\0\0\0\0" * 300_000), "blocks"),
    "gif-nothing": (lambda: with_blocks(encode(scene(), "gif"), bytes(3_000_000)), "blocks"),
    "tiff-tags": (
        lambda: tiff({60_000 + n: (1, 8 << 20, 1000) for n in range(30)} | {273: (4, 1, 1000)}, bytes(9 << 20)),
        "the tags of the TIFF claim more data",
    ),
    "tiff-many-tags": (lambda: tiff({40_000 + n: (1, 1, 0) for n in range(2000)}, b""), "more than 1,024 tags"),
    "tiff-strips": (lambda: tiff({273: (4, 100_000, 1000), 279: (4, 100_000, 1000)}, _OFFSETS), "strips or tiles"),
    "tiff-tiles": (
        lambda: tiff({322: (4, 1, 1), 323: (4, 1, 1), 324: (4, 100_000, 1000), 325: (4, 100_000, 1000)}, _OFFSETS),
        "strips or tiles",
    ),
    "tiff-strips-overlap": (
        lambda: tiff(
            {273: (4, 64, 1000), 279: (4, 64, 1256), 278: (4, 1, 1)},
            _OFFSETS[:256] + struct.pack("<I", 1 << 20) * 64 + bytes(1 << 20),
        ),
        "overlap",
    ),
    "tiff-large-tile": (
        lambda: tiff({322: (4, 1, 30_000), 323: (4, 1, 30_000), 324: (4, 1, 1000), 325: (4, 1, 9)}, bytes(9)),
        "a tile of the TIFF is larger than the image",
    ),
    "bmp-runs-of-nothing": (lambda: run_lengths(10, 10, bytes(2 << 20)), "a run-length coded BMP"),
    "bmp-runs-large": (lambda: run_lengths(8000, 4000, b"\0\0\1\5\0\0" * 4000), "a run-length coded BMP"),
    "bmp-runs-rle4": (
        lambda: run_lengths(4000, 4000, b"\xff\x12" * 64_000).replace(b"\1\0\x08\0\1", b"\1\0\x04\0\2", 1),
        "a run-length coded BMP",
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_it_is_refused_at_once_with_its_cause(name: str) -> None:
    make, cause = COSTLY[name]
    data = make()
    began = time.perf_counter()
    with pytest.raises(DataError, match=cause):
        open_photo(data, "image")
    with pytest.raises(DataError, match=cause):
        check_image(as_png(data, ""), "image")
    assert time.perf_counter() - began < 1
    if not is_converted(data):
        for see in (open_image, lambda data, where: square_pixels(data, where, 32, Stopwatch())):
            with pytest.raises(DataError, match=cause):
                see(data, "image")


@pytest.mark.parametrize("name", ["jpeg-scans", "png-texts", "gif-comments"])
def test_a_build_leaves_it_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, cause = COSTLY[name]
    file = captions(tmp_path, {"good.jpg": encode(scene()), "costly.jpg": make()})
    assert build(file, tmp_path / "out") == 3
    assert f"line 2: {tmp_path}/costly.jpg: more than" in capsys.readouterr().err
    assert build(file, tmp_path / "out", "--skip-faults") == 0
    assert len(CorpusReader(tmp_path / "out")) == 1
    assert cause in (tmp_path / "out/dropped.jsonl").read_text()


@pytest.mark.parametrize("name", ["jpeg-scans", "png-texts", "webp-chunks"])
def test_index_and_verify_name_it_in_a_tar(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, cause = COSTLY[name]
    file = captions(tmp_path, {"good.jpg": encode(scene()), "costly.jpg": make()})
    built = build(file, tmp_path / "out", "--fast")
    if built == 0:  # the header alone tells nothing
        assert cli(["shards", "verify", str(tmp_path / "out"), "--workers", "0"]) == 3
        assert cause in capsys.readouterr().err
        assert cli(["shards", "index", str(tmp_path / "out"), "--workers", "0"]) == 3
        assert cause in capsys.readouterr().err
        return
    assert cause in capsys.readouterr().err


HARMLESS = {
    "progressive": encode(scene(500, 400), "jpeg-progressive"),
    "progressive with 60 scans": with_scans(encode(scene(), "jpeg-progressive"), 50),
    "jpeg with a second one behind it": encode(scene()) + with_scans(encode(scene(), "jpeg-progressive"), 500),
    "jpeg with scans in a thumbnail": encode(scene())[:2]
    + b"\xff\xe1\x04\x02"
    + b"\xff\xda\0\2" * 256
    + encode(scene())[2:],
    "jpeg with a restart for each block": encode(scene(640, 480), "jpeg-restarts"),
    "png with a chunk for each row": _png([zlib.compress(bytes(64 * 193))[n : n + 1] for n in range(60)]),
    "png with 5,000 texts": with_chunk(encode(scene(), "png"), b"tEXt", b"a\0b").replace(
        chunk(b"tEXt", b"a\0b"), chunk(b"tEXt", b"a\0b") * 5000
    ),
    "gif with comments": with_blocks(encode(scene(), "gif"), b"\x21\xfe\3abc\0" * 100),
    "tiff of many strips": encode(scene(20, 3000), "tiff"),
    "bmp of run lengths": run_lengths(8, 2, b"\x08\5\0\0\x08\6\0\0\0\1"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_unusual_file_is_used(name: str) -> None:
    data = HARMLESS[name]
    check_image(as_png(data, ""), "image")
    assert np.array_equal(np.asarray(open_photo(data, "").image), np.asarray(Image.open(_stream(data)).convert("RGB")))


def test_a_strip_for_each_row_is_used() -> None:
    rows = 5000
    body = struct.pack(f"<{rows}I", *range(1000 + 8 * rows, 1000 + 8 * rows + 20 * rows, 20))
    body += struct.pack("<I", 20) * rows + bytes(range(20)) * rows
    tags = {273: (4, rows, 1000), 279: (4, rows, 1000 + 4 * rows), 278: (4, 1, 1)}
    photo = open_photo(tiff(tags, body, 20, rows), "")
    assert (photo.width, photo.height) == (20, rows) and np.asarray(photo.image)[-1, :, 0].tolist() == list(range(20))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "jpeg-progressive", "jpeg-cmyk"])
def test_the_time_of_an_allowed_file_is_in_proportion_to_its_pixels(kind: str) -> None:
    data = encode(scene(1500, 1000), kind)
    data = with_scans(data, 85) if kind == "jpeg-progressive" else data
    began = time.perf_counter()
    check_image(data, "")
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("mode", ["P", "L", "1", "RGBA"])
def test_the_first_frame_of_a_gif_is_what_pillow_shows(mode: str, interlace: int) -> None:
    buffer = _stream(b"")
    in_mode(scene(), mode).save(buffer, "GIF", interlace=interlace, comment=b"hello")
    frames = animated("GIF", duration=40, loop=0, comment=b"hello")
    for data, more in ((buffer.getvalue(), False), (frames, True)):
        found = first_frame(data)
        assert found.has_more == more and b"hello" not in found.data
        assert np.array_equal(np.asarray(Image.open(_stream(found.data))), np.asarray(Image.open(_stream(data))))


def test_every_kind_of_image_is_within_the_limits() -> None:
    for kind in KINDS:
        check_image(encode(scene(), kind), kind)


def _stream(data: bytes) -> Any:
    return io.BytesIO(data)
