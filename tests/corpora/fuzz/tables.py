"""Tables of captions and boxes with one change each, written by pyarrow in a random form of Parquet or Arrow.

The right captions, images and boxes are drawn before the table, so nothing is read back to know them.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import feather
from pyarrow import parquet as pq

from tests.corpora.fuzz.drawn_table import SUFFIXES, Table, draw_row, draw_table, objects_of, put_objects, text_column
from tests.corpora.fuzz.outcome import Case
from tests.corpora.fuzz.photos import Photo


def nothing(table: Table, rng: random.Random) -> None:
    pass


def reorder_the_columns(table: Table, rng: random.Random) -> None:
    names = rng.sample(sorted(table.columns), len(table.columns))
    table.columns = {name: table.columns[name] for name in names}


def describe_the_rows(table: Table, rng: random.Random) -> None:
    name, value = rng.choice([("source", "x"), ("question_id", 7), ("image_id", 3), ("__index_level_0__", 5)])
    table.columns[name] = [value] * len(table.columns["image"])


def use_a_usual_name(table: Table, rng: random.Random) -> None:
    if table.is_captions:
        name = rng.choice(["text", "captions", "sentences", "answer", "answers"])
        table.columns[name] = table.columns.pop("caption")
    else:
        table.columns["images"] = table.columns.pop("image")
        if "image" in table.types:
            table.types["images"] = table.types.pop("image")


def rename_a_column(table: Table, rng: random.Random) -> None:
    old = rng.choice(["image", "caption" if table.is_captions else "objects"])
    new = rng.choice(["img", "picture", "Image", "label", "boxes_of_image", "file", "x"])
    table.columns = {new if name == old else name: values for name, values in table.columns.items()}
    if old in table.types:
        table.types[new] = table.types.pop(old)
    table.refuse("my.")


def add_an_image_column(table: Table, rng: random.Random) -> None:
    table.columns["thumbnail"] = [(table.folder / "page.jpg").read_bytes()] * len(table.columns["image"])
    table.refuse("column 'thumbnail' holds images")


def add_a_column(table: Table, rng: random.Random) -> None:
    name = rng.choice(["style", "path_of_mask", "caption2", "x.y", ""])
    table.columns[name] = ["x"] * len(table.columns["image"])
    table.refuse(f"unknown column '{name}'")


def repeat_a_column(table: Table, rng: random.Random) -> None:
    table.repeated = rng.choice(sorted(table.columns))
    table.refuse("occurs 2 times")


def drop_a_column(table: Table, rng: random.Random) -> None:
    del table.columns[rng.choice(["image", "caption" if table.is_captions else "objects"])]
    table.refuse("do not say what is trained")


def null_a_cell(table: Table, rng: random.Random) -> None:
    number, name = draw_row(table, rng), rng.choice(["image", "caption" if table.is_captions else "objects"])
    table.types.setdefault(name, _type_of(table.columns[name]))
    table.columns[name][number - 1] = None
    table.lose(number, f"row {number}: column '{name}' is null")


def null_a_column(table: Table, rng: random.Random) -> None:
    name = rng.choice(["image", "caption" if table.is_captions else "objects"])
    table.columns[name] = [None] * len(table.columns["image"])
    table.types.pop(name, None)
    table.lose_all(f"row 1: column '{name}' is null")


def change_the_type(table: Table, rng: random.Random) -> None:
    name = rng.choice(["image", "caption" if table.is_captions else "objects"])
    value = rng.choice([3, 1.5, True, [[["x"]]], {"x": 1}, [], {"y": {"z": [1]}}])
    if name == "objects" and value == []:
        value = 3
    table.columns[name] = [value] * len(table.columns["image"])
    table.types.pop(name, None)
    if name == "objects":
        table.metadata = {}
    table.lose_all("row 1")


def write_a_date(table: Table, rng: random.Random) -> None:
    name = rng.choice(["image", "caption" if table.is_captions else "objects"])
    kind = rng.choice([pa.date32(), pa.timestamp("us"), pa.duration("s"), pa.time32("s")])
    table.raw[name] = pa.array([5] * len(table.columns["image"]), pa.int32() if kind.bit_width == 32 else pa.int64())
    table.raw[name] = table.raw[name].cast(kind)
    table.lose_all("row 1")


def save_as_latin1(table: Table, rng: random.Random) -> None:
    if not table.is_captions:
        return
    number, _ = text_column(table, rng)
    texts = [text.encode() for text in table.columns["caption"]]
    texts[number - 1] = "größer".encode("latin-1")
    table.raw["caption"] = pa.array(texts, pa.binary()).view(pa.string())
    table.lose(number, f"row {number}: column 'caption': not UTF-8")


def spoil_a_text(table: Table, rng: random.Random) -> None:
    if not table.is_captions:
        return
    number, text = text_column(table, rng)
    spoiled = [f"{text}\ufffd", f"{text}\0", "", "  ", f"<image> {text}", f"[refer] {text}"]
    table.columns["caption"][number - 1] = rng.choice(spoiled)
    table.lose(number)


def lose_the_photo(table: Table, rng: random.Random) -> None:
    number = draw_row(table, rng)
    _set_image(table, number, path="photos/none.jpg", data=b"")
    table.lose(number)


def damage_the_photo(table: Table, rng: random.Random) -> None:
    number = draw_row(table, rng)
    name = table.samples[number].photo.name
    path = rng.choice([f"truncated/{name}", "page.jpg", "empty.jpg"])
    _set_image(table, number, path=path, data=(table.folder / path).read_bytes())
    table.lose(number)


def _set_image(table: Table, number: int, *, path: str, data: bytes) -> None:
    """Another image in a row, in the form that the column has."""
    images = table.columns["image"]
    old = images[number - 1]
    inner = old[0] if isinstance(old, list) else old
    new: Any = data
    if isinstance(inner, str):
        new = path if not inner.startswith("data:") else f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    elif isinstance(inner, dict):
        new = {"bytes": None, "path": path} if inner["bytes"] is None else {"bytes": data, "path": None}
    images[number - 1] = [new] if isinstance(old, list) else new


def add_a_second_image(table: Table, rng: random.Random) -> None:
    number = draw_row(table, rng)
    images = [one if isinstance(one, list) else [one] for one in table.columns["image"]]
    images[number - 1] = images[number - 1] * 2
    table.columns["image"] = images
    if "image" in table.types:
        table.types["image"] = pa.list_(table.types["image"])
    table.lose(number)


def spoil_a_box(table: Table, rng: random.Random) -> None:
    if table.is_captions:
        return
    number = draw_row(table, rng)
    objects = [dict(one) for one in objects_of(table, number)]
    box = rng.choice([[1.0, 2.0, 3.0], [], [5.0, 5.0, 0.0, 9.0], [5.0, 5.0, 9.0, -9.0], [1.0, 2.0, 9.0, float("nan")]])
    rng.choice(objects)["bbox"] = box
    put_objects(table, number, objects)
    table.lose(number)


def spoil_a_category(table: Table, rng: random.Random) -> None:
    if table.is_captions:
        return
    number = draw_row(table, rng)
    objects = [dict(one) for one in objects_of(table, number)]
    one = rng.choice(objects)
    one["category"] = rng.choice([99, -1, None]) if isinstance(one["category"], int) else rng.choice(["", None, "a <b"])
    put_objects(table, number, objects)
    table.lose(number)


def lose_the_names(table: Table, rng: random.Random) -> None:
    """Numbers of classes without the features of `datasets`."""
    if table.metadata:
        table.metadata = rng.choice([{}, {"huggingface": "{}"}, {"huggingface": '{"info": {"features": []}}'}])
        table.lose_all("row 1: object 1: category is")


def remove_the_objects(table: Table, rng: random.Random) -> None:
    """An image without boxes is left out, and is no mistake."""
    if table.is_captions:
        return
    number = draw_row(table, rng)
    kind = _type_of(table.columns["objects"])
    table.types["objects"] = kind
    put_objects(table, number, [])
    table.silent.append(f"row {number}")
    del table.samples[number]


def write_corners(table: Table, rng: random.Random) -> None:
    if table.is_captions:
        return
    number = draw_row(table, rng)
    photo = table.samples[number].photo
    if "width" in table.columns:
        table.columns["width"][number - 1], table.columns["height"][number - 1] = photo.width, photo.height
    objects = [dict(one) for one in objects_of(table, number)]
    for one in objects:
        one["bbox"] = [photo.width - 20.0, photo.height - 20.0, photo.width - 3.0, photo.height - 2.0]
    put_objects(table, number, objects)
    table.refuse("leave the image by more than a pixel")


def truncate(table: Table, rng: random.Random) -> None:
    share = rng.random()
    table.data = lambda data: data[: int(share * len(data))]
    table.refuse("my.")


def write_nothing(table: Table, rng: random.Random) -> None:
    data = rng.choice(
        [b"", b"\0" * 100, b"PAR1", b"PAR1PAR1", b"ARROW1\0\0", b"{}", b"image,caption\n", b"FEA1", b"PARE"]
    )
    table.data = lambda _: data
    table.refuse("my.")


def spoil_the_features(table: Table, rng: random.Random) -> None:
    table.metadata["huggingface"] = rng.choice(["{", "[" * 5000, "\0"])
    table.refuse("is not JSON")


CHANGES: tuple[Callable[[Table, random.Random], None], ...] = (
    *(nothing, reorder_the_columns, describe_the_rows, use_a_usual_name, rename_a_column, add_an_image_column),
    *(add_a_column, repeat_a_column, drop_a_column, null_a_cell, null_a_column, change_the_type, write_a_date),
    *(save_as_latin1, spoil_a_text, lose_the_photo, damage_the_photo, add_a_second_image, spoil_a_box),
    *(spoil_a_category, lose_the_names, remove_the_objects, write_corners, truncate, write_nothing),
    *(spoil_the_features,),
)


def _type_of(values: list[Any]) -> pa.DataType:
    return pa.array(values).type


def _written(table: Table, rng: random.Random, suffix: str) -> bytes:
    arrays = {
        name: table.raw[name] if name in table.raw else pa.array(values, table.types.get(name))
        for name, values in table.columns.items()
    }
    names, columns = list(arrays), list(arrays.values())
    if table.repeated:
        names, columns = [*names, table.repeated], [*columns, arrays[table.repeated]]
    made = pa.Table.from_arrays(columns, names=names).replace_schema_metadata(table.metadata or None)
    buffer = io.BytesIO()
    if suffix == "parquet":
        pq.write_table(
            made,
            buffer,
            row_group_size=rng.choice([1, 2, 1000]),
            compression=rng.choice(["none", "snappy", "zstd", "gzip", "lz4", "brotli"]),
            use_dictionary=rng.random() < 0.5,
            data_page_version=rng.choice(["1.0", "2.0"]),
            write_page_checksum=rng.random() < 0.5,
        )
    elif suffix == "feather":
        compression = rng.choice(["lz4", "zstd", "uncompressed"])
        feather.write_feather(made, buffer, compression=compression, chunksize=rng.choice([1, 2, 1000]))
    else:
        with pa.ipc.new_stream(buffer, made.schema) as writer:
            writer.write_table(made, max_chunksize=rng.choice([1, 2, 1000]))
    return buffer.getvalue()


def draw_case(rng: random.Random, folder: Path, photos: list[Photo]) -> tuple[str, Case]:
    """A table with one change, and the name of the change."""
    table, change = draw_table(rng, folder, photos), rng.choice(CHANGES)
    change(table, rng)
    suffix = rng.choice(SUFFIXES)
    data = table.data(_written(table, rng, suffix))
    samples = {str(number): one for number, one in table.samples.items()}
    file = folder / f"my.{suffix}"
    return change.__name__, Case(file, data, samples, table.fault, table.retry, tuple(table.silent))
