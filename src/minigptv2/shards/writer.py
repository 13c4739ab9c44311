"""Writing a corpus: samples in, webdataset tars with manifest, shard table and index out.

A sample is `<key>.json`, a record, and `<key>.jpg|png|webp` if it has an image, so any webdataset tool reads the tars.
Shards are written by several processes, each atomically: a shard with its final name is whole. A build that was killed
goes on where it was when the same samples come again; the bytes do not depend on workers or interruptions.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import gc
import hashlib
import io
import json
import os
import pickle
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from minigptv2.errors import ConfigError, DataError
from minigptv2.files import HashedFile, close_and_remove, sync_file, sync_folder, write_atomically
from minigptv2.record import Record, to_json
from minigptv2.shards import tar
from minigptv2.shards.dropped import DROPPED_FILE, Dropped, summarize
from minigptv2.shards.image_files import bake, image_size
from minigptv2.shards.manifest import (
    INDEX_DTYPE,
    INDEX_FILE,
    MANIFEST_FILE,
    MAX_MEMBER_BYTES,
    TABLE_FILE,
    IndexWriter,
    Manifest,
    ShardInfo,
    load_manifest,
    save_manifest,
)
from minigptv2.tasks import validate

__all__ = ["INDEX_FILE", "MANIFEST_FILE", "Rejected", "Sample", "load_manifest", "write_corpus"]

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Of members that are read as images. We write all but `jpeg`."""
RECORD_EXTENSION = "json"
BUILD_FOLDER = ".building"
"""Beside the shards while they are written: one small file per finished shard, so that a build can go on."""
BAKED_QUALITY = 95
_EXTENSION_OF = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_FORMAT_OF_BUILD = 2
IMAGE_MISSING = "image file missing"


@dataclass(frozen=True, slots=True)
class Sample:
    """What the writer stores: `image` is the file's bytes as they come; they, not `extension`, tell its kind."""

    key: str
    record: Record
    image: bytes | None = None
    extension: str = "jpg"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something of a corpus that is left out: which, why (few different reasons, they are counted), how many.

    `looked_for`: files of which one would have mended it. A shard is written again once such a file is there.
    """

    where: str
    reason: str
    annotations: int = 1
    looked_for: tuple[str, ...] = ()


Finish = Callable[[Any], tuple[Sample | None, list[Rejected]]]
"""Makes a sample of what a source yields, in a worker, and says what of it was left out. A function of a module."""


def _as_it_is(sample: Sample) -> tuple[Sample, list[Rejected]]:
    return sample, []


@dataclass(frozen=True)
class _Job:
    """One shard to write. Crosses to a worker process, its items pickled once: for the way and for the digest."""

    corpus: str
    file: Path
    pickled: bytes
    finish: Finish
    bake_side: int | None
    tolerant: bool


@dataclass
class _Done:
    """One written shard, as it stands in the build folder. No file: every sample of its group was dropped."""

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

    @property
    def rows(self) -> np.ndarray:
        return np.frombuffer(base64.b64decode(self.index), dtype=INDEX_DTYPE)


def write_corpus(
    samples: Iterable[Any],
    output: Path,
    corpus: str,
    *,
    samples_per_shard: int = 1000,
    license: str = "",
    split: str = "",
    workers: int = 0,
    finish: Finish = _as_it_is,
    bake_side: int | None = None,
    on_dropped: Callable[[Dropped], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write `samples` as shards of `samples_per_shard` under `output`, then index, table and manifest.

    `samples` yields `Sample`s, or whatever `finish` makes samples of, and `Rejected` for what the source leaves out.
    `workers` processes finish, check, bake and write (0: this one); memory holds at most `workers + 1` shards' items,
    and of what is written a few hundred bytes a shard.
    `bake_side` squashes images to squares of that side, JPEG; boxes stay in pixels of the original. `on_dropped` is
    told of everything that is left out, and the build goes on; without it the first loss raises `DataError`.
    `progress` is told how many items each finished shard was made of. All losses also stand in `dropped.jsonl`.
    `license` and `split` are noted in the manifest.

    What was written before an error or a kill stays without a manifest, which no reader accepts; the same call again
    writes only the shards that are missing. Raises `DataError` also where nothing is left to write, or where a key
    comes twice in a shard.
    """
    early: list[Dropped] = []
    jobs = _jobs(samples, output, corpus, samples_per_shard, finish, bake_side, on_dropped, early)
    first = next(jobs, None)  # a source that cannot be read leaves a finished corpus as it is
    if first is None:
        raise DataError(_nothing_left(corpus, early))
    jobs = chain([first], jobs)
    shards: list[ShardInfo] = []
    turns: Counter[str] = Counter()
    images = 0
    all_lost: list[Dropped] = []
    with _building(output, corpus, split), IndexWriter(output) as index, _Report(output) as report:
        for shard in _written(jobs, workers):
            lost = [Dropped(**entry) for entry in shard.dropped]
            if on_dropped is not None:
                for one in lost:
                    on_dropped(one)
            report.add([*early, *lost])
            early.clear()
            if shard.file:
                shards.append(ShardInfo(shard.file, shard.bytes, shard.sha256, len(shard.rows)))
                index.append(shard.rows)
                turns.update(shard.turns)
                images += shard.images
            elif not shards:  # to say why, should nothing be left at the end
                all_lost = [*all_lost, *lost][:1000]
            if progress is not None:
                progress(shard.items)
        report.add(early)
        dropped = report.finish()
        if not shards:
            raise DataError(_nothing_left(corpus, all_lost))
        left_over = (f"{corpus}-*.tar", f".{corpus}-*.tar.*.tmp", f".{INDEX_FILE}.*.tmp")
        of_other_builds = {file for pattern in left_over for file in output.glob(pattern)} - {index.temporary}
        for file in of_other_builds - {output / shard.file for shard in shards}:
            file.unlink()
        manifest = save_manifest(
            output,
            shards,
            index,
            corpus=corpus,
            images=images,
            turns=dict(turns),
            baked_side=bake_side,
            dropped=dropped,
            license=license,
            split=split,
        )
    return manifest


