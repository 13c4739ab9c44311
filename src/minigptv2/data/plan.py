"""Computes the data plan: one global sequence of samples and their wordings, a function of (seed, recipe, manifests).

`mixture` maps a position to a corpus. This module orders the samples of each corpus by a block shuffle (shards are
permuted per epoch, samples are shuffled inside a window of shards) and encodes a sample with its drawn wording. Any
position is computed directly, so the state of the data is one integer. World size and workers do not appear: they only
divide the reading.
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

from minigptv2.config import Resume, fields_with, load_config
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.mixture import MIXED, Mixture, check_recipe
from minigptv2.errors import ConfigError, DataError
from minigptv2.prompt import Example, PromptEncoder, share_image
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.remote import below

MEASURED_SAMPLES = 256
"""Number of samples of a corpus, evenly spread, that are measured if ratios count tokens."""


@dataclass(frozen=True, slots=True)
class SampleId:
    """A position's sample: corpus number in the recipe, sample number in the corpus, and epoch (0 the first time)."""

    corpus: int
    sample: int
    epoch: int


def load_recipe(file: str | Path) -> Recipe:
    """The recipe in a YAML file. Raises `ConfigError` for unknown keys, tasks or units and invalid numbers."""
    recipe = load_config(Recipe, file).value
    check_recipe(recipe, str(file))
    return recipe


class DataPlan:
    """The sequence of samples of one stage.

    `corpora` are readers in the recipe's order. The constructor checks that every corpus exists and has the task that
    the recipe states. `global_batch_size` converts the steps of schedules to samples. `encoder` measures lengths if
    ratios count tokens. Raises `ConfigError` if the recipe needs one that is not given.
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
                    f"{', '.join(sorted(others))}. Set task: {MIXED}"
                )
        scheduled = any(share.schedule for share in recipe.corpora.values())
        if scheduled and global_batch_size is None:
            raise ConfigError("the recipe has schedules over steps: pass global_batch_size to the plan")
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
        """Number of samples until every corpus has completed its epochs. None: unlimited."""
        return self.mixture.length

    @property
    def shares_images(self) -> bool:
        """Whether question-answer pairs share the tokens of their image in any corpus."""
        return any(share.share_images > 1 for share in self.recipe.corpora.values())

    def samples(self, start: int, count: int) -> list[SampleId]:
        """The samples at positions start .. start + count - 1."""
        ids = []
        for corpus, nth in zip(*(part.tolist() for part in self.mixture.draw(start, count)), strict=True):
            epoch, within = divmod(nth, len(self.corpora[corpus]))
            ids.append(SampleId(corpus, self._sample_in_epoch(corpus, epoch, within), epoch))
        return ids

    def name_of(self, sample: SampleId) -> str:
        """Location and epoch of a sample, for messages: `corpus: shard / key (epoch 0)`."""
        return f"{self.names[sample.corpus]}: {self.corpora[sample.corpus].where(sample.sample)} (epoch {sample.epoch})"

    def corpus_counts(self, start: int, count: int) -> Counter[str]:
        """Number of samples of each corpus, by name, among the `count` samples from `start` on."""
        counts = self.mixture.counts(start + count) - self.mixture.counts(start)
        return Counter({name: int(n) for name, n in zip(self.names, counts, strict=True)})

    def encode(self, sample: SampleId, encoder: PromptEncoder) -> Example:
        """The example. Its wording depends only on (seed, corpus, sample, epoch). Raises `DataError` if it is bad."""
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
        """SHA-256 over seed, recipe and manifests. Equal fingerprints mean the same global sequence."""
        recipe = asdict(self.recipe)
        identity = {
            "seed": self.seed,
            "recipe": {name: recipe[name] for name in fields_with(Recipe, Resume.EQUAL)},
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
            raise ConfigError(f"unit is token: set `tokens` for corpus '{name}', or pass a tokenizer to measure them")
        return mean_tokens(reader, self.recipe.corpora[name], encoder, f"{self.seed}/{name}")

    def _sample_in_epoch(self, corpus: int, epoch: int, within: int) -> int:
        order, ends = self._shard_order(corpus, epoch)
        window = int(np.searchsorted(ends, within, side="right"))
        start = int(ends[window - 1]) if window else 0
        return int(self._window_order(corpus, epoch, window)[within - start])

    def _shuffle_shards(self, corpus: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of shards in this epoch, and the cumulative sample count at the end of each window of shards."""
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
    """Mean tokens per sample, over MEASURED_SAMPLES of them. Raises `DataError` if none of them can be encoded."""
    lengths = []
    for sample in np.linspace(0, len(reader) - 1, min(len(reader), MEASURED_SAMPLES)).astype(int).tolist():
        try:
            example = encode_sample(reader, sample, 0, encoder, share_images=share.share_images, seed_key=seed_key)
        except DataError:
            continue  # the loader drops and reports it. Here it only has no length
        lengths.append(len(example))
    if not lengths:
        raise DataError(f"{reader.folder}: none of {min(len(reader), MEASURED_SAMPLES)} samples can be encoded")
    return sum(lengths) / len(lengths)


def _generator(seed: int, *path: int) -> np.random.Generator:
    """A separate random stream for each (seed, corpus, epoch[, window])."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))


def encode_sample(
    reader: CorpusReader, sample: int, epoch: int, encoder: PromptEncoder, *, share_images: int, seed_key: str
) -> Example:
    """The example of a sample in `epoch`. The wording depends only on (`seed_key`, sample, epoch).

    In each epoch a record of separate turns trains the next `share_images` of them, cyclically and in an order of its
    own, so that every turn is used once before any is repeated. Raises `DataError` if the record is bad or if a
    question alone fills `encoder.max_tokens`.
    """
    record = reader.record(sample)
    draw = Random(f"{seed_key}/{sample}/{epoch}")
    if record.separate and len(record.turns) > 1:
        example = _of_separate_turns(
            record, _turns_of_epoch(record, epoch, share_images, f"{seed_key}/{sample}"), encoder, draw
        )
    else:
        example = encoder.encode(record, draw)
    if example is None:
        raise DataError(
            f"{reader.where(sample)}: the first question alone fills max_tokens={encoder.max_tokens} text tokens, so "
            "no answer is left"
        )
    return example


def _turns_of_epoch(record: Record, epoch: int, count: int, seed_key: str) -> list[int]:
    order = list(range(len(record.turns)))
    Random(seed_key).shuffle(order)
    count = min(count, len(order))
    return [order[(epoch * count + number) % len(order)] for number in range(count)]


def _of_separate_turns(record: Record, turns: list[int], encoder: PromptEncoder, draw: Random) -> Example | None:
    """The turns, each encoded as if alone. Several turns share the image. None if a question alone is too long."""
    examples: list[Example] = []
    for number in turns:
        example = encoder.encode(replace(record, turns=(record.turns[number],), separate=False), draw)
        if example is None:
            return None
        examples.append(example)
        if not example.num_images:  # without an image there is nothing to share
            break
    return share_image(examples) if len(examples) > 1 else examples[0]
