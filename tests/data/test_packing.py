"""Packs of a global step: complete, within budget, equal in images, nearly equal in cost, the same everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigptv2.data.packing import Cost, pack_step


def cost(tokens: int, images: int) -> Cost:
    return Cost(tokens, tokens + 80.0 * images, images)


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 2)), min_size=1, max_size=60),
    st.integers(1, 6),
    st.integers(1, 3),
)
@settings(deadline=None, derandomize=True)
def test_packs_hold_every_example_once_within_budget(lengths: list[tuple[int, int]], ranks: int, packs: int) -> None:
    costs = [cost(*length) for length in lengths]
    made = pack_step(costs, num_ranks=ranks, min_packs_per_rank=packs, max_pack_tokens=120)
    assert sorted(i for pack in made for i in pack) == list(range(len(costs)))
    assert len(made) % ranks == 0 and len(made) >= ranks * packs
    assert all(sum(costs[i].tokens for i in pack) <= 120 for pack in made)
    assert all(pack == sorted(pack) for pack in made)


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 1)), min_size=1, max_size=80),
    st.integers(1, 6),
    st.integers(1, 3),
)
@settings(deadline=None, derandomize=True)
def test_ranks_get_equal_counts_of_packs_and_images(lengths: list[tuple[int, int]], ranks: int, packs: int) -> None:
    costs = [cost(*length) for length in lengths]
    made = pack_step(costs, num_ranks=ranks, min_packs_per_rank=packs, max_pack_tokens=10_000)
    images = [sum(costs[i].images for i in pack) for pack in made]
    by_rank = [sum(images[rank::ranks]) for rank in range(ranks)]
    assert len(made) == ranks * packs
    assert max(images) - min(images) <= 1 and max(by_rank) - min(by_rank) <= 1


@pytest.mark.parametrize(("ranks", "packs"), [(1, 4), (8, 1), (8, 2), (64, 1)])
def test_every_micro_step_is_balanced(ranks: int, packs: int) -> None:
    """Mean over heaviest of each micro-step: what a step loses to waiting for the slowest rank."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(5):
        texts = np.clip(rng.lognormal(3.9, 0.7, 12 * ranks * packs), 15, 700).astype(int).tolist()
        costs = [cost(text + 256 * (n % 40 > 0), int(n % 40 > 0)) for n, text in enumerate(texts)]
        made = pack_step(costs, num_ranks=ranks, min_packs_per_rank=packs, max_pack_tokens=16_384)
        loads = np.array([sum(costs[i].compute for i in pack) for pack in made]).reshape(packs, ranks)
        shares.append((loads.mean(axis=1) / loads.max(axis=1)).mean())
    assert np.mean(shares) > 0.99


def test_one_long_example_among_short_ones_has_a_pack_almost_alone() -> None:
    costs = [cost(900, 0)] + [cost(100, 0)] * 9
    assert pack_step(costs, num_ranks=2, min_packs_per_rank=1, max_pack_tokens=1000) == [[0], list(range(1, 10))]
