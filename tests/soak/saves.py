"""Kills a process that only saves checkpoints with `kill -9`, repeatedly, each time at a random moment."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import torch

from minigptv2.engine.checkpoint import (
    MOMENTS,
    WEIGHTS,
    CheckpointState,
    load_state,
    newest_good_checkpoint,
    prune_checkpoints,
    read_tensors,
    write_checkpoint,
)
from tests.engine.net import IDENTITY

ELEMENTS = 50_000


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return 0.6 MB of tensors whose values encode the step."""
    return {
        stem: {"a": torch.full((ELEMENTS,), float(step)), "b": torch.full((3, 5), -float(step))}
        for stem in (WEIGHTS, *MOMENTS)
    }


def save_for_ever(run: Path, step: int, done: int) -> None:
    """Save step after step. Writes one byte to the file descriptor `done` after each complete save."""
    while True:
        write_checkpoint(run, CheckpointState(step, step, IDENTITY), tensors_of(step))
        os.write(done, b".")
        prune_checkpoints(run, keep=2)
        step += 1


def kill_one_save(run: Path, step: int, wait_s: float) -> int:
    """Kill a process that saves from `step` on after `wait_s` seconds. Returns the number of completed saves."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        save_for_ever(run, step, write)
    os.close(write)
    time.sleep(wait_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    said = len(os.read(read, 4096)) if wait_s else 0
    os.close(read)
    return said


def check(run: Path, at_least: int, at_most: int) -> tuple[int, str | None]:
    """Return the step of the newest checkpoint and a description of what is wrong with it, None if nothing is."""
    warnings: list[str] = []
    folder = newest_good_checkpoint(run, warnings.append)
    if folder is None:
        return 0, None if at_least == 0 else f"step {at_least} was saved, but there is no checkpoint"
    step = load_state(folder).step
    if warnings:
        return step, warnings[0]
    if not at_least <= step <= at_most:
        return step, f"found step {step}, expected {at_least} to {at_most}"
    for stem, named in tensors_of(step).items():
        read = read_tensors(folder / f"{stem}.safetensors")
        if any(not torch.equal(read[name], value) for name, value in named.items()):
            return step, f"{stem} is not what was saved"
    return step, None


def run(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Kill `count` saves. `bad` counts the saves after which the newest checkpoint was wrong."""
    draw = random.Random(seed)
    bad = inside = step = 0
    began = time.monotonic()
    write_checkpoint(folder / "timing", CheckpointState(1, 1, IDENTITY), tensors_of(1))
    one_save = time.monotonic() - began
    for number in range(count):
        said = kill_one_save(folder, step + 1, draw.uniform(0, 2.5 * one_save))
        found, wrong = check(folder, step + said, step + said + 1)
        inside += any((folder / "checkpoints").glob(".step-*.tmp"))
        if wrong:
            bad += 1
            print(f"save {number}: {wrong}", flush=True)
        step = found
    return {"kills": count, "while a save was half written": inside, "bad": bad}
