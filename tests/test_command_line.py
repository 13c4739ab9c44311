"""Numbers on the command line: every command refuses those that make no sense, before it does anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigptv2.cli import build_parser
from minigptv2.cli.arguments import at_least, not_negative, positive

ANY_NUMBER = ("--seed", "--code", "--port")
"""A seed may be negative; the codes are the launcher's; serving checks its port itself."""
NO_COUNTS = (None, float, positive, not_negative, Path)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_every_count_has_a_least_value() -> None:
    counts = [
        action
        for parser in parsers(build_parser())
        for action in parser._actions
        if action.type not in NO_COUNTS and not set(ANY_NUMBER) & set(action.option_strings)
    ]
    assert len(counts) > 30
    for action in counts:
        assert callable(action.type)
        with pytest.raises(argparse.ArgumentTypeError, match="'-1' is not a whole number of at least [01]"):
            action.type("-1")


@pytest.mark.parametrize(("least", "text"), [(1, "0"), (0, "-1"), (1, "two"), (0, "1.5"), (0, "")])
def test_a_number_below_the_least_is_named(least: int, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a whole number of at least {least}"):
        at_least(least)(text)
    assert at_least(least)(str(least)) == least


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast", ""])
def test_a_measure_is_finite_and_above_nothing(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a number (above 0|from 0 on)"):
        positive(text)
    assert positive("0.5") == 0.5 and not_negative("0") == 0


def test_zero_where_it_means_something_is_taken() -> None:
    """Nobody waits: the next request is refused at once. Text alone: a sample has no image."""
    words = build_parser().parse_args(["serve", "--model", "m", "--max-waiting", "0"])
    assert words.max_waiting == 0
    assert build_parser().parse_args(["plan", "--config", "c", "--images", "0"]).images == 0
