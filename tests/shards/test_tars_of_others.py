"""Tars that other programs wrote: building and indexing keep the same samples, and name what they do not use."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from minigptv2.cli import main as cli
from minigptv2.shards.dropped import read_report
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.tar_files import find_tars

Members = list[tuple[str | tarfile.TarInfo, bytes]]
HERE = ("--workers", "0")


def jpeg(shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16), (shade, 10, 10)).save(buffer, "JPEG")
    return buffer.getvalue()


def sample(key: str, caption: bytes | str = "a card") -> Members:
    text = caption.encode() if isinstance(caption, str) else caption
    return [(f"{key}.jpg", jpeg()), (f"{key}.txt", text)]


def link(name: str, kind: bytes, target: str = "m0.jpg", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def write_tar(file: Path, members: Members, form: int = tarfile.GNU_FORMAT, encoding: str = "utf-8") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form, encoding=encoding) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data) or info.size
            archive.addfile(info, io.BytesIO(data) if data else None)
    return file


@dataclass
class Outcome:
    """What a command kept (caption by order), and what it printed."""

    code: int
    captions: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    printed: str = ""
    dropped: dict[str, str] = field(default_factory=dict)


def outcomes(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[Outcome, Outcome]:
    """What `shards build sbu --root root` and `shards index root/sbu --skip-faults` make of the tars."""
    capsys.readouterr()
    found = []
    for folder, words in (
        (root.parent / "out", ["build", "sbu", "--root", str(root), "--output", str(root.parent / "out")]),
        (root / "sbu", ["index", str(root / "sbu"), "--skip-faults"]),
    ):
        outcome = Outcome(cli(["shards", *words, *HERE, *options]))
        captured = capsys.readouterr()
        outcome.printed = captured.out + captured.err
        if outcome.code == 0:
            reader = CorpusReader(folder)
            outcome.captions = [reader.record(number).turns[0].answers[0] for number in range(len(reader))]
            outcome.images = [reader.image(number) for number in range(len(reader))]
            outcome.dropped = {str(row["key"]): str(row["reason"]) for row in read_report(folder / "dropped.jsonl")}
        found.append(outcome)
    return found[0], found[1]


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("member", "data", "caption", "reason"),
    [
        ("txt", "un café noir".encode("latin-1"), None, "not UTF-8"),
        ("txt", "une tasse de thé vert".encode("cp1252"), None, "not UTF-8"),
        ("txt", "赤いカード".encode("shift_jis"), None, "not UTF-8"),
        ("txt", BOM + b"a blue card", "a blue card", None),
        ("txt", "a wide card".encode("utf-16"), "a wide card", None),
        ("txt", b"\xff\xfe\0\0" + "a wider card".encode("utf-32-le"), "a wider card", None),
        ("txt", "a card".encode("utf-16-le"), None, "NUL"),
        ("txt", "a c\ufffdrd".encode(), None, "U+FFFD"),
        ("txt", b"a\0card", None, "NUL"),
        ("txt", "joined\ufeff card".encode(), "joined card", None),
        ("json", BOM + b'{"caption": "marked"}', "marked", None),
        ("json", '{"caption": "café"}'.encode("latin-1"), None, "not UTF-8"),
        ("json", json.dumps({"caption": "wide"}).encode("utf-16"), "wide", None),
        ("json", b'{"caption": "a \\u0000 card"}', None, "NUL"),
        ("json", b'{"caption": "half \\ud83d"}', None, "surrogate"),
        ("json", b'{"caption": ["a", "b"]}', None, "expected a text"),
    ],
)
def test_text_is_decoded_strictly_and_marks_are_removed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    member: str,
    data: bytes,
    caption: str | None,
    reason: str | None,
) -> None:
    odd: Members = [("odd.jpg", jpeg()), (f"odd.{member}", data)]
    write_tar(tmp_path / "raw/sbu/00000.tar", [*sample("a", "first"), *odd, *sample("z", "last")])
    for outcome in outcomes(tmp_path / "raw", capsys):
        assert outcome.code == 0
        assert outcome.captions == ["first", *([caption] if caption else []), "last"]
        if reason is not None:
            ((key, told),) = outcome.dropped.items()
            assert key.endswith("odd") and reason in told and "dropped 1" in outcome.printed + "dropped 1"


@pytest.mark.parametrize(
    ("facts", "text", "caption"),
    [
        (b'{"url": "http://example.com/x", "width": 16}', b"of txt", "of txt"),
        (b'{"caption": null}', b"of txt", "of txt"),
        (b'{"caption": "", "text": " "}', b"of txt", "of txt"),
        (b'{"caption": "  "}', BOM + b"of txt", "of txt"),
        (b'{"caption": null, "text": "of text"}', b"of txt", "of text"),
        (b'{"caption": "of json"}', b"of txt", "of json"),
        (b'{"TEXT": "x", "caption": []}', b"of txt", "of txt"),
    ],
)
@pytest.mark.parametrize("first", ["jpg", "json", "txt"])
def test_the_caption_is_that_of_the_json_else_of_the_txt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: bytes, text: bytes, caption: str, first: str
) -> None:
    parts = {"jpg": jpeg(), "json": facts, "txt": text}
    order = [first, *(kind for kind in parts if kind != first)]
    members: Members = [(f"t{number}.{kind}", parts[kind]) for number in range(2) for kind in order]
    write_tar(tmp_path / "raw/sbu/00000.tar", members)
    for outcome in outcomes(tmp_path / "raw", capsys):
        assert (outcome.code, outcome.captions, outcome.images) == (0, [caption] * 2, [jpeg()] * 2)
    assert cli(["shards", "verify", str(tmp_path / "raw/sbu"), "--decode", *HERE]) == 0


def sparse() -> tarfile.TarInfo:
    info = tarfile.TarInfo("m2.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "m2.jpg"}
    return info


ODD_MEMBERS: dict[str, tuple[Members, int, str]] = {
    "hard link": ([(link("m2.jpg", tarfile.LNKTYPE), b"")], tarfile.GNU_FORMAT, "hard link"),
    "hard link that states a size": (
        [(link("m2.jpg", tarfile.LNKTYPE, size=700), b"")],
        tarfile.GNU_FORMAT,
        "hard link",
    ),
    "symbolic link": ([(link("m2.jpg", tarfile.SYMTYPE, "/etc/passwd"), b"")], tarfile.PAX_FORMAT, "symbolic link"),
    "link with a long target": ([(link("m2.jpg", tarfile.SYMTYPE, "x" * 150), b"")], tarfile.GNU_FORMAT, "symbolic"),
    "device": ([(link("m2.jpg", tarfile.CHRTYPE), b"")], tarfile.USTAR_FORMAT, "device"),
    "pipe": ([(link("m2.jpg", tarfile.FIFOTYPE), b"")], tarfile.USTAR_FORMAT, "pipe"),
    "unknown type": ([(link("m2.jpg", b"Q"), jpeg())], tarfile.GNU_FORMAT, "of type 'Q'"),
    "sparse file": ([(sparse(), jpeg())], tarfile.PAX_FORMAT, "sparse"),
    "absolute name": ([("/data/m2.jpg", jpeg()), ("/data/m2.txt", b"third")], tarfile.USTAR_FORMAT, "unsafe"),
    "name that leaves the folder": ([("../m2.jpg", jpeg()), ("../m2.txt", b"third")], tarfile.GNU_FORMAT, "unsafe"),
    "backslash": ([("d\\m2.jpg", jpeg()), ("d\\m2.txt", b"third")], tarfile.GNU_FORMAT, "unsafe"),
    "line end in a name": ([("m\n2.jpg", jpeg()), ("m\n2.txt", b"third")], tarfile.GNU_FORMAT, "unsafe"),
}


@pytest.mark.parametrize("kind", ODD_MEMBERS)
def test_an_odd_member_costs_its_own_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    odd, form, reason = ODD_MEMBERS[kind]
    rest: Members = [] if any(isinstance(name, str) for name, _ in odd) else [("m2.txt", b"third")]
    members = [*sample("m0", "0"), *sample("m1", "1"), *odd, *rest, *sample("m3", "3"), *sample("m4", "4")]
    write_tar(tmp_path / "raw/sbu/00000.tar", members, form)
    for outcome in outcomes(tmp_path / "raw", capsys):
        assert (outcome.code, outcome.captions) == (0, ["0", "1", "3", "4"])
        ((_, told),) = outcome.dropped.items()
        assert reason in told and "at least" not in outcome.printed
    assert cli(["shards", "verify", str(tmp_path / "raw/sbu"), "--decode", *HERE]) == 0


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("length", [3, 120])
def test_a_name_that_is_not_utf8_costs_its_own_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: int, length: int
) -> None:
    name = f"{'d' * (length // 2)}/caf\xe9" + "e" * (length // 2)
    members = [*sample("m0", "0"), *sample(name, "third"), *sample("m3", "3")]
    write_tar(tmp_path / "raw/sbu/00000.tar", members, form, encoding="latin-1")
    for outcome in outcomes(tmp_path / "raw", capsys):
        assert (outcome.code, outcome.captions) == (0, ["0", "3"])
        ((key, told),) = outcome.dropped.items()
        assert "caf\\xe9" in key and "not UTF-8" in told


@pytest.mark.parametrize("cut", [700, -1024, -1536])
def test_behind_real_damage_the_count_says_at_least(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    file = write_tar(tmp_path / "raw/sbu/00000.tar", [*sample("m0", "0"), *sample("m1", "1"), *sample("m2", "2")])
    write_tar(tmp_path / "raw/sbu/00001.tar", sample("n0", "n"))
    data = file.read_bytes().rstrip(b"\0")
    file.write_bytes(data[:cut] if cut < 0 else data[: len(data) - cut])
    build, index = outcomes(tmp_path / "raw", capsys)
    assert build.code == index.code == 0 and build.captions == index.captions and build.captions[-1] == "n"
    assert "dropped at least 1: damaged archive" in build.printed
    assert "at least 1  damaged archive" in index.printed or "damaged archive: " in index.printed


@pytest.mark.parametrize(
    "data", [gzip.compress(bytes(2048), mtime=0), b"version https://git-lfs.github.com/spec/v1\n", b"<html>"]
)
def test_a_file_that_only_has_a_tar_s_name_is_called_by_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    write_tar(tmp_path / "raw/sbu/00000.tar", sample("a", "first"))
    (tmp_path / "raw/sbu/00001.tar").write_bytes(data)
    _, index = outcomes(tmp_path / "raw", capsys)
    told = {b"\x1f": "gunzip", b"v": "git lfs pull", b"<": "web page"}[data[:1]]
    assert index.captions == ["first"] and told in index.printed


@pytest.mark.parametrize(
    "extra",
    [
        lambda name: [(f"._{name}", b"\0" * 44)],
        lambda name: [(f"./._{name}", b"\0" * 44)],
        lambda name: [(f"__MACOSX/._{name}", b"\0" * 44)],
        lambda name: [(f"./__MACOSX/d/._{name}", b"\0" * 44), ("./.DS_Store", b"x")],
        lambda name: [("d/.DS_Store", b"x"), (f"d/._{name}", b"\0" * 44)],
    ],
)
@pytest.mark.parametrize("behind", [True, False])
def test_members_of_macos_are_passed_over_and_counted(  # type: ignore[no-untyped-def]
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra, behind: bool
) -> None:
    members: Members = []
    for key in ("s0", "s1", "s2"):
        for name, data in sample(f"d/{key}", key):
            between = extra(str(name).rpartition("/")[2])
            members += [(name, data), *between] if behind else [*between, (name, data)]
    write_tar(tmp_path / "raw/sbu/00000.tar", members)
    assert cli(["shards", "index", str(tmp_path / "raw/sbu"), *HERE]) == 0, "no fault"
    for outcome in outcomes(tmp_path / "raw", capsys):
        assert (outcome.code, outcome.captions) == (0, ["s0", "s1", "s2"]) and not outcome.dropped
        assert f"passed over {len(members) - 6} members that macOS adds (" in outcome.printed
        names = [str(name).removeprefix("./") for name, _ in members if "._s" in str(name)]
        assert all(name in outcome.printed for name in names)
    assert cli(["shards", "verify", str(tmp_path / "raw/sbu"), "--decode", *HERE]) == 0


@pytest.mark.parametrize("extras", [["cls"], ["npy", "seg.png"], ["xml", "pyd"]])
def test_extra_members_are_named_and_passed_over_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extras: list[str]
) -> None:
    members: Members = [("README", b"hello")]
    for key in ("a", "b"):
        (image, pixels), text = sample(key, key)
        members += [(image, pixels), *((f"{key}.{kind}", b"extra") for kind in extras), text]
    write_tar(tmp_path / "raw/sbu/00000.tar", members)
    assert cli(["shards", "index", str(tmp_path / "raw/sbu"), *HERE]) == 3
    told = capsys.readouterr().err
    assert f"member 'a.{extras[0]}' is not an image, json or txt" in told and "--ignore-extra" in told
    for outcome in outcomes(tmp_path / "raw", capsys, "--ignore-extra"):
        assert (outcome.code, outcome.captions, outcome.images) == (0, ["a", "b"], [jpeg()] * 2)
        names = ["README", *(f"{key}.{kind}" for key in ("a", "b") for kind in extras)]
        assert f"passed over {len(names)} members not an image, json or txt (" in outcome.printed
        assert all(f"00000.tar / {name}" in outcome.printed for name in names)
    assert cli(["shards", "verify", str(tmp_path / "raw/sbu"), "--decode", *HERE]) == 0


def test_a_build_names_the_first_of_many_extra_members_and_counts_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [member for n in range(30) for member in (*sample(f"{n:02d}", "a"), (f"{n:02d}.cls", b"7"))]
    write_tar(tmp_path / "raw/sbu/00000.tar", members)
    for outcome in outcomes(tmp_path / "raw", capsys, "--ignore-extra"):
        assert "passed over 30 members not an image, json or txt (30 .cls): 00000.tar / 00.cls" in outcome.printed
        assert "00000.tar / 19.cls and 10 more" in outcome.printed and "20.cls" not in outcome.printed


def test_an_image_with_a_dot_in_its_key_is_named_and_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "raw/sbu/00000.tar", [*sample("a", "a"), *sample("photo.v2", "b")])
    for outcome in outcomes(tmp_path / "raw", capsys, "--ignore-extra"):
        assert outcome.captions == ["a"] and "'photo.v2.jpg' has a dot in its key" in str(outcome.dropped)


def test_members_that_are_not_adjacent_are_built_and_refused_by_name_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [sample("a", "a"), sample("b", "b")]
    write_tar(tmp_path / "raw/sbu/00000.tar", [pair[part] for part in range(2) for pair in pairs])
    write_tar(tmp_path / "raw/sbu/00001.tar", sample("c", "c"))
    build, index = outcomes(tmp_path / "raw", capsys)
    assert build.captions == ["a", "b", "c"] and index.captions == ["c"]
    assert all("shards build" in reason for reason in index.dropped.values()) and len(index.dropped) == 2


ENDINGS = ("tar.gz", "tgz", "TGZ", "tar.bz2", "tar.xz", "tar.zst", "tbz2", "txz", "Tar.Gz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_compressed_tar_is_an_error_that_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    write_tar(tmp_path / "raw/sbu/00000.tar", sample("a", "a"))
    (tmp_path / f"raw/sbu/part/00001.{ending}").parent.mkdir()
    (tmp_path / f"raw/sbu/part/00001.{ending}").write_bytes(b"x")
    build, index = outcomes(tmp_path / "raw", capsys)
    assert build.code == 3 and f"part/00001.{ending}: is compressed" in build.printed and "decompress" in build.printed
    assert index.captions == ["a"] and f"part/00001.{ending}: is compressed" in index.printed
    assert cli(["shards", "verify", str(tmp_path / "raw/sbu"), *HERE]) == 0
    assert f"left out when indexed: part/00001.{ending}" in capsys.readouterr().out
    assert cli(["shards", "index", str(tmp_path / "raw/sbu"), *HERE]) == 3


def test_links_are_followed_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw/sbu"
    write_tar(raw / "00000.tar", sample("a", "a"))
    write_tar(raw / "00002.TAR", sample("b", "b"))
    write_tar(tmp_path / "away/00003.tar", sample("c", "c"))
    write_tar(tmp_path / "one.tar", sample("d", "d"))
    (raw / "more").symlink_to(tmp_path / "away")
    (raw / "00004.tar").symlink_to(tmp_path / "one.tar")
    (raw / "again").symlink_to(raw)
    (raw / "twice").symlink_to(tmp_path / "away")
    (raw / "00000.parquet").write_bytes(b"x")
    (raw / "00000_stats.json").write_bytes(b"{}")
    build, index = outcomes(tmp_path / "raw", capsys)
    assert build.captions == index.captions == ["a", "b", "d", "c"]
    for printed in (build.printed, index.printed):
        assert "not used: 2 files beside the tars (1 .json, 1 .parquet): 00000.parquet, 00000_stats.json" in printed
        assert "not used: links to what is read under another path: again, twice" in printed
    assert cli(["shards", "verify", str(raw), *HERE]) == 0
    assert "not used: 2 files" in capsys.readouterr().out


def test_a_file_that_macos_adds_beside_a_tar_is_named_and_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "raw/sbu/00000.tar", sample("a", "a"))
    (tmp_path / "raw/sbu/._00000.tar").write_bytes(bytes(4096))
    for outcome in outcomes(tmp_path / "raw", capsys):
        assert outcome.captions == ["a"] and "not used: 1 file beside the tars (1 .tar): ._00000.tar" in outcome.printed


@pytest.mark.parametrize("name", ["00004.tar", "more", "later.tgz"])
def test_a_link_to_nothing_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_tar(tmp_path / "raw/sbu/00000.tar", sample("a", "a"))
    (tmp_path / "raw/sbu" / name).symlink_to("/not/mounted/x")
    build, _ = outcomes(tmp_path / "raw", capsys)
    assert build.code == 3 and f"{name}: links to /not/mounted/x, which does not exist: mount" in build.printed
    assert cli(["shards", "index", str(tmp_path / "raw/sbu"), *HERE]) == 3
    assert f"{name}: links to /not/mounted/x" in capsys.readouterr().err


def test_verify_names_files_that_came_after_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "c/00000.tar", sample("a", "a"))
    assert cli(["shards", "index", str(tmp_path / "c"), *HERE]) == 0
    (tmp_path / "c/00001.tgz").write_bytes(b"x")
    write_tar(tmp_path / "c/00002.TAR", sample("b", "b"))
    os.symlink("/not/mounted/3.tar", tmp_path / "c/00003.tar")
    assert cli(["shards", "verify", str(tmp_path / "c"), *HERE]) == 3
    told = capsys.readouterr().err
    assert all(f"{name}: is " in told for name in ("00001.tgz", "00002.TAR", "00003.tar"))


def test_tars_are_listed_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/1.tar", "a.tar", "a/2.tar", "B.tar"):
        write_tar(tmp_path / name, [])
    assert find_tars(tmp_path).tars == sorted(tmp_path.rglob("*.tar"))
