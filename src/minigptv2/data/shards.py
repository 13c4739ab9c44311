"""Shards on disk: webdataset tars, with a manifest and an offset index beside them.

A corpus is a folder: `<corpus>-000000.tar`, ..., `manifest.json` (bytes, SHA-256 and sample count of every shard) and
`index.npy` (16 bytes a sample). A sample is `<key>.json`, a record, and `<key>.jpg|png|webp` if it has an image, so
any webdataset tool reads it. Writing is atomic per shard: a shard with its final name is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minigptv2.errors import DataError
from minigptv2.files import sha256_of, sync_file, write_atomically
from minigptv2.record import Record, to_json, validate

IMAGE_EXTENSIONS = ("jpg", "png", "webp")
RECORD_EXTENSION = "json"
MANIFEST_FILE, INDEX_FILE = "manifest.json", "index.npy"
FORMAT = 1

INDEX_DTYPE = np.dtype([("offset", "<u8"), ("record_offset", "<u4"), ("record_bytes", "<u4")])
"""Per sample: byte of its first tar header in the shard; byte of its record's data from there; the record's size."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a source yields and the writer stores: `image` is the file's bytes as they come, `extension` its kind."""

    key: str
    record: Record
    image: bytes | None = None
    extension: str = "jpg"


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard in the manifest."""

    file: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Manifest:
    """What a corpus folder holds. `turns` counts turns by task."""

    corpus: str
    samples: int
    images: int
    turns: dict[str, int]
    shards: tuple[ShardInfo, ...]
    index_sha256: str
    format: int = FORMAT
    license: str = ""
    fingerprint: str = field(default="", compare=False)
    """SHA-256 of the manifest file, for the data plan's identity."""


def write_corpus(samples: Iterable[Sample], output: Path, corpus: str, *, samples_per_shard: int,
                 license: str = "") -> Manifest:  # fmt: skip
    """Write `samples` as shards of `samples_per_shard` under `output`, then index and manifest. Returns the manifest.

    Raises `DataError` for a record that does not validate; what was written before stays without a manifest, which
    no reader accepts.
    """
    output.mkdir(parents=True, exist_ok=True)
    for stale in (MANIFEST_FILE, INDEX_FILE):
        (output / stale).unlink(missing_ok=True)
    shards, indices = [], []
    turns: Counter[str] = Counter()
    images = 0
    for number, group in enumerate(_chunks(samples, samples_per_shard)):
        file = output / f"{corpus}-{number:06d}.tar"
        _write_shard(group, file)
        index = scan_shard(file)
        shards.append(ShardInfo(file.name, file.stat().st_size, sha256_of(file), len(index)))
        indices.append(index)
        turns.update(task for sample in group for task in sample.record.tasks)
        images += sum(sample.image is not None for sample in group)
    if not shards:
        raise DataError(f"{corpus}: nothing to write, the source yielded no sample")
    index_bytes = _npy_bytes(np.concatenate(indices))
    write_atomically(output / INDEX_FILE, index_bytes)
    manifest = Manifest(
        corpus=corpus,
        samples=sum(shard.samples for shard in shards),
        images=images,
        turns=dict(turns),
        shards=tuple(shards),
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
        license=license,
    )
    document = {key: value for key, value in asdict(manifest).items() if key != "fingerprint"}
    write_atomically(output / MANIFEST_FILE, json.dumps(document, indent=1).encode())
    return load_manifest(output)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a corpus folder, after checking that every shard it names is there.

    Raises `DataError` naming what is missing and how to make it.
    """
    file = folder / MANIFEST_FILE
    if not file.is_file():
        raise DataError(
            f"no {MANIFEST_FILE} in {folder}: build the corpus with `minigptv2 shards build {folder.name} "
            f"--output {folder}` or set data.shards"
        )
    data = file.read_bytes()
    try:
        document = json.loads(data)
        document["shards"] = tuple(ShardInfo(**shard) for shard in document["shards"])
        manifest = Manifest(**document, fingerprint=hashlib.sha256(data).hexdigest())
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: not a manifest: {error}") from error
    if manifest.format != FORMAT:
        raise DataError(f"{file}: format {manifest.format}, this version reads {FORMAT}")
    present = {entry.name for entry in os.scandir(folder)}
    missing = [shard.file for shard in manifest.shards if shard.file not in present]
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {len(manifest.shards)} shards are missing, first {missing[0]}")
    return manifest


def scan_shard(file: Path) -> np.ndarray:
    """The index (`INDEX_DTYPE`) of one tar. Raises `DataError` where members do not pair up into samples."""
    rows: list[tuple[int, int, int]] = []
    seen: set[str] = set()
    key, start, record = None, 0, (0, 0)

    def close() -> None:
        if key is not None:
            if record == (0, 0):
                raise DataError(f"{file.name} / {key}: no {RECORD_EXTENSION} member beside the image")
            rows.append((start, *record))

    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                member_key, _, extension = member.name.partition(".")
                if not member.isfile() or extension not in (*IMAGE_EXTENSIONS, RECORD_EXTENSION):
                    raise DataError(f"{file.name}: member '{member.name}' is not <key>.{RECORD_EXTENSION} or an image")
                if member_key != key:
                    close()
                    if member_key in seen:
                        raise DataError(f"{file.name} / {member_key}: the members of this key are not side by side")
                    seen.add(member_key)
                    key, start, record = member_key, member.offset, (0, 0)
                if extension == RECORD_EXTENSION:
                    record = (member.offset_data - start, member.size)
        close()
    except tarfile.TarError as error:
        raise DataError(f"{file}: not a readable tar: {error}") from error
    return np.array(rows, dtype=INDEX_DTYPE)


def _write_shard(samples: list[Sample], file: Path) -> None:
    from webdataset import TarWriter

    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        writer = TarWriter(stream, encoder=False, mtime=0, user="minigptv2", group="minigptv2")
        for sample in samples:
            if "." in sample.key or "/" in sample.key or not sample.key:
                raise DataError(f"key '{sample.key}' must be non-empty and hold neither '.' nor '/'")
            validate(sample.record, f"{file.name} / {sample.key}")
            if (sample.image is not None) != sample.record.has_image:
                raise DataError(f"{file.name} / {sample.key}: record and image disagree on whether there is an image")
            members: dict[str, object] = {"__key__": sample.key, RECORD_EXTENSION: to_json(sample.record)}
            if sample.image is not None:
                members[sample.extension] = sample.image
            writer.write(members)
        writer.close()
    sync_file(temporary)
    os.replace(temporary, file)


def _chunks(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    chunk: list[Sample] = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
