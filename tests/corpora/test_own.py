"""Tests that a user's own data is read in each format, and how it is checked and built."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.cli import main as cli
from minigptv2.corpora import draft as draft_module
from minigptv2.corpora import own
from minigptv2.corpora.draft import Draft, Examined, examine, finish
from minigptv2.corpora.own import own_corpus
from minigptv2.errors import DataError
from minigptv2.record import Region, Turn
from minigptv2.shards.reader import CorpusReader
from tests.corpora.miniatures.files import HEIGHT, WIDTH, jpeg, lines, put
from tests.corpora.own_data import GOOD, HERE, built


def test_json_lines_of_every_task(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / "my.jsonl", lines(GOOD))
    records = built(tmp_path, "my.jsonl")
    assert [record.tasks[0] for record in records] == [entry.get("task", "conversation") for entry in GOOD]
    assert records[1].turns[0].answers == ("dog", "dog", "hound")
    assert records[2].turns[0].regions[0].boxes == (Box(10, 12, 32, 24),)
    assert records[3].turns[0].regions[0].boxes == (Box(WIDTH / 4, HEIGHT / 4, WIDTH / 2, HEIGHT / 2),)
    assert records[4].turns[0].regions[0].boxes == (Box(10, 12, 32, 24),)
    assert [region.span for region in records[6].turns[0].regions] == [(2, 5), (11, 14)]
    assert records[6].turns[0].regions[1].boxes == (Box(5, 6, 64, 8),), "cut at the border"
    assert records[7].turns == (Turn("conversation", "Hi?", ("Ho.",)),) and not records[8].has_image


def test_a_csv_of_captions(tmp_path: Path) -> None:
    put(tmp_path / "pictures/a.jpg", jpeg())
    put(tmp_path / "my.csv", '\ufeffimage,caption\npictures/a.jpg,"One, two – drei"\npictures/a.jpg,Three\n')
    assert [r.turns[0].answers for r in built(tmp_path, "my.csv")] == [("One, two – drei",), ("Three",)]


UNREAD = "save the file as UTF-8 (Excel: 'CSV UTF-8')"
CAFE = {
    "my.csv": "image,caption\na.jpg,x\na.jpg,café\n",
    "my.tsv": "image\tcaption\na.jpg\tx\na.jpg\tcafé\n",
    "my.jsonl": lines([{**GOOD[0], "answer": answer} for answer in ("x", "y", "café")]),
    "my.json": '[{"image": "a.jpg",\n\n"task": "caption", "answer": "café"}]',
}


@pytest.mark.parametrize("name", CAFE)
def test_text_that_is_not_utf8_is_a_mistake_of_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / name, CAFE[name].encode("cp1252"))
    words = ["shards", "build", str(tmp_path / name), "--output", str(tmp_path / "out"), *HERE]
    assert cli(words) == 3
    told = capsys.readouterr().err
    assert "line 3" in told and "not UTF-8" in told and UNREAD in told and "line 2" not in told
    assert cli([*words, "--skip-faults"]) == (3 if name == "my.json" else 0), "of one document no line is left out"
    for encoding in ("utf-8", "utf-8-sig"):
        put(tmp_path / name, CAFE[name].encode(encoding))
        assert built(tmp_path, name)[-1].turns[0].answers == ("café",)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", CAFE)
def test_utf16_is_named_where_it_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, encoding: str
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / name, CAFE[name].encode(encoding))
    if name == "my.json":  # RFC 4627 says how to tell
        assert built(tmp_path, name)[-1].turns[0].answers == ("café",)
        return
    assert cli(["shards", "build", str(tmp_path / name), "--output", str(tmp_path / "out"), *HERE]) == 3
    told = capsys.readouterr().err
    assert f"is UTF-16 (Excel's 'Unicode text') or not a text file: {UNREAD}" in told


def test_a_row_of_a_csv_is_called_by_the_line_on_which_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    rows = (
        b',image,caption,\r\n0,a.jpg,"One\r\ntwo ""three""",\r\n\r\n1,gone.jpg,x\r\n2,a.jpg,"x\r\ncaf\xe9"\r\n'
        b'3,a.jpg,y,,\r\n4,a.jpg,"z" z\r\n5,a.jpg,' + b"z" * 140_000 + b'\r\n6,a.jpg,"no\r\nend\r\n'
    )
    put(tmp_path / "my.csv", rows)
    words = ["shards", "build", str(tmp_path / "my.csv"), "--output", str(tmp_path / "out"), *HERE]
    assert cli(words) == 3
    told = capsys.readouterr().err
    assert "6 of 7 entries" in told
    for mistake in (
        "line 5: image file missing",
        "line 6: not UTF-8 after '2,a.jpg,x caf': save",
        "line 8: not two columns",
        "line 9: not CSV: ',' expected after '\"'",
        "line 10: not CSV: field larger than",
        "line 11: not CSV (up to line 12): unexpected end",
    ):
        assert f"  {mistake}" in told
    assert cli([*words, "--skip-faults"]) == 0
    (record,) = [CorpusReader(tmp_path / "out").record(0)]
    assert record.turns[0].answers == ('One\r\ntwo "three"',)


