"""Writes small datasets and builds them as a user does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.cli import main as cli
from minigptv2.shards.reader import CorpusReader
from tests.corpora.miniatures.files import jpeg, put
from tests.corpora.own_data import HERE

Found = dict[str, list[tuple[str, Box]]]


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Write files by their path. A number is the JPEG of this seed, 64 x 48 pixels."""
    for name, content in files.items():
        put(folder / name, jpeg(content) if isinstance(content, int) else content)
    return folder


def build(path: Path, *words: str) -> int:
    """The exit code of a build into `out` beside the dataset."""
    return cli(["shards", "build", str(path), "--output", str(path.parent / "out"), *HERE, *words])


def boxes(folder: Path) -> Found:
    """The phrases and boxes of each image in a corpus, by its id. A phrase without boxes is left out."""
    reader = CorpusReader(folder)
    found: Found = {}
    for record in map(reader.record, range(len(reader))):
        regions = [region for turn in record.turns for region in turn.regions]
        found[record.source["id"]] = [(region.phrases[0], box) for region in regions for box in region.boxes]
    return found


def captions(folder: Path) -> dict[str, tuple[str, ...]]:
    """The answers of each image in a corpus, by its id."""
    reader = CorpusReader(folder)
    return {record.source["id"]: record.turns[0].answers for record in map(reader.record, range(len(reader)))}
