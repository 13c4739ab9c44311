"""What Slurm says in its environment and its messages, as plain values. Knows no torch and starts nothing.

`srun` starts one process per task and says who is who in SLURM_* variables; `rank_environment` puts that into the names
that torch and DeepSpeed read, so that plain `srun launch/train.py` is a launcher like the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from minigptv2.errors import ConfigError

_PORTS = range(20000, 32000)
"""Below Linux's range for outgoing connections (32768 and up), above what services use."""
_NODE_FAILURE = re.compile(r"Node failure on (\S+)")
_KILLED_TASK = re.compile(
    r"error: (\S+): tasks? [\d,\-]+: (?:Killed|Segmentation fault|Bus error|Aborted|Illegal instruction)"
)
_LOST_RANK = re.compile(r"\[rank \d+ \(([^,()]+), pid \d+\)\] (?:RankError|HangError)\b")
_BROKEN_STATES = ("DOWN", "FAIL", "NOT_RESPONDING", "*")


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a task that `srun` started; empty for others.

    Empty, too, where a launcher has set RANK already, and in a batch script: it has SLURM_PROCID but is no task of a
    step. Raises `ConfigError` for a node list it cannot read.
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
        "MASTER_PORT": environment.get("MASTER_PORT", str(_PORTS[job % len(_PORTS)])),
    }


def expand_hosts(text: str) -> list[str]:
    """`node[1-3,07],gpu1` as a list of names, in order: Slurm's short form, with leading zeros kept."""
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


def nodes_lost_by_srun(messages: str) -> list[str]:
    """The nodes that `srun` says have failed."""
    lost = [name for hosts in _NODE_FAILURE.findall(messages) for name in expand_hosts(hosts.rstrip(".,"))]
    return sorted(set(lost))


def nodes_blamed_by_srun(messages: str) -> list[str]:
    """The nodes that `srun` names as the cause in its error messages: those it lost, else the first whose task died
    of a signal that nobody sends on purpose. A node whose tasks ended with an exit code is not to blame."""
    lost = nodes_lost_by_srun(messages)
    if lost:
        return lost
    killed = _KILLED_TASK.search(messages)
    return expand_hosts(killed.group(1)) if killed else []


def nodes_blamed_by_ranks(message: str) -> list[str]:
    """The node in the watchdog's line about a rank that fell silent or hangs; empty for any other line."""
    found = _LOST_RANK.search(message)
    return [found.group(1)] if found else []


def nodes_that_failed(description: str, since: float) -> list[str]:
    """Names from the output of `scontrol show node --oneliner`: nodes that are down, or whose daemon has started anew
    since `since` (Unix time; the description's times are local)."""
    failed = []
    for line in description.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        if "NodeName" not in fields:
            continue
        try:
            started = datetime.fromisoformat(fields.get("SlurmdStartTime", "")).timestamp()
        except ValueError:  # "None" or "Unknown" of a node that has never answered
            started = 0.0
        if any(word in fields.get("State", "") for word in _BROKEN_STATES) or started > since:
            failed.append(fields["NodeName"])
    return failed
