"""`python -m tests.corpora.fuzz --cases 5000 --seed 1` (`make fuzz-own`) builds changed files of own data."""

from __future__ import annotations

import sys

from tests.corpora.fuzz.runner import FORMATS, fuzz
from tests.fuzzing import run_fuzzer

if __name__ == "__main__":
    sys.exit(run_fuzzer(fuzz, FORMATS, "build changed files of own data, so many of each format"))
