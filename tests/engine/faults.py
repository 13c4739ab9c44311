"""Trains a small network under the watchdog and makes one rank fail. Used by tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from tests.engine.net import ZERO3, batch, make_trainer, mine

SOUND_S = 2.5
"""Seconds of training before the fault, long enough for one or two heartbeats."""


def throw() -> None:
    raise ValueError("the thirteenth sample")


def run_out_of_memory() -> None:
    torch.empty(1 << 50)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    while True:
        time.sleep(0.05)


def leave() -> None:
    os._exit(3)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def train_and_fail(folder: str, fault: str, bad_rank: int, silence_s: float = 5.0, hang_s: float = 30.0) -> Any:
    """Train. After `SOUND_S` seconds one rank runs `fault` while the others wait for it in a collective."""
    from minigptv2.cluster import distributed
    from minigptv2.cluster.watchdog import Watchdog

    trainer = make_trainer(Path(folder), ZERO3)
    began = time.monotonic()
    with Watchdog(Path(folder), hang_s=hang_s, slow_s=30, silence_s=silence_s) as watch:
        for step in range(10**6):
            watch.set_phase(f"step {step}", steady=True)
            if distributed.rank() == bad_rank and time.monotonic() - began > SOUND_S:
                (Path(folder) / f"failing{bad_rank}").write_text(str(time.time()))
                globals()[fault]()
            trainer.train_step(mine([batch(step, number) for number in range(6)]))
    return None
