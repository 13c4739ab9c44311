"""Entries of a user's own data of every task, and how the tests build a corpus of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigptv2.cli import main as cli
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader

HERE = ("--workers", "0")
REFER = {"image": "a.jpg", "task": "refer", "phrase": "x"}
GOOD: list[dict[str, Any]] = [
    {"image": "a.jpg", "task": "caption", "answer": "A größer dog."},
    {"image": "a.jpg", "task": "vqa", "question": "What?", "answer": ["dog", "dog", "hound"]},
    {"image": "a.jpg", "task": "refer", "phrase": "the dog", "boxes": [10, 12, 32, 24]},
    {"image": "a.jpg", "task": "refer", "question": "dog", "boxes": [[0.25, 0.25, 0.5, 0.5]], "boxes_in": "normalised"},
    {"image": "a.jpg", "task": "identify", "boxes": [[10, 12, 22, 12]], "boxes_in": "xywh", "answer": "the dog"},
    {"image": "a.jpg", "task": "detection", "phrase": "dog", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]},
    {
        "image": "a.jpg",
        "task": "grounding",
        "answer": "A dog by a dog.",
        "objects": [{"phrase": "dog", "boxes": [[1, 2, 3, 4]]}, {"phrase": "dog", "boxes": [[5, 6, 64.5, 8]]}],
    },
    {
        "image": "a.jpg",
        "id": "x",
        "conversations": [{"from": "human", "value": "<image>\nHi?"}, {"from": "gpt", "value": "Ho."}],
    },
    {"task": "language", "question": "Say A.", "answer": "A"},
]


def built(folder: Path, file: str) -> list[Record]:
    assert cli(["shards", "build", str(folder / file), "--output", str(folder / "out"), *HERE]) == 0
    reader = CorpusReader(folder / "out")
    return [reader.record(number) for number in range(len(reader))]
