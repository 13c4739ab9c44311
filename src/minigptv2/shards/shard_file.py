"""Writes one shard: checks samples, appends them to a tar, and records index rows and dropped samples.

A sample is `<key>.json`, a record, and `<key>.jpg|png|webp` if it has an image, so any webdataset tool reads the tar.
A shard is written under a temporary name, synced and renamed: a shard with its final name is complete. What is known
about it is kept in the build folder, and an interrupted build reuses it when the same samples come again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minigptv2.errors import DataError
from minigptv2.files import HashedFile, close_and_remove, sync_folder
from minigptv2.record import Record, to_json
from minigptv2.redacted_files import write_json
from minigptv2.shards import tar
from minigptv2.shards.dropped import Dropped
from minigptv2.shards.image_files import EXTENSION_OF, bake, check_image, read_header
from minigptv2.shards.image_header import MAX_PIXELS, TooLarge
from minigptv2.shards.manifest import INDEX_DTYPE, MAX_MEMBER_BYTES
from minigptv2.shards.passed_over import Named
from minigptv2.tasks import validate

RECORD_EXTENSION = "json"
BUILD_FOLDER = ".building"
"""Beside the shards during a build: one small file per finished shard, from which an interrupted build resumes."""
BAKED_QUALITY = 95
IMAGE_MISSING = "image file missing"
BOXES = "boxes"
"""Key of `Sample.counts` for the number of boxes. All other keys say what was corrected."""
_FORMAT_OF_BUILD = 5
"""Part of the digest of a shard: entries of another version are written again. 4 added `counts`, 5 `corrected`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is stored. `image` holds the bytes of the image file. Its format is read from them, not from `extension`.

    `origin` names the sample in messages instead of its key. `counts` is added up over the corpus: what was corrected.
    """

    key: str
    record: Record
    image: bytes | None = None
    extension: str = "jpg"
    origin: str = ""
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something of a corpus that is left out: which, why (few different reasons, since they are counted), how many.

    `looked_for` lists files, one of which would have made it valid. A shard is rewritten once such a file exists.
    `is_image_fault`: the image was refused, so the shard is rewritten in any case.
    """

    where: str
    reason: str
    annotations: int = 1
    looked_for: tuple[str, ...] = ()
    is_image_fault: bool = False


Finish = Callable[[Any], tuple[Sample | None, list[Rejected]]]
"""Turns an item of a source into a sample, in a worker, and lists what was left out. A module-level function."""


@dataclass(frozen=True)
class ImageRules:
    """Which images are stored. Without `decode` an image whose header is valid is stored unseen."""

    max_pixels: int = MAX_PIXELS
    decode: bool = True


@dataclass(frozen=True)
class ShardJob:
    """One shard to write. `pickled` holds its items, pickled once for the transfer and for the digest."""

    corpus: str
    file: Path
    pickled: bytes
    finish: Finish
    bake_side: int | None
    tolerant: bool
    """Whether dropped samples are collected. Otherwise the first one raises `DataError`."""
    images: ImageRules = ImageRules()


@dataclass
class FinishedShard:
    """One written shard, as stored in the build folder. `file` is empty if every sample of the shard was dropped."""

    digest: str
    file: str
    items: int
    bytes: int = 0
    sha256: str = ""
    images: int = 0
    turns: dict[str, int] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    looked_for: list[str] = field(default_factory=list)
    index: str = ""
    turn_counts: list[int] = field(default_factory=list)
    """Number of separate turns of each sample."""
    counts: dict[str, int] = field(default_factory=dict)
    corrected: dict[str, list[str]] = field(default_factory=dict)
    """The first samples for each of `counts` but `BOXES`."""
    retry: bool = False
    """Whether an image was refused, so that the shard is written again once it may have been replaced."""

    @property
    def rows(self) -> np.ndarray:
        """`INDEX_DTYPE` [samples]: the shard's part of the index."""
        return np.frombuffer(base64.b64decode(self.index), dtype=INDEX_DTYPE)


