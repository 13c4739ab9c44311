"""Reads and writes the files beside a corpus's tars: a small manifest, a shard table and an index of samples.

`manifest.json` describes the corpus and holds the hashes of the others. `shards.npy` holds file name, bytes, samples
and SHA-256 of every shard, and `index.npy` 16 bytes per sample. A corpus of separate turns also has `turns.npy`
(`turn_counts`). All are memory-mapped, so opening a corpus reads little, however large it is. Content is checked where
it is used (each sample has checksums) and by `minigptv2 shards verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from minigptv2.errors import DataError
from minigptv2.files import sync_folder, write_atomically
from minigptv2.foreign_files import parse_json, read_regular
from minigptv2.redacted_files import json_text
from minigptv2.secrets import redact_all
from minigptv2.shards.arrays import ArrayWriter, map_array, save_array
from minigptv2.shards.image_header import MAX_PIXELS
from minigptv2.shards.turn_counts import TURNS_DTYPE, TURNS_FILE

MANIFEST_FILE, TABLE_FILE, INDEX_FILE = "manifest.json", "shards.npy", "index.npy"
FORMAT = 2
RECORDS, CAPTIONS = "records", "captions"
LAYOUTS = (RECORDS, CAPTIONS)
"""`records`: each sample has a json with one of our records. `captions`: an image, and a json or txt with its caption.
"""

INDEX_DTYPE = np.dtype(
    [
        ("block", "<u4"),
        ("text_block", "<u2"),
        ("text_blocks", "<u2"),
        ("text_crc", "<u4"),
        ("rest_crc", "<u4"),
    ]
)
"""Per sample, in tar blocks of 512 bytes: its start in the shard, then, relative to that, the start and the length of
its text (record or caption) with header. Then the CRC-32 of the text, and of the sample's other members (0: none)."""
MAX_MEMBER_BYTES = 65535 * 512
"""32 MiB: the largest image or record that an index entry can describe."""
MAX_MANIFEST_BYTES = 4 << 20
"""Largest manifest. Its size does not depend on that of the corpus."""
_SHARDS_CHECKED = 64
"""Number of shards, evenly spread, that are checked for existence when a corpus is opened."""
_NOT_WRITTEN = ("shards", "fingerprint")
_ONLY_FOR_READERS_OF_JSON = ("num_shards", "bytes")

TABLE_FIELDS = ("bytes", "samples", "sha256", "file")
_TABLE_KINDS = {"bytes": "<u8", "samples": "<u4", "sha256": r"\|V32", "file": r"\|S\d{1,4}", "turns": "<u4"}
TURNS_FIELD = "turns"
"""Column of the table with the number of separate turns of each shard, if some record has several."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard of the table."""

    file: str
    bytes: int
    sha256: str
    samples: int


class ShardTable(Sequence[ShardInfo]):
    """The shards of a corpus in order, read from a memory-mapped table on access."""

    def __init__(self, rows: np.ndarray) -> None:
        if rows.dtype.names not in (TABLE_FIELDS, (*TABLE_FIELDS, TURNS_FIELD)):
            raise ValueError(f"{TABLE_FILE} has fields {rows.dtype.names}, expected {TABLE_FIELDS} or + {TURNS_FIELD}")
        kinds = {name: rows.dtype[name].str for name in rows.dtype.names}
        if any(not re.fullmatch(_TABLE_KINDS[name], kind) for name, kind in kinds.items()):
            raise ValueError(f"{TABLE_FILE} has columns of other types: {kinds}")
        self._rows = rows
        self.starts: np.ndarray = self._starts("samples")
        """int64 [shards + 1]: number of each shard's first sample, then the total."""
        self.turn_starts: np.ndarray | None = self._starts(TURNS_FIELD) if TURNS_FIELD in rows.dtype.names else None
        """int64 [shards + 1]: number of each shard's first separate turn, then the total. None: not in the table."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, shard: int) -> ShardInfo:  # type: ignore[override]  # slices are not supported
        size, samples, sha256, name, *_ = self._rows[shard].item()
        file = name.decode("utf-8", "backslashreplace")
        if not file.isprintable() or "\\" in file or file.startswith("/") or ".." in file.split("/") or ":" in file:
            raise DataError(f"{TABLE_FILE}: shard {file!r} is not a path below the corpus folder")
        return ShardInfo(file, size, sha256.hex(), samples)

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[shard] for shard in range(len(self)))

    @property
    def bytes(self) -> int:
        """Total size of all shards."""
        return int(self._rows["bytes"].sum())

    def _starts(self, field: str) -> np.ndarray:
        starts = np.zeros(len(self._rows) + 1, dtype=np.int64)
        starts[1:] = self._rows[field]  # copied from the mapped rows once, then summed in place
        return np.cumsum(starts, out=starts)


@dataclass(frozen=True)
class Manifest:
    """Describes a corpus folder. `turns` counts turns by task."""

    corpus: str
    samples: int
    images: int
    turns: dict[str, int]
    index_sha256: str
    shards_sha256: str
    shards: ShardTable = field(compare=False)
    layout: str = RECORDS
    baked_side: int | None = None
    """Side of the square that images were squashed to when they were stored. None: they are stored unchanged."""
    dropped: int = 0
    """Samples of the source that are not in the shards. `dropped.jsonl` lists them."""
    max_pixels: int = MAX_PIXELS
    """Largest image that the build accepted, and that readers decode."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of boxes, and of boxes and images that the build corrected, by what was corrected. Empty: none."""
    license: str = ""
    split: str = ""
    """Split of the original corpus. Empty if it has none, if tars were indexed, or in corpora of old versions."""
    turn_counts_sha256: str | None = None
    """SHA-256 of `turns.npy`. Empty: no record has several separate turns. None: not known, because version 0.1 did not
    count them."""
    format: int = FORMAT
    fingerprint: str = field(default="", compare=False)
    """SHA-256 of the manifest file. Through the hashes of table and shards it covers every byte of the corpus."""

    @property
    def title(self) -> str:
        """Corpus and split, for messages."""
        return f"{self.corpus} {self.split}".strip()


