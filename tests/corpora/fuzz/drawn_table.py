"""Draws tables of captions or boxes without a mistake, and knows what must come of each row."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from minigptv2.corpora.own import OwnOptions
from tests.corpora.fuzz.frames import draw_frame
from tests.corpora.fuzz.outcome import Expected
from tests.corpora.fuzz.photos import Photo, draw_box

NAMES = ["cat", "tennis racket", "größer Hund", "犬"]
WORDS = ("a", "dog", "größer", "犬", "x,y", 'the "big" one', "two\nlines", "😀", "[0]", "<3")
SUFFIXES = ("parquet", "parquet", "feather", "arrow")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass
class Table:
    """Columns of values, what must come of each row by its number, and how the table is written."""

    columns: dict[str, list[Any]]
    samples: dict[int, Expected]
    folder: Path
    types: dict[str, pa.DataType] = field(default_factory=dict)
    raw: dict[str, pa.Array] = field(default_factory=dict)
    """Columns that are written as they are."""
    metadata: dict[str, str] = field(default_factory=dict)
    repeated: str = ""
    fault: str = ""
    retry: OwnOptions | None = OwnOptions(skip_faults=True)
    silent: list[str] = field(default_factory=list)
    data: Callable[[bytes], bytes] = lambda data: data

    @property
    def is_captions(self) -> bool:
        return "objects" not in self.columns

    def lose(self, number: int, fault: str = "") -> None:
        """Expect an error at a row, and the table without it."""
        self.fault = fault or f"row {number}"
        del self.samples[number]

    def lose_all(self, fault: str) -> None:
        self.fault, self.samples = fault, {}

    def refuse(self, fault: str) -> None:
        self.fault, self.retry = fault, None


def image_value(form: str, photo: Photo, folder: Path) -> Any:
    data = (folder / photo.name).read_bytes()
    return {
        "path": photo.name,
        "bytes": data,
        "struct": {"bytes": data, "path": f"elsewhere/{photo.name}"},
        "struct of path": {"bytes": None, "path": photo.name},
        "list": [{"bytes": data, "path": None}],
        "uri": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
    }[form]


def draw_table(rng: random.Random, folder: Path, photos: list[Photo]) -> Table:
    chosen = rng.sample(photos, rng.randint(1, 5))
    form = rng.choice(["path", "bytes", "struct", "struct", "struct of path", "list", "uri"])
    columns: dict[str, list[Any]] = {"image": [image_value(form, photo, folder) for photo in chosen]}
    table = Table(columns, {}, folder)
    if form.startswith("struct"):
        table.types["image"] = STRUCT
    (fill_captions if rng.random() < 0.5 else fill_boxes)(table, rng, chosen)
    return table


def fill_captions(table: Table, rng: random.Random, chosen: list[Photo]) -> None:
    several = rng.random() < 0.3
    captions = [["A " + " ".join(rng.choices(WORDS, k=3)) for _ in range(1 + several)] for _ in chosen]
    table.columns["caption"] = captions if several else [one for (one,) in captions]
    table.samples = {
        number: Expected(photo, answers=texts)
        for number, (photo, texts) in enumerate(zip(chosen, captions, strict=True), 1)
    }


def fill_boxes(table: Table, rng: random.Random, chosen: list[Photo]) -> None:
    """Objects as a list, or as an object of lists, and classes as names, or as numbers with the features."""
    as_lists, as_numbers = rng.random() < 0.5, rng.random() < 0.5
    sizes: dict[str, list[Any]] = {"width": [], "height": []}
    listed = []
    for number, photo in enumerate(chosen, 1):
        stated, to_file, tolerance = draw_frame(rng, photo)
        expected = table.samples[number] = Expected(photo, tolerance_px=tolerance)
        objects = []
        for _ in range(rng.randint(1, 4)):
            name, box = rng.choice(NAMES), draw_box(rng, photo)
            expected.boxes.setdefault(name, []).append(box)
            x1, y1, x2, y2 = to_file(box)
            bbox = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
            objects.append({"bbox": bbox, "category": NAMES.index(name) if as_numbers else name})
        listed.append(objects)
        for side, values in sizes.items():
            values.append(stated.get(side))
    if as_lists:
        table.columns["objects"] = [{key: [one[key] for one in row] for key in ("bbox", "category")} for row in listed]
    else:
        table.columns["objects"] = listed
    if any(value is not None for value in sizes["width"]):
        table.columns |= sizes
    if as_numbers:
        label: Any = {"names": NAMES, "_type": "ClassLabel"}
        box: Any = {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "List"}
        fields = {"bbox": box, "category": label}
        wrapped = {key: {"feature": one, "_type": "List"} for key, one in fields.items()}
        features = {"objects": wrapped if as_lists else {"feature": fields, "_type": "List"}}
        table.metadata["huggingface"] = json.dumps({"info": {"features": features}})


def objects_of(table: Table, number: int) -> list[dict[str, Any]]:
    """The objects of a row as a list."""
    row = table.columns["objects"][number - 1]
    if isinstance(row, list):
        return row
    return [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)]


def put_objects(table: Table, number: int, objects: list[dict[str, Any]]) -> None:
    row = table.columns["objects"][number - 1]
    table.columns["objects"][number - 1] = (
        objects if isinstance(row, list) else {key: [one[key] for one in objects] for key in row}
    )


def draw_row(table: Table, rng: random.Random) -> int:
    return rng.randint(1, len(table.columns["image"]))


def text_column(table: Table, rng: random.Random) -> tuple[int, str]:
    """A row, and its caption. The captions become one text each."""
    table.columns["caption"] = [one[0] if isinstance(one, list) else one for one in table.columns["caption"]]
    for number, expected in table.samples.items():
        expected.answers = [table.columns["caption"][number - 1]]
    number = draw_row(table, rng)
    return number, table.columns["caption"][number - 1]
