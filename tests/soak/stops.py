"""Sends SIGUSR1 or SIGTERM to a rank at a random moment. All ranks must save the same step, exit with 85 and resume."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

from minigptv2.cluster.attempts import run_journal
from minigptv2.errors import RequeueExit
from minigptv2.run_folder import RunFolder, checkpoint_step
from tests.soak.stage import draw_moment, ends_equal, make_stage, start_and_wait, unbroken_runs

RANKS = [2, 3]
PHASES = ["load", "data", "step", "save", "evaluate"]


def run(folder: Path, count: int, seed: int) -> dict[str, object]:
    """Stop and resume `count` runs. `bad` counts the runs whose ranks did not all stop at the same saved step."""
    draw = random.Random(seed)
    config = make_stage(folder)
    unbroken = unbroken_runs(config, folder, RANKS)
    bad = 0
    phases: Counter[str] = Counter()
    for number in range(count):
        ranks = draw.choice(RANKS)
        moment = draw_moment(draw, ranks, PHASES, draw.choice([signal.SIGUSR1, signal.SIGTERM]))
        phases[f"{moment.phase} {signal.Signals(moment.signal).name}"] += 1
        run_ = folder / f"stopped-{number}"
        codes, _ = start_and_wait(config, run_, ranks, moment)
        wrong = None if codes == [RequeueExit.exit_code] * ranks else f"exited with {codes}"
        stopped = run_journal(run_).read()[-1].saved_step
        saved = RunFolder(run_).checkpoint_folders()
        if not wrong and stopped is not None and checkpoint_step(saved[0]) != stopped:
            wrong = f"stopped after step {stopped}, saved {saved[0].name}"
        said = f"{number + 1:>4}  {ranks} ranks  {moment}: saved {stopped}"
        bad += not ends_equal(config, run_, ranks, unbroken[ranks], said, wrong)
    return {"stops": count, "by phase": dict(phases), "bad": bad}
