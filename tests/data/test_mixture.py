"""Shares of corpora: units, tasks, temperature, schedules, epochs; every prefix keeps them, every seek is exact."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.mixture import BLOCK, Mixture, check_recipe
from minigptv2.errors import ConfigError


def mixture(
    lines: dict[str, dict[str, Any]],
    sizes: int | list[int | None] = 1000,
    *,
    batch: int = 10,
    tokens: list[float] | None = None,
    **recipe: Any,
) -> Mixture:
    made = Recipe(corpora={name: CorpusShare(**line) for name, line in lines.items()}, **recipe)
    check_recipe(made, "recipe.yaml")
    known = sizes if isinstance(sizes, list) else [sizes] * len(lines)
    return Mixture(made, known, tokens=tokens, global_batch_size=batch)


def lines_of(ratios: list[float]) -> dict[str, dict[str, Any]]:
    return {f"c{number}": {"ratio": ratio} for number, ratio in enumerate(ratios)}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=22))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_prefix_keeps_the_ratios(ratios: list[float]) -> None:
    mixed = mixture(lines_of(ratios))
    assert np.abs(mixed.shares - np.array(ratios) / sum(ratios)).max() < 1e-9
    corpora, ranks = mixed.draw(0, 6000)
    taken = np.cumsum(corpora[:, None] == np.arange(len(ratios)), axis=0)
    expected = np.arange(1, 6001)[:, None] * mixed.shares
    assert np.abs(taken - expected).max() < 3.0
    assert (ranks == taken[np.arange(6000), corpora] - 1).all()


@pytest.mark.parametrize("far", [0, 10**6, 10**12])
def test_a_share_of_one_in_a_million_is_kept_far_out(far: int) -> None:
    mixed = mixture(lines_of([1e-6, 1.0]))
    counts = mixed.counts(far + 10**8) - mixed.counts(far)
    assert counts.sum() == 10**8 and abs(int(counts[0]) - 100) <= 1


def test_hundreds_of_small_corpora_do_not_come_in_clumps() -> None:
    mixed = mixture(lines_of([300.0] + [1.0] * 300))
    corpora, _ = mixed.draw(0, 3000)
    large = np.cumsum(corpora == 0)
    assert np.abs(large - np.arange(1, 3001) / 2).max() < 3


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "ratio": st.floats(0.01, 100),
                "epochs": st.sampled_from([None, 0.5, 1.0, 3.0]),
                "schedule": st.sampled_from([[], [[0, 1], [50, 0.2]], [[10, 0.01], [11, 1], [300, 2]]]),
            }
        ),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.integers(1, 400), min_size=8, max_size=8),
    st.lists(st.integers(0, 9000), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_seek_equals_reading_on_and_nothing_is_lost_or_doubled(
    lines: list[dict[str, Any]], sizes: list[int], seeks: list[int]
) -> None:
    made = {f"c{number}": line for number, line in enumerate(lines)}
    whole, fresh = (mixture(made, list(sizes[: len(lines)])) for _ in range(2))
    end = min(9100, whole.length) if whole.length is not None else 9100
    corpora, ranks = whole.draw(0, end)
    for number in range(len(lines)):  # 0, 1, 2, ... of every corpus: none lost, none twice
        mine = ranks[corpora == number]
        assert (mine == np.arange(len(mine))).all()
        if lines[number]["epochs"]:
            assert len(mine) <= max(1, round(lines[number]["epochs"] * sizes[number]))
    for seek in seeks:
        count = max(0, min(100, end - seek))
        again = fresh.draw(seek, count)
        assert (again[0] == corpora[seek : seek + count]).all() and (again[1] == ranks[seek : seek + count]).all()
        if seek <= end:
            assert (fresh.counts(seek) == np.bincount(corpora[:seek], minlength=len(lines))).all()


def test_epochs_end_exactly_and_the_others_take_over() -> None:
    mixed = mixture({"a": {"ratio": 1.0, "epochs": 2}, "b": {"ratio": 3.0}}, [50, 10])
    corpora, _ = mixed.draw(0, 2000)
    ended = mixed.exhausted_at(0)
    assert ended is not None and abs(ended - 400) <= 4
    assert (corpora == 0).sum() == 100 and (corpora[ended:] == 1).all() and corpora[ended - 1] == 0
    assert mixed.length is None and mixed.exhausted_at(1) is None


def test_a_recipe_of_epochs_alone_ends_and_says_so() -> None:
    mixed = mixture({"a": {"ratio": 1.0, "epochs": 2}, "b": {"ratio": 1.0, "epochs": 1.5}}, [500, 2000])
    assert mixed.length == 4000 and mixed.counts(4000).tolist() == [1000, 3000]
    assert len(mixed.draw(0, 4000)[0]) == 4000
    with pytest.raises(ConfigError, match="end after 4000 samples"):
        mixed.draw(3999, 2)


def test_a_task_keeps_its_share_when_one_of_its_corpora_ends() -> None:
    lines = {
        "a": {"ratio": 1.0, "task": "vqa", "epochs": 1},
        "b": {"ratio": 1.0, "task": "vqa"},
        "c": {"ratio": 5.0, "task": "caption"},
    }
    mixed = mixture(lines, [100, 100, 100], tasks={"vqa": 1.0, "caption": 1.0})
    assert mixed.shares.tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert mixed.shares_at(100_000).tolist() == pytest.approx([0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("lines", "recipe", "shares"),
    [
        ({"a": {"ratio": 1.0}, "b": {"ratio": 3.0}}, {}, [0.25, 0.75]),
        ({"a": {"ratio": None}, "b": {"ratio": None}}, {}, [0.1, 0.9]),
        ({"a": {"ratio": None}, "b": {"ratio": None}}, {"temperature": 2.0}, [0.25, 0.75]),
        ({"a": {"ratio": 1.0}, "b": {"ratio": 99.0}}, {"temperature": 1e9}, [0.5, 0.5]),
        ({"a": {"ratio": 1.0, "batch_size": 6}, "b": {"ratio": 1.0, "batch_size": 2}}, {"unit": "batch"}, [0.75, 0.25]),
        ({"a": {"ratio": 1.0, "tokens": 300}, "b": {"ratio": 1.0, "tokens": 100}}, {"unit": "token"}, [0.25, 0.75]),
        (
            {"a": {"ratio": 9.0, "task": "vqa"}, "b": {"ratio": 1.0, "task": "refer"}},
            {"tasks": {"vqa": 2.0, "refer": 3.0}},
            [0.4, 0.6],
        ),
    ],
)
def test_ratios_mean_what_the_unit_says(
    lines: dict[str, dict[str, Any]], recipe: dict[str, Any], shares: list[float]
) -> None:
    assert mixture(lines, [100, 900], **recipe).shares.tolist() == pytest.approx(shares)


def test_token_ratios_give_token_shares() -> None:
    mixed = mixture(lines_of([1.0, 1.0, 2.0]), tokens=[50, 500, 320], unit="token")
    tokens = mixed.counts(100_000) * np.array([50, 500, 320])
    assert (tokens / tokens.sum()).tolist() == pytest.approx([0.25, 0.25, 0.5], abs=1e-3)


def test_a_schedule_moves_shares_in_a_straight_line() -> None:
    mixed = mixture({"a": {"ratio": 1.0, "schedule": [[100, 1], [300, 0]]}, "b": {"ratio": 1.0}}, batch=10)
    for step, share in ((0, 0.5), (100, 0.5), (200, 0.25), (299, 0.0025), (300, 0), (500, 0)):
        assert mixed.shares_at(step * 10)[0] == pytest.approx(share)
        asked = 0.5 * min(step, 100) * 10 + (lambda x: 0.5 * x - x * x / 8000)(min(max(step - 100, 0), 200) * 10)
        assert mixed.expected(step * 10)[0] == pytest.approx(asked)
        assert abs(mixed.counts(step * 10)[0] - asked) <= 1.5
    assert (mixed.draw(3000, 2 * BLOCK)[0] == 1).all()


@pytest.mark.parametrize(
    ("lines", "recipe", "words"),
    [
        ({"a": {"ratio": 0.0}}, {}, "ratio must be positive"),
        ({"a": {"ratio": 1.0}}, {"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"a": {"ratio": 1.0}}, {"tasks": {"vqa": 1.0}}, "no corpus has that task"),
        ({"a": {"ratio": 1.0, "task": "vqa"}, "b": {"ratio": 1.0}}, {"tasks": {"vqa": 1.0}}, "has no share in tasks"),
        ({"a": {"ratio": 1.0}}, {"unit": "batch"}, "batch_size must be set"),
        ({"a": {"ratio": 1.0, "batch_size": 2}}, {}, "the recipe's unit is sample"),
        ({"a": {"ratio": 1.0}}, {"unit": "token"}, "mean tokens per sample of a are unknown"),
        ({"a": {"ratio": 1.0, "schedule": [[5, 1], [5, 2]]}}, {}, "increasing whole numbers"),
        ({"a": {"ratio": 1.0, "schedule": [[5]]}}, {}, "pairs"),
        ({"a": {"ratio": 1.0, "schedule": [[0, 0]]}}, {}, "no corpus has a share"),
        ({"a": {"ratio": 1.0, "epochs": -1.0}}, {}, "epochs must be positive, or null for no limit, got -1.0"),
        ({"a": {"ratio": 1.0, "share_images": 0}}, {}, "share_images must be at least 1, got 0"),
    ],
)
def test_impossible_recipes_are_config_errors(
    lines: dict[str, dict[str, Any]], recipe: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        mixture(lines, **recipe)


def test_what_needs_a_size_says_so() -> None:
    for line in ({"ratio": None}, {"ratio": 1.0, "epochs": 1}):
        with pytest.raises(ConfigError, match="its shards were not found"):
            mixture({"a": line}, [None])
