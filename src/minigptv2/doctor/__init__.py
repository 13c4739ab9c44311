"""`minigptv2 doctor`: finds what would make a run fail or run slowly on this machine, and says how to fix it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigptv2.doctor.finding import Finding
    from minigptv2.run_config import RunConfig


def examine(config: RunConfig | None, *, world_size: int | None = None) -> list[Finding]:
    """Findings about this machine and, with a config, about its run, in the order in which failures would occur.

    `world_size` is the number of ranks of the run. The default is one for each GPU.
    """
    import torch

    from minigptv2.doctor import machine
    from minigptv2.doctor import settings as run

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nodes = int(os.environ.get("SLURM_NNODES", "1") or 1)
    workers = config.data.num_workers if config else 0
    findings = [
        *machine.check_versions(),
        *machine.check_gpus(),
        *machine.check_limits(),
        *machine.check_network(os.environ, nodes=nodes),
        *machine.check_slurm(os.environ, gpus=gpus, num_workers=workers),
    ]
    if config is None:
        return findings
    world_size = world_size or max(1, gpus * nodes)
    memory = float(torch.cuda.get_device_properties(0).total_memory) if gpus else None
    settings = run.check_config(config, world_size)
    findings += settings
    if settings[0].level == "ok":
        findings += run.check_memory(config, world_size, memory)
    return findings + run.check_disk(config) + run.check_recipe(config) + run.check_weights(config)