@contextmanager
def _building(output: Path, corpus: str, split: str) -> Iterator[None]:
    """The build folder, locked; gone at the end of a build that succeeded. A finished corpus becomes an unfinished one.

    Raises `DataError` where another process builds there, and `ConfigError` where a build of something else was
    interrupted. A file system that has no locks watches nobody.
    """
    journal = output / BUILD_FOLDER
    with _locked(journal) as lock:
        finished = (output / MANIFEST_FILE).exists()
        begun, this = lock.read(), f"{corpus} {split}".strip()
        if begun not in ("", this) and not finished:
            raise ConfigError(
                f"{output} holds an unfinished build of {begun}: finish it, build {this} into another --output, or "
                "remove that folder"
            )
        for entry in journal.glob("*.json") if finished else ():  # it is written anew
            entry.unlink()
        for stale in (MANIFEST_FILE, INDEX_FILE, TABLE_FILE, DROPPED_FILE):
            (output / stale).unlink(missing_ok=True)
        lock.seek(0)
        lock.truncate()
        lock.write(this)
        lock.flush()
        yield
        for entry in journal.iterdir():
            entry.unlink()
    with suppress(OSError):  # not empty: the next build has begun, or NFS keeps what was open a moment longer
        journal.rmdir()


@contextmanager
def _locked(journal: Path) -> Iterator[IO[str]]:
    """The lock's file, with what the build that has it wrote into it."""
    file = journal / "lock"
    while True:
        journal.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(file, "a+")  # noqa: SIM115  # closed below
        except FileNotFoundError:  # the build before has just ended and taken its folder away
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"{journal.parent}: another build is writing there") from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
            if not file.exists() or not os.path.samestat(os.fstat(lock.fileno()), os.stat(file)):
                continue  # as above, but for the lock alone
            lock.seek(0)
            yield lock
            return


class _Report:
    """`dropped.jsonl`, written as losses are known. A context: what was not finished at its end is removed."""

    def __init__(self, output: Path) -> None:
        self._file = output / DROPPED_FILE
        self._temporary = output / f".{DROPPED_FILE}.tmp"
        self._annotations = 0
        self._stream = open(self._temporary, "w")  # noqa: SIM115  # closed by `finish` or at the context's end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        close_and_remove(self._stream, self._temporary)

    def add(self, dropped: list[Dropped]) -> None:
        self._stream.writelines(f"{one.to_json()}\n" for one in dropped)
        self._annotations += sum(one.count for one in dropped)

    def finish(self) -> int:
        """Give the file its name unless nothing was lost; returns how many annotations were."""
        self._stream.close()
        if self._annotations:
            sync_file(self._temporary)
            os.replace(self._temporary, self._file)
        return self._annotations


