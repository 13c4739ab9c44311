"""What a corpus holds, in figures: exact ones from its manifest, distributions from samples evenly spread over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minigptv2.errors import DataError
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader

_SHARES = (0.05, 0.5, 0.95)


def describe_corpus(folder: Path, samples: int) -> str:
    """A few lines: counts, sizes, and what `samples` of its records look like."""
    reader = CorpusReader(folder)
    manifest = reader.manifest
    lines = [
        f"{manifest.title}: {manifest.samples:,} samples, {manifest.images:,} with an image; "
        f"{len(manifest.shards):,} shards, {manifest.shards.bytes / 1e6:,.1f} MB; "
        f"{manifest.dropped:,} left out when it was made",
        f"  layout {manifest.layout}; images "
        + (f"baked to {manifest.baked_side} px" if manifest.baked_side else "as they came")
        + f"; licence {manifest.license or 'not said'}",
        "  turns: " + ", ".join(f"{count:,} {task}" for task, count in sorted(manifest.turns.items())),
    ]
    records, bad = [], 0
    for sample in spread(len(reader), samples):
        try:
            records.append(reader.record(sample))
        except DataError:
            bad += 1
    looked_into = len(records) + bad
    lines.append(f"  of {looked_into:,} records looked into {bad:,} are damaged; 5 %, median, 95 % of the others:")
    lines += [f"  {name:<28} {_spread_of(values)}" for name, values in _measures(records).items() if values]
    return "\n".join(lines)


def describe_shards(folder: Path) -> str:
    """A line for every shard: file, samples, bytes, SHA-256."""
    shards = CorpusReader(folder).manifest.shards
    return "\n".join(f"  {s.file}  {s.samples:>7,} samples  {s.bytes:>13,} bytes  {s.sha256}" for s in shards)


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
        "turns a sample": [len(record.turns) for record in records],
        "answer, characters": [len(answer) for turn in turns for answer in turn.answers],
        "accepted answers a turn": [len(turn.answers) for turn in turns if turn.answers],
        "regions a turn": [len(turn.regions) for turn in turns if turn.regions],
        "box, % of the image": boxes,
    }


def _spread_of(values: list[float]) -> str:
    return "  ".join(f"{value:>8,.1f}" for value in np.quantile(values, _SHARES))
