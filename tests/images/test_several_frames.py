"""Tests that images of several frames or pages use the first one, and that builds, index and verify name them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.cli import main as cli
from minigptv2.shards.image_convert import open_photo
from minigptv2.shards.image_frames import has_more_frames
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.tar import END_OF_ARCHIVE, header_of, padded
from tests.images.making import CONVERTED, KINDS, animated, build, captions, encode, scene, tiff, with_blocks

SEVERAL = {
    "a.gif": animated("GIF", duration=40, loop=0),
    "a.png": animated("PNG"),
    "a.webp": animated("WEBP", lossless=True),
    "a.tiff": animated("TIFF"),
    "commented.gif": with_blocks(animated("GIF", 2, comment=b"x"), b"\x21\xfe\3abc\0"),
    "two.webp": animated("WEBP", 2, quality=80),
    "deflate.tif": animated("TIFF", 2, compression="tiff_deflate"),
    "many.png": animated("PNG", 12, loop=1),
}
SINGLE = {
    **{kind: encode(scene(), kind) for kind in {**KINDS, **CONVERTED}},
    "gif of one frame": animated("GIF", 1, comment=b"x"),
    "png of one frame": animated("PNG", 1),
    "webp of one frame": animated("WEBP", 1, lossless=True),
    "tiff of one page": animated("TIFF", 1),
    "nothing": b"",
    "cut gif": animated("GIF")[:60],
    "cut tiff": animated("TIFF")[:60],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_frames_are_seen(name: str) -> None:
    assert has_more_frames(SEVERAL[name])


@pytest.mark.parametrize("name", SINGLE)
def test_one_frame_is_not_several(name: str) -> None:
    assert not has_more_frames(SINGLE[name])


def test_a_thumbnail_is_no_page() -> None:
    data = bytearray(animated("TIFF", 2))
    second = int.from_bytes(data[4:8], "little")
    second += 2 + 12 * int.from_bytes(data[second : second + 2], "little")
    second = int.from_bytes(data[second : second + 4], "little")
    tags = range(second + 2, second + 2 + 12 * int.from_bytes(data[second : second + 2], "little"), 12)
    assert has_more_frames(bytes(data))
    last = tags[-1]  # becomes the kind of page: reduced
    data[last : last + 12] = b"\xfe\0\4\0\1\0\0\0\1\0\0\0"
    assert not has_more_frames(bytes(data))


@pytest.mark.parametrize("target", [8, 0, 4, 1 << 31], ids=["itself", "none", "the header", "outside"])
def test_a_loop_of_directories_ends(target: int) -> None:
    strips = {273: (4, 1, 1000), 279: (4, 1, 64 * 64)}
    data = bytearray(tiff(strips, bytes(64 * 64)))
    after = 10 + 12 * int.from_bytes(data[8:10], "little")
    data[after : after + 4] = target.to_bytes(4, "little")
    assert not has_more_frames(bytes(data))
    assert open_photo(bytes(data), "").width == 64


def test_a_build_counts_and_names_them_and_uses_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = captions(tmp_path, {"one.jpg": encode(scene()), **SEVERAL})
    assert build(file, tmp_path / "out") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "frames" in line]
    assert line.startswith("corrected 8: image with several frames or pages, of which the first is used: line 2: ")
    assert all(f"{tmp_path}/{name}" in line for name in SEVERAL) and "one.jpg" not in line
    reader = CorpusReader(tmp_path / "out")
    assert reader.manifest.counts == {"image with several frames or pages, of which the first is used": 8}
    for number, name in enumerate(SEVERAL, 1):
        first = Image.open(io.BytesIO(SEVERAL[name])).convert("RGB")
        assert np.array_equal(np.asarray(reader.open_image(number)), np.asarray(first)), name


def test_many_are_named_in_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = captions(tmp_path, {f"{number:02d}.gif": animated("GIF", 2) for number in range(30)})
    assert build(file, tmp_path / "out", "--samples-per-shard", "7") == 0
    told = capsys.readouterr().out
    assert "corrected 30: " in told and "line 20: " in told and "line 21: " not in told and "and 10 more" in told


@pytest.mark.parametrize("layout", ["ours", "captions"])
def test_index_and_verify_name_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str) -> None:
    kept = {name: data for name, data in SEVERAL.items() if name.endswith(("png", "webp"))}
    if layout == "ours":
        assert build(captions(tmp_path, {"one.jpg": encode(scene()), **kept}), tmp_path / "out") == 0
        names = [f"own-000000.tar / {number:08d}.{name[-4:].lstrip('.')}" for number, name in enumerate(kept, 2)]
    else:
        members = [(f"{n}.{name.split('.')[1]}", data) for n, (name, data) in enumerate(kept.items())]
        texts = [(f"{n}.txt", b"a caption") for n in range(len(kept))]
        _write_tar(tmp_path / "out/x.tar", sorted([*members, *texts]))
        names = [f"x.tar / {name}" for name, _ in members]
    for command in ("index", "verify"):
        capsys.readouterr()
        assert cli(["shards", command, str(tmp_path / "out"), "--workers", "0"]) == 0
        told = capsys.readouterr().out
        assert "used the first frame or page of 4 images with several: " in told
        assert all(name in told for name in names), told
    assert cli(["shards", "verify", str(tmp_path / "out"), "--workers", "0", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert any("used the first frame" in note for note in row["notes"]) and row["faults"] == []


def _write_tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    file.parent.mkdir()
    parts = (header_of(name, len(data)) + data.ljust(padded(len(data)), b"\0") for name, data in members)
    file.write_bytes(b"".join(parts) + END_OF_ARCHIVE)