def _nothing_left(corpus: str, lost: list[Dropped]) -> str:
    reasons = summarize(lost)
    most = next(iter(reasons), None)
    why = f"most lost as '{most}', first {lost[0]}" if most else "its source yielded nothing"
    return f"{corpus}: nothing to write: {why}"


def _jobs(
    samples: Iterable[Any],
    output: Path,
    corpus: str,
    size: int,
    finish: Finish,
    bake_side: int | None,
    on_dropped: Callable[[Dropped], None] | None,
    early: list[Dropped],
) -> Iterator[_Job]:
    """Groups of `size` items as jobs. What the source rejected goes to `early` and to `on_dropped`, or raises."""
    group: list[Any] = []
    number = 0

    def job() -> _Job:
        file = output / f"{corpus}-{number:06d}.tar"
        return _Job(corpus, file, pickle.dumps(group), finish, bake_side, tolerant=on_dropped is not None)

    for sample in samples:
        if isinstance(sample, Rejected):
            lost = Dropped(corpus, "", sample.where, sample.reason, sample.annotations)
            if on_dropped is None:
                raise DataError(str(lost))
            early.append(lost)
            on_dropped(lost)
            continue
        group.append(sample)
        if len(group) == size:
            yield job()
            group, number = [], number + 1
    if group:
        yield job()


def _written(jobs: Iterator[_Job], workers: int) -> Iterator[_Done]:
    """The shards in order, `workers` of them written at a time."""
    if workers == 0:
        yield from map(_write_or_reuse, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_writer) as pool:
        pending: deque[Future[_Done]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(_write_or_reuse, job))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError("a writer process was killed (out of memory?); the same command goes on") from error
        finally:
            for future in pending:
                future.cancel()


def _start_writer() -> None:
    """What is imported lives to the end: full collections need not walk it."""
    gc.freeze()


def _write_or_reuse(job: _Job) -> _Done:
    """The shard of a job: as the build folder has it, if it was written from the same samples; written otherwise."""
    entry = job.file.parent / BUILD_FOLDER / f"{job.file.name}.json"
    digest = _digest(job)
    if entry.is_file():
        done = _Done(**json.loads(entry.read_bytes()))
        whole = not done.file or job.file.is_file() and job.file.stat().st_size == done.bytes
        tolerated = job.tolerant or not done.dropped
        if done.digest == digest and whole and tolerated and not any(map(os.path.exists, done.looked_for)):
            return done
    done = _write_shard(job, digest)
    write_atomically(entry, json.dumps(asdict(done)).encode())
    sync_folder(entry.parent)
    return done


def _digest(job: _Job) -> str:
    """What the shard is made of. Files that items only point to are taken to stay as they are during a build."""
    made_by = f"{_FORMAT_OF_BUILD}/{job.corpus}/{job.finish.__module__}.{job.finish.__qualname__}/{job.bake_side}"
    return hashlib.sha256(made_by.encode() + job.pickled).hexdigest()


