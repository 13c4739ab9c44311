"""Trains a small stage, interrupts it at a random moment and resumes it. Used by `kills` and `stops`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from minigptv2.cluster.rendezvous import free_port
from minigptv2.tracking.log import read_metrics
from tests import preloaded
from tests.conftest import make_world
from tests.ranks import rank_environment

STEPS = 12
RECIPE = """
corpora:
  toy_refer: {ratio: 2, task: refer}
  toy_conversation: {ratio: 1, task: mixed}
  toy_language: {ratio: 1, task: language}
"""
PHASES = {
    "load": "loading",
    "data": "data of step",
    "step": "step",
    "save": "saving",
    "evaluate": "evaluation",
    "export": "exporting",
}
"""Phases in which a run is interrupted, each with the beginning of its name in the watchdog."""


@dataclass(frozen=True)
class Moment:
    """When to interrupt: `delay_s` seconds after `rank` enters `phase` for the `nth` time, it sends itself `signal`."""

    rank: int
    phase: str
    nth: int
    delay_s: float
    signal: int

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name
        return f"{name} to rank {self.rank}, {self.phase} no. {self.nth} + {1000 * self.delay_s:.0f} ms"


def draw_moment(draw: random.Random, ranks: int, phases: list[str], number: int) -> Moment:
    """Draw a moment before the end of the run. There are fewer evaluations and saves than steps."""
    phase = draw.choice(phases)
    most = {"load": 1, "export": 1, "evaluate": 3, "save": 5}.get(phase, STEPS - 2)
    return Moment(draw.randrange(ranks), phase, draw.randint(1, most), draw.uniform(0, 0.25), number)


def make_stage(folder: Path) -> Path:
    """Write shards, tokenizer, recipe and config of the stage. Returns the config file."""
    world = make_world(folder / "world")
    model = {
        "vision_encoder": "tiny_vit",
        "language_model": "tiny_llama",
        "tokenizer": str(world.tokenizer_folder),
        "lora": {"r": 4, "dropout": 0.1},
        "trainable": ["projector", "lora"],
    }
    evaluate = {"shards": str(world.val), "corpora": ["toy_refer"], "samples": 2, "every": 3, "max_new_tokens": 4}
    return world.write_stage(
        folder,
        RECIPE,
        changes={"model": model, "evaluate": evaluate},
        steps=STEPS,
        global_batch_size=12,
        micro_batch_size=1,
        warmup_steps=2,
        checkpoint_every=2,
        log_every=1,
        silence_s=6,
        crash_loop_limit=0,
    )


def train_with_a_moment(words: list[str], moment: dict[str, Any] | None) -> int:
    """Run `launch/train.py` in a rank that sends itself a signal at the moment."""
    from minigptv2.cli.train import main
    from minigptv2.cluster.watchdog import Watchdog

    if moment:
        real, seen = Watchdog.set_phase, [0]

        def set_phase(self: Watchdog, phase: str, *, steady: bool = False) -> None:
            real(self, phase, steady=steady)
            seen[0] += phase.startswith(PHASES[moment["phase"]])
            if seen[0] == moment["nth"] and phase.startswith(PHASES[moment["phase"]]):
                seen[0] = 10**6
                threading.Timer(moment["delay_s"], os.kill, (os.getpid(), moment["signal"])).start()

        Watchdog.set_phase = set_phase  # type: ignore[method-assign]
    return main(words)


def start_and_wait(config: Path, run: Path, ranks: int, moment: Moment | None = None) -> tuple[list[int], float]:
    """Start the stage once. Returns the exit codes by rank, and the seconds from the first rank's end to the last's."""
    port = free_port()
    words = ["--config", str(config), f"run_dir={run}"]
    processes = []
    for rank in range(ranks):
        mine = moment.__dict__ if moment and moment.rank == rank else None
        processes.append(
            preloaded.start(
                "tests.soak.stage:train_with_a_moment",
                log=run.with_suffix(f".rank{rank}.log"),
                number=rank,
                environment=rank_environment(rank, ranks, port),
                words=words,
                moment=mine,
            )
        )
    first = None
    deadline = time.monotonic() + 300
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if first is None and any(process.poll() is not None for process in processes):
            first = time.monotonic()
        time.sleep(0.05)
    for process in processes:
        process.kill()
    return [process.wait() for process in processes], time.monotonic() - (first or time.monotonic())


def difference(run: Path, unbroken: Path) -> str | None:
    """Describe the first difference in weights, losses, norms or learning rates. None if the runs are equal."""
    ours, theirs = (load_file(folder / "export" / "weights.safetensors") for folder in (run, unbroken))
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in ours):
        return "the weights differ"
    keys = ("step", "loss", "task_loss", "learning_rate", "gradient_norm", "mixture")
    rows = [[{key: row[key] for key in keys} for row in read_metrics(folder)] for folder in (run, unbroken)]
    return None if rows[0] == rows[1] else "the metrics differ"


def unbroken_runs(config: Path, folder: Path, rank_counts: list[int]) -> dict[int, Path]:
    """Run the stage without interruption for each number of ranks."""
    runs = {}
    for ranks in rank_counts:
        runs[ranks] = folder / f"unbroken-{ranks}"
        codes, _ = start_and_wait(config, runs[ranks], ranks)
        assert codes == [0] * ranks, f"the unbroken run on {ranks} ranks ended with {codes}"
    return runs


def ends_equal(config: Path, run: Path, ranks: int, unbroken: Path, said: str, wrong: str | None) -> bool:
    """Resume an interrupted run with the same command and print how it ended. A run that ended well is removed."""
    codes, _ = start_and_wait(config, run, ranks)
    wrong = wrong or (f"ended with {codes}" if codes != [0] * ranks else difference(run, unbroken))
    print(f"{said}: {wrong or 'equal'}", flush=True)
    if not wrong:
        shutil.rmtree(run)
    return not wrong
