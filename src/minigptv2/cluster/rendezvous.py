"""Ports to meet at. The system gives every outgoing connection a port of its range of ephemeral ones."""

from __future__ import annotations

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10_000
"""Below it many services listen."""


def free_port(ephemeral: Path = EPHEMERAL) -> int:
    """A port that nobody listens at on this machine, below the ephemeral ones where there is room.

    An ephemeral port that is free now may be somebody's outgoing connection by the time the ranks meet: the first rank
    cannot listen there then, and the others wait for it, or talk to whoever has it.
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
