"""Measures the mean lengths of a corpus's samples on evenly spread ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from minigptv2.errors import DataError
from minigptv2.prompt import Example

MEASURED_SAMPLES = 256
"""Number of samples that are always measured, or all if there are fewer."""
MAX_MEASURED_SAMPLES = 16384
"""Maximum number of samples that are measured, for a corpus whose answers differ most in length."""
PRECISION = 0.01
"""Standard error of the mean of supervised tokens, relative to the mean, that is measured for. A larger one would move
the corpus's share of the gradient as much."""


@dataclass(frozen=True)
class Lengths:
    """Means per sample: `tokens` with image tokens, `supervised` tokens, and `pairs` (1 unless an image is shared)."""

    tokens: float
    supervised: float
    pairs: float


Encode = Callable[[int, int], Example]
"""Encodes the sample of a number in an epoch. Called from several threads."""
_THREADS = 16
"""Samples that are read at once: each read waits for the disk or the network, and they are far apart."""


def measure_lengths(encode: Encode, size: int, corpus: str, *, precise: bool) -> Lengths:
    """The mean lengths of a corpus of `size` samples, which `encode` encodes.

    `precise` measures as many samples as `supervised` needs for a standard error of `PRECISION`. If the corpus is
    smaller, it measures several epochs, which may draw other answers. The result depends only on the arguments. Raises
    `DataError` if no sample can be encoded.
    """
    first = _measure(encode, size, MEASURED_SAMPLES, epoch=0)
    if not len(first):
        raise DataError(f"{corpus}: none of {min(size, MEASURED_SAMPLES)} samples can be encoded")
    supervised = _supervised(encode, size, first[:, 1]) if precise else first[:, 1]
    return Lengths(float(first[:, 0].sum() / len(first)), float(supervised.mean()), float(first[:, 2].mean()))


def _supervised(encode: Encode, size: int, first: np.ndarray) -> np.ndarray:
    """Supervised tokens of as many samples as a precise mean needs, of which `first` are measured."""
    spread = first.std(ddof=1) / first.mean() if len(first) > 1 else 0.0
    needed = min(max(math.ceil((spread / PRECISION) ** 2), MEASURED_SAMPLES), MAX_MEASURED_SAMPLES)
    if needed <= min(size, MEASURED_SAMPLES):
        return first
    epochs = -(-needed // size)
    return np.concatenate([_measure(encode, size, needed, epoch=epoch)[:, 1] for epoch in range(epochs)])


def _measure(encode: Encode, size: int, count: int, *, epoch: int) -> np.ndarray:
    """int64 [samples, 3]: tokens, supervised tokens and pairs of `count` evenly spread samples that can be encoded."""

    def measure(sample: int) -> tuple[int, int, int] | None:
        try:
            example = encode(sample, epoch)
        except DataError:
            return None  # the loader drops and reports it. Here it only has no length
        return len(example), example.num_supervised, max(1, len(example.branches))

    samples = np.linspace(0, size - 1, min(size, count)).astype(int).tolist()
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = [row for row in pool.map(measure, samples) if row is not None]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)
