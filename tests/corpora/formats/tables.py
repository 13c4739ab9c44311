"""Tables that public tools write, with images whose color depends on their number: `datasets`, pandas and pyarrow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from pyarrow import feather
from pyarrow import parquet as pq

from tests.corpora.miniatures.files import jpeg

datasets.disable_progress_bars()
TEXT = Value("string")
BOXES = [[5, 6, 20, 30], [10, 8, 30, 36]]
"""x, y, width and height of a cat and a dog."""


def images(count: int = 3) -> list[dict[str, Any]]:
    """Images as `datasets` stores them."""
    return [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(count)]


def captioned(count: int = 3) -> Dataset:
    rows = {"image": images(count), "text": [f"Card {number}." for number in range(count)]}
    return Dataset.from_dict(rows, features=Features({"image": ImageFeature(), "text": TEXT}))


def questions(count: int = 3) -> Dataset:
    """With the columns of VQAv2 on the hub."""
    answer = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": Value("int64")}
    kinds = {"image": ImageFeature(), "question": TEXT, "answers": [answer], "multiple_choice_answer": TEXT}
    return Dataset.from_dict(
        {
            "image": images(count),
            "question": ["What color?"] * count,
            "answers": [[{"answer": word, "answer_confidence": "yes", "answer_id": 1} for word in ("red", "blue")]] * 3,
            "multiple_choice_answer": ["red"] * count,
            "question_id": [7] * count,
        },
        features=Features({**kinds, "question_id": Value("int64")}),
    )


def detections(count: int = 3) -> Dataset:
    """With the columns of object detection of the documentation of `datasets`."""
    objects = {"id": List(Value("int64")), "bbox": List(List(Value("float32"), length=4))}
    label = List(ClassLabel(names=["dog", "cat", "bird"]))
    row = {"id": [1, 2], "bbox": BOXES, "category": [1, 0]}
    return Dataset.from_dict(
        {"image": images(count), "width": [64] * count, "height": [48] * count, "objects": [row] * count},
        features=Features(
            {
                "image": ImageFeature(),
                "width": Value("int32"),
                "height": Value("int32"),
                "objects": {**objects, "category": label},
            }
        ),
    )


def conversations(count: int = 3) -> Dataset:
    """With the columns of the conversations with images that TRL trains."""
    part = {"type": TEXT, "text": TEXT, "index": Value("int64")}
    asked = [{"type": "text", "text": "Hi?", "index": None}, {"type": "image", "text": None, "index": 0}]
    answered = [{"type": "text", "text": "Ho.", "index": None}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Dataset.from_dict(
        {"messages": [messages] * count, "images": [[one] for one in images(count)]},
        features=Features({"messages": [{"role": TEXT, "content": [part]}], "images": List(ImageFeature())}),
    )


def write_image_folder(folder: Path, suffix: str, split: str = "") -> None:
    """Images with `metadata.jsonl`, `.csv` or `.parquet`, as `datasets` documents it."""
    place = folder / split
    place.mkdir(parents=True)
    rows = [{"file_name": f"{number}.jpg", "text": f"Card {number}."} for number in range(3)]
    for number, row in enumerate(rows):
        (place / row["file_name"]).write_bytes(jpeg(number))
    frame = pd.DataFrame(rows)
    if suffix == "jsonl":
        (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "csv":
        frame.to_csv(place / "metadata.csv", index=False)
    else:
        frame.to_parquet(place / "metadata.parquet")


def write_hub(folder: Path) -> None:
    """As `push_to_hub` names the files."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for number in range(2):
        captioned().shard(2, number).to_parquet(folder / f"data/train-{number:05d}-of-00002.parquet")
    captioned().to_parquet(folder / "data/validation-00000-of-00001.parquet")


def write_paths(folder: Path) -> None:
    """Paths beside the file."""
    for number in range(3):
        (folder.parent / f"{number}.jpg").write_bytes(jpeg(number))
    rows = {"image": [f"{number}.jpg" for number in range(3)], "caption": [f"Card {number}." for number in range(3)]}
    pd.DataFrame(rows).to_parquet(folder)


def plain() -> pa.Table:
    """Images as bytes, without metadata."""
    return pa.table({"image": [jpeg(n) for n in range(3)], "caption": [f"Card {number}." for number in range(3)]})


CAPTIONS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "datasets_parquet": ("my.parquet", lambda path: captioned().to_parquet(path)),
    "datasets_disk": ("my", lambda path: captioned().save_to_disk(path)),
    "datasets_dict": (
        "my",
        lambda path: datasets.DatasetDict({"train": captioned(), "validation": captioned()}).save_to_disk(path),
    ),
    "hub": ("my", write_hub),
    "image_folder_jsonl": ("my", lambda path: write_image_folder(path, "jsonl")),
    "image_folder_csv": ("my", lambda path: write_image_folder(path, "csv", "train")),
    "image_folder_parquet": ("my", lambda path: write_image_folder(path, "parquet")),
    "pandas_paths": ("my.parquet", write_paths),
    "pyarrow_bytes": ("my.parquet", lambda path: pq.write_table(plain(), path)),
    "pyarrow_arrow": ("my.arrow", lambda path: _write_arrow(plain(), path)),
    "feather_lz4": ("my.feather", lambda path: feather.write_feather(plain(), path, compression="lz4")),
}
"""What to build, and how it is written. Each holds the captions `Card 0.` to `Card 2.` with the images 0 to 2."""
TASKS: dict[str, Callable[[], Dataset]] = {"vqa": questions, "detection": detections, "conversation": conversations}


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
