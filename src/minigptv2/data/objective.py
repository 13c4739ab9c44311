"""Computes the loss weights of supervised tokens from a recipe's objective, and what a loss consists of.

The loss of a step is the weighted mean of its tokens' losses. With `token`, tokens have no weights. With `sample`, the
tokens of a sample share a weight of 1. With `corpus`, all tokens of a corpus have the weight that gives the corpus its
`loss_share` of the gradient in expectation. The weight belongs to the sample, so packing, ranks and accumulation do not
change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minigptv2.batch import IGNORE
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.errors import ConfigError
from minigptv2.prompt import Example
from minigptv2.tasks import TASKS

TOKEN, SAMPLE, CORPUS = OBJECTIVES = ("token", "sample", "corpus")
MEANINGS = {
    TOKEN: "every supervised token has equal weight",
    SAMPLE: "every sample has equal weight",
    CORPUS: "every corpus has its loss_share of the gradient",
}


def check_objective(recipe: Recipe, file: str) -> None:
    """Raise `ConfigError`, prefixed by `file`, for an unknown objective and shares that are missing or invalid."""
    if recipe.objective not in OBJECTIVES:
        raise ConfigError(f"{file}: objective '{recipe.objective}' is not one of {', '.join(OBJECTIVES)}")
    for name, line in recipe.corpora.items():
        _check_line(recipe, line, f"{file}: corpus '{name}'")


def _check_line(recipe: Recipe, line: CorpusShare, here: str) -> None:
    for key in ("loss_share", "supervised_tokens"):
        value = getattr(line, key)
        if value is None:
            continue
        if recipe.objective != CORPUS:
            raise ConfigError(
                f"{here} has {key}={value}, but the recipe's objective is {recipe.objective}: set objective: {CORPUS}, "
                f"or remove {key}"
            )
        if not (value > 0 and np.isfinite(value)):
            raise ConfigError(f"{here}: {key} must be positive and finite, got {value}")
    if recipe.objective == CORPUS and line.loss_share is None and recipe.unit != "batch":
        raise ConfigError(
            f"{here}: with objective {CORPUS}, set loss_share (its share of the gradient, relative to the other "
            f"corpora). Only with unit batch is the share of batches the default. The unit is {recipe.unit}"
        )


def shares_of_loss(recipe: Recipe, batch_ratios: np.ndarray) -> np.ndarray:
    """Share of the gradient of each corpus with `objective: corpus`, float64 [corpora], summing to 1.

    `batch_ratios` [corpora] are relative shares of batches, for lines without `loss_share` with `unit: batch`.
    """
    given = [line.loss_share for line in recipe.corpora.values()]
    shares = np.array([float(r if s is None else s) for s, r in zip(given, batch_ratios, strict=True)])
    return shares / shares.sum()


def weights_of_corpora(loss: np.ndarray, samples: np.ndarray, supervised: Sequence[float]) -> np.ndarray:
    """Loss weight of a token of each corpus, float64 [corpora].

    `loss` are the shares of the gradient, `samples` the shares of samples, `supervised` the mean supervised tokens per
    sample. The mean weight of a token of the mixture is 1.
    """
    tokens = samples * np.asarray(supervised, dtype=np.float64)
    return loss * tokens.sum() / tokens


def weigh(example: Example, objective: str, corpus_weight: float) -> Example:
    """The example with its loss weights. `corpus_weight` is the weight of its corpus's tokens with `corpus`.

    With `sample`, each pair of an example that shares an image has the weights that it would have alone.
    """
    if objective == TOKEN:
        return example
    supervised = example.labels != IGNORE
    if objective == CORPUS:
        return replace(example, loss_weights=np.where(supervised, corpus_weight, 0.0).astype(np.float32))
    branches = example.branches or (len(example) - example.shared,)
    part = np.repeat(np.arange(len(branches) + 1), (example.shared, *branches))
    counts = np.bincount(part[supervised], minlength=len(branches) + 1)
    weights = np.where(supervised, 1.0 / np.maximum(counts, 1)[part], 0.0)
    return replace(example, loss_weights=weights.astype(np.float32))


@dataclass(frozen=True)
class Composition:
    """What the loss of some samples consists of: sums of weights by task and by corpus, and samples by corpus."""

    task_weights: np.ndarray
    corpus_weights: np.ndarray
    corpus_samples: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Example], corpora: Sequence[int], num_corpora: int) -> Composition:
        """The composition of `examples`, whose corpora have the numbers `corpora`. Arrays are float64."""
        tasks, by_corpus = np.zeros(len(TASKS)), np.zeros(num_corpora)
        for example, corpus in zip(examples, corpora, strict=True):
            supervised = example.labels != IGNORE
            weights = None if example.loss_weights is None else example.loss_weights[supervised].astype(np.float64)
            of_tasks = np.bincount(example.task_ids[supervised], weights, minlength=len(TASKS))
            tasks += of_tasks
            by_corpus[corpus] += of_tasks.sum()
        samples = np.bincount(np.asarray(corpora, dtype=np.int64), minlength=num_corpora).astype(np.float64)
        return cls(tasks, by_corpus, samples)

    @classmethod
    def from_sums(cls, values: Sequence[float], num_corpora: int) -> Composition:
        """The composition whose `as_sums` is `values`."""
        parts = np.split(np.asarray(values, dtype=np.float64), [len(TASKS), len(TASKS) + num_corpora])
        return cls(*parts)

    def shares_of_tasks(self) -> dict[str, float]:
        """Share of the objective of each task that has any, by name."""
        return {name: share for name, share in _shares(tuple(TASKS), self.task_weights).items() if share}

    def shares_of_loss(self, corpora: Sequence[str]) -> dict[str, float]:
        """Share of the objective of each corpus, by name."""
        return _shares(corpora, self.corpus_weights)

    def shares_of_samples(self, corpora: Sequence[str]) -> dict[str, float]:
        """Share of the samples of each corpus, by name."""
        return _shares(corpora, self.corpus_samples)

    def as_sums(self) -> tuple[float, ...]:
        """The numbers in a row, which the engine adds up over micro-batches and ranks."""
        joined = np.concatenate([self.task_weights, self.corpus_weights, self.corpus_samples])
        return tuple(joined.tolist())


def _shares(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    total = values.sum()
    return {name: float(value / total) if total else 0.0 for name, value in zip(names, values, strict=True)}
