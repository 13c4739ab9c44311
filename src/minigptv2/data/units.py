"""Numbers the units that a corpus is sampled by: images, separate turns, or groups of turns that share their image.

An epoch of a corpus has every unit once. A unit is found by search in the corpus's turn counts, without reading a
record, and `turns_of` says which turns of the record it trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from random import Random

import numpy as np

from minigptv2.data.config import BY_TURN, CorpusShare
from minigptv2.errors import DataError
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.remote import is_remote, public_url
from minigptv2.shards.turn_counts import TurnCounts

_CACHED_SHARDS = 64
"""Shards whose groups stay in memory: those of a few shuffle windows."""


class Units:
    """The units of one corpus under its line of the recipe. Unit numbers follow the order of shards and samples.

    Raises `DataError` if the corpus has to be sampled by turn and does not state how many turns its samples have.
    """

    def __init__(self, name: str, share: CorpusShare, reader: CorpusReader) -> None:
        self.share_images = share.share_images
        self.num_shards = len(reader.manifest.shards)
        check_turn_counts({name: (share, reader)})
        self._counts = reader.turn_counts if share.sample_by == BY_TURN else None
        if self._counts is None:
            self.starts = reader.shard_starts
        elif self.share_images == 1:
            self.starts = self._counts.starts
        else:
            self.starts = _group_starts(self._counts, self.share_images)
        self._groups = lru_cache(maxsize=_CACHED_SHARDS)(self._groups_of_shard)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def by_turn(self) -> bool:
        """Whether a unit is a turn or a group of turns, and not a whole sample."""
        return self._counts is not None

    def locate(self, unit: int) -> tuple[int, int]:
        """The sample that a unit belongs to, and the unit's number within it (0 if the sample is the unit)."""
        if self._counts is None:
            return unit, 0
        shard = int(np.searchsorted(self.starts, unit, side="right")) - 1
        within = unit - int(self.starts[shard])
        ends = self._counts.of_shard(shard) if self.share_images == 1 else self._groups(shard)
        number = int(np.searchsorted(ends, ends.dtype.type(within), side="right"))  # of one dtype: else all is cast
        return int(self._counts.shard_starts[shard]) + number, within - (int(ends[number - 1]) if number else 0)

    def turns_of(self, record: Record, part: int, epoch: int, seed_key: str) -> list[int] | None:
        """Numbers of the turns that unit `part` of `record` trains in `epoch`, in order. None: the record as it is.

        Groups of turns are drawn in each epoch: a permutation of the turns, cut into parts of nearly equal size. If
        the unit is an image, the next `share_images` turns follow each other over the epochs, in an order of the
        sample's own. `seed_key` identifies seed, corpus and sample. Raises `DataError` if the record has no such unit.
        """
        count = record.annotations
        if count == 1 and part == 0:
            return None
        if not self.by_turn:
            return _next_turns(count, epoch, self.share_images, seed_key)
        groups = -(-count // self.share_images)
        if part >= groups:
            raise DataError(
                f": it has {count} separate turns, fewer than the turn counts of the corpus state; "
                "`minigptv2 shards index` writes them again"
            )
        if self.share_images == 1:
            return [part]
        order = list(range(count))
        Random(f"{seed_key}/{epoch}/groups").shuffle(order)
        return order[count * part // groups : count * (part + 1) // groups]

    def _groups_of_shard(self, shard: int) -> np.ndarray:
        """int64 [samples of the shard]: groups of turns up to and including each sample."""
        assert self._counts is not None
        return np.cumsum(_groups_of(self._counts.of_shard(shard), self.share_images))


def check_turn_counts(lines: Mapping[str, tuple[CorpusShare, CorpusReader]]) -> None:
    """Raise one `DataError` that names every corpus that is sampled by turn and does not know its turns."""
    unknown = {
        name: reader
        for name, (share, reader) in lines.items()
        if share.sample_by == BY_TURN and not reader.counts_turns
    }
    if not unknown:
        return
    one = len(unknown) == 1
    names, folders = ", ".join(f"'{name}'" for name in unknown), [reader.folder for reader in unknown.values()]
    shown = [f"a local copy of {public_url(str(f))}" if is_remote(f) else str(f) for f in folders]
    raise DataError(
        f"{'corpus' if one else 'corpora'} {names} {'is' if one else 'are'} sampled by turn, but built by version 0.1, "
        f"which did not store how many separate turns each sample has. Run `minigptv2 shards index` on "
        f"{' and on '.join(shown)}: it writes the counts and keeps the shards. Or set sample_by: image for "
        f"{'it' if one else 'them'} in the recipe, which trains one turn of each sample per epoch"
    )


def _groups_of(cumulative: np.ndarray, size: int) -> np.ndarray:
    """int64 [samples]: number of groups of at most `size` turns of each sample of a shard."""
    return -(-np.diff(cumulative.astype(np.int64), prepend=0) // size)


def _group_starts(counts: TurnCounts, size: int) -> np.ndarray:
    """int64 [shards + 1]: number of each shard's first group, then the total. Reads all turn counts."""
    totals = [int(_groups_of(counts.of_shard(shard), size).sum()) for shard in range(len(counts.starts) - 1)]
    return np.cumsum([0, *totals], dtype=np.int64)


def _next_turns(num_turns: int, epoch: int, count: int, seed_key: str) -> list[int]:
    order = list(range(num_turns))
    Random(seed_key).shuffle(order)
    count = min(count, num_turns)
    return [order[(epoch * count + number) % num_turns] for number in range(count)]