class _ShardWriter:
    """Appends samples to a tar, keeping its hash and index."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        self.temporary.unlink(missing_ok=True)  # of a killed process that had our number
        self.hashed = HashedFile(self.temporary, seldom_read=True)
        self.stream = io.BufferedWriter(self.hashed, HashedFile.PIECE)
        self.blocks = 0
        self.rows: list[tuple[int, int, int, int, int]] = []

    def add(self, key: str, record: bytes, image: bytes | None, extension: str) -> None:
        first = self.blocks
        headers = [tar.header_of(f"{key}.{RECORD_EXTENSION}", len(record))]
        if image is not None:  # both made before anything is written: a name that does not fit leaves no half a sample
            headers.append(tar.header_of(f"{key}.{extension}", len(image)))
        crc_of_record = self._write(headers[0], record)
        blocks_of_record = self.blocks - first
        crc_of_rest = self._write(headers[1], image) if image is not None else 0
        self.rows.append((first, 0, blocks_of_record, crc_of_record, crc_of_rest))

    def close(self) -> dict[str, int | str]:
        """End the archive and give it its name; returns its `bytes` and `sha256`."""
        self.stream.write(tar.END_OF_ARCHIVE)
        self.stream.flush()
        written = self.hashed.finish()
        os.replace(self.temporary, self.file)
        sync_folder(self.file.parent)
        return written

    def abandon(self) -> None:
        close_and_remove(self.stream, self.temporary)

    def _write(self, header: bytes, data: bytes) -> int:
        """A member; returns the CRC-32 of all its blocks."""
        padding = bytes(-len(data) % tar.BLOCK)
        for part in (header, data, padding):
            self.stream.write(part)
        self.blocks += (len(header) + len(data) + len(padding)) // tar.BLOCK
        return zlib.crc32(padding, zlib.crc32(data, zlib.crc32(header)))


def _write_shard(job: _Job, digest: str) -> _Done:
    writer = _ShardWriter(job.file)
    turns: Counter[str] = Counter()
    dropped: list[Dropped] = []
    looked_for: list[str] = []
    keys: set[str] = set()
    items = pickle.loads(job.pickled)  # noqa: S301  # our own, made by `_jobs` in the process that started this one
    images = 0

    def lose(key: str, reason: str, count: int = 1) -> None:
        lost = Dropped(job.corpus, job.file.name, key, reason, count)
        if not job.tolerant:
            raise DataError(str(lost))
        dropped.append(lost)

    try:
        for item in items:
            sample, rejected = job.finish(item)
            for one in rejected:
                lose(one.where, one.reason, one.annotations)
                looked_for += one.looked_for
            if sample is None:
                continue
            where = f"{job.file.name} / {sample.key}"
            try:
                record, image, extension = _checked(sample, where, job.bake_side)
                if sample.key in keys:
                    raise DataError(f"{where}: the key came before in this shard")
                writer.add(sample.key, record, image, extension)
            except (DataError, tar.TarError) as error:
                lose(sample.key, str(error).removeprefix(f"{where}: "), sample.record.annotations)
                continue
            keys.add(sample.key)
            turns.update(sample.record.tasks)
            images += image is not None
        done = _Done(digest, "", len(items), dropped=[asdict(one) for one in dropped], looked_for=looked_for)
        if not writer.rows:
            writer.abandon()
            return done
        written = writer.close()
    except BaseException:
        writer.abandon()
        raise
    done.index = base64.b64encode(np.array(writer.rows, dtype=INDEX_DTYPE).tobytes()).decode()
    done.file, done.bytes, done.sha256 = job.file.name, int(written["bytes"]), str(written["sha256"])
    done.images, done.turns = images, dict(turns)
    return done


def _checked(sample: Sample, where: str, bake_side: int | None) -> tuple[bytes, bytes | None, str]:
    """Record and image as they are stored, and the image's extension. Raises `DataError` for what readers refuse."""
    if not sample.key or "." in sample.key or "/" in sample.key:
        raise DataError(f"{where}: key '{sample.key}' must be non-empty and hold neither '.' nor '/'")
    validate(sample.record, where)
    if (sample.image is not None) != sample.record.has_image:
        raise DataError(f"{where}: record and image disagree on whether there is an image")
    record = to_json(sample.record)
    if sample.image is None:
        return record, None, ""
    image = sample.image
    kind, width, height = image_size(image, where)
    if (width, height) != (sample.record.width, sample.record.height):
        stated = f"{sample.record.width} x {sample.record.height}"
        raise DataError(f"{where}: the image is {width} x {height} px, its record says {stated}")
    if bake_side is not None:
        return record, bake(image, bake_side, BAKED_QUALITY, where), "jpg"
    for what, data in (("record", record), ("image", image)):
        if len(data) + 2 * tar.BLOCK > MAX_MEMBER_BYTES:
            raise DataError(f"{where}: {what} of {len(data)} bytes is over the {MAX_MEMBER_BYTES} a sample may hold")
    return record, image, _EXTENSION_OF[kind]
