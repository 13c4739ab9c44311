"""`python -m tests.hostile.fuzz --cases 5000 --seed 1` (`make fuzz-readers`) reads changed files of somebody else."""

from __future__ import annotations

import faulthandler
import sys

from tests.fuzzing import run_fuzzer
from tests.hostile.fuzz.runner import READERS, fuzz

if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(run_fuzzer(fuzz, READERS, "read changed files of somebody else, so many with each reader"))
