"""Reads tables: Parquet and Arrow files, folders of parts, and the folders of Hugging Face `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.formats.table_columns import Columns, columns_of
from minigptv2.corpora.formats.table_feature import Feature, features_of, is_image
from minigptv2.corpora.formats.table_file import TableFile, batches, open_table
from minigptv2.corpora.formats.table_layout import files_of, has_tables
from minigptv2.corpora.formats.table_row import Row, row_entry
from minigptv2.corpora.own_image import cut
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

TITLE = "a Parquet or Arrow table"
_NOT_UTF8, _DAMAGED = "not UTF-8: write the text as UTF-8", "its value is damaged"


def matches(path: Path) -> bool:
    """Whether a path is a table, or a folder with tables."""
    return has_tables(path)


def read(path: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One entry per row of the split that is built."""
    files = files_of(path, raw)
    first: TableFile | None = None
    number = 0
    for place in files:
        file = open_table(place)
        first = first or file
        if file.schema.names != first.schema.names:
            missing = sorted(set(first.schema.names) ^ set(file.schema.names))
            raise DataError(f"{place}: its columns differ from those of {first.path.name}: {', '.join(missing[:8])}")
        of_file = f"{place.name}, " if len(files) > 1 else ""
        for row, columns, features in described_rows(file, raw, of_file, number):
            number += 1
            yield row_entry(row, columns, features, place, raw)


Described = tuple[Row, Columns, dict[str, Feature]]


def described_rows(
    file: TableFile, raw: Raw, of_file: str = "", done: int = 0, *, in_folder: bool = False
) -> Iterator[Described]:
    """Each row of a file, and what its columns are for. `done` rows came before. `in_folder`: as in `columns_of`."""
    try:
        features = features_of(file.schema)
        columns = columns_of(file.schema.names, _image_columns(file.schema, features), raw, in_folder=in_folder)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error
    for number, (values, problem) in enumerate(_values_of(file, columns), 1):
        yield Row(f"{of_file}row {number}", done + number, values, problem), columns, features


def _image_columns(schema: pa.Schema, features: dict[str, Any]) -> set[str]:
    """The columns whose type is that of images: bytes, an object of bytes and path, or a list of them."""
    return {field.name for field in schema if is_image(features.get(field.name)) or _holds_bytes(field.type)}


def _holds_bytes(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def _values_of(file: TableFile, columns: Columns) -> Iterator[tuple[dict[str, Any], str]]:
    """The values of each row by column, and what is wrong with them, if anything."""
    names = columns.used
    for batch in batches(file, names):
        damaged = [name for name in names if not _is_valid(batch.column(name))]
        for place in range(batch.num_rows):
            values: dict[str, Any] = {}
            problem = ""
            for name in names:
                cell = batch.column(name)
                if name in damaged and not _is_valid(cell.slice(place, 1)):
                    problem = problem or f"column '{cut(name)}': {_cause(cell.slice(place, 1))}"
                else:
                    values[name], fault = _cell(cell, place)
                    problem = problem or fault and f"column '{cut(name)}': {fault}"
            yield values, problem


def _is_valid(column: pa.Array) -> bool:
    """Whether offsets lie inside their values, and texts are UTF-8."""
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _cause(cell: pa.Array) -> str:
    import pyarrow as pa

    try:
        cell.validate(full=True)
    except pa.ArrowInvalid as error:
        return _NOT_UTF8 if "utf8" in str(error).lower() else _DAMAGED
    return _DAMAGED


def _cell(column: pa.Array, place: int) -> tuple[Any, str]:
    """A value, or why it cannot be read."""
    import pyarrow as pa

    try:
        return column[place].as_py(), ""
    except UnicodeDecodeError:
        return None, _NOT_UTF8
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return None, f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
