"""Reads Parquet and Arrow files in record batches of bounded size, through pyarrow, which is an extra.

A batch is validated before its values are read, because pyarrow trusts the offsets in a file. A file that cannot be
read is a `DataError` naming the file, and the row after which reading stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigptv2.corpora.formats.arrow_message import unpacked_bytes
from minigptv2.errors import ConfigError, DataError
from minigptv2.shards.image_faults import name_content

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet as pq

PARQUET, ARROW, FEATHER = ".parquet", ".arrow", ".feather"
SUFFIXES = (PARQUET, ARROW, FEATHER)
BATCH_BYTES = 32 << 20
"""Bytes of values that a batch has about."""
MAX_BATCH_BYTES = 1 << 30
"""Limit of a batch in memory. A row group of Parquet may be larger, since it is read in batches."""
MAX_UNPACKED = 200
"""Limit of the bytes of a row group relative to those of the file, above `BATCH_BYTES`."""
_MAX_ROWS = 1024
_END_OF_STREAM = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")
"""Marks with which a complete Arrow stream ends, of the present and of the former format."""
_MAGIC = {b"PAR1": PARQUET, b"ARRO": ARROW}
_SEVERAL = 1 << 20


@dataclass(frozen=True)
class TableFile:
    """A file of a table: its schema, and whether it is Parquet, an Arrow file or an Arrow stream."""

    path: Path
    schema: pa.Schema
    kind: str


def open_table(path: Path) -> TableFile:
    """The file with its schema. Raises `DataError` if it is no complete file of a table."""
    require_pyarrow(path)
    import pyarrow as pa
    from pyarrow import parquet as pq

    with _readable(path, 0):
        kind = _kind_of(path)
        with open(path, "rb") as stream:
            if kind == PARQUET:
                schema = pq.read_schema(stream)
            elif kind == ARROW:
                schema = pa.ipc.open_file(stream).schema
            else:
                schema = pa.ipc.open_stream(stream).schema
        names = schema.names
        for field in schema:
            _names_within(field.type)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: the column '{repeated[0]}' occurs {names.count(repeated[0])} times")
    return TableFile(path, schema, kind)


def _names_within(kind: pa.DataType) -> list[str]:
    """The names of the fields inside a column. Reading them raises if they are not UTF-8."""
    fields = [kind.field(place) for place in range(kind.num_fields)]
    return [name for field in fields for name in (field.name, *_names_within(field.type))]


def require_pyarrow(path: Path) -> None:
    """Raise `ConfigError` if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise ConfigError(f"{path}: reading Parquet and Arrow files needs pip install 'minigptv2[tables]'")


