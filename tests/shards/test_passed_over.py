"""Tests that `verify` names what a tar holds and the corpus does not use, as `index` and `build` do."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from minigptv2.cli import main as cli
from tests.shards.test_tars_of_others import HERE, Members, link, sample, write_tar

EXTRAS: Members = [("a.cls", b"7"), ("a.seg.png", b"x"), ("b.txt.gz", b"x"), ("notes", b"x")]
MACOS: Members = [("._a.jpg", b"x"), (".DS_Store", b"x"), ("__MACOSX/a.jpg", b"x")]
BAD: Members = [("z.jpg", b"no image"), ("z.txt", b"a card"), (link("y.jpg", tarfile.SYMTYPE), b""), ("y.txt", b"x")]


def commands(folder: Path, members: Members, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What `index`, `verify` and `verify --fast` print about a corpus of one tar with one good sample."""
    write_tar(folder / "one.tar", [*members, *sample("good")])
    told = []
    for command in (["index", "--skip-faults", *words], ["verify"], ["verify", "--fast"]):
        assert cli(["shards", command[0], str(folder), *command[1:], *HERE]) == 0
        told.append(capsys.readouterr().out)
    return told


@pytest.mark.parametrize(
    "members",
    [
        [*sample("a"), EXTRAS[0]],
        [*sample("a"), EXTRAS[0], EXTRAS[1]],
        [*sample("a"), *sample("b"), *EXTRAS],
        [EXTRAS[3]],
        [(f"{number}.npy", b"x") for number in range(25)],
    ],
    ids=["a class", "a class and a mask", "four kinds", "no extension", "many"],
)
def test_extra_members_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], members: Members) -> None:
    extras = [name for name, _ in members if not str(name).endswith((".jpg", ".txt"))]
    for told in commands(tmp_path, members, capsys, "--ignore-extra"):
        assert f"passed over {len(extras)} member{'s' if len(extras) > 1 else ''} not an image, json or txt (" in told
        assert all(f"one.tar / {name}" in told for name in extras[:20])
        assert ("and 5 more" in told) == (len(extras) == 25)


@pytest.mark.parametrize("members", [MACOS, MACOS[:1], [*sample("a"), MACOS[1]]])
def test_members_of_macos_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], members: Members) -> None:
    names = [name for name, _ in members if (name, b"x") in MACOS]
    for told in commands(tmp_path, members, capsys):
        assert f"passed over {len(names)} members that macOS adds" in told
        assert all(f"one.tar / {name}" in told for name in names)


@pytest.mark.parametrize("members", [BAD[:2], BAD[2:], BAD, [*sample("a"), ("a.cls", b"7")]])
def test_samples_that_were_left_out_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], members: Members
) -> None:
    _, told, fast = commands(tmp_path, members, capsys)
    assert "intact" in told and "intact" in fast
    number = 2 if members is BAD else 1
    if ("a.cls", b"7") in members:
        assert "one.tar / a.cls" in told and "one.tar / a.cls" in fast
        assert "left out when indexed: 1 sample: one.tar / a: has extra members" in told
    else:
        assert f"left out when indexed: {number} sample" in told
        assert ("one.tar / z: " in told) == (BAD[0] in members) and ("one.tar / y: " in told) == (BAD[2] in members)


def facts(key: str, **values: str) -> Members:
    return [(f"{key}.json", json.dumps(values).encode())]


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([*sample("a", "a dog"), *facts("a", caption="a card")], True),
        ([*sample("a", b"a card\xff"), *facts("a", caption="a card")], True),
        ([*sample("a", "a dog"), *facts("a", text="a card"), *sample("b", "x"), *facts("b", caption="x")], True),
        ([*sample("a", " a card\n"), *facts("a", caption="a card")], False),
        ([*sample("a", "a card"), *facts("a", url="http://x")], False),
    ],
    ids=["another text", "a damaged text", "one of two", "the same text", "no caption in the json"],
)
def test_a_text_that_the_json_contradicts_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], members: Members, named: bool
) -> None:
    index, verify, _ = commands(tmp_path / "sbu", members, capsys)
    line = "used the json of 1 sample whose txt says something else: one.tar / a.txt"
    assert (line in index) == (line in verify) == named
    words = ["shards", "build", "sbu", "--root", str(tmp_path), "--output", str(tmp_path / "out"), *HERE]
    assert cli(words) == 0
    assert (line in capsys.readouterr().out) == named


def test_a_corpus_that_uses_everything_has_no_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for told in commands(tmp_path, sample("a"), capsys)[1:]:
        assert told == f"{tmp_path}: intact\n"


def test_names_are_in_the_json_and_cannot_change_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "one.tar", [*sample("a"), ("._\x1b[31mred", b"x")])
    assert cli(["shards", "index", str(tmp_path), *HERE]) == 0
    capsys.readouterr()
    assert cli(["shards", "verify", str(tmp_path), "--json", *HERE]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["faults"] == [] and "\\x1b[31mred" in row["notes"][0] and "\x1b" not in row["notes"][0]
