"""Tests that a build refuses what training would refuse, names the file and the cause, and keeps the rest."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from minigptv2.cli import main as cli
from minigptv2.errors import DataError
from minigptv2.shards.fast_decode import Stopwatch, square_pixels
from minigptv2.shards.image_convert import open_photo
from minigptv2.shards.image_files import check_image, open_image, pixels
from minigptv2.shards.reader import CorpusReader
from tests.images.making import CONVERTED, KINDS, build, captions, chunk, claiming, encode, scene

Damage = Callable[[bytes], bytes]


def _cut(share: float) -> Damage:
    return lambda data: data[: int(share * len(data))]


def _without_middle(data: bytes) -> bytes:
    return data[: len(data) // 2] + data[len(data) // 2 + len(data) // 6 :]


CUTS: dict[str, Damage] = {
    "cut to 60 %": _cut(0.6),
    "cut to 30 %": _cut(0.3),
    "cut to 93 %": _cut(0.93),
    "zeros instead of the end": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}
JPEG_DAMAGE: dict[str, Damage] = {
    "cut and closed": lambda data: data[: 6 * len(data) // 10] + b"\xff\xd9",
    "without its middle": _without_middle,
    "without its end": lambda data: data[:-5],
}


def whole(kind: str) -> bytes:
    return encode(scene(), kind)


def refused(folder: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> str:
    """Build three images of which the second is `data`: refused by name, and left out with --skip-bad."""
    good = whole("jpeg")
    file = captions(folder, {"pics/0.jpg": good, "pics/1.jpg": data, "pics/2.jpg": good})
    assert build(file, folder / "out") == 3
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if "pics/1.jpg" in line]
    assert "line 2: " in line and "0x" not in told and "<_io" not in told and "Traceback" not in told
    assert not (folder / "out/manifest.json").exists()
    assert build(file, folder / "out", "--skip-bad") == 0
    assert len(CorpusReader(folder / "out")) == 2
    (dropped,) = [json.loads(text) for text in (folder / "out/dropped.jsonl").read_text().splitlines()]
    assert "pics/1.jpg" in dropped["key"] and dropped["reason"] in line
    capsys.readouterr()
    assert cli(["shards", "verify", str(folder / "out"), "--workers", "0"]) == 0
    return str(dropped["reason"])


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (kind, how)
        for kind in {**KINDS, **CONVERTED}
        for how in CUTS
        if how != "zeros instead of the end" or kind.startswith(("jpeg", "png", "gif"))  # zeros are pixels of others
    ],
)
def test_a_truncated_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, how: str) -> None:
    reason = refused(tmp_path, CUTS[how](whole(kind)), capsys)
    assert re.search("truncated|damaged", reason)


@pytest.mark.parametrize("how", JPEG_DAMAGE)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("jpeg") and kind != "jpeg-cmyk"])
def test_a_jpeg_that_decoders_fill_with_gray_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, how: str
) -> None:
    assert re.search("truncated|damaged", refused(tmp_path, JPEG_DAMAGE[how](whole(kind)), capsys))


@pytest.mark.parametrize(
    ("kind", "share"), [(k, s) for k in ("jpeg", "jpeg-gray", "png", "webp") for s in (30, 61, 90)]
)
def test_the_share_that_is_there_is_stated(kind: str, share: int) -> None:
    data = encode(scene(640, 480), kind)
    with pytest.raises(DataError, match=r"here: truncated after (\d+) %") as told:
        check_image(data[: share * len(data) // 100], "here")
    assert abs(int(re.findall(r"(\d+) %", str(told.value))[0]) - share) <= 12


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)
NO_IMAGES: dict[str, tuple[bytes, str]] = {
    "page": (b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>", "a web page"),
    "page-with-bom": (b"\xef\xbb\xbf\r\n<HTML lang=en><body>Sign in</body></HTML>", "a web page"),
    "page-with-comment": (b"<!-- cdn -->\n<html><body></body></html>", "a web page"),
    "xhtml": (b"<?xml version='1.0'?><!DOCTYPE html PUBLIC ''><html></html>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a Git LFS pointer"),
    "svg": (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "bare-svg": (b"<svg width='3'></svg>", "an SVG drawing"),
    "s3": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
    "heic": (HEIC, "HEIC"),
    "heic-by-compatible-brand": (HEIC.replace(b"ftypheic", b"ftypxxxx"), "HEIC"),
    "avif": (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1" + bytes(100), "AVIF"),
    "mp4": (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(100), "a video"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
    "json": (b'{"message": "Rate limit exceeded"}', "a JSON document"),
    "text": (b"Not Found\n", "a text file"),
    "base64": (b"data:image/png;base64,iVBORw0KGgo=", "a data: URL"),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(5000), "5000 zero bytes"),
    "zip": (b"PK\x03\x04" + bytes(50), "a zip archive"),
    "psd": (b"8BPS\x00\x01" + bytes(50), "a Photoshop document"),
    "jxl": (b"\xff\x0a" + b"\x01" * 50, "JPEG XL"),
    "jp2": (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000"),
    "apple-double": (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(50), "AppleDouble"),
    "ppm": (b"P6\n2 2\n255\n" + bytes(12), "a Netpbm image"),
    "noise": (bytes(range(128, 256)) * 4, "not a JPEG, PNG or WebP image"),
    "start-of-jpeg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "truncated in its header"),
    "only-the-signature": (b"\x89PNG\r\n\x1a\n", "truncated in its header"),
    "size-zero": (claiming(0, 5), "0 x 5 pixels"),
    "120-megapixels": (claiming(12_000, 10_000), "120 megapixels, the limit is 64; `--max-pixels 120`"),
    "120-megapixels-jpeg": (claiming(12_000, 10_000, "jpeg"), "120 megapixels, the limit is 64; `--max-pixels 120`"),
    "too-long": (claiming(70_000, 2), "the limit is 65535 per side"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    data, cause = NO_IMAGES[name]
    assert cause in refused(tmp_path, data, capsys)


def test_all_bad_images_are_named_at_once_beside_other_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{name}.jpg": data for name, (data, _) in list(NO_IMAGES.items())[:20]}
    file = captions(tmp_path, {**files, "cut.jpg": CUTS["cut to 60 %"](whole("jpeg")), "good.jpg": whole("jpeg")})
    for mistake in (0, 1):
        file.write_text(file.read_text() + mistake * '{"image": "good.jpg", "task": "captoin", "answer": "x"}\n')
        assert build(file, tmp_path / "out") == 3
        told = capsys.readouterr().err
        named = [line for line in told.splitlines() if line.startswith("  line ")]
        assert len(named) == 21 + mistake and "cut.jpg: truncated after" in named[20]
        assert ("captoin" in told) == bool(mistake)


def test_a_replaced_image_is_used_and_good_shards_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {f"{number}.jpg": encode(scene(64 + 8 * number, 48)) for number in range(6)}
    file = captions(tmp_path, {**good, "4.jpg": good["4.jpg"][:-200]})
    size = ("--samples-per-shard", "2")
    assert build(file, tmp_path / "out", *size) == 3
    first = (tmp_path / "out/own-000000.tar").stat().st_mtime_ns
    assert "line 5: " in capsys.readouterr().err
    (tmp_path / "4.jpg").write_bytes(good["4.jpg"])
    assert build(file, tmp_path / "out", *size) == 0
    assert (tmp_path / "out/own-000000.tar").stat().st_mtime_ns == first
    assert len(CorpusReader(tmp_path / "out")) == 6


def test_another_file_is_built_where_a_build_was_refused(tmp_path: Path) -> None:
    bad = captions(tmp_path, {"a.jpg": whole("jpeg"), "b.jpg": whole("jpeg")[:-200]})
    assert build(bad, tmp_path / "out") == 3
    (tmp_path / "other.jsonl").write_text(bad.read_text().splitlines()[0] + "\n")
    assert build(tmp_path / "other.jsonl", tmp_path / "out") == 0
    assert {file.name for file in (tmp_path / "out").glob("*.tar")} == {"other-000000.tar"}


METADATA: dict[str, bytes] = {
    "long text": chunk(b"tEXt", b"Comment\0" + b"x" * (3 << 20)),
    "compressed text of 40 MiB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(40 << 20))),
    "many texts": b"".join(chunk(b"iTXt", b"k\0\0\0\0\0" + b"y" * (1 << 20)) for _ in range(12)),
    "profile of 4 MiB": chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(4 << 20))),
    "damaged profile": chunk(b"iCCP", b"profile\0\0not deflated"),
    "wrong checksum": chunk(b"tEXt", b"Comment\0x")[:-1] + b"\0",
    "unknown": chunk(b"prVt", bytes(100)),
    "half a text": chunk(b"zTXt", b"Comment"),
    "animation": chunk(b"acTL", bytes(8)),
    "physical size of three bytes": chunk(b"pHYs", b"abc"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_png_never_refuses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    plain = whole("png")
    at = plain.index(b"IDAT") - 4
    data = plain[:at] + METADATA[name] + plain[at:]
    file = captions(tmp_path, {"a.png": data})
    assert build(file, tmp_path / "out") == 0
    assert cli(["shards", "verify", "--decode", str(tmp_path / "out"), "--workers", "0"]) == 0
    assert (square_pixels(data, "", 56, Stopwatch()) == square_pixels(plain, "", 56, Stopwatch())).all()
    assert open_image(data, "").tobytes() == open_image(plain, "").tobytes()


UNREADABLE = {
    name: NO_IMAGES[name][0] for name in ("page", "heic", "noise", "start-of-jpeg", "only-the-signature", "zeros")
} | {f"{kind}, {how}": CUTS[how](whole(kind)) for kind in KINDS for how in CUTS}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_reason_is_the_same_in_every_run_and_holds_no_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    reasons = set()
    for _ in range(2):
        for read in (open_photo, check_image, pixels):
            try:
                read(UNREADABLE[name], "a.jpg")
            except DataError as error:
                reasons.add(str(error))
    assert len(reasons) <= 1
    (tmp_path / "a.jpg").write_bytes(UNREADABLE[name])
    told = []
    for _ in range(2):
        cli(["ask", "--model", str(tmp_path), str(tmp_path / "a.jpg"), "what?"])
        told.append(capsys.readouterr().err)
    assert told[0] == told[1] and not re.search("0x[0-9a-f]{4}|<_io|BytesIO|object at", "".join([*told, *reasons]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_of_a_build_and_the_decoder_of_training_refuse_the_same(kind: str) -> None:
    data = encode(scene(120, 80), kind)
    for length in [*range(0, len(data), max(1, len(data) // 50)), len(data)]:
        for sample in (data[:length], data[:length] + b"\xff\xd9", data[:length] + data[length + 20 :]):
            outcomes = set()
            for decode in (check_image, pixels, open_image):
                try:
                    decode(sample, "here")
                    outcomes.add("accepted")
                except DataError as error:
                    outcomes.add(str(error))
            assert len(outcomes) == 1, (length, outcomes)
