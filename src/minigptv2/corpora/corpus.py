"""Defines the specification of a corpus: its source, license, counts, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw

MIXED = ("mixed",)
"""`CorpusSpec.tasks` of a corpus whose samples may be of any task."""


@dataclass(frozen=True)
class CorpusSpec:
    """How to build a corpus. `drafts` yields, in a fixed order, drafts of samples, and what is rejected immediately.

    `expected` is the number of annotations (questions, objects, captioned images, conversations) of a complete
    download by split, including those whose images are missing. None if no number was published, or if the images
    are loaded from links, some of which no longer work. `stages` is empty if no stage uses it (`purpose`). `tasks`
    lists the tasks of all turns, or is `MIXED`. A build fails at a turn of another task.
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
    """Disk space of the original files. Empty: the corpus has no files and is listed as `demo`."""
    samples_per_shard: int = 1000
    counted: str = "samples"
    """Unit of `expected`."""
    train_images: int | None = None
    """Images of a complete `train` split, if `expected` counts several questions about each."""
    train_turns: int | None = None
    """Approximate number of questions of a `train` split, if `expected` does not state it."""
    purpose: str = "evaluation"
    """What it is for if no stage uses it, as the list of corpora prints it."""
    is_own: bool = False
    """Whether it is made from a file of the user."""
    has_any_split: bool = False
    """Whether its splits are known only when it is read. `drafts` raises `DataError` for one that does not exist."""
    strict: bool = False
    """Whether an image that cannot be used ends the build, naming all of them. Otherwise they are left out."""

    @property
    def has_files(self) -> bool:
        """Whether it is read from files that have to be downloaded, not drawn or installed by pip."""
        return bool(self.size)

    def train_samples(self, *, by_turn: bool, share_images: int = 1) -> int | None:
        """Approximate number of samples of a complete `train` split. None if unknown.

        `by_turn` and `share_images` are those of a recipe. The number of groups of turns of one image is not known.
        """
        turns = self.expected.get("train") or self.train_turns
        if self.counted not in ("questions", "objects", "regions", "turns", "statements", "instances"):
            return turns
        if not by_turn:
            return self.train_images
        return turns if share_images == 1 else None

    def raw(self, root: Path) -> Raw:
        """Access to the original files under `root`."""
        return Raw(root, self.name, self.download)
