"""Run a function of a test module in several real processes, as a launcher would start them."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(function: str, world_size: int, tmp_path: Path, timeout_s: float = 240, **arguments: Any) -> list[Any]:
    """`module:name` called with keyword `arguments` in each rank; returns what each rank's call returned (JSON)."""
    port = free_port()
    processes = []
    for rank in range(world_size):
        environment = {
            **os.environ,
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY),
        }  # fmt: skip
        output = tmp_path / f"rank{rank}.json"
        output.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.ranks", function, str(output), json.dumps(arguments)]
        log = open(tmp_path / f"rank{rank}.log", "w")  # noqa: SIM115
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=REPOSITORY))
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


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[3]))
    Path(sys.argv[2]).write_text(json.dumps(result))
    from minigptv2.engine import distributed

    distributed.barrier()  # a rank that leaves while another still talks to it ends both
    distributed.stop_process_group()
