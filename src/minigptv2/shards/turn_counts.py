"""Number of separate turns of each sample of a corpus: the file `turns.npy` beside the index.

A record of separate turns (`Record.separate`) holds several questions about one image. A plan that samples by turn
has to find the n-th turn of a corpus without reading records. The file holds, for each sample, the number of turns of
its shard up to and including that sample, and the shard table holds the total of each shard. Both exist only if some
record has several separate turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigptv2.errors import DataError
from minigptv2.shards.arrays import map_array

TURNS_FILE = "turns.npy"
TURNS_DTYPE = np.dtype("<u4")


@dataclass(frozen=True)
class TurnCounts:
    """The turns of a corpus.

    `shard_starts` int64 [shards + 1]: number of each shard's first sample, then the total. `starts` int64 [shards + 1]:
    number of each shard's first turn, then the total. `cumulative` uint32 [samples], memory-mapped: turns of the shard
    up to and including the sample.
    """

    shard_starts: np.ndarray
    starts: np.ndarray
    cumulative: np.ndarray

    def of_shard(self, shard: int) -> np.ndarray:
        """uint32 [samples of the shard]: turns up to and including each sample."""
        counts: np.ndarray = self.cumulative[self.shard_starts[shard] : self.shard_starts[shard + 1]]
        return counts

    def faults(self) -> list[tuple[int, str]]:
        """Shards whose counts contradict the table or themselves, with the reason."""
        found = []
        for shard in range(len(self.starts) - 1):
            counts = self.of_shard(shard).astype(np.int64)
            total = int(self.starts[shard + 1] - self.starts[shard])
            if (np.diff(counts, prepend=0) < 1).any():
                found.append((shard, f"{TURNS_FILE} states a sample without turns"))
            elif len(counts) and counts[-1] != total:
                found.append((shard, f"{TURNS_FILE} states {counts[-1]} turns, the shard table {total}"))
        return found


def open_turn_counts(folder: Path, sha256: str, shard_starts: np.ndarray, starts: np.ndarray) -> TurnCounts:
    """The turn counts of a corpus folder. Raises `DataError` if the file does not match the manifest."""
    cumulative = map_array(folder / TURNS_FILE, sha256, int(shard_starts[-1]))
    if cumulative.dtype != TURNS_DTYPE:
        raise DataError(f"{folder / TURNS_FILE}: entries are {cumulative.dtype}, expected {TURNS_DTYPE}")
    return TurnCounts(shard_starts, starts, cumulative)
