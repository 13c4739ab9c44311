"""Fills a small tmpfs, in its own mount namespace, so that saves of a checkpoint fail at random points."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from minigptv2.engine.checkpoint import CheckpointState, prune_checkpoints, write_checkpoint
from minigptv2.errors import CheckpointError
from tests.engine.net import IDENTITY
from tests.soak.saves import check, tensors_of

SIZE_KIB = 2048
SAVE_KIB = 620


def fill_and_save(disk: Path, count: int, seed: int) -> dict[str, object]:
    """Save `count` times on a disk with free space for 0 to 1.2 saves. Returns counts, wrong outcomes included."""
    draw = random.Random(seed)
    refused = bad = 0
    slowest = 0.0
    write_checkpoint(disk, CheckpointState(1, 1, IDENTITY), tensors_of(1))
    step = 1
    for number in range(count):
        prune_checkpoints(disk, keep=1)
        room = draw.randint(0, int(1.2 * SAVE_KIB))
        filler = disk / "filler"
        filler.write_bytes(bytes(max(0, _free_kib(disk) - room) * 1024))
        began = time.monotonic()
        try:
            write_checkpoint(disk, CheckpointState(step + 1, 1, IDENTITY), tensors_of(step + 1))
            expected = step + 1
        except CheckpointError as error:
            refused += "No space left" in str(error)
            expected = step
        slowest = max(slowest, time.monotonic() - began)
        filler.unlink()
        step, wrong = check(disk, expected, expected)
        if wrong:
            bad += 1
            print(f"save {number} with {room} KiB left: {wrong}", file=sys.stderr, flush=True)
    return {"saves": count, "refused": refused, "slowest (s)": round(slowest, 2), "bad": bad}


def _free_kib(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize // 1024


def run(folder: Path, count: int, seed: int) -> dict[str, object]:
    """Run `fill_and_save` in a process that may mount, started by `unshare` of util-linux."""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "tests.soak.full_disk"]
    said = subprocess.run([*command, str(folder), str(count), str(seed)], check=True, stdout=subprocess.PIPE)
    result: dict[str, object] = json.loads(said.stdout)
    return result


if __name__ == "__main__":
    where = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_KIB}k", "tmpfs", str(where)], check=True)
    print(json.dumps(fill_and_save(where, int(sys.argv[2]), int(sys.argv[3]))))
