"""Writes a corpus: samples in, webdataset tars with manifest, shard table and index out.

Several processes write one shard each (`shard_file`). An interrupted build resumes when the same samples come again.
The bytes do not depend on the number of workers or on interruptions.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from minigptv2.errors import ConfigError, DataError
from minigptv2.files import close_and_remove, sync_file
from minigptv2.shards.dropped import DROPPED_FILE, Dropped, summarize
from minigptv2.shards.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    TABLE_FILE,
    IndexWriter,
    Manifest,
    ShardInfo,
    save_manifest,
)
from minigptv2.shards.shard_file import (
    BOXES,
    BUILD_FOLDER,
    Finish,
    FinishedShard,
    ImageRules,
    Rejected,
    Sample,
    ShardJob,
    write_or_reuse,
)
from minigptv2.shards.turn_counts import TURNS_FILE

__all__ = ["CorpusOptions", "ImageRules", "RefusedBuild", "Rejected", "Sample", "write_corpus"]

_KEPT_REASONS = 1000
"""Dropped samples that are remembered to explain why a corpus came out empty."""


_REFUSED = "refused "
"""Before the name in the lock file of a build that was refused. Another corpus may be built in its place."""


class RefusedBuild(DataError):
    """All shards are written, and the corpus is not to be used. The same build again keeps its good shards."""


def _unchanged(sample: Sample) -> tuple[Sample, list[Rejected]]:
    return sample, []


@dataclass(frozen=True)
class CorpusOptions:
    """How the samples of a corpus are stored, and what its manifest says about them."""

    license: str = ""
    split: str = ""
    finish: Finish = _unchanged
    """Makes samples of what the source yields, in the worker processes."""
    bake_side: int | None = None
    """Store images as JPEGs squashed to squares of this side. Boxes stay in pixels of the original image."""
    images: ImageRules = ImageRules()
    on_corrected: Callable[[str, list[str]], None] = lambda what, names: None
    """Receives for each shard what of its samples was corrected, and the first of them."""
    approve: Callable[[], None] = lambda: None
    """Called when all shards are written and before the corpus is complete. Raises `RefusedBuild` to keep it so."""


def write_corpus(
    samples: Iterable[Any],
    output: Path,
    corpus: str,
    *,
    samples_per_shard: int = 1000,
    workers: int = 0,
    options: CorpusOptions = CorpusOptions(),
    on_dropped: Callable[[Dropped], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write `samples` as shards of `samples_per_shard` under `output`, then index, table and manifest.

    `samples` yields `Sample`s, or whatever `options.finish` makes samples of, and `Rejected` for what the source leaves
    out. `workers` processes finish, check, bake and write (0: this process does). Memory holds the items of at most
    `workers + 1` shards, and a few hundred bytes per written shard. `on_dropped` receives everything that is left out.
    Without it the first dropped sample raises `DataError`. `dropped.jsonl` lists all of them. `progress` receives the
    number of items of each finished shard.

    An error or a kill leaves shards without a manifest, which no reader accepts. The same call again writes only
    the missing shards. Raises `DataError` also if nothing is left to write, or if a key occurs twice in a shard.
    """
    early: list[Dropped] = []
    source = _SampleSource(corpus, early, on_dropped)

    def make_job(number: int, pickled: bytes) -> ShardJob:
        file = output / f"{corpus}-{number:06d}.tar"
        tolerant = on_dropped is not None
        return ShardJob(corpus, file, pickled, options.finish, options.bake_side, tolerant, options.images)

    jobs = _group_into_jobs(source.accepted(samples), samples_per_shard, make_job)
    first = next(jobs, None)  # read before anything is removed: an unreadable source leaves a finished corpus unchanged
    if first is None:
        raise DataError(_explain_empty(corpus, early))
    shards: list[ShardInfo] = []
    turns: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    images = 0
    known: list[Dropped] = []
    with _locked_build(output, corpus, options.split), IndexWriter(output) as index, _DropFile(output) as report:
        for shard in _run_jobs(chain([first], jobs), workers):
            dropped = [Dropped(**entry) for entry in shard.dropped]
            if on_dropped is not None:
                for one in dropped:
                    on_dropped(one)
            report.add([*early, *dropped])
            early.clear()
            if shard.file:
                shards.append(ShardInfo(shard.file, shard.bytes, shard.sha256, len(shard.rows)))
                index.append(shard.rows, np.array(shard.turn_counts))
                turns.update(shard.turns)
                counts.update(shard.counts)
                for what, names in shard.corrected.items():
                    options.on_corrected(what, names)
                images += shard.images
            elif not shards:
                known = [*known, *dropped][:_KEPT_REASONS]
            if progress is not None:
                progress(shard.items)
        report.add(early)
        num_dropped = report.finish()
        if not shards:
            raise DataError(_explain_empty(corpus, known))
        options.approve()
        _remove_other_builds(output, corpus, {output / shard.file for shard in shards} | index.temporaries)
        return save_manifest(
            output,
            shards,
            index,
            corpus=corpus,
            images=images,
            turns=dict(turns),
            baked_side=options.bake_side,
            max_pixels=options.images.max_pixels,
            counts=dict(counts) if set(counts) - {BOXES} else {},
            dropped=num_dropped,
            license=options.license,
            split=options.split,
        )


