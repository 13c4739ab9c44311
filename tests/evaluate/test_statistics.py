"""Tests intervals and differences against values computed by hand and against repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minigptv2.evaluate.metrics.statistics import auroc, bootstrap, mean_interval, paired_difference


def test_a_certain_result_has_no_interval() -> None:
    assert mean_interval([1.0] * 9) == (1.0, 1.0)
    assert bootstrap(lambda drawn: float(len(drawn)), 5) == (5.0, 5.0)


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    values = [float(i < 300) for i in range(1000)]
    low, high = mean_interval(values)
    width = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - width, abs=0.004) and high == pytest.approx(0.3 + width, abs=0.004)
    array = np.array(values)
    assert bootstrap(lambda drawn: float(array[drawn].mean()), 1000) == pytest.approx((low, high), abs=0.006)


def test_questions_about_one_image_are_drawn_together() -> None:
    values = [float(i % 2) for i in range(100) for _ in range(10)]
    images = [i for i in range(100) for _ in range(10)]
    alone, together = mean_interval(values), mean_interval(values, groups=images)
    assert (together[1] - together[0]) > 2.5 * (alone[1] - alone[0])  # the square root of ten
    array = np.array(values)
    again = bootstrap(lambda drawn: float(array[drawn].mean()), 1000, groups=images)
    assert again == pytest.approx(together, abs=0.03)


def test_an_interval_holds_the_true_value_about_nineteen_times_of_twenty() -> None:
    generator, held = np.random.default_rng(5), 0
    for trial in range(200):
        low, high = mean_interval(generator.normal(1.0, 2.0, 60).tolist(), resamples=300, seed=trial)
        held += low <= 1.0 <= high
    assert 180 <= held <= 199


def test_a_difference_by_hand() -> None:
    # four questions change in one direction: 2 of the 16 sign patterns are at least as extreme
    found = paired_difference([0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1])
    assert found.mean == pytest.approx(4 / 6) and found.p == pytest.approx(2 / 16)
    assert paired_difference([1, 0], [1, 0]).p == 1.0
    assert paired_difference([0, 1], [1, 0]).mean == 0.0


def test_chance_differences_are_called_significant_one_time_of_twenty() -> None:
    generator, called = np.random.default_rng(3), 0
    for trial in range(200):
        a, b = generator.integers(0, 2, (2, 80))
        called += paired_difference(a.tolist(), b.tolist(), resamples=500, seed=trial).p < 0.05
    assert 3 <= called <= 20


def test_auroc_by_hand() -> None:
    assert auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert auroc([1.0, 1.0], [0, 1]) == 0.5
    assert math.isnan(auroc([0.3, 0.4], [1, 1]))
