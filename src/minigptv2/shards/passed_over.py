"""Names what a corpus folder holds and does not use: members of tars, later frames of images, samples left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from minigptv2.errors import counted
from minigptv2.shards.tar import printable
from minigptv2.shards.tar_samples import MACOS, TarContent, split_name

MAX_NAMED = 20
"""The most files, members or samples that one line names."""


def first_names(names: list[str], number: int | None = None) -> str:
    """The names, as many as fit a message, and how many of `number` (default: all) are not listed."""
    hidden = (len(names) if number is None else number) - min(len(names), MAX_NAMED)
    return ", ".join(names[:MAX_NAMED]) + (f" and {hidden:,} more" if hidden else "")


@dataclass
class Named:
    """A number of things, and the names of the first of them."""

    number: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, names: Iterable[str]) -> None:
        """Count the names, and keep the first."""
        for name in names:
            self.number += 1
            if len(self.names) < MAX_NAMED:
                self.names.append(name)

    def merge(self, other: Named) -> None:
        """Add those of another shard."""
        self.number += other.number
        self.names = (self.names + other.names)[:MAX_NAMED]

    def __str__(self) -> str:
        return first_names(self.names, self.number)


@dataclass
class PassedOver:
    """What of some tars is not used. `kinds` counts the extra members by extension."""

    macos: Named = field(default_factory=Named)
    extras: Named = field(default_factory=Named)
    kinds: Counter[str] = field(default_factory=Counter)
    later_frames: Named = field(default_factory=Named)
    """Images with several frames or pages, of which the first is used."""
    other_texts: Named = field(default_factory=Named)
    """Texts beside a json that says something else, and is what is used."""
    left_out: Named = field(default_factory=Named)
    """Samples that were left out when the corpus was indexed."""

    def add_members(self, shard: str, content: TarContent, *, extras: bool = True) -> None:
        """Add the members of a tar that macOS added, and with `extras` those that are no image, json or txt."""
        self.macos.add(f"{shard} / {printable(name)}" for name in content.macos)
        found = content.extras() if extras else []
        self.extras.add(f"{shard} / {printable(name)}" for name in found)
        self.kinds.update(f".{split_name(name)[1]}" for name in found)

    def merge(self, other: PassedOver) -> None:
        """Add what another shard holds."""
        self.kinds += other.kinds
        for mine, theirs in zip(self._all(), other._all(), strict=True):
            mine.merge(theirs)

    def lines(self) -> list[str]:
        """One line for each kind of thing."""
        kinds = ", ".join(f"{count:,} {extension}" for extension, count in sorted(self.kinds.items()))
        heads = (
            f"passed over {self.macos.number:,} {MACOS}",
            f"passed over {counted(self.extras.number, 'members')} not an image, json or txt ({kinds})",
            f"used the first frame or page of {counted(self.later_frames.number, 'images')} with several",
            f"used the json of {counted(self.other_texts.number, 'samples')} whose txt says something else",
            f"left out when indexed: {counted(self.left_out.number, 'samples')}",
        )
        return [f"{head}: {named}" for head, named in zip(heads, self._all(), strict=True) if named.number]

    def _all(self) -> tuple[Named, ...]:
        return self.macos, self.extras, self.later_frames, self.other_texts, self.left_out
