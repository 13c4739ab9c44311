"""What writer processes import in tests: light, so that they start at once."""

from __future__ import annotations

from pathlib import Path

from minigptv2.record import Record
from minigptv2.shards.shard_file import IMAGE_MISSING, Rejected, Sample


def open_file(item: tuple[str, Record, str]) -> tuple[Sample | None, list[Rejected]]:
    """What a source's `finish` does: read the picture in the worker, say what is missing."""
    key, record, file = item
    if not Path(file).exists():
        return None, [Rejected(key, IMAGE_MISSING, 3, (file,))]
    return Sample(key, record, Path(file).read_bytes()), []
