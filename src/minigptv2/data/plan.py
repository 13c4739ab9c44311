"""The data plan: one global sequence of sample ids, a pure function of (seed, recipe, manifests).

`mixture` says which corpus a position belongs to; here its samples get their order: per corpus a block shuffle (shards
permuted per epoch, samples shuffled inside a window of shards). Any position is reached by arithmetic, so the state
of the data is one integer. World size and workers do not appear: they only decide who reads what.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np

from minigptv2.config import load_config
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.mixture import MIXED, Mixture, check_recipe
from minigptv2.errors import ConfigError, DataError
from minigptv2.prompt import Example, PromptEncoder, share_image
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.remote import below

MEASURED_SAMPLES = 256
"""Samples of a corpus, evenly spread, whose lengths stand for all of them where ratios count tokens."""


@dataclass(frozen=True, slots=True)
class SampleId:
    """Which sample, and its how-manieth visit: corpus number in the recipe, sample number in the corpus, epoch."""

    corpus: int
    sample: int
    epoch: int


def load_recipe(file: str | Path) -> Recipe:
    """The recipe in a YAML file. Raises `ConfigError` for unknown keys, tasks or units and impossible ratios."""
    recipe = load_config(Recipe, file).value
    check_recipe(recipe, str(file))
    return recipe


class DataPlan:
    """The sequence of samples of one stage.

    `corpora` are readers in the recipe's order. Building it checks that every corpus is there and has the task that
    the recipe says. `global_batch_size` gives the steps of schedules their meaning; `encoder` measures lengths where
    ratios count tokens. Raises `ConfigError` where a recipe needs one that is not given.
    """

    def __init__(
        self,
        recipe: Recipe,
        shards: Path | str,
        seed: int,
        *,
        global_batch_size: int | None = None,
        encoder: PromptEncoder | None = None,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.names = list(recipe.corpora)
        self.corpora = [CorpusReader(below(shards, share.shards or name)) for name, share in recipe.corpora.items()]
        for (name, share), reader in zip(recipe.corpora.items(), self.corpora, strict=True):
            others = set(reader.manifest.turns) - {share.task}
            if share.task != MIXED and others:
                raise DataError(
                    f"corpus '{name}' is task '{share.task}' in the recipe, but its shards also hold "
                    f"{', '.join(sorted(others))}; say task: {MIXED}"
                )
        scheduled = any(share.schedule for share in recipe.corpora.values())
        if scheduled and global_batch_size is None:
            raise ConfigError("the recipe has schedules over steps: the plan needs the global batch size")
        self._steps_of = global_batch_size if scheduled else None
        self._tokens = self._mean_tokens(encoder) if recipe.unit == "token" else None
        self.mixture = Mixture(
            recipe,
            [len(reader) for reader in self.corpora],
            tokens=self._tokens,
            global_batch_size=global_batch_size or 1,
        )
        self.shares = self.mixture.shares
        self._window_order = lru_cache(maxsize=2 * len(self.names) + 2)(self._shuffle_window)
        self._shard_order = lru_cache(maxsize=2 * len(self.names) + 2)(self._shuffle_shards)

    @property
    def length(self) -> int | None:
        """Samples until every corpus has had its epochs; None: without end."""
        return self.mixture.length

    @property
    def shares_images(self) -> bool:
        """Whether question-answer pairs of an image share its tokens in some corpus."""
        return any(share.share_images > 1 for share in self.recipe.corpora.values())

    def samples(self, start: int, count: int) -> list[SampleId]:
        """The samples at positions start .. start + count - 1."""
        ids = []
        for corpus, nth in zip(*(part.tolist() for part in self.mixture.draw(start, count)), strict=True):
            epoch, within = divmod(nth, len(self.corpora[corpus]))
            ids.append(SampleId(corpus, self._sample_in_epoch(corpus, epoch, within), epoch))
        return ids

    def name_of(self, sample: SampleId) -> str:
        """Where a sample lies, and its visit, for people: `corpus: shard / key (epoch 0)`."""
        return f"{self.names[sample.corpus]}: {self.corpora[sample.corpus].where(sample.sample)} (epoch {sample.epoch})"

    def corpus_counts(self, start: int, count: int) -> Counter[str]:
        """How many of the `count` samples from `start` on come from each corpus, by name."""
        counts = self.mixture.counts(start + count) - self.mixture.counts(start)
        return Counter({name: int(n) for name, n in zip(self.names, counts, strict=True)})

    def encode(self, sample: SampleId, encoder: PromptEncoder) -> Example:
        """The sample's example, its wording drawn by (seed, corpus, sample, epoch) alone. Raises `DataError` if bad."""
        name = self.names[sample.corpus]
        return encode_sample(
            self.corpora[sample.corpus],
            sample.sample,
            sample.epoch,
            encoder,
            share_images=self.recipe.corpora[name].share_images,
            seed_key=f"{self.seed}/{name}",
        )

    def fingerprint(self) -> str:
        """SHA-256 over seed, recipe and manifests: equal fingerprints mean the same global sequence."""
        recipe = asdict(self.recipe)
        for limit in ("max_bad_in_a_row", "max_bad_rate"):  # what is tolerated does not change the order
            del recipe[limit]
        identity = {
            "seed": self.seed,
            "recipe": recipe,
            "manifests": [reader.manifest.fingerprint for reader in self.corpora],
            "tokens": self._tokens,
            "global_batch_size": self._steps_of,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _mean_tokens(self, encoder: PromptEncoder | None) -> list[float]:
        return [
            share.tokens or self._measure(name, reader, encoder)
            for (name, share), reader in zip(self.recipe.corpora.items(), self.corpora, strict=True)
        ]

    def _measure(self, name: str, reader: CorpusReader, encoder: PromptEncoder | None) -> float:
        if encoder is None:
            raise ConfigError(f"unit is token: give corpus '{name}' its `tokens`, or a tokenizer to measure them with")
        return mean_tokens(reader, self.recipe.corpora[name], encoder, f"{self.seed}/{name}")

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


def mean_tokens(reader: CorpusReader, share: CorpusShare, encoder: PromptEncoder, seed_key: str) -> float:
    """Mean tokens of a sample, over MEASURED_SAMPLES of them. Raises `DataError` if none of them can be encoded."""
    lengths = []
    for sample in np.linspace(0, len(reader) - 1, min(len(reader), MEASURED_SAMPLES)).astype(int).tolist():
        try:
            example = encode_sample(reader, sample, 0, encoder, share_images=share.share_images, seed_key=seed_key)
        except DataError:
            continue  # the loader drops and names it; here it only has no length
        lengths.append(len(example))
    if not lengths:
        raise DataError(f"{reader.folder}: none of {min(len(reader), MEASURED_SAMPLES)} samples can be encoded")
    return sum(lengths) / len(lengths)


def _generator(seed: int, *path: int) -> np.random.Generator:
    """A random stream of its own for each (seed, corpus, epoch[, window])."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))


def encode_sample(
    reader: CorpusReader, sample: int, epoch: int, encoder: PromptEncoder, *, share_images: int, seed_key: str
) -> Example:
    """The example of a sample's visit number `epoch`; the wording is drawn by (`seed_key`, sample, epoch) alone.

    A record of separate turns trains the next `share_images` of them at each visit, round and round in an order of
    its own, so that none comes twice before all came once. Raises `DataError` if the record is bad or nothing of it
    fits into `encoder.max_tokens`.
    """
    record = reader.record(sample)
    draw = Random(f"{seed_key}/{sample}/{epoch}")
    if record.separate and len(record.turns) > 1:
        example = _of_separate_turns(
            record, _turns_of_visit(record, epoch, share_images, f"{seed_key}/{sample}"), encoder, draw
        )
    else:
        example = encoder.encode(record, draw)
    if example is None:
        raise DataError(f"{reader.where(sample)}: the first turn alone is longer than max_tokens={encoder.max_tokens}")
    return example


def _turns_of_visit(record: Record, epoch: int, count: int, seed_key: str) -> list[int]:
    order = list(range(len(record.turns)))
    Random(seed_key).shuffle(order)
    count = min(count, len(order))
    return [order[(epoch * count + number) % len(order)] for number in range(count)]


def _of_separate_turns(record: Record, turns: list[int], encoder: PromptEncoder, draw: Random) -> Example | None:
    """The turns that fit, each as it would be alone, sharing the image if they are several; None if none fits."""
    examples: list[Example] = []
    for number in turns:
        example = encoder.encode(replace(record, turns=(record.turns[number],), separate=False), draw)
        if example is None:
            continue
        joined = share_image([*examples, example]) if examples and example.num_images else example
        if len(joined) <= encoder.max_tokens and (example.num_images or not examples):
            examples.append(example)
    if not examples:
        return None
    return share_image(examples) if len(examples) > 1 else examples[0]
