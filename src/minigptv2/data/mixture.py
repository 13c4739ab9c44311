"""Assigns each position of the global sequence to a corpus, by exact arithmetic on a recipe's ratios.

Shares are linear between knots (steps in schedules, ends of corpora with `epochs`). The j-th sample of a corpus is due
when the integral of its share reaches j plus an offset. Samples are sorted by that time, so every prefix has the
target ratios, and any position is computed without iterating to it. All arithmetic is on integers, which no platform
rounds differently. Independent of shards and torch.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minigptv2.data.config import SAMPLE_BY, CorpusShare, Recipe
from minigptv2.data.objective import check_objective, shares_of_loss
from minigptv2.errors import ConfigError, nearest
from minigptv2.tasks import TASKS

UNITS = ("sample", "token", "batch")
MIXED = "mixed"
BLOCK = 1024
"""Approximate number of samples whose order is computed at once."""
_PIECE = 32
"""Number of samples over which a changing share is taken as constant when a block is sorted."""
_ONE = 1 << 44
"""A share of 1 as an integer."""
_GOLDEN = 0.6180339887498949
"""Its multiples modulo 1 are spread most evenly, so corpora of equal share alternate."""


def check_recipe(recipe: Recipe, file: str) -> None:
    """Raise `ConfigError`, prefixed by `file`, for unknown units or tasks and invalid numbers."""
    if not recipe.corpora:
        raise ConfigError(f"{file}: the recipe has no corpora")
    if recipe.unit not in UNITS:
        raise ConfigError(f"{file}: unit '{recipe.unit}' is not one of {', '.join(UNITS)}")
    if recipe.shuffle_window < 1:
        raise ConfigError(f"{file}: shuffle_window={recipe.shuffle_window} must be at least 1")
    if not recipe.temperature > 0:
        raise ConfigError(f"{file}: temperature={recipe.temperature} must be positive (1 keeps the ratios)")
    for task, ratio in recipe.tasks.items():
        _check_task(task, f"{file}: tasks:")
        if not ratio > 0:
            raise ConfigError(f"{file}: the ratio of task '{task}' must be positive, got {ratio}")
        if task not in {share.task for share in recipe.corpora.values()}:
            raise ConfigError(f"{file}: tasks sets a share for '{task}', but no corpus has that task")
    for name, share in recipe.corpora.items():
        _check_share(recipe, name, share, file)
    check_objective(recipe, file)


def _check_task(task: str, where: str) -> None:
    known = (*TASKS, MIXED)
    if task not in known:
        raise ConfigError(f"{where} unknown task '{task}'{nearest(task, known)} Known: {', '.join(known)}.")


def _check_share(recipe: Recipe, name: str, share: CorpusShare, file: str) -> None:
    here = f"{file}: corpus '{name}'"
    _check_task(share.task, f"{here} has")
    if share.ratio is not None and not share.ratio > 0:
        raise ConfigError(f"{here}: ratio must be positive, or null for the corpus's size, got {share.ratio}")
    if recipe.tasks and share.task not in recipe.tasks:
        raise ConfigError(f"{here} has task '{share.task}', which has no share in tasks:")
    if share.epochs is not None and not share.epochs > 0:
        raise ConfigError(f"{here}: epochs must be positive, or null for no limit, got {share.epochs}")
    if recipe.unit == "batch" and not (share.batch_size or 0) > 0:
        raise ConfigError(f"{here}: with unit batch, batch_size must be set to a positive number")
    if recipe.unit != "batch" and share.batch_size is not None:
        raise ConfigError(f"{here} has a batch_size, but the recipe's unit is {recipe.unit}, not batch")
    if share.tokens is not None and not share.tokens > 0:
        raise ConfigError(f"{here}: tokens (the mean length of a sample) must be positive, got {share.tokens}")
    if share.sample_by not in SAMPLE_BY:
        raise ConfigError(f"{here}: sample_by '{share.sample_by}' is not one of {', '.join(SAMPLE_BY)}")
    if share.share_images < 1:
        raise ConfigError(f"{here}: share_images must be at least 1, got {share.share_images}")
    if any(len(point) != 2 for point in share.schedule):
        raise ConfigError(f"{here}: schedule={share.schedule} must be a list of [step, factor] pairs")
    steps = [step for step, _ in share.schedule]
    if any(step < 0 or step != int(step) for step in steps) or steps != sorted(set(steps)):
        raise ConfigError(f"{here}: the steps of schedule={share.schedule} must be increasing whole numbers")
    if any(factor < 0 for _, factor in share.schedule):
        raise ConfigError(f"{here}: a factor of schedule={share.schedule} is negative")


@dataclass(frozen=True, slots=True)
class _Segment:
    """Shares from sample `start` on: linear from `first` to `last` over `length` samples (None: constant without end).

    `reached`: the integrals of the shares at `start`. All in units of 1 / _ONE.
    """

    start: int
    length: int | None
    first: tuple[int, ...]
    last: tuple[int, ...]
    reached: tuple[int, ...]

    def integral(self, corpus: int, time: int) -> int:
        passed = time - self.start
        if self.length is None:
            return self.reached[corpus] + self.first[corpus] * passed
        rise = (self.last[corpus] - self.first[corpus]) * passed * passed
        return self.reached[corpus] + (2 * self.length * self.first[corpus] * passed + rise) // (2 * self.length)


class Mixture:
    """The interleaving of a recipe's corpora.

    `sizes`: samples per corpus, None if unknown. `tokens`: mean tokens per sample of each corpus, for `unit: token`.
    `global_batch_size` converts the steps of schedules to samples. Raises `ConfigError` if a required number is
    unknown.
    """

    def __init__(
        self,
        recipe: Recipe,
        sizes: Sequence[int | None],
        *,
        tokens: Sequence[float] | None = None,
        global_batch_size: int = 1,
    ) -> None:
        self.recipe = recipe
        self.names = list(recipe.corpora)
        self._lines = list(recipe.corpora.values())
        self._tokens = tokens
        self._ratios = self._own_ratios(sizes)
        self._limits = self._sample_limits(sizes)
        self._segments = self._make_segments(global_batch_size)
        self._starts = [segment.start for segment in self._segments]
        self.shares = np.array(self._segments[0].first, dtype=np.float64) / _ONE
        ranks = np.argsort(np.argsort(-self.shares, kind="stable"), kind="stable")
        self._offsets = [int(_ONE * ((0.5 + _GOLDEN * int(rank)) % 1.0)) for rank in ranks]
        self.block = lru_cache(maxsize=64)(self._order_of_block)
        self._counts = lru_cache(maxsize=256)(self._counts_at_block)

    @property
    def length(self) -> int | None:
        """Number of samples until every corpus has completed its epochs. None: unlimited."""
        return self._length

    def shares_at(self, position: int) -> np.ndarray:
        """Target share of samples of each corpus at `position`, float64 [corpora]."""
        segment = self._segment_at(position)
        if segment.length is None:
            return np.array(segment.first) / _ONE
        way = (position - segment.start) / segment.length
        return (np.array(segment.first) * (1 - way) + np.array(segment.last) * way) / _ONE

    @property
    def ratio_shares(self) -> np.ndarray:
        """Shares of samples that the ratios give without schedules and `epochs`, float64 [corpora]."""
        weights = self._divide_tasks(self._ratios.copy()) * self._samples_per_unit()
        return weights / weights.sum()

    @property
    def loss_shares(self) -> np.ndarray:
        """Shares of the gradient with `objective: corpus`, while the corpora have the samples of `ratio_shares`."""
        return shares_of_loss(self.recipe, self._divide_tasks(self._ratios.copy()))

    def expected(self, position: int) -> np.ndarray:
        """Target number of samples of each corpus among the first `position`, float64 [corpora]."""
        segment = self._segment_at(position)
        return np.array([segment.integral(corpus, position) / _ONE for corpus in range(len(self.names))])

    def counts(self, position: int) -> np.ndarray:
        """Actual number of samples of each corpus among the first `position`, int64 [corpora]."""
        number = self.block_of(position) if position != self._length else self.block_of(position - 1)
        corpora, _ = self.block(number)
        first, before = self._counts(number)
        return before + np.bincount(corpora[: position - first], minlength=len(self.names))

    def draw(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Corpus and running number within it, int64 [count] each, of the positions from `start` on.

        Raises `ConfigError` past the end of a mixture whose corpora all have `epochs`.
        """
        pieces, position = [], start
        while position < start + count:
            number = self.block_of(position)
            first, _ = self._counts(number)
            corpora, ranks = self.block(number)
            piece = slice(position - first, min(len(corpora), start + count - first))
            pieces.append((corpora[piece], ranks[piece]))
            position = first + piece.stop
        if not pieces:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate([c for c, _ in pieces]), np.concatenate([r for _, r in pieces])

    def exhausted_at(self, corpus: int) -> int | None:
        """The position at which a corpus with `epochs` has ended. None if it never ends."""
        limit = self._limits[corpus]
        if limit is None:
            return None
        high = BLOCK
        while self.counts(high if self._length is None else min(high, self._length))[corpus] < limit:
            high *= 2
            if high > 1 << 50 or (self._length is None and self.shares_at(high)[corpus] == 0):
                return None
        low = 0
        high = high if self._length is None else min(high, self._length)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.counts(middle)[corpus] >= limit else (middle + 1, high)
        return low

    def block_of(self, position: int) -> int:
        """Number of the block that holds `position`. Raises `ConfigError` past the end of the mixture."""
        if self._length is not None and position >= self._length:
            raise ConfigError(
                f"the recipe's corpora end after {self._length} samples (all have `epochs`), but sample {position} is "
                "needed: train fewer steps or remove `epochs` from a corpus"
            )
        number = position // BLOCK
        while self._counts(number)[0] > position:
            number -= 1
        while self._counts(number + 1)[0] <= position:
            number += 1
        return number

    def _counts_at_block(self, number: int) -> tuple[int, np.ndarray]:
        """Samples before block `number`, in total and by corpus."""
        segment = self._segment_at(number * BLOCK)
        counts = np.zeros(len(self.names), dtype=np.int64)
        for corpus, (offset, limit) in enumerate(zip(self._offsets, self._limits, strict=True)):
            due = (segment.integral(corpus, number * BLOCK) + offset) // _ONE
            counts[corpus] = due if limit is None else min(due, limit)
        return int(counts.sum()), counts

    def _order_of_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Corpus and running number within it of the samples of a block, sorted by the time they are due."""
        before, after = self._counts(number)[1], self._counts(number + 1)[1]
        corpora = np.repeat(np.arange(len(self.names)), after - before)
        ranks = np.concatenate([np.arange(a, b) for a, b in zip(before, after, strict=True)])
        start, end = number * BLOCK, (number + 1) * BLOCK
        inner = self._starts[bisect.bisect_right(self._starts, start) : bisect.bisect_left(self._starts, end)]
        level = all(self._segment_at(time).first == self._segment_at(time).last for time in (start, *inner))
        times = sorted({start, *inner, end} if level else {*range(start, end, _PIECE), *inner, end})
        due = []
        for corpus in np.flatnonzero(after > before).tolist():
            reached = [self._segment_at(time).integral(corpus, time) for time in times]
            first = ((int(before[corpus]) + 1) * _ONE - self._offsets[corpus] - reached[0]) / _ONE
            passed = [(value - reached[0]) / _ONE for value in reached]
            due.append(np.interp(first + np.arange(after[corpus] - before[corpus]), passed, times))
        order = np.argsort(np.concatenate(due), kind="stable") if due else np.zeros(0, dtype=np.int64)
        return corpora[order], ranks[order]

    def _segment_at(self, time: int) -> _Segment:
        return self._segments[bisect.bisect_right(self._starts, time) - 1]

    def _own_ratios(self, sizes: Sequence[int | None]) -> np.ndarray:
        ratios = []
        for name, line, size in zip(self.names, self._lines, sizes, strict=True):
            if line.ratio is None and not size:
                raise ConfigError(f"corpus '{name}' has ratio: null (its size), but its shards were not found")
            ratios.append(float(line.ratio if line.ratio is not None else size or 0))
        return np.array(ratios) ** (1 / self.recipe.temperature)

    def _sample_limits(self, sizes: Sequence[int | None]) -> list[int | None]:
        limits: list[int | None] = []
        for name, line, size in zip(self.names, self._lines, sizes, strict=True):
            if line.epochs is not None and size is None:
                raise ConfigError(f"corpus '{name}' has epochs, but its size is unknown: its shards were not found")
            limits.append(None if line.epochs is None else max(1, round(line.epochs * (size or 0))))
        return limits

    def _weights(self, step: float, active: np.ndarray) -> np.ndarray:
        """Shares of samples at a step, summing to 1, or all zeros if no active corpus has a factor above 0."""
        factors = np.array([_factor(line.schedule, step) for line in self._lines])
        weights = self._divide_tasks(np.where(active, self._ratios * factors, 0.0)) * self._samples_per_unit()
        total = weights.sum()
        return weights / total if total else weights

    def _divide_tasks(self, weights: np.ndarray) -> np.ndarray:
        """Relative shares in the recipe's unit, of which each task in `tasks` has its share."""
        tasks = np.array([line.task for line in self._lines])
        for task, ratio in self.recipe.tasks.items():
            group = tasks == task
            total = weights[group].sum()
            weights[group] *= ratio / total if total else 0.0
        return weights

    def _samples_per_unit(self) -> np.ndarray:
        if self.recipe.unit == "sample":
            return np.ones(len(self._lines))
        if self.recipe.unit == "batch":
            return np.array([float(line.batch_size or 0) for line in self._lines])
        given: Sequence[float | None] = self._tokens or [line.tokens for line in self._lines]
        unknown = [name for name, tokens in zip(self.names, given, strict=True) if not tokens]
        if unknown:
            raise ConfigError(
                f"unit is token, but the mean tokens per sample of {', '.join(unknown)} are unknown: set `tokens` for "
                "them, or provide the shards and a tokenizer to measure them"
            )
        return 1 / np.array([float(tokens or 1) for tokens in given])

    def _make_segments(self, global_batch_size: int) -> list[_Segment]:
        knots = sorted({0, *(int(step) for line in self._lines for step, _ in line.schedule)})
        times = [step * global_batch_size for step in knots]
        active = np.ones(len(self._lines), dtype=bool)
        reached = [0] * len(self._lines)
        segments: list[_Segment] = []
        time = 0
        self._length: int | None = None
        while True:
            following = bisect.bisect_right(times, time)
            end = times[following] if following < len(times) else None
            first = self._weights(time / global_batch_size, active)
            last = first if end is None else self._weights(end / global_batch_size, active)
            first, last = (first if first.any() else last), (last if last.any() else first)
            if not first.any():
                if active.any():
                    raise ConfigError(
                        f"from step {time // global_batch_size} on, no corpus has a share: all schedules are 0"
                        + ("" if active.all() else ", and the other corpora have completed their epochs")
                    )
                self._length = sum(limit or 0 for limit in self._limits)
                segments.append(_Segment(time, None, (0,) * len(reached), (0,) * len(reached), tuple(reached)))
                return segments
            length = None if end is None else end - time
            segment = _Segment(time, length, _integers(first), _integers(last), tuple(reached))
            over, ended = self._first_to_end(segment, active)
            segments.append(segment)
            if over is None and end is None:
                return segments
            time = end if over is None else over  # type: ignore[assignment]
            reached = [segment.integral(corpus, time) for corpus in range(len(reached))]
            for corpus in ended:
                reached[corpus] = (self._limits[corpus] or 0) * _ONE
                active[corpus] = False

    def _first_to_end(self, segment: _Segment, active: np.ndarray) -> tuple[int | None, list[int]]:
        """When the first corpora complete their epochs within the segment, and which. None if none does."""
        ends: dict[int, int] = {}
        for corpus, limit in enumerate(self._limits):
            if limit is None or not active[corpus]:
                continue
            goal = limit * _ONE
            high = segment.start + segment.length if segment.length is not None else segment.start + 1
            while segment.length is None and segment.first[corpus] and segment.integral(corpus, high) < goal:
                high = segment.start + 2 * (high - segment.start)
            if segment.integral(corpus, high) < goal:
                continue
            low = segment.start
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if segment.integral(corpus, middle) >= goal else (middle + 1, high)
            ends[corpus] = low
        if not ends:
            return None, []
        first = min(ends.values())
        return first, [corpus for corpus, time in ends.items() if time == first]


def _factor(schedule: list[list[float]], step: float) -> float:
    if not schedule:
        return 1.0
    return float(np.interp(step, [point[0] for point in schedule], [point[1] for point in schedule]))


def _integers(shares: np.ndarray) -> tuple[int, ...]:
    """Shares as integers that sum to exactly _ONE. A positive share is at least 1."""
    whole = [max(int(share * _ONE), 1 if share > 0 else 0) for share in shares]
    whole[int(np.argmax(shares))] += _ONE - sum(whole)
    return tuple(whole)
