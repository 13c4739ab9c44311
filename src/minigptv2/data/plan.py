"""Computes the data plan: one global sequence of samples and their wordings, a function of (seed, recipe, manifests).

`mixture` maps a position to a corpus. This module orders the samples of each corpus by a block shuffle (shards are
permuted per epoch, samples are shuffled inside a window of shards) and encodes a sample with its drawn wording. Any
position is computed directly, so the state of the data is one integer. World size and workers do not appear: they only
divide the reading.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from minigptv2.config import Resume, fields_with, load_config
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.lengths import Lengths, measure_lengths
from minigptv2.data.mixture import MIXED, Mixture, check_recipe
from minigptv2.data.objective import CORPUS, TOKEN, weigh, weights_of_corpora
from minigptv2.errors import ConfigError, DataError
from minigptv2.prompt import Example, PromptEncoder, share_image
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.remote import below

_QUIET_S = 5.0
"""Seconds of measuring lengths after which a line says how far it is."""


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
    ratios count tokens or if the objective is `corpus`, through `run_once`, which may measure on one rank for all.
    Raises `ConfigError` if the ratios need one that is not given.
    """

    def __init__(
        self,
        recipe: Recipe,
        shards: Path | str,
        seed: int,
        *,
        global_batch_size: int | None = None,
        encoder: PromptEncoder | None = None,
        run_once: Callable[[Callable[[], list[Lengths | None]]], list[Lengths | None]] = lambda measure: measure(),
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
        lengths: list[Lengths | None] = [None] * len(self.names)
        if encoder is not None:
            lengths = run_once(lambda: self._measure(encoder))
        self._tokens = self._mean_tokens(lengths) if recipe.unit == "token" else None
        self.mixture = Mixture(
            recipe,
            [len(reader) for reader in self.corpora],
            tokens=self._tokens,
            global_batch_size=global_batch_size or 1,
        )
        self.shares = self.mixture.shares
        self._corpus_weights: list[float] | None = None
        self.supervised: list[float] | None = None
        """Mean supervised tokens per sample of each corpus. None unless the objective is `corpus`, and until known."""
        self._set_supervised(lengths)
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
        """The example with its loss weights. Its wording depends only on (seed, corpus, sample, epoch).

        Raises `DataError` if it is bad.
        """
        name = self.names[sample.corpus]
        example = encode_sample(
            self.corpora[sample.corpus],
            sample.sample,
            sample.epoch,
            encoder,
            share_images=self.recipe.corpora[name].share_images,
            seed_key=f"{self.seed}/{name}",
        )
        return weigh(example, self.recipe.objective, self.corpus_weight(sample.corpus))

    def corpus_weight(self, corpus: int) -> float:
        """The loss weight of a token of a corpus with `objective: corpus`, otherwise 1."""
        if self.recipe.objective != CORPUS:
            return 1.0
        if self._corpus_weights is None:
            raise ConfigError(
                "the objective is corpus: pass `encoder` to DataPlan or call `prepare`, to measure the supervised "
                "tokens per sample, or set `supervised_tokens` for each corpus of the recipe"
            )
        return self._corpus_weights[corpus]

    def prepare(self, encoder: PromptEncoder) -> None:
        """Measure what the objective needs, unless the constructor had an encoder. Nothing to do for most recipes."""
        if self.recipe.objective == CORPUS and self.supervised is None:
            self._set_supervised(self._measure(encoder))

    def fingerprint(self) -> str:
        """SHA-256 over seed, recipe, manifests and measured lengths.

        Equal fingerprints mean the same global sequence with the same loss weights.
        """
        identity = {
            "seed": self.seed,
            "recipe": _identity_of(self.recipe),
            "manifests": [reader.manifest.fingerprint for reader in self.corpora],
            "tokens": self._tokens,
            "global_batch_size": self._steps_of,
        }
        if self.recipe.objective == CORPUS:
            identity["supervised"] = self.supervised
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _mean_tokens(self, lengths: list[Lengths | None]) -> list[float]:
        means = []
        for (name, line), measured in zip(self.recipe.corpora.items(), lengths, strict=True):
            if not line.tokens and measured is None:
                raise ConfigError(
                    f"unit is token: set `tokens` for corpus '{name}', or pass a tokenizer to measure them"
                )
            means.append(line.tokens or (measured.tokens if measured else 0.0))
        return means

    def _set_supervised(self, lengths: list[Lengths | None]) -> None:
        """Set the mean supervised tokens and the loss weights of the corpora, if all of them are known."""
        if self.recipe.objective != CORPUS:
            return
        lines = self.recipe.corpora.values()
        known = [
            line.supervised_tokens or (one.supervised if one else None)
            for line, one in zip(lines, lengths, strict=True)
        ]
        supervised = [mean for mean in known if mean is not None]
        if len(supervised) == len(known):
            self.supervised = supervised
            weights = weights_of_corpora(self.mixture.loss_shares, self.mixture.ratio_shares, supervised)
            self._corpus_weights = weights.tolist()

    def _measure(self, encoder: PromptEncoder) -> list[Lengths | None]:
        """The lengths of each corpus for which the recipe leaves a required one out, None for the others."""
        by_token, by_corpus = self.recipe.unit == "token", self.recipe.objective == CORPUS
        measured: list[Lengths | None] = []
        began = time.monotonic()
        for (name, line), reader in zip(self.recipe.corpora.items(), self.corpora, strict=True):
            needed = (by_token and not line.tokens) or (by_corpus and not line.supervised_tokens)
            key = f"{self.seed}/{name}"
            measured.append(measure_corpus(reader, line, encoder, key, precise=by_corpus) if needed else None)
            if time.monotonic() - began > _QUIET_S:
                print(f"measuring sample lengths: {len(measured)} of {len(self.names)} corpora", flush=True)
                began = time.monotonic()
        return measured

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


def _identity_of(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe determines the sequence and the weights.

    Keys that version 0.1 did not have are left out where they have their defaults, so that its runs can be resumed.
    """
    values = asdict(recipe)
    identity = {name: values[name] for name in fields_with(Recipe, Resume.EQUAL)}
    if recipe.objective == TOKEN:
        del identity["objective"]
    for line in identity["corpora"].values():
        for key in ("loss_share", "supervised_tokens"):
            if line[key] is None:
                del line[key]
    return identity


def measure_corpus(
    reader: CorpusReader, share: CorpusShare, encoder: PromptEncoder, seed_key: str, *, precise: bool
) -> Lengths:
    """Mean lengths of the corpus's samples. Raises `DataError` if none of the measured ones can be encoded."""

    def encode(sample: int) -> Example:
        return encode_sample(reader, sample, 0, encoder, share_images=share.share_images, seed_key=seed_key)

    return measure_lengths(encode, len(reader), str(reader.folder), precise=precise)


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
