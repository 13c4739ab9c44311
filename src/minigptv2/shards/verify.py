"""Is a corpus what its manifest says? Every byte against its hash, every fault by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from minigptv2.errors import DataError
from minigptv2.files import sha256_of
from minigptv2.shards.dropped import DROPPED_FILE, Dropped, read_report
from minigptv2.shards.indexing import in_order, scan_shard
from minigptv2.shards.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    TABLE_FILE,
    Manifest,
    ShardInfo,
    open_index,
    parse_manifest,
)
from minigptv2.shards.reader import CorpusReader


def verify_corpus(
    folder: Path, *, decode: bool = False, workers: int = 0, progress: Callable[[int], object] | None = None
) -> list[Dropped]:
    """Every fault of a corpus folder; none means that each sample is, byte for byte, what was written.

    Manifest, table and index against each other; each shard's presence, size and SHA-256; in a shard that changed, each
    sample against its checksums. `decode` also parses every record and decodes every image.
    """
    corpus = folder.name
    try:
        manifest = parse_manifest(folder)
        corpus = manifest.corpus
        open_index(folder, manifest)
    except DataError as error:
        return [Dropped(corpus, "", "", str(error))]
    faults = [
        Dropped(corpus, file, "", f"not the file that {MANIFEST_FILE} was written with")
        for file, sha256 in ((TABLE_FILE, manifest.shards_sha256), (INDEX_FILE, manifest.index_sha256))
        if sha256_of(folder / file) != sha256
    ]
    rows = read_report(folder / DROPPED_FILE) if decode else []
    known = frozenset((str(row["shard"]), str(row["key"]), str(row["reason"])) for row in rows)
    check = partial(_shard_faults, folder, manifest.corpus, manifest.layout, manifest.baked_side, decode, known)
    for found in in_order(check, list(enumerate(manifest.shards)), workers):
        faults += found
        if progress is not None:
            progress(1)
    return faults + _unlisted_shards(folder, manifest)


def _unlisted_shards(folder: Path, manifest: Manifest) -> list[Dropped]:
    known = {shard.file for shard in manifest.shards}
    found = {str(file.relative_to(folder)) for file in folder.rglob("*.tar")}
    reason = f"lies beside the corpus and is not in {TABLE_FILE}; `minigptv2 shards index` would take it in"
    return [Dropped(manifest.corpus, file, "", reason) for file in sorted(found - known)]


def _shard_faults(
    folder: Path,
    corpus: str,
    layout: str,
    baked_side: int | None,
    decode: bool,
    known: frozenset[tuple[str, str, str]],
    numbered: tuple[int, ShardInfo],
) -> list[Dropped]:
    """`known`: shard, key and reason of what was left out when the corpus was indexed, which is no fault again."""
    number, shard = numbered
    file = folder / shard.file
    if not file.is_file():
        return [Dropped(corpus, shard.file, "", "missing", shard.samples)]
    size = file.stat().st_size
    if size != shard.bytes:
        reason = f"{size} bytes, the manifest says {shard.bytes}"
        return [Dropped(corpus, shard.file, "", reason, shard.samples)]
    if sha256_of(file) != shard.sha256:
        return _changed_samples(folder, number, shard)
    if not decode:
        return []
    scan = scan_shard(file, corpus=corpus, layout=layout, name=shard.file, baked_side=baked_side, decode=True)
    return [fault for fault in scan.faults if (fault.shard, fault.key, fault.reason) not in known]


def _changed_samples(folder: Path, number: int, shard: ShardInfo) -> list[Dropped]:
    """The samples that a changed shard no longer holds as they were; one fault for the shard in any case."""
    reader = CorpusReader(folder, check_shards=False)
    faults = [Dropped(reader.manifest.corpus, shard.file, "", "its SHA-256 is not the manifest's", 0)]
    for sample in range(int(reader.shard_starts[number]), int(reader.shard_starts[number + 1])):
        try:
            if reader.record(sample).has_image:
                reader.image(sample)
        except DataError as error:
            faults.append(reader.dropped(sample, error))
    return faults
