"""Measures a corpus: exact counts from its manifest, distributions from samples that are evenly spread over it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigptv2.errors import DataError
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader

_SHARES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class CorpusMeasures:
    """The counts of a corpus, and distributions over `records_read` of its records."""

    title: str
    samples: int
    images: int
    shards: int
    bytes: int
    dropped: int
    """Samples of the source that were left out of the shards."""
    layout: str
    baked_side: int | None
    """Side in pixels of the stored images, None if they have their original sizes."""
    license: str
    turns: dict[str, int]
    """Turns by task."""
    records_read: int
    records_damaged: int
    distributions: dict[str, list[float]]
    """5 %, median and 95 % of each measure of the intact records."""


def measure_corpus(folder: Path, samples: int) -> CorpusMeasures:
    """The measures of a corpus, from at most `samples` of its records. Raises `DataError` without a valid manifest."""
    reader = CorpusReader(folder)
    manifest = reader.manifest
    records, damaged = [], 0
    for sample in spread(len(reader), samples):
        try:
            records.append(reader.record(sample))
        except DataError:
            damaged += 1
    return CorpusMeasures(
        title=manifest.title,
        samples=manifest.samples,
        images=manifest.images,
        shards=len(manifest.shards),
        bytes=int(manifest.shards.bytes),
        dropped=manifest.dropped,
        layout=manifest.layout,
        baked_side=manifest.baked_side,
        license=manifest.license,
        turns=dict(sorted(manifest.turns.items())),
        records_read=len(records) + damaged,
        records_damaged=damaged,
        distributions={
            name: np.quantile(values, _SHARES).tolist() for name, values in _measures(records).items() if values
        },
    )


def describe_corpus(folder: Path, samples: int) -> str:
    """The measures of a corpus as a few lines of text."""
    corpus = measure_corpus(folder, samples)
    size = f"resized to {corpus.baked_side} px" if corpus.baked_side else "in their original sizes"
    lines = [
        f"{corpus.title}: {corpus.samples:,} samples, {corpus.images:,} with an image; "
        f"{corpus.shards:,} shards, {corpus.bytes / 1e6:,.1f} MB; {corpus.dropped:,} dropped when it was built",
        f"  layout {corpus.layout}; images {size}; license {corpus.license or 'unknown'}",
        "  turns: " + ", ".join(f"{count:,} {task}" for task, count in corpus.turns.items()),
        f"  {corpus.records_damaged:,} of {corpus.records_read:,} records read are damaged; "
        "5 %, median, 95 % of the others:",
    ]
    for name, values in corpus.distributions.items():
        lines.append(f"  {name:<28} " + "  ".join(f"{value:>8,.1f}" for value in values))
    return "\n".join(lines)


@dataclass(frozen=True)
class ShardSize:
    """One shard of a corpus, as its manifest has it."""

    file: str
    samples: int
    bytes: int
    sha256: str


def list_shards(folder: Path) -> list[ShardSize]:
    """The shards of a corpus. Raises `DataError` without a valid manifest."""
    shards = CorpusReader(folder).manifest.shards
    return [ShardSize(str(one.file), int(one.samples), int(one.bytes), str(one.sha256)) for one in shards]


def describe_shards(folder: Path) -> str:
    """A line for every shard: file, samples, bytes, SHA-256."""
    return "\n".join(
        f"  {one.file}  {one.samples:>7,} samples  {one.bytes:>13,} bytes  {one.sha256}" for one in list_shards(folder)
    )


def spread(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total), dtype=np.int64)).tolist()


def _measures(records: list[Record]) -> dict[str, list[float]]:
    turns = [turn for record in records for turn in record.turns]
    boxes = [
        (100 * box.area / ((record.width or 1) * (record.height or 1)))
        for record in records
        for turn in record.turns
        for region in turn.regions
        for box in region.boxes
    ]
    return {
        "image width, px": [record.width for record in records if record.width],
        "image height, px": [record.height for record in records if record.height],
        "turns per sample": [len(record.turns) for record in records],
        "answer, characters": [len(answer) for turn in turns for answer in turn.answers],
        "accepted answers per turn": [len(turn.answers) for turn in turns if turn.answers],
        "regions per turn": [len(turn.regions) for turn in turns if turn.regions],
        "box, % of the image": boxes,
    }
