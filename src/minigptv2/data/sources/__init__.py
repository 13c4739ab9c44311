"""The corpora that can be built into shards, one row each. A corpus is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minigptv2.data.shards import Sample
from minigptv2.data.sources import photographs, toy


@dataclass(frozen=True)
class Corpus:
    """How to build a corpus: `samples(root, split)` yields what is stored; `expected` counts samples by split."""

    samples: Callable[[Path, str], Iterator[Sample]]
    tasks: tuple[str, ...]
    expected: dict[str, int]
    license: str
    samples_per_shard: int = 1000


def _toy(corpus: str, train: int, task: str | None = None) -> Corpus:
    sizes = {"train": train, "val": 300}
    return Corpus(
        samples=lambda root, split: toy.samples(corpus, sizes[split], root, split),
        tasks=(task or corpus,),
        expected=sizes,
        license="Apache-2.0",
        samples_per_shard=500,
    )


CORPORA: dict[str, Corpus] = {
    "toy_weak": _toy("weak", 8000, "caption"),
    "toy_caption": _toy("caption", 16000),
    "toy_grounding": _toy("grounding", 12000),
    "toy_refer": _toy("refer", 28000),
    "toy_identify": _toy("identify", 40000),
    "toy_vqa": _toy("vqa", 52000),
    "toy_detection": _toy("detection", 8000),
    "toy_conversation": _toy("conversation", 6000, "mixed"),
    "toy_language": _toy("language", 2000),
    "photographs": Corpus(photographs.samples, ("mixed",), {"train": 105}, "see each photograph's record", 50),
}

__all__ = ["CORPORA", "Corpus"]