def _remove_other_builds(output: Path, corpus: str, kept: Set[Path] = frozenset()) -> None:
    for pattern in (f"{corpus}-*.tar", f".{corpus}-*.tar.*.tmp", f".{INDEX_FILE}.*.tmp", f".{TURNS_FILE}.*.tmp"):
        for file in set(output.glob(pattern)) - kept:
            file.unlink()


class _SampleSource:
    """Separates samples from what the source rejected, which goes to `early` and to `on_dropped`, or raises."""

    def __init__(self, corpus: str, early: list[Dropped], on_dropped: Callable[[Dropped], None] | None) -> None:
        self.corpus, self.early, self.on_dropped = corpus, early, on_dropped

    def accepted(self, samples: Iterable[Any]) -> Iterator[Any]:
        for sample in samples:
            if not isinstance(sample, Rejected):
                yield sample
                continue
            dropped = Dropped(self.corpus, "", sample.where, sample.reason, sample.annotations)
            if self.on_dropped is None:
                raise DataError(str(dropped))
            self.early.append(dropped)
            self.on_dropped(dropped)


def _group_into_jobs(items: Iterator[Any], size: int, make_job: Callable[[int, bytes], ShardJob]) -> Iterator[ShardJob]:
    """Groups of `size` items as jobs. `make_job` receives the shard's number and its pickled items."""
    for number in count():
        group = list(islice(items, size))
        if not group:
            return
        yield make_job(number, pickle.dumps(group))
        if len(group) < size:
            return


def _run_jobs(jobs: Iterator[ShardJob], workers: int) -> Iterator[FinishedShard]:
    """The shards in order, `workers` of them written at a time."""
    if workers == 0:
        yield from map(write_or_reuse, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        pending: deque[Future[FinishedShard]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(write_or_reuse, job))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a writer process was killed (out of memory?); run the same command again to resume the build"
            ) from error
        finally:
            for future in pending:
                future.cancel()


def _start_worker() -> None:
    """Exempt imported modules from garbage collection: they live until the worker ends."""
    gc.freeze()


@contextmanager
def _locked_build(output: Path, corpus: str, split: str) -> Iterator[None]:
    """Lock the build folder, and remove it after a successful build. A finished corpus becomes an unfinished one.

    Raises `DataError` if another process builds there, and `ConfigError` if a build of something else was interrupted.
    A file system without locks does not detect a second build.
    """
    journal = output / BUILD_FOLDER
    with _locked(journal) as lock:
        finished = (output / MANIFEST_FILE).exists()
        begun, this = lock.read(), f"{corpus} {split}".strip()
        refused, begun = begun.startswith(_REFUSED), begun.removeprefix(_REFUSED)
        if refused and begun != this:
            _remove_other_builds(output, begun.split()[0])
            begun = ""
        if begun not in ("", this) and not finished:
            raise ConfigError(
                f"{output} holds an unfinished build of {begun}: finish it, build {this} into another --output, or "
                "remove that folder"
            )
        # a finished corpus, and one that replaces a refused one, are written from the start
        for entry in journal.glob("*.json") if finished or not begun else ():
            entry.unlink()
        for stale in (MANIFEST_FILE, INDEX_FILE, TURNS_FILE, TABLE_FILE, DROPPED_FILE):
            (output / stale).unlink(missing_ok=True)
        _write_lock(lock, this)
        try:
            yield
        except RefusedBuild:
            _write_lock(lock, f"{_REFUSED}{this}")
            raise
        for entry in journal.iterdir():
            entry.unlink()
    with suppress(OSError):  # not empty: the next build has begun, or NFS keeps a file that was open until now
        journal.rmdir()


def _write_lock(lock: IO[str], text: str) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(text)
    lock.flush()


@contextmanager
def _locked(journal: Path) -> Iterator[IO[str]]:
    """The lock file, positioned at the name of the build that last held it."""
    file = journal / "lock"
    while True:
        journal.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(file, "a+")  # noqa: SIM115  # closed below
        except FileNotFoundError:  # the previous build has just ended and removed its folder
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
                continue  # the previous build removed this lock file after it was opened here
            lock.seek(0)
            yield lock
            return


class _DropFile:
    """Writes `dropped.jsonl` as drops become known. A context manager: removes the file if it was not finished."""

    def __init__(self, output: Path) -> None:
        self._file = output / DROPPED_FILE
        self._temporary = output / f".{DROPPED_FILE}.tmp"
        self._annotations = 0
        self._stream = open(self._temporary, "w", encoding="utf-8")  # noqa: SIM115  # closed by `finish` or when the context ends

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        close_and_remove(self._stream, self._temporary)

    def add(self, dropped: list[Dropped]) -> None:
        self._stream.writelines(f"{one.to_json()}\n" for one in dropped)
        self._annotations += sum(one.count for one in dropped)

    def finish(self) -> int:
        """Give the file its final name unless nothing was dropped. Returns the number of dropped annotations."""
        self._stream.close()
        if self._annotations:
            sync_file(self._temporary)
            os.replace(self._temporary, self._file)
        return self._annotations


def _explain_empty(corpus: str, dropped: list[Dropped]) -> str:
    reasons = summarize(dropped)
    most = next(iter(reasons), None)
    why = f"most dropped as '{most}', first {dropped[0]}" if most else "its source yielded nothing"
    return f"{corpus}: nothing to write: {why}"
