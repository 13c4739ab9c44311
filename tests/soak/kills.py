"""Kills a random rank with `kill -9` at a random moment. The same command must then end with bit-identical weights."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

from tests.soak.stage import PHASES, draw_moment, ends_equal, make_stage, start_and_wait, unbroken_runs

RANKS = [2, 3, 4]


def run(folder: Path, count: int, seed: int) -> dict[str, object]:
    """Kill and resume `count` runs. `bad` counts the runs that ended with different weights or metrics, or left a
    process running for more than 15 s."""
    draw = random.Random(seed)
    config = make_stage(folder)
    unbroken = unbroken_runs(config, folder, RANKS)
    bad = 0
    phases: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        ranks = draw.choice(RANKS)
        moments = [draw_moment(draw, ranks, list(PHASES), signal.SIGKILL) for _ in range(draw.choice([1, 1, 2]))]
        run_ = folder / f"killed-{number}"
        wrong = None
        for moment in moments:
            codes, lingered = start_and_wait(config, run_, ranks, moment)
            phases[moment.phase if codes[moment.rank] == -signal.SIGKILL else "not reached"] += 1
            slowest = max(slowest, lingered)
            if lingered > 15:
                wrong = f"after {moment} a process kept running for {lingered:.0f} s"
        said = f"{number + 1:>4}  {ranks} ranks  {'; '.join(map(str, moments))}"
        bad += not ends_equal(config, run_, ranks, unbroken[ranks], said, wrong)
    return {"runs": count, "kills by phase": dict(phases), "slowest to exit (s)": round(slowest, 1), "bad": bad}
