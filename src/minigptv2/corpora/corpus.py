"""What a corpus is to the rest: a row with its source, licence, counts, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw


@dataclass(frozen=True)
class CorpusSpec:
    """How to build a corpus. `drafts` yields, in a fixed order, what is to be stored and what is left out at once.

    `expected` is, by split, how many annotations (questions, objects, captioned pictures, conversations) a complete
    download holds, those included whose pictures are missing; None where nobody printed it or the annotations come
    with pictures from links, which have died. `stages` is empty for evaluation only.
    """

    name: str
    drafts: Callable[[Raw, str], Iterator[Draft | Rejected]]
    tasks: tuple[str, ...]
    expected: dict[str, int | None]
    license: str
    title: str = ""
    stages: tuple[int, ...] = ()
    download: str = ""
    size: str = ""
    """What the original files take on disk."""
    samples_per_shard: int = 1000
    counted: str = "samples"
    """What `expected` counts."""
    train_images: int | None = None
    """Pictures of a complete `train` split, where what is counted are several questions about each."""
    is_own: bool = False
    """Made of a file of the user's own."""

    @property
    def has_files(self) -> bool:
        """Whether it is read from files that somebody has to get, not drawn or brought by packages."""
        return bool(self.size)

    @property
    def train_samples(self) -> int | None:
        """Samples that a complete `train` split makes, about; None where nobody knows."""
        several = self.counted in ("questions", "objects", "regions", "turns", "statements", "instances")
        return self.train_images if several else self.expected.get("train")

    def raw(self, root: Path) -> Raw:
        """The original files under `root`."""
        return Raw(root, self.name, self.download)
