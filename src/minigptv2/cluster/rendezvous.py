"""Determines where ranks meet: a free port, and rank, world size and address of tasks that `srun` started.

Imports no torch and starts nothing.
"""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from minigptv2.errors import ConfigError

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10_000
"""Many services listen on ports below it."""
_STEP_PORTS = range(20000, 32000)
"""Below Linux's range of ephemeral ports (32768 and up) and above the ports of most services."""


def free_port(ephemeral: Path = EPHEMERAL) -> int:
    """A port on which no process of this machine listens, below the ephemeral range if possible.

    The system gives ephemeral ports to outgoing connections. One that is free now may be in use when the ranks meet.
    Then the first rank cannot listen on it, and the others wait for it or connect to the wrong process.
    """
    first_ephemeral = int(ephemeral.read_text().split()[0]) if ephemeral.is_file() else 0
    candidates = range(_FIRST, first_ephemeral)
    for port in (*random.SystemRandom().sample(candidates, min(100, len(candidates))), 0):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no port is free")


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a task that `srun` started.

    Empty if another launcher has set RANK, and in a batch script, which has SLURM_PROCID but is no task of a step.
    Raises `ConfigError` for an invalid node list.
    """
    if "RANK" in environment or "SLURM_PROCID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return {}
    first = expand_hosts(environment["SLURM_STEP_NODELIST"])[0]
    job = int(environment["SLURM_JOB_ID"]) * 31 + int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": environment.get("MASTER_ADDR", first),
        "MASTER_PORT": environment.get("MASTER_PORT", str(_STEP_PORTS[job % len(_STEP_PORTS)])),
    }


def expand_hosts(text: str) -> list[str]:
    """The names in Slurm's compressed node list, such as `node[1-3,07],gpu1`, in order and with leading zeros.

    Raises `ConfigError` if the text is not such a list.
    """
    names: list[str] = []
    for part in re.findall(r"[^,\[\]]+(?:\[[^\]]*\][^,\[\]]*)*", text):
        expanded = [""]
        for literal, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            pieces = [literal] if literal else _numbers(ranges, text)
            expanded = [name + piece for name in expanded for piece in pieces]
        names += expanded
    if not names or re.search(r"[\[\]]", re.sub(r"\[[^\[\]]*\]", "", text)):
        raise ConfigError(f"'{text}' is not a list of nodes such as node[1-3],gpu7")
    return names


def _numbers(ranges: str, text: str) -> list[str]:
    found: list[str] = []
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ConfigError(f"'{text}' is not a list of nodes such as node[1-3],gpu7")
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return found
