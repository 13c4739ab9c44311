"""Computes the data plan: one global sequence of samples and their wordings, a function of (seed, recipe, manifests).

`mixture` maps a position to a corpus. This module orders the units of each corpus (`units`: its images or turns) by a
block shuffle (shards are permuted per epoch, units are shuffled inside a window of shards) and encodes a sample with
its drawn wording. Any position is computed directly, so the state of the data is one integer. World size and workers do
not appear: they only divide the reading.
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

import numpy as np

from minigptv2.config import Resume, fields_with, load_config
from minigptv2.data.config import Recipe
from minigptv2.data.lengths import Lengths, measure_lengths
from minigptv2.data.mixture import MIXED, Mixture, check_recipe
from minigptv2.data.objective import CORPUS, weigh, weights_of_corpora
from minigptv2.data.units import Units, check_turn_counts
from minigptv2.errors import ConfigError, DataError
from minigptv2.prompt import Example, PromptEncoder, share_image
from minigptv2.record import Record
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.remote import below

SAMPLE_ORDER = 2
"""Version of the order of samples. It is part of the fingerprint and of checkpoints, so that a run never continues with
another order. 1: version 0.1, which sampled by image and had a last shuffle window of any size."""
_QUIET_S = 5.0
"""Seconds of measuring lengths after which a line says how far it is."""


@dataclass(frozen=True, slots=True)
class SampleId:
    """A position's sample: corpus number in the recipe, sample number in the corpus, and epoch (0 the first time).

    `part` is the number of the turn, or of the group of turns, if the corpus is sampled by turn. It is 0 otherwise.
    """

    corpus: int
    sample: int
    epoch: int
    part: int = 0


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
        lines = zip(recipe.corpora.items(), self.corpora, strict=True)
        check_turn_counts({name: (share, reader) for (name, share), reader in lines})
        self.units = [
            Units(name, share, reader)
            for (name, share), reader in zip(recipe.corpora.items(), self.corpora, strict=True)
        ]
        lengths: list[Lengths | None] = [None] * len(self.names)
        if encoder is not None:
            lengths = run_once(lambda: self._measure(encoder))
        self._tokens = self._mean_tokens(lengths) if recipe.unit == "token" else None
        self.mixture = Mixture(
            recipe,
            [len(units) for units in self.units],
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
            units = self.units[corpus]
            epoch, within = divmod(nth, len(units))
            sample, part = units.locate(self._unit_in_epoch(corpus, epoch, within))
            ids.append(SampleId(corpus, sample, epoch, part))
        return ids

    def name_of(self, sample: SampleId) -> str:
        """Location and epoch of a sample, for messages: `corpus: shard / key (epoch 0)`, or `... key, turn 3 (...)`."""
        units = self.units[sample.corpus]
        kind = "turn" if units.share_images == 1 else "group"
        part = f", {kind} {sample.part}" if units.by_turn else ""
        where = self.corpora[sample.corpus].where(sample.sample)
        return f"{self.names[sample.corpus]}: {where}{part} (epoch {sample.epoch})"

    def record(self, sample: SampleId) -> Record:
        """The record with the turns that the sample trains: all of it if it is sampled by image. Raises `DataError`."""
        reader, units = self.corpora[sample.corpus], self.units[sample.corpus]
        record = reader.record(sample.sample)
        if not units.by_turn:
            return record
        turns = _trained_turns(reader, units, sample, record, f"{self.seed}/{self.names[sample.corpus]}")
        return record if turns is None else replace(record, turns=tuple(record.turns[turn] for turn in turns))

    def corpus_counts(self, start: int, count: int) -> Counter[str]:
        """Number of samples of each corpus, by name, among the `count` samples from `start` on."""
        counts = self.mixture.counts(start + count) - self.mixture.counts(start)
        return Counter({name: int(n) for name, n in zip(self.names, counts, strict=True)})

    def encode(self, sample: SampleId, encoder: PromptEncoder) -> Example:
        """The example with its loss weights. Its wording depends only on (seed, corpus, sample, part, epoch).

        Raises `DataError` if it is bad.
        """
        example = encode_sample(
            self.corpora[sample.corpus],
            self.units[sample.corpus],
            sample,
            encoder,
            seed_key=f"{self.seed}/{self.names[sample.corpus]}",
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
        recipe = asdict(self.recipe)
        identity = {
            "order": SAMPLE_ORDER,
            "seed": self.seed,
            "recipe": {name: recipe[name] for name in fields_with(Recipe, Resume.EQUAL)},
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
        for (name, line), reader, units in zip(self.recipe.corpora.items(), self.corpora, self.units, strict=True):
            needed = (by_token and not line.tokens) or (by_corpus and not line.supervised_tokens)
            key = f"{self.seed}/{name}"
            measured.append(measure_corpus(reader, units, encoder, key, precise=by_corpus) if needed else None)
            if time.monotonic() - began > _QUIET_S:
                print(f"measuring sample lengths: {len(measured)} of {len(self.names)} corpora", flush=True)
                began = time.monotonic()
        return measured

    def _unit_in_epoch(self, corpus: int, epoch: int, within: int) -> int:
        _, ends = self._shard_order(corpus, epoch)
        window = int(np.searchsorted(ends, within, side="right"))
        start = int(ends[window - 1]) if window else 0
        return int(self._window_order(corpus, epoch, window)[within - start])

    def _windows(self, corpus: int) -> np.ndarray:
        """Where the windows begin in the order of shards, and the number of shards: int64 [windows + 1].

        The windows have `shuffle_window` shards or fewer, and their sizes differ by at most one shard. A last window
        with the remaining shards could hold a single one, whose samples would come unmixed in every epoch.
        """
        shards = self.units[corpus].num_shards
        windows = -(-shards // self.recipe.shuffle_window)
        return np.arange(windows + 1) * shards // windows

    def _shuffle_shards(self, corpus: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of shards in this epoch, and the cumulative unit count at the end of each window of shards."""
        units = self.units[corpus]
        order = _generator(self.seed, corpus, epoch).permutation(units.num_shards)
        return order, np.cumsum(np.add.reduceat(np.diff(units.starts)[order], self._windows(corpus)[:-1]))

    def _shuffle_window(self, corpus: int, epoch: int, window: int) -> np.ndarray:
        order, _ = self._shard_order(corpus, epoch)
        first, end = self._windows(corpus)[window : window + 2].tolist()
        starts = self.units[corpus].starts
        number = np.uint32 if starts[-1] <= np.iinfo(np.uint32).max else np.int64  # a window may have millions of turns
        units = np.concatenate(
            [np.arange(starts[shard], starts[shard + 1], dtype=number) for shard in order[first:end]]
        )
        return _generator(self.seed, corpus, epoch, window).permutation(units)


