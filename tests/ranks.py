"""Run a function of a test module in several real processes, as a launcher would start them."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

from minigptv2.cluster.rendezvous import free_port
from tests import preloaded


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher sets for a rank, on top of this process's environment."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def start_ranks(config: Path, world_size: int, *words: str, logs: Path) -> list[preloaded.PreloadedProcess]:
    """`launch/train.py --config config words` in each rank; output in `logs`/rank0.log and so on."""
    port = free_port()
    return [
        preloaded.start_training(
            "--config",
            str(config),
            *words,
            log=logs / f"rank{rank}.log",
            environment=rank_environment(rank, world_size, port),
            rank=rank,
        )
        for rank in range(world_size)
    ]


def run_ranks(function: str, world_size: int, tmp_path: Path, timeout_s: float = 240, **arguments: Any) -> list[Any]:
    """`module:name` called with keyword `arguments` in each rank; returns what each rank's call returned (JSON)."""
    port = free_port()
    processes = []
    for rank in range(world_size):
        output = tmp_path / f"rank{rank}.json"
        output.unlink(missing_ok=True)
        processes.append(
            preloaded.start(
                "tests.ranks:call",
                log=tmp_path / f"rank{rank}.log",
                number=rank,
                function=function,
                environment=rank_environment(rank, world_size, port),
                output=str(output),
                arguments=arguments,
            )
        )
    deadline = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() not in (None, 0) for process in processes)
            if failed or time.monotonic() > deadline:
                time.sleep(1.0)  # the first to fail is the cause; the others have a moment to say what they saw
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((tmp_path / f"rank{rank}.log").read_text()[-3000:] for rank in range(world_size))
    assert all(process.returncode == 0 for process in processes), logs
    return [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(world_size)]


def call(function: str, output: str, arguments: dict[str, Any]) -> None:
    """In a rank: call `module:name` and write what it returns to `output`."""
    from minigptv2.cluster import distributed

    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**arguments)
    Path(output).write_text(json.dumps(result))
    distributed.barrier()  # a rank that leaves while another still talks to it ends both
    distributed.stop_process_group()
