"""Tests image folders with `metadata.jsonl`, `.csv` or `.parquet`, as `datasets` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minigptv2.shards.reader import CorpusReader
from tests.corpora.formats.datasets import boxes, build, captions, write
from tests.corpora.formats.tables import write_image_folder
from tests.corpora.miniatures.files import lines

ROW = {"file_name": "a.jpg", "text": "A dog."}


def test_a_split_is_a_subfolder_and_the_others_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        write_image_folder(tmp_path / "my", "jsonl", split)
    assert build(tmp_path / "my", "--split", "test") == 0
    assert "split 'train' is not read: --split train builds it" in capsys.readouterr().out
    assert len(CorpusReader(tmp_path / "out")) == 3


def test_rows_of_another_split_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"file_name": f"{split}/a.jpg", "text": split} for split in ("train", "test")]
    write(tmp_path / "my", {"metadata.jsonl": lines(rows), "train/a.jpg": 1, "test/a.jpg": 2})
    assert build(tmp_path / "my") == 0
    assert "dropped 1: of split 'test', which is not built" in capsys.readouterr().out
    assert captions(tmp_path / "out") == {"1": ("train",)}


def test_an_image_without_a_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "my", {"metadata.jsonl": lines([ROW]), "a.jpg": 1, "sub/b.PNG": 2})
    assert build(tmp_path / "my") == 0
    assert "dropped 1: image without a row in metadata.jsonl" in capsys.readouterr().out
    assert "sub/b.PNG" in (tmp_path / "out/dropped.jsonl").read_text()


def test_objects_of_metadata_are_boxes(tmp_path: Path) -> None:
    row = {"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["cat"]}}
    write(tmp_path / "my", {"metadata.jsonl": lines([row]), "a.jpg": 1})
    assert build(tmp_path / "my") == 0
    ((phrase, box),) = boxes(tmp_path / "out")["1"]
    assert phrase == "cat" and (box.x1, box.y1, box.x2, box.y2) == (1, 2, 4, 6)


@pytest.mark.parametrize("name", ["file_name", "image_file_name", "photo_file_name"])
def test_a_column_of_file_names_is_the_image(tmp_path: Path, name: str) -> None:
    write(tmp_path / "my", {"metadata.csv": f"{name},text\na.jpg,A dog.\n", "a.jpg": 1})
    assert build(tmp_path / "my") == 0
    assert captions(tmp_path / "out") == {"1": ("A dog.",)}


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"metadata.jsonl": lines([{"name": "a.jpg", "text": "x"}])}, "line 1: no column file_name names the images"),
        ({"metadata.jsonl": lines([{**ROW, "mask_file_name": "b.jpg"}])}, "unknown column 'mask_file_name'"),
        ({"metadata.jsonl": lines([{**ROW, "style": "x"}])}, "line 1: unknown column 'style'"),
        ({"metadata.jsonl": lines([{**ROW, "file_name": "gone.jpg"}])}, "line 1: image file missing"),
        ({"metadata.jsonl": lines([{**ROW, "text": None}])}, "line 1: column 'text' is null"),
        ({"metadata.jsonl": lines([ROW]) + "{"}, "line 2: not JSON"),
        ({"metadata.jsonl": "[1]\n"}, "line 1: expected an object"),
        ({"metadata.jsonl": lines([ROW]), "metadata.csv": "file_name,text\n"}, "has metadata.csv and metadata.jsonl"),
        ({"metadata.csv": "file_name,text\na.jpg\n"}, "line 2: 1 cells for 2 columns"),
        ({"metadata.csv": "file_name,file_name\na.jpg,x\n"}, "each needs a name"),
        ({"metadata.csv": "file_name,text\na.jpg,\n"}, "line 2: column 'text' is null"),
        ({"metadata.jsonl": lines([ROW]), "train/metadata.jsonl": lines([ROW])}, "stands above the metadata of splits"),
        ({"metadata.parquet": b"PAR1"}, "truncated"),
    ],
)  # fmt: skip
def test_a_mistake_in_metadata_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, Any], advice: str
) -> None:
    assert build(write(tmp_path / "my", {"a.jpg": 1, **files})) == 3
    assert advice in capsys.readouterr().err