def batches(file: TableFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of the columns in order. Raises `DataError` if the file is damaged or a batch is too large."""
    done = 0
    reader = _parquet(file.path, columns) if file.kind == PARQUET else _arrow(file, columns)
    while True:
        with _readable(file.path, done):
            batch = next(reader, None)
        if batch is None:
            return
        if file.kind == PARQUET and batch.nbytes > MAX_BATCH_BYTES:
            raise DataError(
                f"{file.path}: rows {done + 1} to {done + batch.num_rows} take {_mib(batch.nbytes)} in memory, the "
                f"limit is {_mib(MAX_BATCH_BYTES)}: write the file with smaller batches"
            )
        yield batch
        done += batch.num_rows


def _kind_of(path: Path) -> str:
    """Parquet, an Arrow file, or an Arrow stream as `datasets` writes it, by the first and last bytes of the file."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(4096)
        stream.seek(max(0, size - 8))
        tail = stream.read()
    if head[:4] == b"PARE":
        raise DataError(f"{path}: is encrypted; write it without encryption")
    if head[:4] == b"FEA1":
        raise DataError(f"{path}: is Feather version 1; write it again as version 2 or as Parquet")
    kind = _MAGIC.get(head[:4], "")
    if kind == PARQUET and tail[4:] == b"PARE":
        raise DataError(f"{path}: is encrypted; write it without encryption")
    if kind and size < 12 or kind and not tail.endswith(head[:4] if kind == PARQUET else b"ARROW1"):
        raise DataError(f"{path}: truncated: its end is missing. Copy or download it again")
    if kind:
        return kind
    if path.suffix.lower() == PARQUET or not _begins_a_stream(head):
        what = name_content(head).replace("not a JPEG, PNG or WebP image", "neither of them")
        what = what.replace("not the image", "not the file")
        raise DataError(f"{path}: expected a Parquet or Arrow file, got {what}")
    if not tail.endswith(_END_OF_STREAM):
        raise DataError(f"{path}: truncated: its end is missing. Copy or download it again")
    return "stream"


def _begins_a_stream(head: bytes) -> bool:
    """Whether the length of a schema comes first."""
    start = 4 if head[:4] == b"\xff\xff\xff\xff" else 0
    length = int.from_bytes(head[start : start + 4], "little")
    return len(head) > 8 and 0 < length < _SEVERAL and length % 4 == 0


def _parquet(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of few rows if rows are large. Pages are read one after the other, not whole row groups."""
    from pyarrow import parquet as pq

    with open(path, "rb") as stream:
        file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
        rows = _rows_per_batch(path, file.metadata)
        yield from file.iter_batches(batch_size=rows, columns=columns, use_threads=False)


def _rows_per_batch(path: Path, metadata: pq.FileMetaData) -> int:
    """Rows whose values take about `BATCH_BYTES`, by the sizes in the footer. Raises `DataError` for a bomb.

    A value of a dictionary is stored once and may be in every row, so the size of a row group limits the rows, too.
    The sizes of columns are not looked at: for encrypted or damaged ones pyarrow ends the process instead of raising.
    """
    rows, packed = _MAX_ROWS, path.stat().st_size
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        unpacked = group.total_byte_size
        if unpacked > max(BATCH_BYTES, MAX_UNPACKED * packed):
            raise DataError(
                f"{path}: row group {number + 1} grows to {_mib(unpacked)}, more than {MAX_UNPACKED} times the size of "
                "the file: it is damaged, or made to fill the memory"
            )
        by_size = BATCH_BYTES * max(1, group.num_rows) // max(1, unpacked)
        rows = min(rows, by_size, MAX_BATCH_BYTES // 2 // max(1, unpacked))
    return max(1, rows)


def _arrow(file: TableFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Slices of the batches of the file, which is mapped into memory."""
    import pyarrow as pa

    with pa.memory_map(str(file.path)) as stream:
        for batch in _whole_batches(file, stream):
            chosen = batch.select(columns)
            size = max(1, chosen.get_total_buffer_size())  # does not read offsets, which are not validated yet
            rows = max(1, min(_MAX_ROWS, BATCH_BYTES * batch.num_rows // size))
            for start in range(0, batch.num_rows, rows):
                yield chosen.slice(start, rows)


def _whole_batches(file: TableFile, stream: Any) -> Iterator[pa.RecordBatch]:
    """The batches as they were written. The sizes of compressed ones are checked before they are unpacked."""
    import pyarrow as pa

    _check_messages(file)
    if file.kind == ARROW:
        reader = pa.ipc.open_file(stream)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from pa.ipc.open_stream(stream)


def _check_messages(file: TableFile) -> None:
    """Raise `DataError` if a compressed batch would take more than the limit of memory."""
    with open(file.path, "rb") as stream:
        if file.kind == ARROW:
            stream.seek(8)
        for number, size in enumerate(unpacked_bytes(stream), 1):
            if size > MAX_BATCH_BYTES:
                raise DataError(
                    f"{file.path}: batch {number} takes {_mib(size)} in memory, the limit is {_mib(MAX_BATCH_BYTES)}: "
                    "write the file with smaller batches"
                )


@contextmanager
def _readable(path: Path, done: int) -> Iterator[None]:
    """Turns what pyarrow and the system raise for a file into a `DataError`, with the number of rows read before."""
    import pyarrow as pa

    after = f", after row {done}" if done else ""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}{after}: a batch does not fit into memory: write the file with smaller ones") from error
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        if "decrypt" in str(error).lower():
            raise DataError(f"{path}: has encrypted columns: write it without encryption") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}{after}: cannot be read: {reason.rstrip('.')}. Copy or write it again") from error


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
