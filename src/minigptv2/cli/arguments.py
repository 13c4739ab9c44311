"""Numbers on the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """For `type=` of an option: its text as a whole number. One below `least` is a mistake that argparse tells."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
        return value

    return parse


def positive(text: str) -> float:
    """For `type=` of an option: its text as a finite number above 0. Any other is a mistake that argparse tells."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def not_negative(text: str) -> float:
    """For `type=` of an option: its text as a finite number, 0 or more. Any other is a mistake that argparse tells."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
