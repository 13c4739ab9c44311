"""Reads image folders of Hugging Face `datasets`: images with `metadata.jsonl`, `.csv` or `.parquet` beside them.

Each row names an image relative to the folder of its metadata. A split is a subfolder. Images without a row are named
and counted.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigptv2.corpora.formats.csv_captions import rows_of
from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.formats.json_lines import objects_of
from minigptv2.corpora.formats.stems import files_below, is_image
from minigptv2.corpora.formats.table import Described, described_rows
from minigptv2.corpora.formats.table_columns import Columns, columns_of
from minigptv2.corpora.formats.table_file import open_table
from minigptv2.corpora.formats.table_layout import METADATA, canonical, refuse_split, split_in
from minigptv2.corpora.formats.table_row import Row, row_entry
from minigptv2.corpora.formats.text_files import open_text
from minigptv2.corpora.own_image import IMAGE_KEYS, as_json
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

TITLE = "an image folder with metadata"
_JSONL, _CSV, _PARQUET = ".jsonl", ".csv", ".parquet"
_SIDES = ("width", "height")


def matches(path: Path) -> bool:
    """Whether a path is a folder with metadata of images."""
    return path.is_dir() and any(map(_is_metadata, files_below(path)))


def read(path: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One entry per row of the split that is built, and one per image without a row."""
    number = 0
    wanted = canonical(raw.split)
    for file in _metadata_of(path, raw):
        of_file = "" if file.parent == path else f"{file.parent.relative_to(path)}, "
        in_split = split_in(file.parent.relative_to(path))
        seen: set[str] = set()
        for row, columns, features in _rows(file, raw, of_file, number):
            number += 1
            images = [one for key in IMAGE_KEYS for one in _paths(row.values.get(columns.of_key.get(key, "")))]
            seen |= {os.path.normpath(file.parent / image) for image in images}
            other = "" if in_split else next((split for one in images if (split := split_in(Path(one).parent))), "")
            if other and other != wanted:
                yield OwnEntry(row.name, None, f"of split '{other}', which is not built", mistake=False)
            else:
                yield row_entry(row, columns, features, file, raw)
        for image in files_below(file.parent):
            if is_image(image.name) and os.path.normpath(image) not in seen:
                name = str(image.relative_to(path))
                yield OwnEntry(name, None, f"image without a row in {file.name}", mistake=False)


def _is_metadata(file: Path) -> bool:
    return file.stem.lower() == METADATA and file.suffix.lower() in (_JSONL, _CSV, _PARQUET)


def _metadata_of(path: Path, raw: Raw) -> list[Path]:
    """The metadata of the split that is built. Notes the other splits. Raises `DataError` if two are in one folder."""
    splits: dict[str, list[Path]] = defaultdict(list)
    folders: dict[Path, Path] = {}
    for file in filter(_is_metadata, files_below(path)):
        if file.parent in folders:
            raise DataError(f"{file.parent} has {folders[file.parent].name} and {file.name}: remove one of them")
        folders[file.parent] = file
        splits[split_in(file.parent.relative_to(path))].append(file)
    if "" in splits and len(splits) > 1:
        raise DataError(f"{path}: {splits[''][0].name} stands above the metadata of splits: pass the folder of a split")
    if "" in splits:  # rows may name images in folders of splits
        return splits[""]
    refuse_split(list(splits), path, raw)
    return splits[canonical(raw.split)]


def _rows(file: Path, raw: Raw, of_file: str, done: int) -> Iterator[Described]:
    """The rows of a metadata file, each with what its columns are for."""
    if file.suffix.lower() == _PARQUET:
        yield from described_rows(open_table(file), raw, of_file, done, in_folder=True)
        return
    known: dict[tuple[str, ...], Columns] = {}
    listed = objects_of(file) if file.suffix.lower() == _JSONL else _cells(file)
    for count, (line, values, problem) in enumerate(listed, 1):
        name, columns = f"{of_file}line {line}", Columns({}, "", ())
        if not problem and not isinstance(values, dict):
            problem = f'expected an object: {{"file_name": "a.jpg", ...}}, got {as_json(values)}'
        if not problem:
            keys = tuple(values)
            try:
                columns = known.get(keys) or known.setdefault(keys, columns_of(keys, (), raw, in_folder=True))
            except DataError as error:
                problem = str(error)
        yield Row(name, done + count, values if not problem else {}, problem), columns, {}


def _cells(file: Path) -> Iterator[tuple[int, Any, str]]:
    """The cells of a CSV by column. An empty cell is null, and sides are numbers."""
    with open_text(file) as stream:
        rows = rows_of(stream, ",")
        first, names, problem = next(rows, (1, [], ""))
        if problem or len(set(names)) < len(names) or not all(names):
            raise DataError(
                f"{file}, line {first}: {problem or f'the columns are {as_json(names)}; each needs a name'}"
            )
        for number, row, fault in rows:
            if not fault and len(row) != len(names):
                fault = f"{len(row)} cells for {len(names)} columns; put a text that contains a comma in quotes"
            yield number, {name: _number(name, cell) or None for name, cell in zip(names, row, strict=False)}, fault


def _number(name: str, cell: str) -> Any:
    return int(cell) if name in _SIDES and cell.isdecimal() else cell


def _paths(value: Any) -> list[str]:
    """The paths among the images that a row names."""
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if isinstance(one, str) and "\0" not in one]
