"""Tars of others: indexed where they lie, every fault named; verify, stats and preview of a corpus."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.boxes import Box
from minigptv2.cli import main as cli
from minigptv2.corpora.preview import SeenBox, find_box_problems
from minigptv2.corpora.sources import toy
from minigptv2.errors import DataError
from minigptv2.files import sha256_of
from minigptv2.record import Record, Region, Turn, from_json, to_json
from minigptv2.shards.dropped import read_report
from minigptv2.shards.indexing import ScanOptions, index_corpus, scan_shard
from minigptv2.shards.manifest import CAPTIONS, INDEX_DTYPE, RECORDS
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.tar import TarError, find_members, header_of
from minigptv2.shards.verify import verify_corpus
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tasks import validate
from tests.conftest import World


def jpeg(side: int = 32, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side // 2), (90, 10, 10)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(file: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def img2dataset_json(caption: str | None) -> bytes:
    return json.dumps(
        {
            "caption": caption,
            "url": "http://x/1.jpg",
            "key": "000000000",
            "status": "success",
            "error_message": None,
            "width": 32,
            "height": 16,
            "original_width": 640,
            "original_height": 320,
            "sha256": "ab",
        }
    ).encode()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_where_tarfile_finds_them(tmp_path: Path, form: int) -> None:
    long = "d" * 60 + "/" + "k" * 90 + ".jpg" if form == tarfile.USTAR_FORMAT else "k" * 200 + ".jpg"
    names = ["a.json", "é.jpg", "./b/c.txt", "empty.txt", long]
    file = write_tar(tmp_path / "x.tar", [(name, b"z" * 700 * (name != "empty.txt")) for name in names], form)
    with tarfile.open(file) as archive:
        theirs = [(m.name.removeprefix("./"), m.offset, m.offset_data, m.size) for m in archive]
    assert [(m.name, m.offset, m.data_offset, m.size) for m in find_members(file.read_bytes())] == theirs


def test_tarfile_reads_our_headers() -> None:
    info = tarfile.TarInfo.frombuf(header_of("ключ.json", 12345), "utf-8", "strict")
    assert (info.name, info.size, info.mtime, info.uid) == ("ключ.json", 12345, 0, 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("../a.jpg", "unsafe"), ("/etc/passwd", "unsafe"), ("a/../../b.jpg", "unsafe"), ("a\\b.jpg", "unsafe")],
)
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str, words: str) -> None:
    file = write_tar(tmp_path / "x.tar", [("ok.txt", b"x"), (name, b"x")])
    with pytest.raises(TarError, match=words):
        list(find_members(file.read_bytes()))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(TarError, match="not a plain file"):
        list(find_members((tmp_path / "x.tar").read_bytes()))


def test_a_negative_size_is_refused_and_does_not_loop() -> None:
    header = bytearray(header_of("a.jpg", 0))
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    with pytest.raises(TarError, match="not an octal number"):
        list(find_members(bytes(header) + bytes(1024)))


def test_img2dataset_tars_become_a_corpus_where_they_lie(tmp_path: Path) -> None:
    first = [
        (f"{n:09d}.{kind}", data)
        for n in range(3)
        for kind, data in (("jpg", jpeg()), ("json", img2dataset_json(f"caption {n}")), ("txt", b"not this"))
    ]
    write_tar(tmp_path / "00000.tar", first)
    write_tar(
        tmp_path / "00001.tar",
        [("7.jpg", jpeg(64)), ("7.txt", "Käse ".encode()), ("8.webp", jpeg(32, "WEBP")), ("8.txt", b"eight")],
    )
    before = (tmp_path / "00000.tar").read_bytes()
    manifest, faults = index_corpus(tmp_path, "laion")
    assert not faults and manifest is not None and (manifest.samples, manifest.layout) == (5, CAPTIONS)
    reader = CorpusReader(tmp_path)
    records = [reader.record(n) for n in range(5)]
    assert [r.turns[0].answers[0] for r in records] == ["caption 0", "caption 1", "caption 2", "Käse", "eight"]
    assert [(r.width, r.height) for r in records] == [(32, 16)] * 3 + [(64, 32), (32, 16)]
    assert records[0].source == {"url": "http://x/1.jpg", "key": "000000000", "sha256": "ab"}
    assert reader.image(0) == jpeg() and reader.image(4) == jpeg(32, "WEBP")
    assert (tmp_path / "00000.tar").read_bytes() == before and verify_corpus(tmp_path, decode=True) == []


def test_indexing_our_own_tars_gives_the_index_that_was_written(tmp_path: Path) -> None:
    written = write_corpus(toy.samples("refer", 9, Path(), "val"), tmp_path, "c", samples_per_shard=4)
    for name in ("manifest.json", "index.npy", "shards.npy"):
        (tmp_path / name).unlink()
    manifest, _ = index_corpus(tmp_path, "c", workers=2)
    assert manifest == written and manifest.fingerprint == written.fingerprint


def test_a_scan_s_rows_take_sixteen_bytes_each_on_the_way_to_the_index(tmp_path: Path) -> None:
    write_corpus(toy.samples("refer", 9, Path(), "val"), tmp_path, "c")
    scan = scan_shard(tmp_path / "c-000000.tar", ScanOptions("c", RECORDS))
    assert scan.rows.dtype == INDEX_DTYPE and scan.rows.nbytes == 9 * 16
    assert np.array_equal(scan.rows, np.load(tmp_path / "index.npy"))


GOOD = to_json(Record((Turn("caption", answers=("a",)),), 32, 16))
TEXT = to_json(Record((Turn("language", "hi", ("ho",)),)))


@pytest.mark.parametrize(
    ("members", "key", "words"),
    [
        ([("a.json", GOOD), ("b.json", TEXT), ("a.jpg", jpeg())], "a", "not adjacent"),
        ([("a.jpg", jpeg()), ("b.json", TEXT)], "a", "no json"),
        ([("a.json", GOOD), ("a.jpg", jpeg()), ("a.jpg", jpeg())], "a", "two members of one kind"),
        ([("a.json", GOOD), ("a.jpg", jpeg()), ("a.png", jpeg())], "a", "two members of one kind"),
        ([("a.json", GOOD), ("b.json", TEXT)], "a", "disagree"),
        ([("a.json", GOOD), ("a.jpg", b"GIF89a")], "a", "a GIF image; convert it"),
        ([("a.json", GOOD), ("a.jpg", jpeg(64))], "a", "64 x 32 px, its record says 32 x 16"),
        ([("a.json", b"{"), ("a.jpg", jpeg())], "a", "not a record"),
        ([("a.json", GOOD), ("a.jpg", jpeg()), ("a.pyd", b"x")], "a", "not opened"),
        ([("a.json", GOOD), ("a.pickle", b"x")], "a", "not opened"),
        ([("a.json", GOOD), ("a.jpg", jpeg()), ("../x.json", TEXT)], "../x", "unsafe member name"),
    ],
)
def test_every_fault_of_a_shard_is_named_and_the_rest_is_kept(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    members: list[tuple[str, bytes]],
    key: str,
    words: str,
) -> None:
    file = write_tar(tmp_path / "x.tar", [("ok.json", GOOD), ("ok.jpg", jpeg()), *members])
    scan = scan_shard(file, ScanOptions("c", RECORDS))
    named = {fault.key: fault.reason for fault in scan.faults}
    assert words in named[key] and scan.faults[0].shard == "x.tar"
    assert scan.rows[0][0] == 0
    (tmp_path / "corpus").mkdir()
    shutil.move(file, tmp_path / "corpus" / "x.tar")
    assert index_corpus(tmp_path / "corpus", "c")[0] is None
    command = ["shards", "index", str(tmp_path / "corpus"), "--workers", "0", "--skip-faults", "--json"]
    assert cli(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {fault["key"] for fault in printed["faults"]} == set(named)
    manifest, faults = index_corpus(tmp_path / "corpus", "c", skip_faults=True)
    assert manifest is not None and manifest.dropped == len(faults) == len(scan.faults)
    assert printed["samples"] == manifest.samples
    assert CorpusReader(tmp_path / "corpus").image(0) == jpeg()
    report = tmp_path / "corpus" / "dropped.jsonl"
    assert len(read_report(report)) == len(faults)
    rows = [{**row, "reason": "as an older version worded it"} for row in read_report(report)]
    report.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verify_corpus(tmp_path / "corpus", decode=True) == []


def test_a_pickle_in_a_shard_is_refused_and_never_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "executed"
    payload = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    (tmp_path / "c").mkdir()
    members = [
        (f"{n}.{kind}", data)
        for n, name in enumerate(("pkl", "pyd", "pickle", "pth", "npy", "pyd.gz"))
        for kind, data in (("jpg", jpeg()), ("json", GOOD), (name, payload))
    ]
    write_tar(tmp_path / "c" / "x.tar", members)
    assert cli(["shards", "index", str(tmp_path / "c"), "--workers", "0"]) == 3
    printed = capsys.readouterr().err
    assert "0.pkl" in printed and "6 faults, nothing written" in printed and not marker.exists()
    with pytest.raises(DataError, match="no good sample"):
        index_corpus(tmp_path / "c", "c", skip_faults=True)
    assert not marker.exists()


def damaged(folder: Path) -> None:
    write_corpus(toy.samples("refer", 12, Path(), "val"), folder, "c", samples_per_shard=3)
    (folder / "c-000000.tar").unlink()
    whole = (folder / "c-000001.tar").read_bytes()
    (folder / "c-000001.tar").write_bytes(whole[:-512])
    file = folder / "c-000002.tar"
    file.write_bytes(file.read_bytes().replace(b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", 1))
    shutil.copy(folder / "c-000003.tar", folder / "stranger.tar")


def test_verify_names_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(tmp_path / "c")
    words = ["shards", "verify", str(tmp_path), "--workers", "0", "--report", str(tmp_path / "faults.jsonl")]
    assert cli(words) == 3
    rows = read_report(tmp_path / "faults.jsonl")
    named = {(row["shard"], row["key"]): str(row["reason"]) for row in rows}
    assert named.pop(("c-000000.tar", "")) == "missing"
    assert "the manifest says" in named.pop(("c-000001.tar", ""))
    assert "SHA-256" in named.pop(("c-000002.tar", ""))
    assert "checksum" in named.pop(("c-000002.tar", "val-000006"))
    assert "and not in shards.npy" in named.pop(("stranger.tar", "")) and not named
    assert "5 faults" in capsys.readouterr().out
    assert cli([*words, "--json"]) == 3
    (corpus,) = json.loads(capsys.readouterr().out)
    assert corpus["folder"] == str(tmp_path / "c") and len(corpus["faults"]) == 5


def test_verify_says_when_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(toy.samples("refer", 6, Path(), "val"), tmp_path / "c", "c", samples_per_shard=3)
    assert cli(["shards", "verify", str(tmp_path / "c"), "--decode", "--workers", "0"]) == 0
    assert "intact" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["manifest.json", "index.npy", "shards.npy"])
def test_a_damaged_manifest_table_or_index_is_named(tmp_path: Path, file: str) -> None:
    write_corpus(toy.samples("refer", 6, Path(), "val"), tmp_path, "c", samples_per_shard=3)
    data = bytearray((tmp_path / file).read_bytes())
    data[-3] ^= 1
    (tmp_path / file).write_bytes(bytes(data))
    found = verify_corpus(tmp_path)
    assert found and file in str(found[0])


@pytest.mark.parametrize("name", ["../c.tar", "/etc/passwd", "pipe:touch x", "file:///etc/passwd"])
def test_a_table_that_points_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    write_corpus(toy.samples("refer", 2, Path(), "val"), tmp_path, "c")
    rows = np.load(tmp_path / "shards.npy")
    table = np.array(
        [(*rows[0].item()[:3], name.encode())],
        dtype=[("bytes", "<u8"), ("samples", "<u4"), ("sha256", "V32"), ("file", "S40")],
    )
    np.save(tmp_path / "shards.npy", table)
    document = json.loads((tmp_path / "manifest.json").read_text())
    document["shards_sha256"] = sha256_of(tmp_path / "shards.npy")
    del document["sha256"]
    document["sha256"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="not a path below the corpus folder"):
        CorpusReader(tmp_path)


def test_stats_tell_counts_and_spreads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(toy.samples("refer", 6, Path(), "val"), tmp_path / "c", "c", samples_per_shard=3)
    assert cli(["shards", "stats", str(tmp_path), "--per-shard"]) == 0
    printed = capsys.readouterr().out
    for words in ("6 samples, 6 with an image; 2 shards", "turns: 6 refer", "box, % of the image", "c-000001.tar"):
        assert words in printed
    assert cli(["shards", "stats", str(tmp_path / "c"), "--per-shard", "--json"]) == 0
    (corpus,) = json.loads(capsys.readouterr().out)
    assert (corpus["samples"], corpus["shards"], corpus["turns"], corpus["records_damaged"]) == (6, 2, {"refer": 6}, 0)
    assert corpus["distributions"]["turns per sample"] == [1, 1, 1]
    assert [shard["file"] for shard in corpus["shard_list"]] == ["c-000000.tar", "c-000001.tar"]


def test_the_preview_shows_prompt_boxes_and_faults(world: World, tmp_path: Path) -> None:
    damaged(tmp_path / "c")
    for missing in ("c-000000.tar", "stranger.tar"):
        shutil.copy(tmp_path / "c" / "c-000003.tar", tmp_path / "c" / missing)
    output = tmp_path / "page.html"
    words = ["--tokenizer", str(world.tokenizer_folder), "--output", str(output), "--tokens-per-image", "16"]
    assert cli(["shards", "preview", str(tmp_path / "c"), *words]) == 0
    page = output.read_text()
    assert page.count("<article>") == 12 and page.count("data:image/jpeg;base64") >= 3
    assert '<span class="i">16 image tokens</span>' in page and "<mark>{&lt;" in page
    assert page.index('class="bad"') < page.index("<mark>{&lt;"), "faults come first"
    assert "<script" not in page and "http" not in page.split("<article>", 1)[1]


def test_text_in_a_preview_is_never_markup(world: World, tmp_path: Path) -> None:
    record = Record((Turn("language", "<script>alert(1)</script>", ("<img src=x>",)),), source={"a": "<b>"})
    write_corpus([Sample("k", record)], tmp_path / "c", "c")
    words = ["--tokenizer", str(world.tokenizer_folder), "--output", str(tmp_path / "p.html")]
    assert cli(["shards", "preview", str(tmp_path / "c"), *words]) == 0
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "<b><" not in page and "&lt;b&gt;" in page


def true_boxes() -> list[tuple[float, float, float, float]]:
    """Corners in a 640 x 480 image, spread as in photographs."""
    import random

    rng = random.Random(3)
    boxes = []
    for _ in range(300):
        width, height = rng.uniform(20, 400), rng.uniform(20, 300)
        x, y = rng.uniform(0, 640 - width), rng.uniform(0, 480 - height)
        boxes.append((x, y, x + width, y + height))
    return boxes


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (lambda x1, y1, x2, y2: (x1, y1, x2, y2), None),
        (lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1), "x, y, width, height"),
        (lambda x1, y1, x2, y2: (y1, x1, y2, x2), "y before x"),
        (lambda x1, y1, x2, y2: (x1 / 640, y1 / 480, x2 / 640, y2 / 480), "normalized"),
        (lambda x1, y1, x2, y2: tuple(int(v) for v in (x1 / 6.4, y1 / 4.8, x2 / 6.4, y2 / 4.8)), "0..100 grid"),
    ],
)
def test_boxes_of_another_format_are_flagged(written, words: str | None) -> None:  # type: ignore[no-untyped-def]
    boxes = [Box(*written(*corners)) for corners in true_boxes()]
    valid = [SeenBox(box, 640, 480) for box in boxes if box.problem(640, 480) is None]
    found = find_box_problems(valid)
    assert (found == []) if words is None else (len(found) == 1 and words in found[0]), found


def test_true_boxes_of_the_toy_world_are_not_flagged() -> None:
    boxes = [
        SeenBox(box, 64, 64)
        for sample in toy.samples("refer", 60, Path(), "val")
        for turn in sample.record.turns
        for region in turn.regions
        for box in region.boxes
    ]
    assert find_box_problems(boxes) == []


@pytest.mark.parametrize(
    ("corners", "hint"),
    [
        ((400.0, 300.0, 100.0, 50.0), "it would fit as x, y, width, height"),
        ((10.0, 300.0, 200.0, 600.0), "it would fit as y1, x1, y2, x2"),
        ((0.9, 0.2, 0.5, 0.4), "normalized to 0..1"),
    ],
)
def test_a_box_that_cannot_be_one_says_what_it_may_be(corners: tuple[float, ...], hint: str) -> None:
    record = Record((Turn("refer", regions=(Region((Box(*corners),), ("x",)),)),), 640, 480)
    with pytest.raises(DataError, match=hint):
        validate(from_json(to_json(record), "here"), "here")
