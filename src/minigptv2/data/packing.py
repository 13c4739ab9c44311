"""Examples of one global step into packs of nearly equal cost. Pure arithmetic on lengths.

Planned for the whole step at once: every rank gets the same number of packs, nothing is held back between steps.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """What an example weighs: its tokens (the budget counts these) and its compute in token equivalents."""

    tokens: int
    compute: float


def pack_step(costs: list[Cost], *, num_ranks: int, min_packs_per_rank: int, max_pack_tokens: int) -> list[list[int]]:
    """Partition examples 0 .. n - 1 into `num_ranks * k` packs; rank r owns packs r, r + num_ranks, ...

    k starts at `min_packs_per_rank` and grows until every pack holds at most `max_pack_tokens` tokens. Longest
    first, each to the lightest pack with room (within 4/3 of the best balance; Graham 1969). Within a pack the
    original order is kept. An example over the budget is a bug of the caller: examples are capped before.
    """
    longest = max((cost.tokens for cost in costs), default=0)
    assert longest <= max_pack_tokens, f"an example of {longest} tokens in packs of {max_pack_tokens}"
    packs_per_rank = min_packs_per_rank
    while True:
        packs = _longest_first(costs, num_ranks * packs_per_rank, max_pack_tokens)
        if packs is not None:
            return packs
        packs_per_rank += 1


def _longest_first(costs: list[Cost], num_packs: int, max_pack_tokens: int) -> list[list[int]] | None:
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    tokens = [0] * num_packs
    lightest = [(0.0, pack) for pack in range(num_packs)]
    for example in sorted(range(len(costs)), key=lambda i: (-costs[i].compute, i)):
        cost, full = costs[example], []
        while lightest and tokens[lightest[0][1]] + cost.tokens > max_pack_tokens:
            full.append(heapq.heappop(lightest))
        if not lightest:
            return None
        load, pack = heapq.heappop(lightest)
        packs[pack].append(example)
        tokens[pack] += cost.tokens
        heapq.heappush(lightest, (load + cost.compute, pack))
        for entry in full:
            heapq.heappush(lightest, entry)
    return [sorted(pack) for pack in packs]
