"""Computes AUROC, bootstrap intervals and paired tests of two runs. All functions are pure and seeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
"""Resamples of a bootstrap, which give the ends of an interval to about a twentieth of its width."""
_EXACT_FLIPS = 20
"""Up to this many differences, all sign patterns are counted."""


def auroc(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Probability, 0..1, that a positive scores above a negative. Ties count half. NaN without one of either."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return math.nan
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    size: int,
    *,
    groups: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `statistic` over resampled indices of `size` samples.

    With `groups` (one label per sample), whole groups are drawn, because questions about one image are not
    independent. Draws for which the statistic is NaN, such as an AUROC without a positive, are left out.
    """
    generator = np.random.default_rng(seed)
    if groups is None:
        draws = (generator.integers(0, size, size) for _ in range(resamples))
    else:
        labels = np.unique([str(group) for group in groups], return_inverse=True)[1]
        order = np.argsort(labels, kind="stable")
        members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        draws = (
            np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))])
            for _ in range(resamples)
        )
    values = [value for draw in draws if not math.isnan(value := statistic(draw))]
    if not values:
        raise ValueError("the statistic is not defined for any draw")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    values: Sequence[float], *, groups: Sequence[object] | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean. Whole groups are resampled."""
    array = np.asarray(values, dtype=np.float64)
    if groups is None:
        groups = range(len(array))
    labels = np.unique([str(group) for group in groups], return_inverse=True)[1]
    sums, counts = np.bincount(labels, array), np.bincount(labels)
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = generator.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """The mean of b - a over the same samples, its 95 % interval, and the p value under no difference."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    groups: Sequence[object] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The bootstrap interval and a two-sided sign-flip test of b - a. Whole groups are resampled and flipped."""
    delta = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    names = [str(group) for group in (groups if groups is not None else range(len(delta)))]
    low, high = mean_interval(delta.tolist(), groups=names, resamples=resamples, seed=seed)
    sums = np.bincount(np.unique(names, return_inverse=True)[1], delta)
    return Difference(float(delta.mean()), low, high, _sign_flips(sums[sums != 0], resamples, seed))


def _sign_flips(sums: np.ndarray, resamples: int, seed: int) -> float:
    if not len(sums):
        return 1.0
    seen = abs(sums.sum()) * (1 - 1e-12)
    if len(sums) <= _EXACT_FLIPS:
        totals = np.zeros(1)
        for value in sums:
            totals = np.concatenate([totals + value, totals - value])
        return float((np.abs(totals) >= seen).mean())
    signs = np.random.default_rng(seed).integers(0, 2, (resamples, len(sums)), dtype=np.int8) * 2.0 - 1
    return float((1 + (np.abs(signs @ sums) >= seen).sum()) / (1 + resamples))
