"""Runs the long tests and prints a table: `python -m tests.soak kills=50 stops=50 races=100 --seed 1`, and others.

Each name is described in the module of that name, `disk` in `full_disk`. The exit code is 1 if any run ended wrongly.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    """Run the tests that the command line names."""
    from tests.soak import full_disk, kills, races, saves, stops

    runs = {"saves": saves.run, "disk": full_disk.run, "kills": kills.run, "stops": stops.run, "races": races.run}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", metavar="name=count", help=f"of {', '.join(runs)}")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--folder", type=Path, help="folder to work in. Default: a temporary folder, removed at the end"
    )
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    results = {}
    for word in args.what:
        name, _, count = word.partition("=")
        with tempfile.TemporaryDirectory(prefix=f"soak-{name}-") as temporary:
            folder = args.folder / name if args.folder else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            results[name] = runs[name](folder, int(count), args.seed)
            results[name]["minutes"] = round((time.monotonic() - began) / 60, 1)  # type: ignore[assignment]
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return 1 if any(result["bad"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