class IndexWriter:
    """Writes the index and the turn counts of a corpus to disk as its shards are finished.

    A context manager: removes files that were not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.turn_totals: list[int] = []
        """Number of separate turns of each shard."""
        self._index = ArrayWriter(folder / INDEX_FILE, INDEX_DTYPE)
        self._turns = ArrayWriter(folder / TURNS_FILE, TURNS_DTYPE)
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._index.abandon()
        self._turns.abandon()

    @property
    def samples(self) -> int:
        """Number of samples so far."""
        return self._index.rows

    @property
    def has_turns(self) -> bool:
        """Whether some record so far has several separate turns."""
        return sum(self.turn_totals) != self.samples

    @property
    def temporaries(self) -> set[Path]:
        """The files that are being written."""
        return {self._index.temporary, self._turns.temporary}

    def append(self, rows: np.ndarray, turn_counts: np.ndarray) -> None:
        """Append the rows (`INDEX_DTYPE`) of the next shard, and the number of turns of each of its samples."""
        if len(rows) != len(turn_counts):
            raise ValueError(f"{len(rows)} rows and {len(turn_counts)} turn counts")
        self._index.append(rows)
        self._turns.append(np.cumsum(turn_counts, dtype=TURNS_DTYPE))
        self.turn_totals.append(int(np.sum(turn_counts, dtype=np.int64)))

    def finish(self) -> tuple[str, str]:
        """Give the files their final names. Returns the SHA-256 of the index, and of the turn counts or an empty text.

        The turn counts are not kept if every sample has one turn.
        """
        if self.has_turns:
            return self._index.finish(), self._turns.finish()
        self._turns.abandon()
        (self._folder / TURNS_FILE).unlink(missing_ok=True)
        return self._index.finish(), ""


def save_manifest(folder: Path, shards: Iterable[ShardInfo], index: IndexWriter, **facts: object) -> Manifest:
    """Write index, table and manifest, the manifest last. `facts` are the other fields of `Manifest`.

    Returns the manifest, loaded again from the disk.
    """
    shards = list(shards)
    table = _table_of(shards, index.turn_totals if index.has_turns else None)
    index_sha256, turn_counts_sha256 = index.finish()
    manifest = Manifest(
        shards=ShardTable(table),
        index_sha256=index_sha256,
        turn_counts_sha256=turn_counts_sha256,
        shards_sha256=save_array(folder / TABLE_FILE, table),
        samples=index.samples,
        **facts,  # type: ignore[arg-type]
    )
    document = {key: getattr(manifest, key) for key in Manifest.__dataclass_fields__ if key not in _NOT_WRITTEN}
    for key in ("max_pixels", "counts"):  # written only where they say something
        if getattr(manifest, key) in (MAX_PIXELS, {}):
            del document[key]
    document |= {"num_shards": len(shards), "bytes": manifest.shards.bytes}
    document = redact_all(document)
    document["sha256"] = _own_hash(document)
    write_atomically(folder / MANIFEST_FILE, json_text(document).encode())
    sync_folder(folder)
    return load_manifest(folder)


def _table_of(shards: list[ShardInfo], turn_totals: list[int] | None) -> np.ndarray:
    """The shard table, with a column of turns if their number is given."""
    width = max((len(shard.file.encode()) for shard in shards), default=1)
    fields = [("bytes", "<u8"), ("samples", "<u4"), ("sha256", "V32"), ("file", f"S{width}")]
    table = np.zeros(len(shards), dtype=fields if turn_totals is None else [*fields, (TURNS_FIELD, "<u4")])
    table["bytes"] = [shard.bytes for shard in shards]
    table["samples"] = [shard.samples for shard in shards]
    table["sha256"] = np.frombuffer(b"".join(bytes.fromhex(shard.sha256) for shard in shards), dtype="V32")
    table["file"] = [shard.file.encode() for shard in shards]
    if turn_totals is not None:
        table[TURNS_FIELD] = turn_totals
    return table


def _own_hash(document: dict[str, object]) -> str:
    """Hash of everything in the manifest except this hash, so that any change is detected."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def load_manifest(folder: Path, *, check_shards: bool = True) -> Manifest:
    """The manifest of a corpus folder, after checks that take the same time for any corpus size.

    `check_shards=False` does not check that shards exist, for shards stored elsewhere.
    Raises `DataError` naming what is missing and how to create it: a file, a shard (up to 64 are checked), or a
    table that does not match the manifest.
    """
    manifest = parse_manifest(folder)
    shards = manifest.shards
    if not check_shards:
        return manifest
    checked = np.unique(np.linspace(0, len(shards) - 1, _SHARDS_CHECKED, dtype=np.int64)).tolist()
    missing = [file for file in (shards[shard].file for shard in checked) if not os.path.isfile(f"{folder}/{file}")]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(checked)} checked shards (of {len(shards)}) are missing, first "
            f"{missing[0]}; `minigptv2 shards verify {folder}` lists all of them"
        )
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """The manifest and its table, without a check of the shards. Raises `DataError` if they are invalid."""
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise DataError(
            f"no {MANIFEST_FILE} in {folder}: build the corpus with `minigptv2 shards build {folder.name} "
            f"--output {folder}`, index existing tars with `minigptv2 shards index {folder}`, or set data.shards"
        )
    data = read_regular(file, DataError, limit=MAX_MANIFEST_BYTES, folder=folder)
    try:
        document = parse_json(data)
        if document.get("format") != FORMAT:
            raise DataError(f"{file}: has format {document.get('format')}, expected {FORMAT}: build the corpus again")
        if document.pop("sha256") != _own_hash(document):
            raise ValueError("its content was changed after it was written; `minigptv2 shards index` writes it again")
        num_shards, _ = (document.pop(key) for key in _ONLY_FOR_READERS_OF_JSON)
        _check_types(document)
        rows = map_array(folder / TABLE_FILE, document["shards_sha256"], num_shards)
        manifest = Manifest(**document, shards=ShardTable(rows), fingerprint=hashlib.sha256(data).hexdigest())
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{file}: not a valid manifest: {type(error).__name__}: {error}") from error
    if manifest.layout not in LAYOUTS:
        raise DataError(f"{file}: layout '{manifest.layout}' is not one of {', '.join(LAYOUTS)}")
    if bool(manifest.turn_counts_sha256) != (manifest.shards.turn_starts is not None):
        raise DataError(f"{folder / TABLE_FILE}: column '{TURNS_FIELD}' and turn_counts_sha256 of {file.name} disagree")
    if manifest.shards.starts[-1] != manifest.samples:
        found = manifest.shards.starts[-1]
        raise DataError(f"{folder / TABLE_FILE}: {found} samples, {file.name} says {manifest.samples}")
    return manifest


def _check_types(document: dict[str, Any]) -> None:
    """Raise `ValueError` for an entry of another type than that of its field in `Manifest`."""
    for key, value in document.items():
        hint = str(Manifest.__dataclass_fields__[key].type)
        if hint.startswith("dict"):
            valid = isinstance(value, dict) and all(_is_count(number) for number in value.values())
        elif hint.startswith("int"):
            valid = _is_count(value) or (value is None and hint.endswith("None"))
        else:
            valid = isinstance(value, str) or (value is None and hint.endswith("None"))
        if not valid:
            raise ValueError(f"{key} must be {hint}, got {str(value)[:40]!r}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def open_index(folder: Path, manifest: Manifest) -> np.ndarray:
    """The memory-mapped index, `INDEX_DTYPE` [samples]. Raises `DataError` if it does not match the manifest."""
    index = map_array(folder / INDEX_FILE, manifest.index_sha256, manifest.samples)
    if index.dtype != INDEX_DTYPE:
        raise DataError(f"{folder / INDEX_FILE}: entries are {index.dtype}, expected {INDEX_DTYPE}")
    return index
