"""Makes the small toy world that items compute with: shards, a tokenizer, recipes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from tests.golden.adapter import find, render, write_corpus
from tests.golden.values import REPOSITORY

TOY_CORPORA = ("weak", "caption", "grounding", "refer", "identify", "vqa", "detection", "conversation", "language")
TOY_OF_TASK = {"mixed": "conversation"}
"""The toy corpus that stands in for corpora of a task; a task that is not listed has a toy corpus of its own name."""


def make_world(
    root: Path, *, corpora: tuple[str, ...] = TOY_CORPORA, train: int = 40, val: int = 8, vocabulary: int = 640
) -> None:
    """Write `root`/train and `root`/val with shards of `corpora`, and `root`/tokenizer."""
    for split, count in (("train", train), ("val", val)):
        for corpus in corpora:
            name = f"toy_{corpus}"
            write(find("toy_samples")(corpus, count, Path(), split), root / split / name, 9)
    find("train_tokenizer")(_texts(root / "train"), root / "tokenizer", vocabulary)


def write(samples: Any, folder: Path, samples_per_shard: int) -> None:
    """Write `samples` as a corpus that is named after its folder."""
    write_corpus(samples, folder, folder.name, samples_per_shard=samples_per_shard)


def make_stand_ins(shards: Path, recipe: Any) -> None:
    """Write a small synthetic corpus for every corpus of `recipe` that is not yet there, of the recipe's task."""
    for name, share in recipe.corpora.items():
        if not (shards / name).exists():
            count = 8 + zlib.crc32(name.encode()) % 40
            toy = name.removeprefix("toy_") if name.startswith("toy_") else TOY_OF_TASK.get(share.task, share.task)
            samples = find("toy_samples")(toy, count, Path(), name)
            write(samples if share.task == "mixed" else _of_task(samples, share.task), shards / name, 7)


def _of_task(samples: Any, task: str) -> Iterator[Any]:
    """Yield the samples with their turns of one task; samples without such a turn are left out."""
    for sample in samples:
        turns = tuple(turn for turn in sample.record.turns if turn.task == task)
        if turns:
            yield replace(sample, record=replace(sample.record, turns=turns))


def shipped_recipes() -> list[Path]:
    """Return the files in `data_recipes/`."""
    return sorted((REPOSITORY / "data_recipes").glob("*.yaml"))


def _texts(shards: Path) -> Iterator[str]:
    """Yield questions and answers of all samples below `shards`, for the tokenizer."""
    for folder in sorted(shards.iterdir()):
        reader = find("CorpusReader")(folder)
        for sample in range(len(reader)):
            record = reader.record(sample)
            for number, turn in enumerate(record.turns):
                yield from render(turn, record.width or 0, record.height or 0, Random(f"{sample}/{number}"))
