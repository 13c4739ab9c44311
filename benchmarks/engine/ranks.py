"""Runs a benchmark's function in several gloo processes on this machine and collects the results."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


def on_ranks(function: str, ranks: int, **arguments: Any) -> list[Any]:
    """Call `module:name` with keyword `arguments` in each of `ranks` processes. Returns the results (JSON) by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'src'}",
                "PYTHONWARNINGS": "ignore",
            }
            output = Path(folder) / f"{rank}.json"
            command = [sys.executable, "-m", "benchmarks.engine.ranks", function, str(output), json.dumps(arguments)]
            log = open(Path(folder) / f"{rank}.log", "w")  # noqa: SIM115
            processes.append(
                subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
            )
        codes = [process.wait() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                raise RuntimeError(f"rank {rank}: {(Path(folder) / f'{rank}.log').read_text()[-3000:]}")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def _main() -> None:
    module, name = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[3]))
    Path(sys.argv[2]).write_text(json.dumps(result))
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # when the interpreter exits, a torch thread was seen to abort about one rank in twelve


if __name__ == "__main__":
    _main()