def measure_corpus(
    reader: CorpusReader, units: Units, encoder: PromptEncoder, seed_key: str, *, precise: bool
) -> Lengths:
    """Mean lengths of the corpus's samples. Raises `DataError` if none of the measured ones can be encoded."""

    scattered = reader.scattered()

    def encode(unit: int, epoch: int) -> Example:
        number, part = units.locate(unit)
        return encode_sample(scattered, units, SampleId(0, number, epoch, part), encoder, seed_key=seed_key)

    return measure_lengths(encode, len(units), str(reader.folder), precise=precise)


def _generator(seed: int, *path: int) -> np.random.Generator:
    """A separate random stream for each (seed, corpus, epoch[, window])."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))


def encode_sample(
    reader: CorpusReader, units: Units, sample: SampleId, encoder: PromptEncoder, *, seed_key: str
) -> Example:
    """The example of a sample. The wording depends only on (`seed_key`, sample, part, epoch), not on the corpus number.

    Raises `DataError` if the record is bad or if a question alone fills `encoder.max_tokens`.
    """
    record = reader.record(sample.sample)
    part = f"/{sample.part}" if sample.part else ""
    draw = Random(f"{seed_key}/{sample.sample}/{sample.epoch}{part}")
    turns = _trained_turns(reader, units, sample, record, seed_key)
    example = encoder.encode(record, draw) if turns is None else _of_separate_turns(record, turns, encoder, draw)
    if example is None:
        raise DataError(
            f"{reader.where(sample.sample)}: the first question alone fills max_tokens={encoder.max_tokens} text "
            "tokens, so no answer is left"
        )
    return example


def _trained_turns(
    reader: CorpusReader, units: Units, sample: SampleId, record: Record, seed_key: str
) -> list[int] | None:
    try:
        return units.turns_of(record, sample.part, sample.epoch, f"{seed_key}/{sample.sample}")
    except DataError as error:  # the location costs reads, so it is only computed on errors
        raise DataError(f"{reader.where(sample.sample)}{error}") from error


def _of_separate_turns(record: Record, turns: list[int], encoder: PromptEncoder, draw: Random) -> Example | None:
    """The turns, each encoded as if alone. Several turns share the image, or `<s>` if there is none.

    None if a question alone is too long.
    """
    examples: list[Example] = []
    for number in turns:
        example = encoder.encode(replace(record, turns=(record.turns[number],), separate=False), draw)
        if example is None:
            return None
        examples.append(example)
    return share_image(examples) if len(examples) > 1 else examples[0]
