"""`python -m tests.corpora.fuzz --cases 5000 --seed 1` (`make fuzz-own`) runs so many cases of each format.

The seed and the number of a case make the case, so what a run finds can be run again alone with `--only`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.corpora.fuzz.runner import FORMATS, fuzz

SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=5000, help="of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=sorted(FORMATS), action="append", help="default: all")
    parser.add_argument("--only", type=int, help="run only the case of this number")
    args = parser.parse_args()
    failed = False
    for name in args.format or FORMATS:
        began = time.monotonic()
        numbers = range(args.cases) if args.only is None else [args.only]
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(name, numbers, args.seed, Path(folder))
        print("\n".join(found.wrong[:SHOWN]))
        rate = len(numbers) / (time.monotonic() - began)
        print(
            f"{name}: {len(numbers)} cases ({rate:.0f} a second): {found.kept} to be kept, {found.refused} to be "
            f"refused, {len(found.wrong)} wrong"
        )
        print("  " + ", ".join(f"{count} {change}" for change, count in found.by_change.most_common()))
        failed |= bool(found.wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
