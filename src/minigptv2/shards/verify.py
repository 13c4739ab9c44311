"""Verifies a corpus: compares every byte with its hash and lists every fault."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from minigptv2.errors import DataError, counted
from minigptv2.files import sha256_of
from minigptv2.shards.dropped import DROPPED_FILE, Dropped, read_report
from minigptv2.shards.indexing import ScanOptions, ShardScan, map_in_order, scan_shard, unused_members
from minigptv2.shards.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    TABLE_FILE,
    Manifest,
    ShardInfo,
    parse_manifest,
)
from minigptv2.shards.passed_over import PassedOver
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.tar_files import find_tars
from minigptv2.shards.turn_counts import TURNS_FILE, TurnCounts


def verify_corpus(
    folder: Path,
    *,
    decode: bool = True,
    workers: int = 0,
    progress: Callable[[int], object] | None = None,
    note: Callable[[str], object] = str,
) -> list[Dropped]:
    """Every fault of a corpus folder. An empty list means that every sample is, byte for byte, what was written.

    Compares manifest, table, index and turn counts with each other, checks presence, size and SHA-256 of every shard,
    and in a changed shard the checksums of every sample. `decode` also parses every record, compares its number of
    turns with the turn counts, and decodes every image. `progress` receives 1 for each shard. `note` receives one line
    for each kind of file, member or sample that is there and not used.
    """
    corpus = folder.name
    try:
        manifest = parse_manifest(folder)
        corpus = manifest.corpus
        reader = CorpusReader(folder, check_shards=False)
    except DataError as error:
        return [Dropped(corpus, "", "", str(error))]
    faults = [
        Dropped(corpus, file, "", f"does not match the hash in {MANIFEST_FILE}")
        for file, sha256 in (
            (TABLE_FILE, manifest.shards_sha256),
            (INDEX_FILE, manifest.index_sha256),
            (TURNS_FILE, manifest.turn_counts_sha256),
        )
        if sha256 and sha256_of(folder / file) != sha256
    ]
    counts = reader.turn_counts if manifest.turn_counts_sha256 is not None else None
    if counts is not None:
        faults += [Dropped(corpus, manifest.shards[shard].file, "", reason) for shard, reason in counts.faults()]
    rows = read_report(folder / DROPPED_FILE) if decode else []
    known: dict[str, Counter[str]] = {}
    for row in rows:
        known.setdefault(str(row["shard"]), Counter())[str(row["key"])] += 1
    limit = manifest.max_pixels
    options = ScanOptions(corpus, manifest.layout, manifest.baked_side, decode, limit, ignore_extra=True)
    check = partial(_check_shard, folder, options, known)
    passed_over = PassedOver()
    for found in map_in_order(check, _shards_to_check(reader, counts), workers):
        faults += found.faults
        passed_over.merge(found.passed_over)
        if progress is not None:
            progress(1)
    for line in (*passed_over.lines(), *_unused_files(folder)):
        note(line)
    return faults + _unlisted_files(folder, manifest)


def _unused_files(folder: Path) -> list[str]:
    """One line for each kind of file in a corpus folder that is not used: other kinds, and those left out by name."""
    found = find_tars(folder)
    counts = Counter(str(row["shard"]) for row in read_report(folder / DROPPED_FILE))
    left_out = [
        f"left out when indexed: {file}: {reason}" for file, reason in found.unreadable.items() if counts[file] > 0
    ]
    return left_out + found.describe_unused()


@dataclass(frozen=True)
class _ShardToCheck:
    """A shard, its number, its rows of the index, and the turns of its samples, None if version 0.1 did not count them.

    `turn_counts` are running sums.
    """

    number: int
    info: ShardInfo
    index: np.ndarray
    turn_counts: np.ndarray | None


def _shards_to_check(reader: CorpusReader, counts: TurnCounts | None) -> list[_ShardToCheck]:
    known = reader.manifest.turn_counts_sha256 is not None
    shards = []
    for number, info in enumerate(reader.manifest.shards):
        turns = counts.of_shard(number) if counts else np.arange(1, info.samples + 1)
        shards.append(_ShardToCheck(number, info, reader.index_of(number), turns if known else None))
    return shards


def _unlisted_files(folder: Path, manifest: Manifest) -> list[Dropped]:
    """Tars that are not in the table, and files that cannot be read, unless they were left out by name."""
    found = find_tars(folder)
    left_out = {str(row["shard"]) for row in read_report(folder / DROPPED_FILE)}
    known = {shard.file for shard in manifest.shards} | left_out
    tars = {str(file.relative_to(folder)) for file in found.tars}
    reason = f"is in the corpus folder and not in {TABLE_FILE}; `minigptv2 shards index` adds it"
    faults = {file: reason for file in sorted(tars - known)}
    faults |= {file: f"is not used: {why}" for file, why in found.unreadable.items() if file not in known}
    return [Dropped(manifest.corpus, file, "", why) for file, why in faults.items()]


@dataclass
class _Findings:
    """The faults of one shard, and what it holds and does not use."""

    faults: list[Dropped]
    passed_over: PassedOver = field(default_factory=PassedOver)


def _check_shard(
    folder: Path, options: ScanOptions, known: dict[str, Counter[str]], checked: _ShardToCheck
) -> _Findings:
    """Check one shard. Without `options.decode` only hashes are compared, and names of members read.

    `known`: number of samples, by shard and by key, that were left out when the corpus was indexed. As many faults of
    that shard and key are not reported again. Reasons are not compared, because their wording differs by version.
    """
    shard = checked.info
    file = folder / shard.file
    if not file.is_file():
        reason = "is not a regular file" if os.path.lexists(file) else "missing"
        return _Findings([Dropped(options.corpus, shard.file, "", reason, shard.samples)])
    size = file.stat().st_size
    if size != shard.bytes:
        reason = f"{size} bytes, the manifest says {shard.bytes}"
        return _Findings([Dropped(options.corpus, shard.file, "", reason, shard.samples)])
    if sha256_of(file) != shard.sha256:
        return _Findings(_changed_samples(folder, checked.number, shard))
    if not options.decode:
        return _Findings([], unused_members(file, shard.file))
    scan = scan_shard(file, options, name=shard.file)
    left_out, faults = Counter(known.get(shard.file, {})), []
    for fault in scan.faults:
        if left_out[fault.key] > 0:
            left_out[fault.key] -= 1
            scan.passed_over.left_out.add([str(fault)])
        else:
            faults.append(fault)
    scan.passed_over.left_out.add(
        f"{shard.file} / {key}: has extra members" for key in scan.with_extras if left_out[key]
    )
    faults += _wrong_counts(options.corpus, checked, scan.turn_counts)
    faults += _wrong_index(options.corpus, checked, scan)
    return _Findings(faults, scan.passed_over)


def _wrong_counts(corpus: str, checked: _ShardToCheck, found: np.ndarray) -> list[Dropped]:
    """Samples whose record has another number of turns than the turn counts state."""
    if checked.turn_counts is None or len(checked.turn_counts) != len(found):  # the missing samples are faults already
        return []
    stated = np.diff(checked.turn_counts.astype(np.int64), prepend=0)
    return [
        Dropped(
            corpus,
            checked.info.file,
            f"#{sample}",
            f"the record has {found[sample]} separate turns, the turn counts state {stated[sample]}; "
            "`minigptv2 shards index` writes them again",
        )
        for sample in np.flatnonzero(stated != found).tolist()
    ]


def _wrong_index(corpus: str, checked: _ShardToCheck, scan: ShardScan) -> list[Dropped]:
    """A fault if rows of the index describe no sample of the shard, beyond the samples that are faults already."""
    present = {row.tobytes() for row in scan.rows}
    wrong = sum(row.tobytes() not in present for row in checked.index)
    if wrong <= len(scan.faults):
        return []
    reason = f"{counted(wrong, 'rows')} of the index describe no sample of it; `minigptv2 shards index` writes it again"
    return [Dropped(corpus, checked.info.file, "", reason, wrong)]


def _changed_samples(folder: Path, number: int, shard: ShardInfo) -> list[Dropped]:
    """The samples of a changed shard that are no longer what was written, after one fault for the shard itself."""
    reader = CorpusReader(folder, check_shards=False)
    faults = [Dropped(reader.manifest.corpus, shard.file, "", "SHA-256 differs from the manifest", 0)]
    for sample in range(int(reader.shard_starts[number]), int(reader.shard_starts[number + 1])):
        try:
            if reader.record(sample).has_image:
                reader.image(sample)
        except DataError as error:
            faults.append(reader.dropped(sample, error))
    return faults
