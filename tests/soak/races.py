"""Starts the same stage twice at once in one folder. One start must be refused, and the other must end as if alone.

In a third of the races the second start has `--fresh`. In another third the first winner is killed at a random moment,
and two more starts race for what it left.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path

from minigptv2.cluster.rendezvous import free_port
from minigptv2.run_folder import RunFolder
from tests import preloaded
from tests.preloaded import PreloadedProcess
from tests.ranks import rank_environment
from tests.soak.stage import difference, make_stage

REFUSED = 2
SHORT = ("train.steps=5", "evaluate.shards=''")


def run(folder: Path, count: int, seed: int) -> dict[str, object]:
    """Run `count` races. `bad` counts those in which not exactly one start ended well, or files were mixed."""
    draw = random.Random(seed)
    config = make_stage(folder)
    unbroken = folder / "unbroken"
    assert _start(config, unbroken, 0, ()).wait(240) == 0
    kinds: Counter[str] = Counter()
    slowest, bad = 0.0, 0
    for number in range(count):
        run_ = folder / f"race-{number}"
        kind = draw.choice(["plain", "fresh", "killed"])
        kinds[kind] += 1
        wrong = None
        if kind == "killed":
            starts = _two_starts(config, run_, draw, ())
            time.sleep(draw.uniform(0.5, 4))
            for start in starts:  # the refused one may still be running
                start.kill()
                start.wait(60)
        starts = _two_starts(config, run_, draw, ("--fresh",) if kind == "fresh" else ())
        began = time.monotonic()
        refused_after = None
        while any(start.poll() is None for start in starts) and time.monotonic() < began + 240:
            if refused_after is None and REFUSED in [start.poll() for start in starts]:
                refused_after = time.monotonic() - began
            time.sleep(0.02)
        codes = sorted(-9 if start.poll() is None else start.wait() for start in starts)
        slowest = max(slowest, refused_after or 0.0)
        if codes != [0, REFUSED]:
            wrong = f"ended with {codes}"
        elif RunFolder(run_).failure.exists():
            wrong = "the refused start wrote failure.json"
        else:
            wrong = difference(run_, unbroken)
        print(f"{number + 1:>4}  {kind}: {wrong or 'equal'}", flush=True)
        bad += bool(wrong)
        for start in starts:
            start.kill()
        if not wrong:
            shutil.rmtree(run_)
    return {"races": count, "by kind": dict(kinds), "slowest refusal (s)": round(slowest, 1), "bad": bad}


def _two_starts(config: Path, run_: Path, draw: random.Random, second: tuple[str, ...]) -> list[PreloadedProcess]:
    """Two starts within half a second."""
    starts = []
    for number in range(2):
        starts.append(_start(config, run_, number, second if number else ()))
        time.sleep(draw.choice([0.0, draw.uniform(0, 0.5)]))
    return starts


def _start(config: Path, run_: Path, number: int, words: tuple[str, ...]) -> PreloadedProcess:
    words = ("--config", str(config), f"run_dir={run_}", *SHORT, *words)
    log = run_.with_suffix(f".start{number}.log")
    return preloaded.start_training(*words, log=log, environment=rank_environment(0, 1, free_port()), rank=number)
