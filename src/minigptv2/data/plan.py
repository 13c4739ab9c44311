"""The data plan: one global, infinite sequence of sample ids, a pure function of (seed, recipe, manifests).

Per corpus a block shuffle (shards permuted per epoch, samples shuffled inside a window of shards); corpora
interleaved on a wheel so that every prefix keeps the ratios. Any position is reached by arithmetic, so the state of
the data is one integer. World size and workers do not appear: they only decide who reads what.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from minigptv2.config import load_config
from minigptv2.data.config import Recipe
from minigptv2.data.reader import CorpusReader
from minigptv2.errors import ConfigError, DataError, nearest
from minigptv2.record import TASK_NAMES

UNITS = ("sample",)
MIXED = "mixed"
WHEEL = 10_000
"""Samples per turn of the interleaving wheel: ratios hold to 1 / WHEEL of the mixture."""


@dataclass(frozen=True, slots=True)
class SampleId:
    """Which sample, and its how-manieth visit: corpus number in the recipe, sample number in the corpus, epoch."""

    corpus: int
    sample: int
    epoch: int


def load_recipe(file: str | Path) -> Recipe:
    """The recipe in a YAML file. Raises `ConfigError` for unknown keys, tasks or units and impossible ratios."""
    recipe = load_config(Recipe, file).value
    if not recipe.corpora:
        raise ConfigError(f"{file}: the recipe names no corpora")
    if recipe.unit not in UNITS:
        raise ConfigError(f"{file}: unit '{recipe.unit}' is not one of {', '.join(UNITS)}")
    if recipe.shuffle_window < 1:
        raise ConfigError(f"{file}: shuffle_window={recipe.shuffle_window} must be at least 1")
    for name, share in recipe.corpora.items():
        if share.task not in (*TASK_NAMES, MIXED):
            hint = nearest(share.task, (*TASK_NAMES, MIXED))
            raise ConfigError(
                f"{file}: corpus '{name}' has unknown task '{share.task}'{hint} "
                f"Known: {', '.join(TASK_NAMES)}, {MIXED}."
            )
        if not share.ratio > 0:
            raise ConfigError(f"{file}: corpus '{name}' has ratio {share.ratio}; a ratio is positive")
    return recipe


class DataPlan:
    """The sequence of samples of one stage.

    `corpora` are readers in the recipe's order. Building it checks that every corpus is there and has the task that
    the recipe says.
    """

    def __init__(self, recipe: Recipe, shards: Path, seed: int) -> None:
        self.recipe = recipe
        self.seed = seed
        self.names = list(recipe.corpora)
        self.corpora = [CorpusReader(shards / (share.shards or name)) for name, share in recipe.corpora.items()]
        for (name, share), reader in zip(recipe.corpora.items(), self.corpora, strict=True):
            others = set(reader.manifest.turns) - {share.task}
            if share.task != MIXED and others:
                raise DataError(
                    f"corpus '{name}' is task '{share.task}' in the recipe, but its shards also hold "
                    f"{', '.join(sorted(others))}; say task: {MIXED}"
                )
        self.shares = np.array([share.ratio for share in recipe.corpora.values()], dtype=np.float64)
        self.shares /= self.shares.sum()
        self._wheel, self._rank_in_wheel, self._per_wheel = _build_wheel(self.shares)
        self._window_order = lru_cache(maxsize=256)(self._shuffle_window)
        self._shard_order = lru_cache(maxsize=64)(self._shuffle_shards)

    def sample_at(self, position: int) -> SampleId:
        """The sample at `position` (0-based) of the global sequence."""
        turn, spoke = divmod(position, WHEEL)
        corpus = int(self._wheel[spoke])
        nth = turn * int(self._per_wheel[corpus]) + int(self._rank_in_wheel[spoke])
        epoch, within = divmod(nth, len(self.corpora[corpus]))
        return SampleId(corpus, self._sample_in_epoch(corpus, epoch, within), epoch)

    def samples(self, start: int, count: int) -> list[SampleId]:
        """The samples at positions start .. start + count - 1."""
        return [self.sample_at(position) for position in range(start, start + count)]

    def name_of(self, sample: SampleId) -> str:
        """Where a sample lies, and its visit, for people: `corpus: shard / key (epoch 0)`."""
        return f"{self.names[sample.corpus]}: {self.corpora[sample.corpus].where(sample.sample)} (epoch {sample.epoch})"

    def corpus_counts(self, start: int, count: int) -> Counter[str]:
        """How many of the `count` samples from `start` on come from each corpus, by name."""
        turns, rest = divmod(count, WHEEL)
        counts = self._per_wheel * turns
        spokes = (start + np.arange(rest)) % WHEEL
        counts = counts + np.bincount(self._wheel[spokes], minlength=len(self.names))
        return Counter({name: int(n) for name, n in zip(self.names, counts, strict=True)})

    def fingerprint(self) -> str:
        """SHA-256 over seed, recipe and manifests: equal fingerprints mean the same global sequence."""
        identity = {
            "seed": self.seed,
            "recipe": asdict(self.recipe),
            "manifests": [reader.manifest.fingerprint for reader in self.corpora],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _sample_in_epoch(self, corpus: int, epoch: int, within: int) -> int:
        order, ends = self._shard_order(corpus, epoch)
        window = int(np.searchsorted(ends, within, side="right"))
        start = int(ends[window - 1]) if window else 0
        return int(self._window_order(corpus, epoch, window)[within - start])

    def _shuffle_shards(self, corpus: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards' order in this epoch, and the running sample count at the end of each window of shards."""
        reader = self.corpora[corpus]
        order = _generator(self.seed, corpus, epoch).permutation(len(reader.manifest.shards))
        counts = np.diff(reader.shard_starts)[order]
        window = self.recipe.shuffle_window
        return order, np.cumsum(np.add.reduceat(counts, np.arange(0, len(order), window)))

    def _shuffle_window(self, corpus: int, epoch: int, window: int) -> np.ndarray:
        order, _ = self._shard_order(corpus, epoch)
        size = self.recipe.shuffle_window
        starts = self.corpora[corpus].shard_starts
        shards = order[window * size : (window + 1) * size]
        samples = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in shards])
        return _generator(self.seed, corpus, epoch, window).permutation(samples)


def _generator(seed: int, *path: int) -> np.random.Generator:
    """A random stream of its own for each (seed, corpus, epoch[, window])."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))


def _build_wheel(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corpus of each spoke, how many earlier spokes that corpus has, spokes per corpus.

    Counts by largest remainder, at least one each; then each spoke goes to the corpus furthest behind its share, so
    every prefix of the wheel keeps the ratios to within one sample per corpus.
    """
    exact = shares * WHEEL
    counts = np.maximum(1, np.floor(exact)).astype(np.int64)
    while counts.sum() != WHEEL:
        step = 1 if counts.sum() < WHEEL else -1
        eligible = np.where((counts + step) >= 1, (exact - counts) * step, -np.inf)
        counts[int(np.argmax(eligible))] += step
    wheel = np.empty(WHEEL, dtype=np.int64)
    rank = np.empty(WHEEL, dtype=np.int64)
    taken = np.zeros(len(shares), dtype=np.int64)
    for spoke in range(WHEEL):
        behind = np.where(taken < counts, counts * (spoke + 1) / WHEEL - taken, -np.inf)
        corpus = int(np.argmax(behind))
        wheel[spoke], rank[spoke] = corpus, taken[corpus]
        taken[corpus] += 1
    return wheel, rank, counts
