"""Runs a fuzzer from the command line, and prints what its cases showed.

The seed and the number of a case make the case, so what a run finds can be run again alone with `--only`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 20
PROGRESS_S = 30


@dataclass
class Found:
    """What the cases showed. `wrong` describes each case with another outcome than the right one."""

    wrong: list[str] = field(default_factory=list)
    by_change: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    refused: int = 0


Fuzz = Callable[[str, Iterable[int], int, Path], Found]
"""Runs the cases with these numbers: of a format, with a seed, in an empty folder."""


def run_fuzzer(fuzz: Fuzz, formats: Collection[str], description: str) -> int:
    """Fuzz the formats that the command line names, by default all. The exit code is 1 if a case went wrong."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cases", type=int, default=5000, help="of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=sorted(formats), action="append", help="default: all")
    parser.add_argument("--only", type=int, help="run only the case of this number")
    args = parser.parse_args()
    failed = False
    for name in args.format or formats:
        began = time.monotonic()
        numbers = range(args.cases) if args.only is None else range(args.only, args.only + 1)
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(name, _reported(name, numbers), args.seed, Path(folder))
        print("\n".join(found.wrong[:SHOWN]))
        rate = len(numbers) / (time.monotonic() - began)
        print(
            f"{name}: {len(numbers)} cases, seed {args.seed} ({rate:.0f} a second): {found.kept} accepted, "
            f"{found.refused} refused, {len(found.wrong)} wrong"
        )
        print("  " + ", ".join(f"{count} {change}" for change, count in found.by_change.most_common()), flush=True)
        failed |= bool(found.wrong)
    return 1 if failed else 0


def _reported(name: str, numbers: range) -> Iterator[int]:
    """The numbers, with a line of progress from time to time."""
    last = time.monotonic()
    for number in numbers:
        if time.monotonic() - last > PROGRESS_S:
            last = time.monotonic()
            print(f"{name}: {number - numbers.start} of {len(numbers)}", flush=True)
        yield number
