"""Groups the examples of one global step into packs of equal image counts and nearly equal cost.

A whole step is planned at once from lengths and costs: every rank gets the same number of packs, and nothing is kept
for the next step.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import groupby

import numpy as np

GOOD_BALANCE = 1.001
"""Ratio of the heaviest pack to the mean at which swapping ends."""
_SWAP_CANDIDATES = 8
"""Number of lightest packs with which the heaviest pack tries to swap."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of an example: its tokens (counted by the budget), its compute in token equivalents, and its images."""

    tokens: int
    compute: float
    images: int = 0


def pack_step(costs: list[Cost], *, num_ranks: int, min_packs_per_rank: int, max_pack_tokens: int) -> list[list[int]]:
    """Partition examples 0 .. n - 1 into `num_ranks * k` packs; rank r owns packs r, r + num_ranks, ...

    k starts at `min_packs_per_rank` and grows until every pack holds at most `max_pack_tokens` tokens. Examples with
    the same number of images are assigned in rounds, the longest of a round to the lightest pack. So the image counts
    of packs, and of ranks, differ by at most one if examples have at most one image. Then the heaviest pack swaps
    examples with light ones. Packs of similar cost run at the same time. Within a pack the original order is kept. The
    caller must limit examples to `max_pack_tokens` tokens.
    """
    longest = max((cost.tokens for cost in costs), default=0)
    assert longest <= max_pack_tokens, f"an example of {longest} tokens in packs of {max_pack_tokens}"
    packs_per_rank = min_packs_per_rank
    while True:
        packs = _Packs(costs, num_ranks * packs_per_rank, max_pack_tokens)
        if packs.deal():
            packs.swap()
            return packs.by_rank(num_ranks)
        packs_per_rank += 1


class _Packs:
    def __init__(self, costs: list[Cost], num_packs: int, max_tokens: int) -> None:
        self.costs = costs
        self.max_tokens = max_tokens
        self._weights = np.array([(cost.compute, cost.images) for cost in costs]).reshape(-1, 2)
        self.members: list[list[int]] = [[] for _ in range(num_packs)]
        self.tokens = [0] * num_packs
        self.load = [0.0] * num_packs
        self.images = [0] * num_packs

    def deal(self) -> bool:
        """Put every example into a pack. False if one does not fit."""
        if sum(cost.tokens for cost in self.costs) > len(self.members) * self.max_tokens:
            return False
        costs = self.costs
        order = sorted(range(len(costs)), key=lambda i: (-costs[i].images, -costs[i].compute, i))
        groups = [list(group) for _, group in groupby(order, key=lambda i: costs[i].images)]
        deals = (self._deal_images if costs[group[0]].images else self._deal_texts for group in groups)
        return all(deal(group) for deal, group in zip(deals, groups, strict=True))

    def _deal_images(self, examples: list[int]) -> bool:
        """Assign one example per pack and round. The packs with fewest images, then the lightest, come first."""
        for start in range(0, len(examples), len(self.members)):
            packs = sorted(range(len(self.members)), key=lambda p: (self.images[p], self.load[p], p))
            taken = examples[start : start + len(packs)]
            for example in taken:
                number = next((n for n, p in enumerate(packs) if self._has_room(p, example)), None)
                if number is None:
                    return False
                self._add(packs.pop(number), example)
        return True

    def _deal_texts(self, examples: list[int]) -> bool:
        """Assign each example to the lightest pack that it fits (within 4/3 of the best balance, Graham 1969)."""
        lightest = [(load, pack) for pack, load in enumerate(self.load)]
        heapq.heapify(lightest)
        for example in examples:
            full = []
            while lightest and not self._has_room(lightest[0][1], example):
                full.append(heapq.heappop(lightest))
            if not lightest:
                return False
            _, pack = heapq.heappop(lightest)
            self._add(pack, example)
            for entry in (*full, (self.load[pack], pack)):
                heapq.heappush(lightest, entry)
        return True

    def swap(self) -> None:
        """Exchange examples with equal image counts between the heaviest pack and a light one while that helps."""
        if len(self.members) < 2 or not self.costs:
            return
        good = GOOD_BALANCE * sum(self.load) / len(self.load)
        for _ in range(4 * len(self.members)):
            loads = np.array(self.load)
            heavy = int(np.argmax(loads))
            if loads[heavy] <= good:
                return
            light = np.argsort(loads, kind="stable")[:_SWAP_CANDIDATES].tolist()
            if not any(self._swap_between(heavy, pack) for pack in light if pack != heavy):
                return

    def by_rank(self, num_ranks: int) -> list[list[int]]:
        """The packs in rows of `num_ranks`, the heaviest row first, every second row reversed."""
        order = sorted(range(len(self.members)), key=lambda p: (-self.images[p], -self.load[p], p))
        rows = [order[start : start + num_ranks] for start in range(0, len(order), num_ranks)]
        return [sorted(self.members[pack]) for n, row in enumerate(rows) for pack in (row[::-1] if n % 2 else row)]

    def _swap_between(self, heavy: int, light: int) -> bool:
        """Make the exchange that brings the loads of the two packs closest together. False if none helps."""
        from_heavy, from_light = self.members[heavy], self.members[light]
        gap = self.load[heavy] - self.load[light]
        given, images = self._weights[from_heavy].T
        # the last row: nothing in return
        taken, other_images = np.append(self._weights[from_light], [[0.0, 0.0]], axis=0).T
        moved = given[:, None] - taken[None, :]
        left = np.where(images[:, None] == other_images[None, :], np.abs(gap - 2 * moved), np.inf)
        a, b = divmod(int(np.argmin(left)), len(from_light) + 1)
        if left[a, b] >= gap * (1 - 1e-9):
            return False
        out, back = from_heavy[a], from_light[b] if b < len(from_light) else None
        change = self.costs[out].tokens - (self.costs[back].tokens if back is not None else 0)
        if self.tokens[light] + change > self.max_tokens or self.tokens[heavy] - change > self.max_tokens:
            return False
        self._move(out, heavy, light)
        if back is not None:
            self._move(back, light, heavy)
        return True

    def _has_room(self, pack: int, example: int) -> bool:
        return self.tokens[pack] + self.costs[example].tokens <= self.max_tokens

    def _add(self, pack: int, example: int, sign: int = 1) -> None:
        cost = self.costs[example]
        self.tokens[pack] += sign * cost.tokens
        self.load[pack] += sign * cost.compute
        self.images[pack] += sign * cost.images
        if sign > 0:
            self.members[pack].append(example)
        else:
            self.members[pack].remove(example)

    def _move(self, example: int, source: int, target: int) -> None:
        self._add(source, example, -1)
        self._add(target, example)