def write_or_reuse(job: ShardJob) -> FinishedShard:
    """The shard of a job: taken from the build folder if it was written from the same samples, else written now."""
    entry = job.file.parent / BUILD_FOLDER / f"{job.file.name}.json"
    digest = _digest(job)
    if entry.is_file():
        finished = FinishedShard(**json.loads(entry.read_bytes()))
        complete = not finished.file or job.file.is_file() and job.file.stat().st_size == finished.bytes
        tolerated = job.tolerant or not finished.dropped
        if (
            finished.digest == digest
            and complete
            and tolerated
            and not finished.retry
            and not any(map(os.path.exists, finished.looked_for))
        ):
            return finished
    finished = _write(job, digest)
    write_json(entry, asdict(finished))
    sync_folder(entry.parent)
    return finished


def _digest(job: ShardJob) -> str:
    """Identifies what a shard is made of. Files that items refer to are assumed not to change during a build."""
    made_by = f"{_FORMAT_OF_BUILD}/{job.corpus}/{job.finish.__module__}.{job.finish.__qualname__}/{job.bake_side}"
    made_by += f"/{job.images}"
    return hashlib.sha256(made_by.encode() + job.pickled).hexdigest()


def _write(job: ShardJob, digest: str) -> FinishedShard:
    builder = _ShardBuilder(job)
    items = pickle.loads(job.pickled)  # noqa: S301  # our own, pickled by the process that started this one
    try:
        for item in items:
            builder.add(item)
        return builder.finish(digest, len(items))
    except BaseException:
        builder.tar.abandon()
        raise


class _ShardBuilder:
    """Adds items to a shard, and counts what was stored and what was dropped."""

    def __init__(self, job: ShardJob) -> None:
        self.job = job
        self.tar = _TarWriter(job.file)
        self.turns: Counter[str] = Counter()
        self.dropped: list[Dropped] = []
        self.looked_for: list[str] = []
        self.keys: set[str] = set()
        self.images = 0
        self.turn_counts: list[int] = []
        self.counts: Counter[str] = Counter()
        self.corrected: dict[str, Named] = {}
        self.retry = False

    def add(self, item: Any) -> None:
        sample, rejected = self.job.finish(item)
        for one in rejected:
            self._drop(one.where, one.reason, one.annotations)
            self.retry |= one.is_image_fault
            self.looked_for += one.looked_for
        if sample is None:
            return
        where = f"{self.job.file.name} / {sample.key}"
        try:
            record = _check_record(sample, where)
            image, extension = self._checked_image(sample, where)
            if sample.key in self.keys:
                raise DataError(f"{where}: duplicate key in this shard")
            self.tar.add(sample.key, record, image, extension)
        except (DataError, tar.TarError) as error:
            reason = str(error).removeprefix(f"{where}: ")
            self._drop(sample.origin or sample.key, reason, sample.record.annotations)
            return
        self.counts.update(sample.counts)
        for what in sample.counts.keys() - {BOXES}:
            self.corrected.setdefault(what, Named()).add([sample.origin or sample.key])
        self.keys.add(sample.key)
        self.turns.update(sample.record.tasks)
        self.turn_counts.append(sample.record.annotations)
        self.images += image is not None

    def _checked_image(self, sample: Sample, where: str) -> tuple[bytes | None, str]:
        if sample.image is None:
            return None, ""
        try:
            return _check_image(sample.image, sample.record, where, self.job)
        except TooLarge as error:
            self.retry = True
            raise DataError(f"{error}; {error.advice}") from error
        except DataError:
            self.retry = True
            raise

    def finish(self, digest: str, num_items: int) -> FinishedShard:
        dropped = [asdict(one) for one in self.dropped]
        finished = FinishedShard(digest, "", num_items, dropped=dropped, looked_for=self.looked_for, retry=self.retry)
        if not self.tar.rows:
            self.tar.abandon()
            return finished
        written = self.tar.close()
        finished.index = base64.b64encode(np.array(self.tar.rows, dtype=INDEX_DTYPE).tobytes()).decode()
        finished.file, finished.bytes = self.job.file.name, int(written["bytes"])
        finished.sha256 = str(written["sha256"])
        finished.images, finished.turns, finished.counts = self.images, dict(self.turns), dict(self.counts)
        finished.turn_counts = self.turn_counts
        finished.corrected = {what: named.names for what, named in self.corrected.items()}
        return finished

    def _drop(self, key: str, reason: str, count: int) -> None:
        dropped = Dropped(self.job.corpus, self.job.file.name, key, reason, count)
        if not self.job.tolerant:
            raise DataError(str(dropped))
        self.dropped.append(dropped)