def test_own_data_is_built_by_as_many_processes_as_there_are_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "my.jsonl", lines(GOOD[-1:]))
    asked: list[int] = []

    def build(*_: Any, workers: int, **__: Any) -> None:
        asked.append(workers)
        raise DataError("far enough")

    monkeypatch.setattr("minigptv2.corpora.build_corpus.build", build)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert cli(["shards", "build", str(tmp_path / "my.jsonl"), "--output", str(tmp_path / "out")]) == 3
    assert asked == [3]


def test_only_the_first_mistakes_are_shown(tmp_path: Path) -> None:
    put(tmp_path / "my.jsonl", "{\n" * (own.MAX_SHOWN + 5))
    corpus = own_corpus(tmp_path / "my.jsonl")
    with pytest.raises(DataError, match="35 of 35 entries(.|\n)*line 30: (.|\n)*and 5 more"):
        list(corpus.drafts(corpus.raw(tmp_path), "train"))


def test_pictures_are_opened_by_several_and_mistakes_told_in_the_order_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    rows = [{**GOOD[0], "image": "a.jpg" if number % 100 else "gone.jpg"} for number in range(40 * own.CHUNK)]
    put(tmp_path / "my.jsonl", lines(rows))
    together, real = threading.Barrier(own.THREADS), own.examine

    def wait_then_examine(draft: Draft, **options: Any) -> Examined:
        if (
            int(draft.key) <= own.CHUNK * own.THREADS and int(draft.key) % own.CHUNK == 1
        ):  # the first of the first chunks
            together.wait(timeout=60)
        return real(draft, **options)

    monkeypatch.setattr(own, "examine", wait_then_examine)
    monkeypatch.setattr(own, "DECODE_S", 0)
    corpus = own_corpus(tmp_path / "my.jsonl")
    with pytest.raises(DataError, match="26 of 2560 entries") as told:
        list(corpus.drafts(corpus.raw(tmp_path), "train"))
    assert [int(number) for number in re.findall("line ([0-9]+):", str(told.value))] == list(range(1, 2560, 100))


def pictures() -> dict[str, bytes]:
    """Of each format, one with its size behind the head, one cut off, one of no format, one of too many pixels."""
    late = jpeg()[:2] + b"".join(b"\xff\xe1\xff\xff" + bytes(65533) for _ in range(3)) + jpeg()[2:]
    huge = jpeg(format="PNG")
    huge = huge[:16] + (1 << 20).to_bytes(4, "big") * 2 + huge[24:]
    formats = {name: jpeg(format=name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
    return {
        **formats,
        "late": late,
        "large": jpeg() + bytes(1 << 18),
        "cut": jpeg()[:100],
        "no": b"x" * 200,
        "huge": huge,
    }


@pytest.mark.parametrize("name", pictures())
def test_a_check_tells_what_a_build_would_and_reads_no_more_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    put(tmp_path / "a", pictures()[name])
    counts: list[int] = []
    real = draft_module._load

    def load(paths: tuple[str, ...], count: int = -1) -> tuple[bytes, str, str]:
        counts.append(count)
        return real(paths, count)

    monkeypatch.setattr(draft_module, "_load", load)
    for right in (20, 900):
        turn = Turn("refer", regions=(Region((Box(1, 1, right, 20), Box(right, 1, right + 9, 20)), ("x",)),))
        draft = Draft("1", (turn,), (str(tmp_path / "a"),))
        rejected = [one for one in examine(draft).rejected if "the limit is" not in one.reason]  # the writer's rule
        assert rejected == finish(draft)[1]
    by_head = name in ("JPEG", "PNG", "WEBP", "large", "huge")
    told_by_head = [draft_module.HEAD_BYTES] if by_head else [draft_module.HEAD_BYTES, -1]
    assert counts == [*told_by_head, -1] * 2
