"""Parses messages of `srun` and output of `scontrol` for nodes that failed. Starts no process."""

from __future__ import annotations

import re
from datetime import datetime

from minigptv2.cluster.rendezvous import expand_hosts

_NODE_FAILURE = re.compile(r"Node failure on (\S+)")
_KILLED_TASK = re.compile(
    r"error: (\S+): tasks? [\d,\-]+: (?:Killed|Segmentation fault|Bus error|Aborted|Illegal instruction)"
)
_BROKEN_STATES = ("DOWN", "FAIL", "NOT_RESPONDING", "*")


def nodes_lost_by_srun(messages: str) -> list[str]:
    """The nodes that `srun` reports as failed."""
    lost = [name for hosts in _NODE_FAILURE.findall(messages) for name in expand_hosts(hosts.rstrip(".,"))]
    return sorted(set(lost))


def nodes_blamed_by_srun(messages: str) -> list[str]:
    """The nodes that `srun` names as the cause in its error messages.

    These are the nodes it lost, otherwise the first node with a task that died of a signal nobody sends on purpose. A
    node whose tasks ended with an exit code is not blamed.
    """
    lost = nodes_lost_by_srun(messages)
    if lost:
        return lost
    killed = _KILLED_TASK.search(messages)
    return expand_hosts(killed.group(1)) if killed else []


def nodes_that_failed(description: str, since: float) -> list[str]:
    """Nodes in the output of `scontrol show node --oneliner` that are down, or whose daemon restarted after `since`.

    `since` is a Unix time. The times in the description are local.
    """
    failed = []
    for line in description.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        if "NodeName" not in fields:
            continue
        try:
            started = datetime.fromisoformat(fields.get("SlurmdStartTime", "")).timestamp()
        except ValueError:  # "None" or "Unknown" for a node that has never answered
            started = 0.0
        if any(word in fields.get("State", "") for word in _BROKEN_STATES) or started > since:
            failed.append(fields["NodeName"])
    return failed