class _TarWriter:
    """Appends samples to a tar, and computes its hash and its index rows."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        self.temporary.unlink(missing_ok=True)  # left by a killed process that had the same process id
        self.hashed = HashedFile(self.temporary, evict_page_cache=True)
        self.stream = io.BufferedWriter(self.hashed, HashedFile.PIECE)
        self.blocks = 0
        self.rows: list[tuple[int, int, int, int, int]] = []

    def add(self, key: str, record: bytes, image: bytes | None, extension: str) -> None:
        first = self.blocks
        headers = [tar.header_of(f"{key}.{RECORD_EXTENSION}", len(record))]
        if image is not None:  # make both headers before writing: a name that does not fit must not leave half a sample
            headers.append(tar.header_of(f"{key}.{extension}", len(image)))
        crc_of_record = self._append(headers[0], record)
        blocks_of_record = self.blocks - first
        crc_of_rest = self._append(headers[1], image) if image is not None else 0
        self.rows.append((first, 0, blocks_of_record, crc_of_record, crc_of_rest))

    def close(self) -> dict[str, int | str]:
        """End the archive and rename it to its final name. Returns its `bytes` and `sha256`."""
        self.stream.write(tar.END_OF_ARCHIVE)
        self.stream.flush()
        written = self.hashed.finish()
        os.replace(self.temporary, self.file)
        sync_folder(self.file.parent)
        return written

    def abandon(self) -> None:
        close_and_remove(self.stream, self.temporary)

    def _append(self, header: bytes, data: bytes) -> int:
        """Write a member. Returns the CRC-32 of all its blocks."""
        padding = bytes(-len(data) % tar.BLOCK)
        for part in (header, data, padding):
            self.stream.write(part)
        self.blocks += (len(header) + len(data) + len(padding)) // tar.BLOCK
        return zlib.crc32(padding, zlib.crc32(data, zlib.crc32(header)))


def _check_record(sample: Sample, where: str) -> bytes:
    """The record as stored. Raises `DataError` for what a reader would refuse."""
    if not sample.key or "." in sample.key or "/" in sample.key:
        raise DataError(f"{where}: key '{sample.key}' must not be empty and must contain neither '.' nor '/'")
    validate(sample.record, where)
    if (sample.image is not None) != sample.record.has_image:
        raise DataError(f"{where}: record and image disagree on whether there is an image")
    record = to_json(sample.record)
    _check_bytes(record, "record", where)
    return record


def _check_bytes(data: bytes, what: str, where: str) -> None:
    if len(data) + 2 * tar.BLOCK > MAX_MEMBER_BYTES:
        raise DataError(f"{where}: {what} has {len(data)} bytes, a sample may have at most {MAX_MEMBER_BYTES}")


def _check_image(image: bytes, record: Record, where: str, job: ShardJob) -> tuple[bytes, str]:
    """The image as stored, and its extension. Raises `DataError` for what training would refuse."""
    decode = job.images.decode and job.bake_side is None
    if job.bake_side is None:
        _check_bytes(image, "image", where)
    header = check_image(image, where, max_pixels=job.images.max_pixels) if decode else read_header(image, where)
    if (header.width, header.height) != (record.width, record.height):
        stated = f"{record.width} x {record.height}"
        raise DataError(f"{where}: the image is {header.width} x {header.height} px, its record says {stated}")
    if job.bake_side is not None:
        return bake(image, job.bake_side, BAKED_QUALITY, where, max_pixels=job.images.max_pixels), "jpg"
    return image, EXTENSION_OF[header.kind]
